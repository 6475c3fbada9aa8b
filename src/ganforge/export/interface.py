"""What a generator on its own takes and makes: enough to feed it without the run that it comes from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ganforge.data.conditions import attribute_vectors, class_labels
from ganforge.experiment.load import load_data
from ganforge.experiment.trust import validate_untrusted
from ganforge.latents import Latent, Levels
from ganforge.models.gan import GAN
from ganforge.runtime.errors import UserError
from ganforge.runtime.text import join_names


class Input(NamedTuple):
    """A tensor that a generator takes. Letters in `shape` are sizes that are free, N being the same for all inputs."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    values: str


@dataclass
class Interface:
    """The latents by their names, and one of `classes`, `attributes` and `channels` (of an image) or none of them.

    `latents` and `generator` are configs of what is to be made. `labels` says what the classes are, `names` what they
    are called where they have names. The generator pads images to a `multiple` of pixels a side. Those of more than
    `tile` pixels are to be made in tiles with a `margin`.
    """

    generator: dict[str, Any]
    latents: dict[str, dict[str, Any]]
    output: str
    classes: int | None = None
    labels: str = ""
    attributes: list[str] | None = None
    channels: int | None = None
    multiple: int = 1
    tile: int | None = None
    margin: int = 0
    names: list[str] | None = None

    def __post_init__(self) -> None:
        for texts in (self.names, self.attributes):
            if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
                raise ValueError("names and attributes are lists of texts")
        if self.names is not None and len(self.names) != self.classes:
            raise ValueError(f"{len(self.names)} names for {self.classes} classes")

    @cached_property
    def latent(self) -> Latent | None:
        """Raises UserError where a stranger's file asks for something else."""
        made = [instantiate(config) for config in validate_untrusted(OmegaConf.create(self.latents)).values()]
        if not all(isinstance(latent, Latent) for latent in made):
            raise UserError("The latents in this file are not classes of ganforge.latents")
        return Levels(made) if len(made) > 1 else made[0] if made else None

    @cached_property
    def inputs(self) -> list[Input]:
        """The tensors that the generator takes, in their order."""
        latents = self.latent.levels if isinstance(self.latent, Levels) else [self.latent] if self.latent else []
        found = [
            Input(name, ("N", latent.size), "float32", latent.values)
            for name, latent in zip(self.latents, latents, strict=True)
        ]
        if self.classes:
            meaning = f": {self.labels}" if self.labels else ""
            found.append(Input("label", ("N",), "int64", f"0 to {self.classes - 1}{meaning}"))
        elif self.attributes:
            shape = ("N", len(self.attributes))
            found.append(Input("attributes", shape, "float32", f"0 or 1 for each of {', '.join(self.attributes)}"))
        elif self.channels:
            found.append(Input("image", ("N", self.channels, "H", "W"), "float32", "in [-1, 1]"))
        return found

    def conditions(self, labels: Sequence[Any] | None) -> Tensor | None:
        """What labels stand for; null for those that previews show. Raises UserError."""
        if self.attributes:
            return attribute_vectors(labels, self.attributes)
        if self.classes:
            return class_labels(labels, self.classes, self.names or ())
        if labels is not None:
            raise UserError("labels: this model was trained without labels, leave them out")
        return None

    def examples(self, count: int, height: int, width: int, seed: int) -> list[Tensor]:
        """Random inputs, of which images have this size beyond `multiple`: a map of one pixel is a special case."""
        place = torch.Generator().manual_seed(seed)
        latent = () if self.latent is None else self.latent(count, place)
        found = list(latent) if isinstance(latent, tuple) else [latent]
        if self.classes:
            found.append(torch.randint(self.classes, (count,), generator=place))
        elif self.attributes:
            found.append(torch.randint(2, (count, len(self.attributes)), generator=place).float())
        elif self.channels:
            size = (height + self.multiple, width + self.multiple)
            found.append(torch.rand(count, self.channels, *size, generator=place).mul(2).sub(1))
        return found

    def text(self) -> str:
        return json.dumps(asdict(self))


def read_interface(text: str | None, path: Any) -> Interface:
    """The interface in a file's metadata. Raises UserError where there is none."""
    try:
        return Interface(**json.loads(text or ""))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} was not written by export.py of this version") from error


def interface_of(model: GAN, record: DictConfig) -> Interface:
    """The interface of a run's generator."""
    latent = model.latent
    if isinstance(latent, Levels):
        latents = {f"latent_{size}": level for size, level in zip(model.sizes, latent.levels, strict=True)}  # type: ignore[arg-type]
    else:
        latents = {"latent": latent} if latent else {}
    interface = Interface(
        generator=OmegaConf.to_container(record.model.generator, resolve=True),  # type: ignore[arg-type]
        latents={name: _config(level) for name, level in latents.items()},
        output="points" if len(record.data.shape) == 1 else "images",
    )
    if model.from_images:
        interface.channels = model.generator.in_channels  # type: ignore[assignment]
        interface.multiple = getattr(model.generator, "multiple", 1)
        interface.tile, interface.margin = getattr(model, "tile", None), getattr(model, "margin", 0)
    elif model.condition_size is not None:
        data = load_data(record)
        if data.conditions().ndim > 1:
            interface.attributes = list(data.attributes)
        else:
            interface.classes, interface.labels = data.num_classes, data.labels
        if data.classes:
            interface.names = list(data.classes)
            interface.labels = join_names([f"{i} {name}" for i, name in enumerate(interface.names)])
        if (interface.classes or len(interface.attributes or ())) != model.condition_size:
            raise UserError(
                f"This model was trained with {model.condition_size} labels, but its record describes others"
            )
    return interface


def _config(latent: Latent) -> dict[str, Any]:
    return {"_target_": f"{type(latent).__module__}.{type(latent).__qualname__}", "size": latent.size}


class ExportModule(nn.Module):
    """A generator that takes its `latents` and its condition, if any, one by one."""

    def __init__(self, generator: nn.Module, latents: int):
        super().__init__()
        self.generator = generator
        self.latents = latents

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.generator(*split(inputs, self.latents))


def split(inputs: Sequence[Tensor], latents: int) -> tuple[Any, Tensor | None]:
    """The latent, a tuple where there are several, and the condition, either None where there is none."""
    first, rest = tuple(inputs[:latents]), inputs[latents:]
    return (first if latents > 1 else first[0] if first else None), (rest[0] if rest else None)


def conditions_of(model: GAN, config: DictConfig, labels: Sequence[Any] | None) -> Tensor | None:
    """What labels stand for in the data of a run, null for those that its previews show; None if it knows none."""
    if model.condition_size is None:
        return None
    return interface_of(model, config).conditions(None if labels is None else list(labels))
