"""Load a trained generator from a run folder or an exported file, and call it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganforge.experiment.load import load_run
from ganforge.experiment.validate import check_seed
from ganforge.export.formats import FORMATS, Network, check_installed
from ganforge.export.interface import ExportModule, Input, Interface, interface_of
from ganforge.models.sampler import Sampler
from ganforge.models.tiling import in_tiles
from ganforge.runtime.downloads import first_line
from ganforge.runtime.errors import UserError

Labels = Sequence[Any] | Tensor | np.ndarray | int | str | None


class TrainedGenerator(Sampler):
    """Called as `generator(16, seed=0)`, or as `generator(images)` if it is an image-to-image model; see `__call__`.

    For latents of your own: `network(*tensors)` takes what `inputs` describes.
    """

    def __init__(self, network: Network, interface: Interface):
        self.network = network
        self.interface = interface
        self.latent = interface.latent

    @property
    def inputs(self) -> list[Input]:
        return self.interface.inputs

    def __call__(self, source: int | Tensor, seed: int = 0, labels: Labels = None) -> Tensor:
        """Images (N, C, H, W) in [-1, 1], or points (N, 2).

        source: the number N of samples, the first of the seed's, as `sample.py` draws them; or, for image-to-image
            models, images (N, C, h, w) in [-1, 1]
        labels: such as [3, 7] or ["Smiling+Male"]; samples form a grid with a row per label, a latent per column

        Raises UserError.
        """
        if isinstance(labels, Tensor | np.ndarray):
            labels = labels.tolist()
        conditions = self.interface.conditions([labels] if isinstance(labels, int | str) else labels)
        samples = self._translate(source) if self.interface.channels else self._generate(source, seed, conditions)
        return samples.clamp(-1, 1) if self.interface.output == "images" else samples

    def _generate(self, count: Any, seed: int, conditions: Tensor | None) -> Tensor:
        if type(count) is not int or count < 1:
            raise UserError("This generator draws samples from noise: call it with a count, such as generator(16)")
        check_seed(seed)
        return self.samples(count, seed, conditions)[:count]

    def _translate(self, images: Any) -> Tensor:
        channels = self.interface.channels
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != channels:
            raise UserError(
                f"This is an image-to-image generator: call it with a tensor (N, {channels}, h, w) in [-1, 1]"
            )
        if not images.is_floating_point():
            raise UserError(f"These images are {images.dtype}: call it with floats in [-1, 1]")
        return self.sample(None, images.float())

    @torch.no_grad()
    def sample(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        if self.interface.tile is not None and condition is not None:
            return in_tiles(self.network, condition, self.interface.tile, self.interface.margin)
        latents = latent if isinstance(latent, tuple) else () if latent is None else (latent,)
        return self.network(*latents, *(() if condition is None else (condition,)))


def load_generator(path: str | Path) -> TrainedGenerator:
    """See `ganforge.load_generator`."""
    path = Path(path).expanduser()
    if path.is_dir():
        record, model, *_ = load_run(path)
        interface = interface_of(model, record)
        return TrainedGenerator(ExportModule(model.sampling_generator, len(interface.latents)).eval(), interface)
    formats = {entry.suffix: entry for entry in FORMATS.values()}
    if not path.is_file() or path.suffix not in formats:
        raise UserError(f"{path} is neither a run folder nor a file that ends in {', '.join(formats)}")
    check_installed(str(path), formats[path.suffix].reads_with)
    try:
        return TrainedGenerator(*formats[path.suffix].read(path))
    except UserError:
        raise
    except Exception as error:  # each library raises its own
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
