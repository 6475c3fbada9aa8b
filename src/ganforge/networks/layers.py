"""Building blocks that the networks share."""

from collections.abc import Callable

from torch import nn

Layer = Callable[..., nn.Module]
"""Makes a layer: an activation, called without arguments, or a normalization, called with the number of channels."""


def with_normalization(layer: nn.Conv2d | nn.ConvTranspose2d, normalization: Layer | None) -> list[nn.Module]:
    """A convolution, followed by the normalization of its channels if there is one."""
    return [layer] if normalization is None else [layer, normalization(layer.out_channels)]


def map_sizes(image_size: int) -> list[int]:
    """Sides of the feature maps of an image, each twice the one before, from 4 to 7 up: 28 -> [7, 14, 28].

    Raises ValueError for images that are not made by doubling such a map.
    """
    doublings = (image_size // 4).bit_length() - 1
    if doublings < 1 or image_size % 2**doublings:
        raise ValueError(
            f"image_size={image_size}: must be 4, 5, 6 or 7 times a power of 2, such as 28, 32, 48 or 64; choose one "
            "with data.image_size"
        )
    return [image_size >> halvings for halvings in reversed(range(doublings + 1))]
