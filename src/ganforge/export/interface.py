"""The inputs and output of a generator: all that is needed to call it without its run."""

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
    """A tensor that a generator takes. Letters in `shape` stand for free sizes; N is the same for all inputs."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    values: str


@dataclass
class Interface:
    """A generator's config, the configs of its latents by input name, and its condition, if it has one.

    At most one of `classes` (a number), `attributes` (names) and `channels` (of an image) is set. `labels` describes
    the classes, `names` lists their names if they have any. The generator pads the sides of images to a `multiple` of
    pixels. Images with a side above `tile` pixels are generated in tiles that overlap by a `margin`.
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
                raise ValueError("names and attributes must be lists of strings")
        if self.names is not None and len(self.names) != self.classes:
            raise ValueError(f"{len(self.names)} names for {self.classes} classes")

    @cached_property
    def latent(self) -> Latent | None:
        """All latents as one. Raises UserError if they are not of ganforge.latents, as in an untrusted file."""
        latents = [instantiate(config) for config in validate_untrusted(OmegaConf.create(self.latents)).values()]
        if not all(isinstance(latent, Latent) for latent in latents):
            raise UserError("This file's latents are not classes of ganforge.latents")
        return Levels(latents) if len(latents) > 1 else latents[0] if latents else None

    @cached_property
    def inputs(self) -> list[Input]:
        """The generator's inputs, in positional order."""
        latents = self.latent.levels if isinstance(self.latent, Levels) else [self.latent] if self.latent else []
        entries = [
            Input(name, ("N", latent.size), "float32", latent.values)
            for name, latent in zip(self.latents, latents, strict=True)
        ]
        if self.classes:
            meaning = f": {self.labels}" if self.labels else ""
            entries.append(Input("label", ("N",), "int64", f"0 to {self.classes - 1}{meaning}"))
        elif self.attributes:
            shape = ("N", len(self.attributes))
            entries.append(Input("attributes", shape, "float32", f"0 or 1 for each of {', '.join(self.attributes)}"))
        elif self.channels:
            entries.append(Input("image", ("N", self.channels, "H", "W"), "float32", "in [-1, 1]"))
        return entries

    def conditions(self, labels: Sequence[Any] | None) -> Tensor | None:
        """The condition of each label; without labels, the conditions that previews show. Raises UserError."""
        if self.attributes:
            return attribute_vectors(labels, self.attributes)
        if self.classes:
            return class_labels(labels, self.classes, self.names or ())
        if labels is not None:
            raise UserError("labels=: this model is not conditioned on labels. Leave it out")
        return None

    def examples(self, count: int, height: int, width: int, seed: int) -> list[Tensor]:
        """Random inputs. Images are `multiple` pixels larger than asked, so that no feature map has a single pixel."""
        rng = torch.Generator().manual_seed(seed)
        latent = () if self.latent is None else self.latent(count, rng)
        tensors = list(latent) if isinstance(latent, tuple) else [latent]
        if self.classes:
            tensors.append(torch.randint(self.classes, (count,), generator=rng))
        elif self.attributes:
            tensors.append(torch.randint(2, (count, len(self.attributes)), generator=rng).float())
        elif self.channels:
            size = (height + self.multiple, width + self.multiple)
            tensors.append(torch.rand(count, self.channels, *size, generator=rng).mul(2).sub(1))
        return tensors

    def text(self) -> str:
        return json.dumps(asdict(self))


def read_interface(text: str | None, path: Any) -> Interface:
    """Parse the interface in a file's metadata. Raises UserError if it is missing or malformed."""
    try:
        return Interface(**json.loads(text or ""))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} was not written by this version of export.py: export it again") from error


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
        _add_condition(interface, load_data(record), model.condition_size)
    return interface


def _add_condition(interface: Interface, data: Any, size: int) -> None:
    """Describe the classes or attributes of the data. Raises UserError if the model has another number of them."""
    if data.conditions().ndim > 1:
        interface.attributes = list(data.attributes)
    else:
        interface.classes, interface.labels = data.num_classes, data.labels
    if data.classes:
        interface.names = list(data.classes)
        interface.labels = join_names([f"{i} {name}" for i, name in enumerate(interface.names)])
    found = interface.classes or len(interface.attributes or ())
    if found != size:
        raise UserError(f"This model has {size} labels, but its data {found}: its config does not match its checkpoint")


def _config(latent: Latent) -> dict[str, Any]:
    return {"_target_": f"{type(latent).__module__}.{type(latent).__qualname__}", "size": latent.size}


class ExportModule(nn.Module):
    """A generator with positional inputs: its latents, as many as `latents`, then its condition if it has one."""

    def __init__(self, generator: nn.Module, latents: int):
        super().__init__()
        self.generator = generator
        self.latents = latents

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.generator(*split_inputs(inputs, self.latents))


def split_inputs(inputs: Sequence[Tensor], latents: int) -> tuple[Any, Tensor | None]:
    """The latent (a tuple if there are several, None if there is none) and the condition or None."""
    first, rest = tuple(inputs[:latents]), inputs[latents:]
    return (first if latents > 1 else first[0] if first else None), (rest[0] if rest else None)
