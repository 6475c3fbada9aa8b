"""Networks for a hundred to a few thousand images (FastGAN, Liu et al., 2021)."""

from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, glu, normalize, silu
from torch.nn.utils.parametrize import register_parametrization

from ganforge.networks.layers import Layer, Normalization, map_sizes, normalization_layer, with_normalization

MAX_SIZE = 256
"""Pixels of the largest images."""
GENERATOR_WIDTHS = (16, 8, 4, 2, 2, 1, 0.5)
"""Channels of the generator's maps as multiples of `width`, from the coarsest map on."""
DECODER_WIDTHS = (2, 1, 1, 0.5)
"""The same for the discriminator's decoders."""


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value (Miyato et al., 2018).

    Each call does one power iteration, and training mode keeps its vector. Torch's own needs a unit vector in
    evaluation, which the average of unit vectors in a moving average is not.
    """

    vector: Tensor

    def __init__(self, rows: int):
        super().__init__()
        self.register_buffer("vector", normalize(torch.randn(rows), dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        with torch.no_grad():
            right = normalize(self.vector @ matrix, dim=0)
            left = normalize(matrix @ right, dim=0)
            if self.training:
                self.vector.copy_(left)
        return weight / (left @ matrix @ right)


def apply_spectral_norm(network: nn.Module) -> None:
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            register_parametrization(module, "weight", SpectralNorm(len(module.weight)))


def convolution(before: int, after: int, size: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding, bias=False)


def scaled(width: int, factor: float) -> int:
    return max(1, int(width * factor))


def check_sizes(image_size: int, width: int) -> None:
    if image_size > MAX_SIZE:
        raise ValueError(
            f"image_size={image_size}: FastGAN makes images of up to {MAX_SIZE} pixels; choose fewer with "
            "data.image_size"
        )
    if width < 1:
        raise ValueError(f"width={width}: must be at least 1")


class GLU(nn.Module):
    """One half of the channels, gated by the other: (N, 2 C, H, W) to (N, C, H, W) (Dauphin et al., 2017)."""

    def forward(self, maps: Tensor) -> Tensor:
        return glu(maps, dim=1)


class Noise(nn.Module):
    """Adds noise of a learnt strength: new one for each sample in training, always the same in evaluation."""

    fixed: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))
        self.register_buffer("fixed", torch.randn(1, 1, size, size))

    def forward(self, maps: Tensor) -> Tensor:
        noise = torch.randn_like(maps[:, :1]) if self.training else self.fixed
        return maps + self.strength * noise


def gated(before: int, after: int, noise: Noise | None = None) -> list[nn.Module]:
    """A 3x3 convolution to twice the channels, noise if any, BatchNorm and a GLU."""
    added = [] if noise is None else [noise]
    return [convolution(before, 2 * after, 3, padding=1), *added, nn.BatchNorm2d(2 * after), GLU()]


def pooled(maps: Tensor, side: int = 4) -> Tensor:
    """Average pooling of maps (N, C, H, W) to (N, C, side, side)."""
    if not torch.are_deterministic_algorithms_enabled():
        return adaptive_avg_pool2d(maps, side)
    # on GPUs, the gradient of adaptive_avg_pool2d is never deterministic
    for dim in (2, 3):
        size = maps.shape[dim]
        windows = [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
        maps = torch.stack([maps.narrow(dim, start, end - start).mean(dim) for start, end in windows], dim)
    return maps


class SkipExcitation(nn.Module):
    """Scales the channels of `maps` (N, C, H, W) by factors in (0, 1), computed from distant maps of another size.

    Unlike a residual connection, it joins maps of any two sizes at the cost of a few small convolutions.
    """

    def __init__(self, before: int, channels: int):
        super().__init__()
        self.first = convolution(before, channels, 4)
        self.second = convolution(channels, channels, 1)

    def forward(self, distant: Tensor, maps: Tensor) -> Tensor:
        return maps * self.second(silu(self.first(pooled(distant)))).sigmoid()


def excited(maps: list[Tensor], new: Tensor, excitations: nn.ModuleList, distance: int) -> Tensor:
    """The map that follows `maps`, scaled by the one `distance` before it, if there is one."""
    source = len(maps) - distance
    return excitations[source](maps[source], new) if source >= 0 else new


class Generator(nn.Module):
    """From a latent (N, latent_size) to images (N, channels, image_size, image_size) in [-1, 1].

    Each map of 16 times the resolution of an earlier one is scaled by it; below 64 pixels, the finest by the coarsest.
    Every other layer that doubles the resolution has a second convolution, and noise.
    """

    def __init__(self, latent_size: int, image_size: int, channels: int, width: int = 64):
        super().__init__()
        check_sizes(image_size, width)
        sizes = map_sizes(image_size)
        widths = [scaled(width, factor) for factor, _ in zip(GENERATOR_WIDTHS, sizes, strict=False)]
        start = nn.ConvTranspose2d(latent_size, 2 * widths[0], sizes[0], bias=False)
        self.start = nn.Sequential(start, nn.BatchNorm2d(2 * widths[0]), GLU())
        self.layers = nn.ModuleList()
        for i in range(1, len(sizes)):
            layer = [nn.Upsample(scale_factor=2), *gated(widths[i - 1], widths[i], Noise(sizes[i]) if i % 2 else None)]
            if i % 2:
                layer += gated(widths[i], widths[i], Noise(sizes[i]))
            self.layers.append(nn.Sequential(*layer))
        self.distance = min(4, len(sizes) - 1)
        pairs = zip(widths, widths[self.distance :], strict=False)
        self.excitations = nn.ModuleList(SkipExcitation(before, after) for before, after in pairs)
        self.image = nn.Sequential(convolution(widths[-1], channels, 3, padding=1), nn.Tanh())
        apply_spectral_norm(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        maps = [self.start(latent[..., None, None])]
        for layer in self.layers:
            maps.append(excited(maps, layer(maps[-1]), self.excitations, self.distance))
        return self.image(maps[-1])


def halved(before: int, after: int, normalization: Layer | None) -> list[nn.Module]:
    """A strided convolution to half the resolution."""
    return [*with_normalization(convolution(before, after, 4, 2, 1), normalization), nn.LeakyReLU(0.2)]


class DownBlock(nn.Module):
    """Halves the resolution: the mean of two convolutions, and of average pooling with one convolution."""

    def __init__(self, before: int, after: int, normalization: Layer | None):
        super().__init__()
        same = with_normalization(convolution(after, after, 3, padding=1), normalization)
        self.deep = nn.Sequential(*halved(before, after, normalization), *same, nn.LeakyReLU(0.2))
        direct = with_normalization(convolution(before, after, 1), normalization)
        self.direct = nn.Sequential(nn.AvgPool2d(2), *direct, nn.LeakyReLU(0.2))

    def forward(self, maps: Tensor) -> Tensor:
        return (self.deep(maps) + self.direct(maps)) / 2


class Decoder(nn.Sequential):
    """From maps (N, before, h, h) to images in [-1, 1] of 2^doublings times their resolution."""

    def __init__(self, before: int, channels: int, width: int, doublings: int):
        widths = [before, *(scaled(width, factor) for factor in DECODER_WIDTHS[:doublings])]
        layers: list[nn.Module] = []
        for i in range(doublings):
            layers += [nn.Upsample(scale_factor=2), *gated(widths[i], widths[i + 1])]
        super().__init__(*layers, convolution(widths[-1], channels, 3, padding=1), nn.Tanh())


class Output(NamedTuple):
    """Logits (N, L) of patches of the image and of its half-size copy, and the maps that the decoders get."""

    logits: Tensor
    whole: Tensor
    small: Tensor
    quarters: Tensor


class Reconstructions(NamedTuple):
    """Images (N, C, size / 2, size / 2): two of the image at half its size, and one of a quarter of it."""

    whole: Tensor
    small: Tensor
    quarter: Tensor


def quarter(images: Tensor, numbers: Tensor) -> Tensor:
    """One quarter of each image (N, C, H, W), of the 2 x 2 that `numbers` (N,) counts by rows, from 0."""
    parts = images.unflatten(3, (2, -1)).unflatten(2, (2, -1))
    return parts[torch.arange(len(images), device=images.device), :, numbers // 2, :, numbers % 2]


class Discriminator(nn.Module):
    """From images (N, channels, image_size, image_size) to an `Output`: logits, and what `reconstruct` decodes.

    One branch sees the image, another one its copy of half the size. As in the generator, early maps scale later ones.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        width: int = 64,
        normalization: Normalization = "batch",
        spectral: bool = True,
    ):
        super().__init__()
        check_sizes(image_size, width)
        halvings = len([size for size in map_sizes(image_size) if size >= 7]) - 1  # to a map of 7 to 12 pixels
        widths = [scaled(8 * width, 0.5**i) for i in reversed(range(halvings + 1))]
        self.start = nn.Sequential(convolution(channels, widths[0], 3, padding=1), nn.LeakyReLU(0.2))
        norm = normalization_layer(normalization)
        self.layers = nn.ModuleList(DownBlock(*pair, norm) for pair in pairwise(widths))
        self.distance = min(3, halvings)
        pairs = zip(widths, widths[self.distance :], strict=False)
        self.excitations = nn.ModuleList(SkipExcitation(before, after) for before, after in pairs)
        hidden = with_normalization(convolution(widths[-1], 16 * width, 1), norm)
        self.head = nn.Sequential(*hidden, nn.LeakyReLU(0.2), convolution(16 * width, 1, 4))
        widths = [channels, *(scaled(4 * width, 0.5**i) for i in reversed(range(halvings - 1)))]
        small = [halved(*pair, norm if i else None) for i, pair in enumerate(pairwise(widths))]
        self.small = nn.Sequential(*chain.from_iterable(small))
        self.small_head = convolution(4 * width, 1, 4)
        self.decoders = nn.ModuleList(
            Decoder(before, channels, width, halvings - 1) for before in (8 * width, 4 * width, 4 * width)
        )
        if spectral:
            apply_spectral_norm(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Output:
        maps = [self.start(sample)]
        for layer in self.layers:
            maps.append(excited(maps, layer(maps[-1]), self.excitations, self.distance))
        small = self.small(avg_pool2d(sample, 2))
        logits = torch.cat([self.head(maps[-1]).flatten(1), self.small_head(small).flatten(1)], dim=1)
        return Output(logits, maps[-1], small, maps[-2])

    def reconstruct(self, output: Output, numbers: Tensor) -> Reconstructions:
        """What the maps know of the images; of each image the quarter with a number (N,) from 0 to 3."""
        maps = output.whole, output.small, quarter(output.quarters, numbers)
        return Reconstructions(*(decoder(part) for decoder, part in zip(self.decoders, maps, strict=True)))
