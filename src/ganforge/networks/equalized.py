"""Layers with an equalized learning rate (Karras et al., 2018), and the low-pass filter of StyleGAN2's resampling.

Weights are drawn from N(0, 1) and scaled in the forward pass, so that Adam moves all layers at the same relative rate.
The constant gain of an activation that follows belongs to the layer: scaling weights is cheaper than scaling maps.
"""

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, linear

GAIN = sqrt(2)
"""Keeps the variance of a layer's output through `activate`."""


def activate(maps: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, in place."""
    return leaky_relu(maps, 0.2, inplace=True)


class Linear(nn.Module):
    """(N, in_features) to (N, out_features). `rate` multiplies the learning rate; the bias starts at `bias`."""

    def __init__(self, in_features: int, out_features: int, bias: float = 0.0, rate: float = 1.0, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / rate)
        self.bias = nn.Parameter(torch.full((out_features,), bias / rate))
        self.weight_gain = gain * rate / sqrt(in_features)
        self.bias_gain = gain * rate

    def forward(self, features: Tensor) -> Tensor:
        return linear(features, self.weight * self.weight_gain, self.bias * self.bias_gain)


class Conv(nn.Module):
    """A convolution of maps (N, in_channels, H, W), by default of a padding that keeps their size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        gain: float = 1.0,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.stride = stride
        self.padding = kernel_size // 2 if padding is None else padding
        self.gain = gain
        self.weight_gain = gain / sqrt(in_channels * kernel_size**2)

    def forward(self, maps: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.gain
        return conv2d(maps, self.weight * self.weight_gain, bias, self.stride, self.padding)


class LowPass(nn.Module):
    """The filter [1, 3, 3, 1] along both sides, by which maps are resampled without aliasing (Karras et al., 2020).

    A depthwise convolution, which in channels_last is faster than pooling. Maps grow by 2 * padding - 3 pixels.
    """

    kernel: Tensor

    def __init__(self, padding: int, stride: int = 1, gain: float = 1.0):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", gain * torch.outer(taps, taps)[None, None], persistent=False)
        self.padding = padding
        self.stride = stride

    def forward(self, maps: Tensor) -> Tensor:
        channels = maps.shape[1]
        kernel = self.kernel.to(maps.dtype).expand(channels, 1, 4, 4)
        return conv2d(maps, kernel, None, self.stride, self.padding, groups=channels)
