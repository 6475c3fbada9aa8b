"""Convolutional generator and discriminator of DCGAN (Radford et al., 2016)."""

import torch
from torch import Tensor, nn

from ganforge.networks.layers import (
    Layer,
    Normalization,
    apply_spectral_norm,
    map_sizes,
    normalization_layer,
    with_normalization,
)


def initialize(module: nn.Module) -> None:
    """Weights from N(0, 0.02) as in the paper, gains of normalizations from N(1, 0.02) as implementations do."""
    if not hasattr(module, "weight"):
        return
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module.weight, nn.Parameter) and isinstance(module.bias, nn.Parameter):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


def _check_sizes(width: int, kernel_size: int) -> None:
    if min(width, kernel_size) < 1:
        raise ValueError(f"width={width}, kernel_size={kernel_size}: must be at least 1")


def _layer_count(image_size: int, layers: int | None) -> tuple[int, int, int]:
    """The side of the coarsest map, the number of layers, and the number of those that keep the resolution."""
    side, *doubled = map_sizes(image_size)
    doublings = len(doubled)
    count = doublings if layers is None else layers
    if count < doublings:
        raise ValueError(f"layers={layers}: images of {image_size} pixels need at least {doublings} layers")
    return side, count, count - doublings


class _Map(nn.Module):
    """Vectors (N, side * side * C) to maps (N, C, side, side) in channels_last, without a copy.

    Convolutions in channels_last are fastest on CPUs and on tensor cores.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors.view(vectors.shape[0], self.side, self.side, -1).permute(0, 3, 1, 2)


class _Vector(nn.Module):
    """The inverse of _Map."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1).flatten(1)


class Generator(nn.Module):
    """From a latent (N, latent_size) to images (N, channels, image_size, image_size) in [-1, 1].

    A linear layer produces the coarsest map. Each layer doubles the resolution and halves the number of channels, down
    to `width` before the last. `layers` beyond those that the size needs come first and keep the resolution.
    `kernel_size` is 4 or 5 (the paper's figure shows 5, most implementations use 4). `activation` makes a layer,
    `normalization` is a word or makes a layer from a number of channels.
    """

    def __init__(
        self,
        latent_size: int,
        image_size: int,
        channels: int,
        width: int = 64,
        layers: int | None = None,
        kernel_size: int = 4,
        activation: Layer = nn.ReLU,
        normalization: Normalization = "batch",
    ):
        super().__init__()
        _check_sizes(width, kernel_size)
        side, count, same_resolution = _layer_count(image_size, layers)
        widths = [width * 2**i for i in reversed(range(count))]
        norm = normalization_layer(normalization)
        bias = norm is None  # a normalization cancels the bias

        def hidden(features: int) -> list[nn.Module]:
            return [activation()] if norm is None else [norm(features), activation()]

        modules: list[nn.Module] = [
            nn.Linear(latent_size, widths[0] * side**2, bias=bias),
            _Map(side),
            *hidden(widths[0]),
        ]
        for i, after in enumerate([*widths[1:], channels]):
            last = i == count - 1
            if i < same_resolution:
                layer: nn.Module = nn.Conv2d(widths[i], after, kernel_size, padding="same", bias=bias or last)
            else:  # the padding doubles the side exactly
                layer = nn.ConvTranspose2d(
                    widths[i], after, kernel_size, 2, (kernel_size - 1) // 2, kernel_size % 2, bias=bias or last
                )
            modules += [layer, nn.Tanh()] if last else [layer, *hidden(after)]
        self.layers = nn.Sequential(*modules)
        self.apply(initialize)
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(latent)


class Discriminator(nn.Module):
    """From images (N, channels, image_size, image_size) to logits (N,).

    Each layer halves the resolution and doubles the number of channels, starting at `width`. The first layer has no
    normalization, as in the paper. `layers` beyond those that the size needs come last and keep the resolution.
    `spectral` normalizes all weights spectrally (Miyato et al., 2018).
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        width: int = 64,
        layers: int | None = None,
        kernel_size: int = 4,
        activation: Layer = nn.LeakyReLU,
        normalization: Normalization = "batch",
        dropout: float = 0.0,
        spectral: bool = False,
    ):
        super().__init__()
        _check_sizes(width, kernel_size)
        side, count, same_resolution = _layer_count(image_size, layers)
        normalize = normalization_layer(normalization)
        modules: list[nn.Module] = []
        before = channels
        for i in range(count):
            norm = normalize if i > 0 else None
            after = width * 2**i
            stride = 2 if i < count - same_resolution else 1
            padding: int | str = (kernel_size - 1) // 2 if stride == 2 else "same"
            layer = nn.Conv2d(before, after, kernel_size, stride, padding, bias=norm is None)
            modules += with_normalization(layer, norm)
            modules.append(activation())
            if dropout:
                modules.append(nn.Dropout(dropout))
            before = after
        self.features = nn.Sequential(*modules, _Vector())
        self.head = nn.Linear(before * side**2, 1)
        self.apply(initialize)
        if spectral:
            apply_spectral_norm(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.head(self.features(sample)).flatten(0)
