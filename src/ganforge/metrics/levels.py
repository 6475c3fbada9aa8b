"""The Fréchet distance of images downsampled to the coarser levels of a Laplacian pyramid."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import interpolate

from ganforge.data.base import TensorData
from ganforge.metrics.extractors import Extractor
from ganforge.metrics.features import FrechetDistance
from ganforge.metrics.statistics import Features
from ganforge.networks.lapgan import level_sizes
from ganforge.runtime.errors import UserError


class Downsampled(Extractor):
    """Features of images downsampled to `size` pixels and enlarged again, so that finer detail does not count."""

    def __init__(self, extractor: Extractor, size: int):
        super().__init__()
        self.extractor = extractor
        self.name = extractor.name
        self.size = size
        self.resize = f"{size} x {size} and back, bilinear, antialiased, then {extractor.resize}"

    def forward(self, samples: Tensor) -> Features:
        small = interpolate(samples.float(), (self.size, self.size), mode="bilinear", antialias=True)
        return self.extractor(interpolate(small, samples.shape[-2:], mode="bilinear").round().byte())

    @property
    def digest(self) -> str:
        return self.extractor.digest


class LevelDistance(FrechetDistance):
    """FID at each of the coarser `sizes`; None takes LAPGAN's default levels. The last size is the full one."""

    scores: ClassVar = {"level_fid": False}

    def __init__(self, sizes: Sequence[int] | None = None):
        self.levels = sizes

    def sizes(self, data: TensorData) -> list[int | None]:
        try:
            return [*level_sizes(data.shape[-1], self.levels)[:-1]]
        except ValueError as error:
            raise UserError(f"level_fid: {error}") from error
