"""The Fréchet distance at the coarser levels of a pyramid, each of which a LAPGAN learns by itself."""

from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchmetrics.image.fid import FrechetInceptionDistance

from ganforge.metrics.extractors import Extractor, frozen


class _Coarse(nn.Module):
    """Features of images that were made smaller and large again."""

    def __init__(self, size: int, extractor: Extractor):
        super().__init__()
        self.size = size
        self.extractor = frozen(extractor)

    def forward(self, images: Tensor) -> Tensor:
        small = interpolate(images.float(), (self.size, self.size), mode="bilinear", antialias=True)
        return self.extractor(interpolate(small, images.shape[-2:], mode="bilinear")).features


class LevelDistance(FrechetInceptionDistance):
    """FID of images at `size` pixels, enlarged again for the extractor: finer detail does not count."""

    def __init__(self, size: int, extractor: Extractor):
        super().__init__(feature=_Coarse(size, extractor))
