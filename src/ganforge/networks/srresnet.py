"""The generator (SRResNet) and the discriminator of SRGAN (Ledig et al., 2017)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from ganforge.networks.layers import Normalization, apply_spectral_norm, normalization_layer, with_normalization

FACTORS = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
"""The factors of the PixelShuffle layers, by scale."""


class _Residual(nn.Sequential):
    def forward(self, features: Tensor) -> Tensor:
        return features + super().forward(features)


class Generator(nn.Module):
    """SRResNet: images (N, channels, h, w) in [-1, 1] to (N, channels, scale * h, scale * w), of any size.

    `blocks` residual blocks of `width` channels at low resolution, then PixelShuffle by `scale`: 2, 3, 4 or 8.
    `normalization` is a word or makes a layer from a number of channels; Lim et al. (2017) do without.
    """

    def __init__(
        self,
        scale: int,
        channels: int = 3,
        width: int = 64,
        blocks: int = 16,
        normalization: Normalization = "batch",
    ):
        super().__init__()
        if scale not in FACTORS:
            raise ValueError(f"scale={scale}: SRResNet enlarges by 2, 3, 4 or 8; choose one with degradation.scale")
        self.in_channels = channels
        self.scale = scale
        norm = normalization_layer(normalization)
        self.entry = nn.Sequential(nn.Conv2d(channels, width, 9, padding=4), nn.PReLU())

        def conv() -> list[nn.Module]:
            return with_normalization(nn.Conv2d(width, width, 3, padding=1, bias=norm is None), norm)

        residuals = [_Residual(*conv(), nn.PReLU(), *conv()) for _ in range(blocks)]
        self.body = _Residual(*residuals, *conv())
        enlarge: list[nn.Module] = []
        for factor in FACTORS[scale]:
            enlarge += [
                nn.Conv2d(width, width * factor**2, 3, padding=1),
                nn.PixelShuffle(factor),
                nn.PReLU(),
            ]
        self.exit = nn.Sequential(*enlarge, nn.Conv2d(width, channels, 9, padding=4))
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: None, condition: Tensor) -> Tensor:
        inputs = condition.add(1).div(2)  # in [0, 1], as in the paper
        return self.exit(self.body(self.entry(inputs.contiguous(memory_format=torch.channels_last))))


class Discriminator(nn.Module):
    """From images (N, channels, image_size, image_size) to logits (N,).

    Eight 3x3 convolutions, every second one with stride 2, then two linear layers. Channels double from `width` to
    8 * `width`; `hidden` is the size of the first linear layer. `spectral` normalizes all weights spectrally
    (Miyato et al., 2018).
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 3,
        width: int = 64,
        hidden: int = 1024,
        normalization: Normalization = "batch",
        spectral: bool = False,
    ):
        super().__init__()
        normalize = normalization_layer(normalization)
        widths = [channels, *(width * 2**i for i in range(4) for _ in range(2))]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            norm = normalize if i else None
            layers += with_normalization(nn.Conv2d(before, after, 3, 1 + i % 2, 1, bias=norm is None), norm)
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        side = -(-image_size // 16)
        head = [nn.Flatten(), nn.Linear(widths[-1] * side**2, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)]
        self.layers = nn.Sequential(*layers, *head, nn.Flatten(0))
        if spectral:
            apply_spectral_norm(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(sample)
