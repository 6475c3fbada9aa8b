"""Residual discriminator of StyleGAN2 (Karras et al., 2020): a file of its own, as other generators may use it."""

from math import sqrt

import torch
from torch import Tensor, nn

from ganforge.networks.equalized import GAIN, Conv, Linear, LowPass, activate
from ganforge.networks.layers import map_sizes
from ganforge.networks.stylegan2 import Mapping, channel_counts, in_float32


class MinibatchStd(nn.Module):
    """Adds a map with the standard deviation over a group of samples, the mean of all features (Karras et al., 2018).

    Groups have `group_size` samples, or as many as divide the batch: fewer if possible, else more. They consist of
    every n-th sample, so a logit depends on the order of the batch, and on its division among devices.
    """

    def __init__(self, group_size: int):
        super().__init__()
        if group_size < 2:
            raise ValueError(f"group_size={group_size}: a standard deviation needs at least 2 samples")
        self.group_size = group_size

    def forward(self, maps: Tensor) -> Tensor:
        count, _, *sides = maps.shape
        deviations = maps.unflatten(0, (self._group(count), -1)).var(0, correction=0).add(1e-8).sqrt()
        groups = deviations.mean((1, 2, 3)).repeat(self._group(count))
        return torch.cat([maps, groups[:, None, None, None].expand(-1, 1, *sides)], dim=1)

    def _group(self, count: int) -> int:
        divisors = (size for size in range(2, count + 1) if count % size == 0)
        return min(divisors, key=lambda size: (size > self.group_size, abs(size - self.group_size)), default=1)


class ResidualBlock(nn.Module):
    """Halves the side of maps by two convolutions, and adds the downsampled input; the sum has unit variance."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv(in_channels, in_channels, 3, gain=GAIN)
        self.low_pass = LowPass(padding=2)
        self.down = Conv(in_channels, out_channels, 3, stride=2, padding=0, gain=GAIN * sqrt(0.5))
        self.skip = nn.Sequential(
            LowPass(padding=1, stride=2), Conv(in_channels, out_channels, 1, bias=False, gain=sqrt(0.5))
        )

    def forward(self, maps: Tensor) -> Tensor:
        skip = self.skip(maps)
        maps = activate(self.conv(maps))
        return activate(self.down(self.low_pass(maps))) + skip


class Discriminator(nn.Module):
    """From images (N, channels, image_size, image_size), and conditions if `condition_size` is given, to logits (N,).

    With conditions, the logit is the inner product of the features and the mapped condition (Miyato and Koyama, 2018).
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        condition_size: int | None = None,
        width: int = 32,
        max_width: int = 512,
        mapping_layers: int = 2,
        std_group_size: int = 4,
    ):
        super().__init__()
        widths = channel_counts(image_size, width, max_width)[::-1]
        side, coarsest = map_sizes(image_size)[0], widths[-1]
        self.from_image = Conv(channels, widths[0], 1, gain=GAIN)
        self.blocks = nn.Sequential(*map(ResidualBlock, widths, widths[1:]))
        self.std = MinibatchStd(std_group_size)
        self.conv = Conv(coarsest + 1, coarsest, 3, gain=GAIN)
        self.hidden = Linear(coarsest * side**2, coarsest, gain=GAIN)
        self.mapping = None if condition_size is None else Mapping(0, coarsest, mapping_layers, condition_size)
        gain = 1.0 if condition_size is None else 1 / sqrt(coarsest)
        self.head = Linear(coarsest, 1 if condition_size is None else coarsest, gain=gain)
        self.to(memory_format=torch.channels_last)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        maps = self.blocks(activate(self.from_image(sample)))
        with in_float32(maps):
            maps = activate(self.conv(self.std(maps.to(self.head.weight.dtype))))
            logits = self.head(activate(self.hidden(maps.flatten(1))))
            if self.mapping is None:
                return logits.flatten(0)
            return (logits * self.mapping(None, condition)).sum(1)
