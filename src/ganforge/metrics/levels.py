"""The Fréchet distance of images made as small as the coarser levels of a pyramid."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import interpolate

from ganforge.data.base import TensorData
from ganforge.metrics.extractors import Extractor
from ganforge.metrics.features import FrechetDistance
from ganforge.metrics.statistics import Features
from ganforge.networks.lapgan import levels_of
from ganforge.runtime.errors import UserError


class Coarse(Extractor):
    """An extractor that sees images of `size` pixels, enlarged again: finer detail does not count."""

    def __init__(self, extractor: Extractor, size: int):
        super().__init__()
        self.extractor = extractor
        self.name = extractor.name
        self.size = size
        self.resize = f"{size} x {size} and as before, bilinear, antialiased, then {extractor.resize}"

    def forward(self, samples: Tensor) -> Features:
        small = interpolate(samples.float(), (self.size, self.size), mode="bilinear", antialias=True)
        return self.extractor(interpolate(small, samples.shape[-2:], mode="bilinear").round().byte())

    @property
    def digest(self) -> str:
        return self.extractor.digest


class LevelDistance(FrechetDistance):
    """FID at each of the coarser `sizes`; null: those of a LAPGAN unless told otherwise."""

    scores: ClassVar = {"level_fid": False}

    def __init__(self, sizes: Sequence[int] | None = None):
        self.levels = sizes

    def sizes(self, data: TensorData) -> list[int | None]:
        try:
            return [*levels_of(data.shape[-1], self.levels)[:-1]]
        except ValueError as error:
            raise UserError(f"level_fid: {error}") from error
