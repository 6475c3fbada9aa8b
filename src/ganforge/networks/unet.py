"""The generator and the discriminator of pix2pix (Isola et al., 2017)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from ganforge.networks.dcgan import initialize
from ganforge.networks.layers import (
    Layer,
    Normalization,
    apply_spectral_norm,
    normalization_layer,
    with_normalization,
)


class _Level(nn.Module):
    """Downsampling, the levels below, upsampling; a skip connection concatenates the input."""

    def __init__(self, before: int, after: int, below: nn.Module | None, normalization: Layer | None, dropout: float):
        super().__init__()
        bias = normalization is None
        down = nn.Conv2d(before, after, 4, 2, 1, bias=bias)
        # the innermost map may be a single pixel, which cannot be normalized
        self.down = nn.Sequential(nn.LeakyReLU(0.2), *with_normalization(down, normalization if below else None))
        self.below = below
        up = nn.ConvTranspose2d(after * (2 if below else 1), before, 4, 2, 1, bias=bias)
        noise = [nn.Dropout(dropout)] if dropout else []
        self.up = nn.Sequential(nn.ReLU(), *with_normalization(up, normalization), *noise)

    def forward(self, features: Tensor) -> Tensor:
        down = self.down(features)
        return torch.cat([features, self.up(down if self.below is None else self.below(down))], dim=1)


class Generator(nn.Module):
    """U-Net from images (N, in_channels, h, w) to images (N, channels, scale * h, scale * w) in [-1, 1], of any size.

    `depth` levels halve the resolution, with at most 8 * `width` channels. The three innermost levels have `dropout`,
    the only noise in the paper. `scale` > 1 first enlarges the condition, bicubically. `normalization` is a word
    or makes a layer from a number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 3,
        scale: int = 1,
        width: int = 64,
        depth: int = 8,
        dropout: float = 0.5,
        normalization: Normalization = "batch",
    ):
        super().__init__()
        if depth < 2:
            raise ValueError(f"depth={depth}: a U-Net needs at least 2 levels")
        self.in_channels = in_channels
        self.scale = scale
        self.multiple = 2**depth
        norm = normalization_layer(normalization)
        widths = [width * min(2**i, 8) for i in range(depth)]
        level: nn.Module | None = None
        for i in reversed(range(1, depth)):
            level = _Level(widths[i - 1], widths[i], level, norm, dropout if i >= depth - 3 else 0.0)
        assert level is not None
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 4, 2, 1),
            level,
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, channels, 4, 2, 1),
            nn.Tanh(),
        )
        self.apply(initialize)
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: None, condition: Tensor) -> Tensor:
        if self.scale > 1:
            condition = interpolate(condition, scale_factor=float(self.scale), mode="bicubic")
        height, width = condition.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        padded = pad(condition, (0, right, 0, bottom), mode="replicate")
        images = self.layers(padded.contiguous(memory_format=torch.channels_last))
        return pad(images, (0, -right, 0, -bottom))  # a slice is a view, whose strides tie torch.export to one size


class PatchDiscriminator(nn.Module):
    """PatchGAN: images (N, channels, H, W) and their conditions to maps of logits (N, 1, h, w).

    A condition (N, in_channels, ...) is resized to the image, whose sides are at least `image_size` pixels. With 3
    `layers` each logit has a receptive field of 70 x 70 pixels. `spectral` normalizes all weights spectrally (Miyato et
    al., 2018).
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        channels: int = 3,
        width: int = 64,
        layers: int = 3,
        normalization: Normalization = "batch",
        spectral: bool = False,
    ):
        super().__init__()
        smallest = 3 * 2**layers
        if image_size < smallest:
            raise ValueError(
                f"image_size={image_size}: {layers} layers need at least {smallest} pixels: set data.image_size, or "
                "fewer model.discriminator.layers"
            )
        norm = normalization_layer(normalization)
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(in_channels + channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            layer = nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=norm is None)
            modules += with_normalization(layer, norm)
            modules.append(nn.LeakyReLU(0.2, inplace=True))
        self.layers = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.apply(initialize)
        if spectral:
            apply_spectral_norm(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:
        if condition.shape[-2:] != sample.shape[-2:]:
            condition = interpolate(condition, sample.shape[-2:], mode="bicubic")
        inputs = torch.cat([condition.to(sample.dtype), sample], dim=1)
        return self.layers(inputs.contiguous(memory_format=torch.channels_last))
