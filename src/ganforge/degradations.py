"""Degradations, which image-to-image models learn to undo: super-resolution, colourization, denoising.

To add one: a class here and a one-line file in `conf/degradation/`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import gaussian_blur

from ganforge.runtime.pixels import to_uint8, to_unit_range

Noise = Callable[[Sequence[int]], Tensor]
"""Maps a shape to standard normal noise."""


class Degradation:
    """Maps images (N, C, H, W) in [-1, 1] to low-quality images (N, c, H / scale, W / scale), rounded to 8 bits.

    The rounding makes them equal to images from a file. A subclass implements `degrade`.
    """

    scale = 1
    needs_colours = False
    """Whether the images must have three channels."""

    def __call__(self, real: Tensor, noise: Noise) -> Tensor:
        return to_unit_range(to_uint8(self.degrade(real, noise))).to(real.dtype)

    def degrade(self, real: Tensor, noise: Noise) -> Tensor:
        """The low-quality images before rounding."""
        raise NotImplementedError

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class Bicubic(Degradation):
    """Downscaling by `scale`: bicubic with antialiasing, like MATLAB's imresize."""

    def __init__(self, scale: int):
        if scale < 1:
            raise ValueError(f"scale={scale}: must be a whole number from 1")
        self.scale = scale

    def degrade(self, real: Tensor, noise: Noise) -> Tensor:
        height, width = real.shape[-2:]
        return interpolate(real, (height // self.scale, width // self.scale), mode="bicubic", antialias=True)


class BlurBicubic(Bicubic):
    """Gaussian blur with a standard deviation of `sigma` pixels, then downscaling by `scale`."""

    def __init__(self, scale: int, sigma: float):
        super().__init__(scale)
        if sigma <= 0:
            raise ValueError(f"sigma={sigma}: must be above 0")
        self.sigma = sigma

    def degrade(self, real: Tensor, noise: Noise) -> Tensor:
        kernel_size = 2 * round(3 * self.sigma) + 1
        return super().degrade(gaussian_blur(real, [kernel_size] * 2, [self.sigma] * 2), noise)


class Grayscale(Degradation):
    """Luma (ITU-R BT.601) of RGB images, in 1 channel or repeated in 3."""

    needs_colours = True

    def __init__(self, channels: int = 1):
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: must be 1 or 3")
        self.channels = channels

    def degrade(self, real: Tensor, noise: Noise) -> Tensor:
        weights = torch.tensor([0.299, 0.587, 0.114], device=real.device, dtype=real.dtype)
        luma = (real * weights.view(3, 1, 1)).sum(1, keepdim=True)
        return luma.expand(-1, self.channels, -1, -1)


class GaussianNoise(Degradation):
    """Gaussian noise with a standard deviation of `sigma`, on a scale of 0 to 255."""

    def __init__(self, sigma: float):
        if sigma < 0:
            raise ValueError(f"sigma={sigma}: must not be negative")
        self.sigma = sigma

    def degrade(self, real: Tensor, noise: Noise) -> Tensor:
        return real + self.sigma / 127.5 * noise(real.shape).to(real)
