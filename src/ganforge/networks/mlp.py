"""Multilayer perceptrons for small images and for points."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from ganforge.networks.layers import FOR_VECTORS, Layer, Normalization, apply_spectral_norm, normalization_layer


def _hidden(sizes: Sequence[int], activation: Layer, normalization: Normalization) -> list[nn.Module]:
    if min(sizes) < 1:
        raise ValueError(f"hidden={list(sizes[1:])}: layers must have at least 1 unit")
    norm = normalization_layer(normalization, FOR_VECTORS)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers.append(nn.Linear(before, after))
        if norm is not None:
            layers.append(norm(after))
        layers.append(activation())
    return layers


class Generator(nn.Module):
    """MLP from a latent (N, latent_size) to samples (N, *shape).

    `hidden` are the sizes of the hidden layers. `activation` makes a layer, `normalization` is none, batch or layer, or
    makes a layer from a number of features. `output` bounds the samples (nn.Tanh for images); None leaves them
    unbounded.
    """

    def __init__(
        self,
        latent_size: int,
        shape: Sequence[int],
        hidden: Sequence[int],
        activation: Layer = nn.LeakyReLU,
        normalization: Normalization = None,
        output: Layer | None = nn.Tanh,
    ):
        super().__init__()
        sizes = [latent_size, *hidden]
        self.layers = nn.Sequential(
            *_hidden(sizes, activation, normalization),
            nn.Linear(sizes[-1], prod(shape)),
            output() if output else nn.Identity(),
            nn.Unflatten(1, tuple(shape)),
        )

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(latent)


class Discriminator(nn.Module):
    """MLP from samples (N, *shape) to logits (N,); options as in Generator.

    `spectral` normalizes all weights spectrally (Miyato et al., 2018).
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int],
        activation: Layer = nn.LeakyReLU,
        normalization: Normalization = None,
        spectral: bool = False,
    ):
        super().__init__()
        sizes = [prod(shape), *hidden]
        self.layers = nn.Sequential(
            nn.Flatten(), *_hidden(sizes, activation, normalization), nn.Linear(sizes[-1], 1), nn.Flatten(0)
        )
        if spectral:
            apply_spectral_norm(self)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(sample)
