"""Residual networks without normalization (R3GAN, Huang et al., 2024)."""

from math import ceil, log2, sqrt
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import conv2d, conv_transpose2d

from ganforge.networks.layers import Embedding, map_sizes

Weighted = TypeVar("Weighted", bound=nn.Linear | nn.Conv2d)

SLOPE = 0.2
GAIN = sqrt(2 / (1 + SLOPE**2))
"""Restores the variance that a leaky ReLU of this slope takes away (He et al., 2015)."""
EXPANSION = 2
"""Channels within a residual block, as a multiple of those outside."""


def stage_widths(sizes: list[int], width: int, full_width_up_to: int) -> list[int]:
    """Channels of maps of these sizes: `width`, halved with each doubling beyond `full_width_up_to` pixels."""
    if min(width, full_width_up_to) < 1:
        raise ValueError(f"width={width}, full_width_up_to={full_width_up_to}: must be at least 1")
    return [max(1, width // 2 ** max(0, ceil(log2(size / full_width_up_to)))) for size in sizes]


def initialized(layer: Weighted, gain: float = 1.0) -> Weighted:
    """The layer with weights that multiply the standard deviation of its inputs by `gain`, and a bias of zero."""
    nn.init.normal_(layer.weight, 0.0, gain / sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Pointwise(nn.Linear):
    """A 1x1 convolution of (N, C, H, W) in channels_last, as a matrix product.

    R1 and R2 differentiate a discriminator twice, which takes torch's convolutions up to twice as long on CPUs.
    """

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def pointwise(before: int, after: int, gain: float = 1.0, bias: bool = False) -> Pointwise:
    return initialized(Pointwise(before, after, bias=bias), gain)


class ResidualBlock(nn.Module):
    """Adds 1x1, grouped 3x3 and 1x1 convolutions, with leaky ReLUs between them, to maps (N, width, H, W).

    `depth` is the number of blocks in the network. The last convolution starts at zero, so that each block starts as
    the identity, and the others start with a gain of depth^(-1/4), which keeps updates small in deep networks (Fixup,
    Zhang et al., 2019). The bias of a leaky ReLU is that of the convolution before it.
    """

    def __init__(self, width: int, group_size: int, depth: int):
        super().__init__()
        inside = EXPANSION * width
        groups = next(n for n in range(ceil(inside / group_size), inside + 1) if inside % n == 0)
        gain = GAIN * depth**-0.25
        self.branch = nn.Sequential(
            pointwise(width, inside, gain, bias=True),
            nn.LeakyReLU(SLOPE),
            initialized(nn.Conv2d(inside, inside, 3, padding=1, groups=groups), gain),
            nn.LeakyReLU(SLOPE, inplace=True),
            pointwise(inside, width, gain=0.0),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.branch(maps)


def stage(width: int, group_size: int, blocks: int, stages: int) -> list[nn.Module]:
    """The blocks of one of the `stages` of a network."""
    if min(group_size, blocks) < 1:
        raise ValueError(f"group_size={group_size}, blocks={blocks}: must be at least 1")
    return [ResidualBlock(width, group_size, blocks * stages) for _ in range(blocks)]


class Resample(Function):
    """Filters each channel of (N, C, H, W) with a kernel and halves the resolution; or, transposed, doubles it.

    R1 and R2 differentiate a discriminator twice, which is slow for torch's own depthwise convolution: it also
    computes the gradient of the kernel, channel by channel.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, kernel: Tensor, transposed: bool) -> Tensor:
        ctx.kernel, ctx.transposed = kernel, transposed
        convolve = conv_transpose2d if transposed else conv2d
        channels = maps.shape[1]
        kernels = kernel.to(maps.dtype).expand(channels, 1, *kernel.shape)
        return convolve(maps, kernels, stride=2, padding=1, groups=channels)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return Resample.apply(gradient, ctx.kernel, not ctx.transposed), None, None


class Downsample(nn.Module):
    """Smooths with [1, 2, 1] in either direction, and halves the resolution by averages of 2 x 2 pixels."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8  # [1, 2, 1] * [1, 1]
        self.register_buffer("kernel", torch.outer(row, row), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        return Resample.apply(maps, self.kernel, False)


def projection(before: int, after: int) -> list[nn.Module]:
    """The layer, if any, that changes the number of channels. It belongs where the resolution is lower."""
    return [] if before == after else [pointwise(before, after)]


class Generator(nn.Module):
    """From a latent (N, latent_size) to images (N, channels, image_size, image_size), unbounded but close to [-1, 1].

    A learnt map of the coarsest resolution, scaled by a linear function of the latent, passes through `blocks` residual
    blocks per resolution. Grouped convolutions have groups of at most `group_size` channels. With `condition_size`
    classes or attributes, an embedding of the condition is concatenated to the latent.
    """

    def __init__(
        self,
        latent_size: int,
        image_size: int,
        channels: int,
        width: int = 768,
        blocks: int = 2,
        group_size: int = 16,
        full_width_up_to: int = 32,
        patch_size: int = 1,
        condition_size: int | None = None,
    ):
        super().__init__()
        self.condition_size = condition_size
        sizes = map_sizes(image_size, patch_size)
        widths = stage_widths(sizes, width, full_width_up_to)
        if condition_size is not None:
            self.embedding = Embedding(condition_size, latent_size, std=condition_size**-0.5)
        self.basis = nn.Parameter(torch.randn(1, widths[0], sizes[0], sizes[0]))
        inputs = latent_size if condition_size is None else 2 * latent_size
        self.scale = initialized(nn.Linear(inputs, widths[0], bias=False))
        layers: list[nn.Module] = []
        for i, features in enumerate(widths):
            if i > 0:
                # doubling the resolution and smoothing with [1, 2, 1] is bilinear interpolation
                layers += [*projection(widths[i - 1], features), nn.Upsample(scale_factor=2.0, mode="bilinear")]
            layers += stage(features, group_size, blocks, len(widths))
        # the authors' last layer has no bias; one makes the background of drawings and digits easy
        layers += [pointwise(widths[-1], channels * patch_size**2, bias=True), nn.PixelShuffle(patch_size)]
        self.layers = nn.Sequential(*layers)
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.condition_size is not None:
            latent = torch.cat([latent, self.embedding(condition)], dim=1)
        maps = self.basis * self.scale(latent)[..., None, None]
        return self.layers(maps.contiguous(memory_format=torch.channels_last))


class Discriminator(nn.Module):
    """From images (N, channels, image_size, image_size) to logits (N,): the generator's mirror image.

    With `condition_size` classes or attributes, the logit is the inner product of `width` features and an embedding of
    the condition (Miyato and Koyama, 2018).
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        width: int = 768,
        blocks: int = 2,
        group_size: int = 16,
        full_width_up_to: int = 32,
        patch_size: int = 1,
        condition_size: int | None = None,
    ):
        super().__init__()
        sizes = map_sizes(image_size, patch_size)[::-1]
        widths = stage_widths(sizes, width, full_width_up_to)
        layers: list[nn.Module] = []
        for i, features in enumerate(widths):
            if i > 0:
                layers += [Downsample(), *projection(widths[i - 1], features)]
            layers += stage(features, group_size, blocks, len(widths))
        self.patches = nn.Sequential(nn.PixelUnshuffle(patch_size), pointwise(channels * patch_size**2, widths[0]))
        self.layers = nn.Sequential(*layers)
        self.basis = nn.Parameter(torch.randn(1, widths[-1], sizes[-1], sizes[-1]) / sizes[-1])
        self.head = initialized(nn.Linear(widths[-1], 1 if condition_size is None else width, bias=False))
        self.embedding = None
        if condition_size is not None:
            self.embedding = Embedding(condition_size, width, std=(condition_size * width) ** -0.5)
        self.to(memory_format=torch.channels_last)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        maps = self.layers(self.patches(sample))
        features = self.head((maps * self.basis).sum((2, 3)))  # a depthwise convolution as large as the map
        return features.flatten(0) if self.embedding is None else (features * self.embedding(condition)).sum(1)
