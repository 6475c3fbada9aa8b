"""Full-reference metrics, for super-resolution, colourization and denoising."""

import logging
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ganforge.metrics.extractors import as_rgb
from ganforge.runtime.devices import rank
from ganforge.runtime.downloads import weights_file
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_unit_range

log = logging.getLogger(__name__)

LUMA = (65.481, 128.553, 24.966)
"""Weights of R, G and B in luma: ITU-R BT.601 with a range of 16 to 235, as in MATLAB's rgb2ycbcr."""


class PairMetric:
    """Maps generated and real uint8 images (N, C, H, W) to a score for each (N,).

    `border` pixels on each side are ignored; None ignores `scale` pixels for enlarged images, and none otherwise.
    """

    higher_is_better: ClassVar[bool] = True
    is_available = True
    """False if weights are missing: the metric is then left out."""

    def __init__(self, border: int | None = None):
        if border is not None and border < 0:
            raise ValueError(f"border={border}: must not be negative")
        self.border = border

    def __call__(self, fake: Tensor, real: Tensor, scale: int = 1) -> Tensor:
        border = self.border if self.border is not None else scale if scale > 1 else 0
        inside = slice(border, -border or None)
        return self.compare(fake[..., inside, inside], real[..., inside, inside])

    def compare(self, fake: Tensor, real: Tensor) -> Tensor:
        """The scores (N,) of images without their border."""
        raise NotImplementedError


class PixelMetric(PairMetric):
    """A comparison of pixels: of the rounded luma (`space="y"`), as published for super-resolution, or of all channels
    (`space="rgb"`)."""

    def __init__(self, space: str, border: int | None = None):
        super().__init__(border)
        if space not in ("y", "rgb"):
            raise ValueError(f"space={space}: must be y or rgb")
        self.space = space

    def __call__(self, fake: Tensor, real: Tensor, scale: int = 1) -> Tensor:
        if self.space == "y":
            fake, real = luma(fake), luma(real)
        return super().__call__(fake.double(), real.double(), scale)


class PSNR(PixelMetric):
    """Peak signal-to-noise ratio in dB, with a peak of 255; infinite for equal images."""

    def compare(self, fake: Tensor, real: Tensor) -> Tensor:
        return peak_signal_noise_ratio(fake, real, data_range=255.0, reduction="none", dim=(1, 2, 3))


class SSIM(PixelMetric):
    """Structural similarity (Wang et al., 2004): Gaussian windows of 11 x 11 pixels with a standard deviation of 1.5,
    without padding, as in the authors' code."""

    def compare(self, fake: Tensor, real: Tensor) -> Tensor:
        if min(real.shape[-2:]) < 11:
            raise UserError(f"ssim: images of {tuple(real.shape[-2:])} pixels are smaller than its 11 x 11 windows")
        _, image = structural_similarity_index_measure(
            fake, real, data_range=255.0, reduction="none", return_full_image=True
        )
        return image[..., 5:-5, 5:-5].mean((1, 2, 3))


class LPIPS(PairMetric):
    """Learned perceptual similarity, version 0.1 with AlexNet (Zhang et al., 2018).

    The linear heads come with torchmetrics. `weights` is torchvision's file of AlexNet, or of its convolutions alone;
    None downloads it, and leaves the metric out if that fails.
    """

    higher_is_better = False

    def __init__(self, weights: str | None = None, border: int | None = 0):
        super().__init__(border)
        self.weights = weights
        self.network = self._network()
        self.is_available = self.network is not None

    def _network(self) -> torch.nn.Module | None:
        from torchmetrics.functional.image.lpips import _LPIPS
        from torchvision.models import AlexNet_Weights

        try:
            file = weights_file(self.weights, AlexNet_Weights.DEFAULT.url, "metrics.paired.lpips.weights")
        except UserError as error:
            if self.weights:
                raise
            if rank() == 0:
                log.warning("lpips is left out. %s", error)
            return None
        state = torch.load(file, weights_only=True, map_location="cpu")
        state = {name.removeprefix("features."): value for name, value in state.items()}
        network = _LPIPS(net="alex", pnet_rand=True)
        try:  # torchmetrics prefixes torchvision's names: slice2.3 is 3
            network.net.load_state_dict({name: state[name.partition(".")[2]] for name in network.net.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise UserError(f"metrics.paired.lpips.weights={file} does not hold AlexNet's convolutions") from error
        return network

    def compare(self, fake: Tensor, real: Tensor) -> Tensor:
        assert self.network is not None
        network = self.network.to(fake.device)
        return network(*(to_unit_range(as_rgb(images)) for images in (fake, real))).flatten()


def luma(images: Tensor) -> Tensor:
    """Luma (N, 1, H, W), rounded, of RGB uint8 images (N, 3, H, W); grey images are returned unchanged."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(LUMA, dtype=torch.float64, device=images.device).view(3, 1, 1) / 255
    return ((images * weights).sum(1, keepdim=True) + 16).round()
