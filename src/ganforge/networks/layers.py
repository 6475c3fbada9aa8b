"""Building blocks that the networks share."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.nn.utils.parametrizations import spectral_norm

Layer = Callable[..., nn.Module]
"""Makes a layer: an activation, called without arguments, or a normalization, called with the number of channels."""

Normalization = Layer | str | None
"""The `normalization` of a network: a word such as "batch", or what makes the layer; None is "none"."""


def _group_norm(channels: int) -> nn.GroupNorm:
    """Groups of 16 channels (Wu and He, 2018); if these do not divide, of the largest smaller number that does."""
    size = max(size for size in range(1, 17) if channels % size == 0)
    return nn.GroupNorm(channels // size, channels)


FOR_IMAGES: dict[str, Layer | None] = {
    "none": None,
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,  # without gains and biases, as in pix2pix
    "layer": partial(nn.GroupNorm, 1),
    "group": _group_norm,
}
FOR_VECTORS: dict[str, Layer | None] = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def normalization_layer(choice: Normalization, words: Mapping[str, Layer | None] = FOR_IMAGES) -> Layer | None:
    """What makes the normalization of a number of channels, or None. Raises ValueError for an unknown word.

    For images, `layer` normalizes each sample over all channels and pixels, `group` over groups of 16 channels or of
    the largest smaller number that divides them.
    """
    if choice is None or callable(choice):
        return choice
    if choice not in words:
        raise ValueError(
            f"normalization={choice}: this network takes {', '.join(words)}, or {{_target_: <class>, _partial_: true}}"
        )
    return words[choice]


def with_normalization(layer: nn.Conv2d | nn.ConvTranspose2d, normalization: Layer | None) -> list[nn.Module]:
    """A convolution, followed by the normalization of its channels if there is one."""
    return [layer] if normalization is None else [layer, normalization(layer.out_channels)]


def apply_spectral_norm(network: nn.Module) -> None:
    """Divide the weights of convolutions, linear layers and embeddings by their spectral norms (Miyato et al., 2018).

    Call it after the initialization, which could not set these weights later. Each forward pass in training mode does
    one power iteration, whose vectors are buffers.
    """
    for module in list(network.modules()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1:  # gains of normalizations are vectors
            spectral_norm(module)


def map_sizes(image_size: int, patch_size: int = 1) -> list[int]:
    """Sides of the feature maps of an image, each twice the one before, from 4 to 7 up: 28 -> [7, 14, 28].

    The finest has a pixel for each patch of `patch_size` pixels: with patches of 4, 28 -> [7]. Raises ValueError for
    images that are not made by doubling such a map, and for those that are such a map themselves.
    """
    side = image_size // max(1, patch_size)
    doublings = max(0, (side // 4).bit_length() - 1)
    if patch_size < 1 or image_size % patch_size or side < 4 or image_size < 8 or side % 2**doublings:
        unit = "" if patch_size == 1 else f"patch_size={patch_size} times "
        raise ValueError(
            f"image_size={image_size}: must be {unit}4, 5, 6 or 7 times a power of 2, such as 28, 32, 48 or "
            "64; choose one with data.image_size"
        )
    return [side >> halvings for halvings in reversed(range(doublings + 1))]


class Embedding(nn.Module):
    """Labels (N,) to learnt vectors (N, features), or attributes (N, size) of 0 or 1 to the sums of their vectors."""

    def __init__(self, size: int, features: int, std: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(size, features))

    def forward(self, condition: Tensor) -> Tensor:
        weight = self.weight  # once: a parametrization computes it each time
        return embedding(condition, weight) if condition.ndim == 1 else condition.to(weight.dtype) @ weight
