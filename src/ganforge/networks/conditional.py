"""Networks conditioned on labels or attributes (Mirza and Osindero, 2014)."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ganforge.networks import dcgan
from ganforge.networks.layers import (
    FOR_VECTORS,
    Embedding,
    Layer,
    Normalization,
    apply_spectral_norm,
    normalization_layer,
)


class Generator(nn.Module):
    """From a latent (N, latent_size) and a condition of `condition_size` classes or attributes to samples (N, *shape).

    The paper's MLP: latent and condition have a hidden layer each, followed by a joint one.
    """

    def __init__(
        self,
        latent_size: int,
        condition_size: int,
        shape: Sequence[int],
        latent_hidden: int = 200,
        condition_hidden: int = 1000,
        hidden: int = 1200,
    ):
        super().__init__()
        self.condition_size = condition_size
        self.latent = nn.Sequential(nn.Linear(latent_size, latent_hidden), nn.ReLU())
        self.condition = nn.Sequential(Embedding(condition_size, condition_hidden, std=0.1), nn.ReLU())
        self.joint = nn.Sequential(
            nn.Linear(latent_hidden + condition_hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, prod(shape)),
            nn.Tanh(),
            nn.Unflatten(1, tuple(shape)),
        )

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        return self.joint(torch.cat([self.latent(latent), self.condition(condition)], dim=1))


class Maxout(nn.Module):
    """The maximum of each `pieces` consecutive features (N, D) to (N, D / pieces) (Goodfellow et al., 2013)."""

    def __init__(self, pieces: int):
        super().__init__()
        self.pieces = pieces

    def forward(self, features: Tensor) -> Tensor:
        return features.unflatten(1, (-1, self.pieces)).amax(2)


def _maxout(inputs: int, units: int, pieces: int, normalization: Layer | None) -> list[nn.Module]:
    """`units` maxout units, whose pieces are normalized if there is a normalization."""
    norms = [] if normalization is None else [normalization(units * pieces)]
    return [nn.Linear(inputs, units * pieces), *norms, Maxout(pieces)]


class Discriminator(nn.Module):
    """From samples (N, *shape) and their conditions to logits (N,): the paper's maxout network.

    `normalization` (none, batch, layer, or what makes a layer) follows the linear layers, which the paper does not
    normalize. `spectral` normalizes all weights spectrally (Miyato et al., 2018).
    """

    def __init__(
        self,
        condition_size: int,
        shape: Sequence[int],
        sample_hidden: int = 240,
        condition_hidden: int = 50,
        hidden: int = 240,
        dropout: float = 0.5,
        normalization: Normalization = None,
        spectral: bool = False,
    ):
        super().__init__()
        norm = normalization_layer(normalization, FOR_VECTORS)
        self.sample = nn.Sequential(nn.Flatten(), *_maxout(prod(shape), sample_hidden, 5, norm), nn.Dropout(dropout))
        self.condition = nn.Sequential(Embedding(condition_size, 5 * condition_hidden), Maxout(5), nn.Dropout(dropout))
        self.joint = nn.Sequential(
            *_maxout(sample_hidden + condition_hidden, hidden, 4, norm),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
            nn.Flatten(0),
        )
        if spectral:
            apply_spectral_norm(self)

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:
        return self.joint(torch.cat([self.sample(sample), self.condition(condition)], dim=1))


class ConvGenerator(dcgan.Generator):
    """DCGAN's generator on the latent concatenated with an embedding of the condition."""

    def __init__(self, latent_size: int, condition_size: int, embedding_size: int = 10, **options: Any):
        super().__init__(latent_size + embedding_size, **options)
        self.condition_size = condition_size
        self.embedding = Embedding(condition_size, embedding_size)

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([latent, self.embedding(condition)], dim=1))


class ConvDiscriminator(dcgan.Discriminator):
    """DCGAN's discriminator with an embedding of the condition as an additional image channel."""

    def __init__(self, image_size: int, channels: int, condition_size: int, spectral: bool = False, **options: Any):
        super().__init__(image_size, channels + 1, **options)
        self.plane = nn.Sequential(
            Embedding(condition_size, image_size**2), nn.Unflatten(1, (1, image_size, image_size))
        )
        if spectral:
            apply_spectral_norm(self)

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        inputs = torch.cat([sample, self.plane(condition).to(sample.dtype)], dim=1)
        return super().forward(inputs.contiguous(memory_format=torch.channels_last))


class ProjectionDiscriminator(dcgan.Discriminator):
    """DCGAN's discriminator plus the inner product of features and embedded condition (Miyato and Koyama, 2018)."""

    def __init__(self, image_size: int, channels: int, condition_size: int, spectral: bool = False, **options: Any):
        super().__init__(image_size, channels, **options)
        self.embedding = Embedding(condition_size, self.head.in_features, std=0.02)
        if spectral:
            apply_spectral_norm(self)

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        features = self.features(sample)
        return self.head(features).flatten(0) + (features * self.embedding(condition)).sum(1)
