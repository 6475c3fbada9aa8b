"""Small residual networks for CPUs: their finest maps have a pixel for each patch of the image.

Two cores draw digits with them several times better than with DCGAN's in the same minutes. Convolutions of few channels
on large maps use a processor badly, and a patch of 4 x 4 pixels is easy to draw from its features (sub-pixel
convolution, Shi et al., 2016).
"""

from functools import partial

import torch
from torch import Tensor, nn

from ganforge.networks.layers import (
    Embedding,
    Layer,
    Normalization,
    apply_spectral_norm,
    map_sizes,
    normalization_layer,
)
from ganforge.networks.resnet import Conditional, ConditionalBatchNorm2d


def widths(image_size: int, patch_size: int, width: int, blocks: int) -> dict[int, int]:
    """Channels of the maps of each side, from the coarsest: `width` at the finest, doubled at each coarser one."""
    if min(width, blocks) < 1:
        raise ValueError(f"width={width}, blocks={blocks}: must be at least 1")
    sizes = map_sizes(image_size, patch_size)
    return {size: width * (sizes[-1] // size) for size in sizes}


class ResidualBlock(Conditional):
    """Adds two 3x3 convolutions, each after a normalization and an activation, to maps (N, width, H, W).

    Without normalization, the last convolution starts at zero, so that the block starts as the identity.
    """

    def __init__(self, width: int, activation: nn.Module, normalization: Layer | None):
        layers: list[nn.Module] = []
        for _ in range(2):
            normalize = [] if normalization is None else [normalization(width)]
            layers += [*normalize, activation, nn.Conv2d(width, width, 3, padding=1)]
        super().__init__(*layers)
        if normalization is None:
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, maps: Tensor, condition: Tensor | None = None) -> Tensor:
        return maps + super().forward(maps, condition)


class Generator(nn.Module):
    """From a latent (N, latent_size) to images (N, channels, image_size, image_size) in [-1, 1].

    A linear layer produces the coarsest map, of 4 to 7 pixels. There are `blocks` residual blocks per resolution, and a
    pixel of the finest map becomes a patch of the image. `width` is the number of channels of the finest map, doubled
    at each coarser one. With `condition_size` classes or attributes, an embedding of the condition is concatenated to
    the latent, and the BatchNorm of the blocks is conditional.
    """

    def __init__(
        self,
        latent_size: int,
        image_size: int,
        channels: int,
        width: int = 32,
        blocks: int = 1,
        patch_size: int = 4,
        condition_size: int | None = None,
    ):
        super().__init__()
        self.condition_size = condition_size
        normalization: Layer = nn.BatchNorm2d
        if condition_size is not None:
            normalization = partial(ConditionalBatchNorm2d, condition_size=condition_size)
            self.embedding = Embedding(condition_size, latent_size)
            latent_size *= 2
        (side, coarsest), *finer = widths(image_size, patch_size, width, blocks).items()
        self.shape = side, side, coarsest
        self.entry = nn.Linear(latent_size, coarsest * side**2)

        def stage(features: int) -> list[nn.Module]:
            return [ResidualBlock(features, nn.ReLU(), normalization) for _ in range(blocks)]

        layers = stage(coarsest)
        for _, features in finer:
            layers += [nn.Conv2d(2 * features, features, 1), nn.Upsample(scale_factor=2.0), *stage(features)]
        self.layers = Conditional(*layers)
        self.exit = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, channels * patch_size**2, 3, padding=1),
            nn.PixelShuffle(patch_size),
            nn.Tanh(),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.condition_size is not None:
            latent = torch.cat([latent, self.embedding(condition)], dim=1)
        maps = self.entry(latent).unflatten(1, self.shape).permute(0, 3, 1, 2)  # channels_last without a copy
        return self.exit(self.layers(maps, condition))


class Discriminator(nn.Module):
    """From images (N, channels, image_size, image_size) to logits (N,).

    Each patch of the image becomes a pixel of the finest map. Each resolution has `blocks` residual blocks and ends in
    a convolution to half the resolution and twice the channels, down to a map of 2 to 4 pixels. `width` is the number
    of channels of the finest map. With `condition_size` classes or attributes, the inner product of features and
    embedded condition is added (Miyato and Koyama, 2018). `normalization` is a word or makes a layer from a number of
    channels. `spectral` normalizes all weights spectrally.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        width: int = 16,
        blocks: int = 1,
        patch_size: int = 4,
        condition_size: int | None = None,
        normalization: Normalization = None,
        spectral: bool = False,
    ):
        super().__init__()
        levels = list(reversed(widths(image_size, patch_size, width, blocks).items()))
        norm = normalization_layer(normalization)
        patches = nn.PixelUnshuffle(patch_size)
        layers: list[nn.Module] = [patches, nn.Conv2d(channels * patch_size**2, width, 3, padding=1)]
        for _, features in levels:
            layers += [ResidualBlock(features, nn.LeakyReLU(0.2), norm) for _ in range(blocks)]
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(features, 2 * features, 3, stride=2, padding=1)]
        self.features = nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Flatten())
        coarsest, features = levels[-1]
        self.head = nn.Linear(2 * features * ((coarsest + 1) // 2) ** 2, 1)
        self.embedding: Embedding | None = None
        if condition_size is not None:
            self.embedding = Embedding(condition_size, self.head.in_features, std=self.head.in_features**-0.5)
        if spectral:
            apply_spectral_norm(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        features = self.features(sample.contiguous(memory_format=torch.channels_last))
        logits = self.head(features).flatten(0)
        return logits if self.embedding is None else logits + (features * self.embedding(condition)).sum(1)
