"""Building blocks that the networks share."""

from collections.abc import Callable

from torch import nn

Layer = Callable[..., nn.Module]
"""Makes a layer: an activation, called without arguments, or a normalization, called with the number of channels."""


def with_normalization(layer: nn.Conv2d | nn.ConvTranspose2d, normalization: Layer | None) -> list[nn.Module]:
    """A convolution, followed by the normalization of its channels if there is one."""
    return [layer] if normalization is None else [layer, normalization(layer.out_channels)]
