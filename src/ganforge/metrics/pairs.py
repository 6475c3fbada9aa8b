"""Numbers for images that have a right answer: super-resolution, colourising, denoising."""

import logging
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from ganforge.data.base import to_unit_range
from ganforge.metrics.extractors import as_rgb
from ganforge.runtime.devices import rank
from ganforge.runtime.downloads import weights_file
from ganforge.runtime.errors import UserError

log = logging.getLogger(__name__)

LUMA = (65.481, 128.553, 24.966)
"""ITU-R BT.601 with 16 to 235, as MATLAB's rgb2ycbcr."""


class PairMetric:
    """Called on uint8 images (N, C, H, W), made ones and right ones; returns a number for each (N,).

    `border` pixels at each side are left out; null: as many as the scale, where images are enlarged.
    """

    higher_is_better: ClassVar[bool] = True
    is_available = True

    def __init__(self, border: int | None = None):
        if border is not None and border < 0:
            raise ValueError(f"border={border}: must not be negative")
        self.border = border

    def __call__(self, fake: Tensor, real: Tensor, scale: int = 1) -> Tensor:
        border = self.border if self.border is not None else scale if scale > 1 else 0
        inside = slice(border, -border or None)
        return self.compare(fake[..., inside, inside], real[..., inside, inside])

    def compare(self, fake: Tensor, real: Tensor) -> Tensor:
        raise NotImplementedError


class Fidelity(PairMetric):
    """A comparison of pixels, on the luma of the images (`space="y"`, rounded, as published for super-resolution), or
    on all channels (`space="rgb"`)."""

    def __init__(self, space: str, border: int | None = None):
        super().__init__(border)
        if space not in ("y", "rgb"):
            raise ValueError(f"space={space}: must be y or rgb")
        self.space = space

    def __call__(self, fake: Tensor, real: Tensor, scale: int = 1) -> Tensor:
        if self.space == "y":
            fake, real = luma(fake), luma(real)
        return super().__call__(fake.double(), real.double(), scale)


class PSNR(Fidelity):
    """Peak signal-to-noise ratio in dB, with a peak of 255; infinite for equal images."""

    def compare(self, fake: Tensor, real: Tensor) -> Tensor:
        return peak_signal_noise_ratio(fake, real, data_range=255.0, reduction="none", dim=(1, 2, 3))


class SSIM(Fidelity):
    """Structural similarity (Wang et al., 2004): 11 x 11 windows with a standard deviation of 1.5, only where they lie
    within the image, as the authors' own code."""

    def compare(self, fake: Tensor, real: Tensor) -> Tensor:
        if min(real.shape[-2:]) < 11:
            raise UserError(f"ssim: images of {tuple(real.shape[-2:])} pixels are smaller than its 11 x 11 windows")
        _, image = structural_similarity_index_measure(
            fake, real, data_range=255.0, reduction="none", return_full_image=True
        )
        return image[..., 5:-5, 5:-5].mean((1, 2, 3))


class LPIPS(PairMetric):
    """Learned perceptual similarity, version 0.1 with AlexNet (Zhang et al., 2018).

    The heads come with torchmetrics. `weights` is a file with AlexNet's convolutions, or all of AlexNet, from
    torchvision; without it torchvision's is fetched, and where that cannot be had the number is left out.
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
        try:  # torchmetrics calls a layer slice2.3 that torchvision calls 3
            network.net.load_state_dict({name: state[name.partition(".")[2]] for name in network.net.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise UserError(f"metrics.paired.lpips.weights={file} does not hold AlexNet's convolutions") from error
        return network

    def compare(self, fake: Tensor, real: Tensor) -> Tensor:
        assert self.network is not None
        network = self.network.to(fake.device)
        return network(*(to_unit_range(as_rgb(images)) for images in (fake, real))).flatten()


def luma(images: Tensor) -> Tensor:
    """uint8 (N, 1 or 3, H, W) to (N, 1, H, W), rounded; grey images are taken as they are."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(LUMA, dtype=torch.float64, device=images.device).view(3, 1, 1) / 255
    return ((images * weights).sum(1, keepdim=True) + 16).round()
