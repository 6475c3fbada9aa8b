"""Residual networks of SNGAN (Miyato et al., 2018), conditional ones with projection (Miyato and Koyama, 2018)."""

from functools import partial
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ganforge.networks.layers import (
    Embedding,
    Layer,
    Normalization,
    apply_spectral_norm,
    map_sizes,
    normalization_layer,
)


def level_widths(image_size: int, width: int) -> list[int]:
    """Channels from the finest resolution to the coarsest.

    All have `width` below 64 pixels, as for CIFAR-10; from 64 pixels they double up to 16 * `width`, as for ImageNet.
    """
    if width < 1:
        raise ValueError(f"width={width}: must be at least 1")
    return [width * (min(2**i, 16) if image_size >= 64 else 1) for i in range(len(map_sizes(image_size)))]


def conv(before: int, after: int, kernel_size: int = 3, gain: float = sqrt(2)) -> nn.Conv2d:
    """A convolution that keeps the resolution, with Glorot's initial weights times `gain`."""
    layer = nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def linear(before: int, after: int) -> nn.Linear:
    """A linear layer with Glorot's initial weights."""
    layer = nn.Linear(before, after)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ConditionalBatchNorm2d(nn.Module):
    """BatchNorm with gains and biases for labels (N,) or attributes (N, K) (Dumoulin et al., 2017).

    The gain is 1 plus the embedding of the condition, so it is 1 for a sample without attributes.
    """

    def __init__(self, channels: int, condition_size: int):
        super().__init__()
        # a child, so that SyncBatchNorm can replace it
        self.normalization = nn.BatchNorm2d(channels, affine=False)
        self.gain = Embedding(condition_size, channels, std=0.02)
        self.bias = Embedding(condition_size, channels, std=0.0)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        normalized = self.normalization(features)
        gain, bias = (layer(condition).to(normalized.dtype)[:, :, None, None] for layer in (self.gain, self.bias))
        return normalized * (1 + gain) + bias


class Conditional(nn.Sequential):
    """Layers in sequence; ConditionalBatchNorm2d, and such sequences in it, also get the condition."""

    def forward(self, features: Tensor, condition: Tensor | None = None) -> Tensor:
        for layer in self:
            needs_condition = isinstance(layer, ConditionalBatchNorm2d | Conditional)
            features = layer(features, condition) if needs_condition else layer(features)
        return features


class UpBlock(nn.Module):
    """A residual block that doubles the resolution."""

    def __init__(self, before: int, after: int, normalization: Layer):
        super().__init__()
        self.layers = Conditional(
            normalization(before),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2),
            conv(before, after),
            normalization(after),
            nn.ReLU(inplace=True),
            conv(after, after),
        )
        # in this order, which gives the same and costs a quarter
        self.shortcut = nn.Sequential(conv(before, after, 1, gain=1), nn.Upsample(scale_factor=2))

    def forward(self, features: Tensor, condition: Tensor | None) -> Tensor:
        return self.shortcut(features) + self.layers(features, condition)


class DownBlock(nn.Module):
    """A residual block that halves the resolution if asked to.

    The `first` block starts with a convolution: ReLU would discard half of the image.
    """

    def __init__(self, before: int, after: int, halves: bool, normalization: Layer | None, first: bool = False):
        super().__init__()
        hidden = after if first else before

        def activation(channels: int) -> list[nn.Module]:
            # not in place: the shortcut needs the input
            return [nn.ReLU()] if normalization is None else [normalization(channels), nn.ReLU()]

        start = [] if first else activation(before)
        pool = [nn.AvgPool2d(2)] if halves else []
        self.layers = nn.Sequential(*start, conv(before, hidden), *activation(hidden), conv(hidden, after), *pool)
        projection = [conv(before, after, 1, gain=1)] if halves or before != after else []
        self.shortcut = nn.Sequential(*pool, *projection)  # pooling first gives the same and costs a quarter

    def forward(self, features: Tensor) -> Tensor:
        return self.shortcut(features) + self.layers(features)


class Generator(nn.Module):
    """From a latent (N, latent_size) to images (N, channels, image_size, image_size) in [-1, 1].

    A linear layer produces the coarsest map, of 4 to 7 pixels; each residual block doubles the resolution. `width` is
    the number of channels at the finest one (see `level_widths`). With a `condition_size`, the number of classes or
    attributes, the BatchNorm of the blocks is conditional.
    """

    def __init__(
        self, latent_size: int, image_size: int, channels: int, width: int = 256, condition_size: int | None = None
    ):
        super().__init__()
        self.condition_size = condition_size
        side = map_sizes(image_size)[0]
        widths = level_widths(image_size, width)[::-1]
        normalization: Layer = nn.BatchNorm2d
        if condition_size is not None:
            normalization = partial(ConditionalBatchNorm2d, condition_size=condition_size)
        self.entry = nn.Sequential(linear(latent_size, widths[0] * side**2), nn.Unflatten(1, (widths[0], side, side)))
        self.blocks = nn.ModuleList(UpBlock(before, after, normalization) for before, after in pairwise(widths))
        self.exit = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True), conv(widths[-1], channels, gain=1), nn.Tanh()
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        features = self.entry(latent).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            features = block(features, condition)
        return self.exit(features)


class Discriminator(nn.Module):
    """From images (N, channels, image_size, image_size) to logits (N,), linear in features summed over all pixels.

    Below 64 pixels there are four residual blocks, of which two halve the resolution. From 64 pixels, each block but
    the last halves it, down to 4 to 7 pixels. `width` is the number of channels at the finest resolution (see
    `level_widths`). With a `condition_size`, the inner product of features and embedded condition is added.
    `normalization` is a word or makes a layer from a number of channels. `spectral` normalizes all weights spectrally.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        width: int = 128,
        condition_size: int | None = None,
        normalization: Normalization = None,
        spectral: bool = True,
    ):
        super().__init__()
        widths = level_widths(image_size, width)
        widths, halvings = ([width] * 4, 2) if image_size < 64 else (widths, len(widths) - 1)
        norm = normalization_layer(normalization)
        self.blocks = nn.Sequential(
            *(
                DownBlock(before, after, i < halvings, norm, first=i == 0)
                for i, (before, after) in enumerate(pairwise([channels, *widths]))
            )
        )
        self.head = linear(widths[-1], 1)
        self.embedding: Embedding | None = None
        if condition_size is not None:
            self.embedding = Embedding(condition_size, widths[-1])
            nn.init.xavier_uniform_(self.embedding.weight)
        if spectral:
            apply_spectral_norm(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        features = relu(self.blocks(sample)).sum((2, 3))
        logits = self.head(features).flatten(0)
        return logits if self.embedding is None else logits + (features * self.embedding(condition)).sum(1)
