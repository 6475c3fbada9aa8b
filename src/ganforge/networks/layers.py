"""What networks are put together with."""

from collections.abc import Callable

from torch import nn

Layer = Callable[..., nn.Module]
"""Makes a layer: an activation, or a normalisation of a number of channels."""


def normalized(layer: nn.Conv2d | nn.ConvTranspose2d, normalization: Layer | None) -> list[nn.Module]:
    """A convolution, and behind it what normalises its channels, if anything."""
    return [layer] if normalization is None else [layer, normalization(layer.out_channels)]
