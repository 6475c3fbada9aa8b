"""LAPGAN: a generator and a discriminator for each level of a Laplacian pyramid (Denton et al., 2015)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ganforge.networks import mlp
from ganforge.networks.layers import Embedding, apply_spectral_norm


def resized(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) resized to (N, C, size, size), bilinear and antialiased."""
    # CPUs have no bfloat16 implementation, and elsewhere bfloat16 rounds the detail away
    exact = images if images.dtype == torch.float64 else images.float()
    return interpolate(exact, (size, size), mode="bilinear", antialias=True).to(images.dtype)


def gaussian_pyramid(images: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The images at each size, each resized from the next finer one. `sizes` are ascending and end with H = W."""
    levels = [images]
    for size in reversed(sizes[:-1]):
        levels.insert(0, resized(levels[0], size))
    return levels


def level_sizes(image_size: int, sizes: Sequence[int] | None = None) -> list[int]:
    """The validated sizes; by default halved while even and at least 12: 28 -> 7, 14, 28; 64 -> 8, 16, 32, 64."""
    if sizes and (isinstance(sizes, int) or any(type(size) is not int for size in sizes)):
        raise ValueError(f"levels={sizes}: must be ascending integers that end with {image_size}, such as [7,14,28]")
    levels = list(sizes or [image_size])
    while not sizes and levels[0] >= 12 and levels[0] % 2 == 0:
        levels.insert(0, levels[0] // 2)
    if levels != sorted(set(levels)) or levels[0] < 2 or levels[-1] != image_size or len(levels) < 2:
        raise ValueError(f"levels={levels}: must be two or more ascending sizes that end with {image_size}")
    return levels


class LevelCondition(NamedTuple):
    """The condition of a level.

    image: the image of the level below, enlarged (N, C, size, size); None at the coarsest level
    label: labels (N,) or attributes (N, K); None for unconditional networks
    """

    image: Tensor | None
    label: Tensor | None


class CoarsestGenerator(nn.Module):
    """MLP from a latent (N, latent_size) and the label's embedding to the coarsest images."""

    def __init__(self, latent_size: int, channels: int, size: int, condition_size: int | None, hidden: int):
        super().__init__()
        self.embedding = Embedding(condition_size, latent_size) if condition_size else None
        inputs = latent_size * (2 if condition_size else 1)
        self.layers = mlp.Generator(inputs, (channels, size, size), [hidden, hidden], nn.ReLU)

    def forward(self, latent: Tensor, condition: LevelCondition) -> Tensor:
        if self.embedding is not None:
            latent = torch.cat([latent, self.embedding(_required(condition.label))], dim=1)
        return self.layers(latent)


class CoarsestDiscriminator(nn.Module):
    """MLP from the coarsest images, with the label as an additional channel, to logits (N,)."""

    def __init__(self, channels: int, size: int, condition_size: int | None, hidden: int, dropout: float):
        super().__init__()
        self.plane = LabelPlane(size, condition_size) if condition_size else None
        planes = channels + (1 if condition_size else 0)
        self.layers = mlp.Discriminator((planes, size, size), [hidden, hidden], LeakyDropout(dropout))

    def forward(self, sample: Tensor, condition: LevelCondition) -> Tensor:
        return self.layers(_append_plane(sample, self.plane, condition.label))


class LeakyDropout:
    """Makes the activation of the paper's discriminators: leaky ReLU with dropout."""

    def __init__(self, dropout: float):
        self.dropout = dropout

    def __call__(self) -> nn.Module:
        return nn.Sequential(nn.LeakyReLU(0.2), nn.Dropout(self.dropout))


class LabelPlane(nn.Module):
    """Labels as an additional image channel (N, 1, size, size): one-hot, linear, ReLU."""

    def __init__(self, size: int, condition_size: int):
        super().__init__()
        self.layers = nn.Sequential(Embedding(condition_size, size**2), nn.ReLU(), nn.Unflatten(1, (1, size, size)))

    def forward(self, label: Tensor) -> Tensor:
        return self.layers(label)


def _required(label: Tensor | None) -> Tensor:
    assert label is not None, "a conditional level needs labels"
    return label


def _append_plane(images: Tensor, plane: LabelPlane | None, label: Tensor | None) -> Tensor:
    if plane is None:
        return images
    return torch.cat([images, plane(_required(label)).to(images.dtype)], dim=1)


class ResidualGenerator(nn.Module):
    """The enlarged coarse image plus the missing detail, from the image, noise (N, size * size) and the label.

    7x7, 7x7 and 5x5 convolutions with ReLU; the detail is unbounded.
    """

    def __init__(self, channels: int, size: int, condition_size: int | None, width: int):
        super().__init__()
        self.size = size
        self.plane = LabelPlane(size, condition_size) if condition_size else None
        self.layers = nn.Sequential(
            nn.Conv2d(channels + (2 if condition_size else 1), width, 7, padding=3),
            nn.ReLU(),
            nn.Conv2d(width, width, 7, padding=3),
            nn.ReLU(),
            nn.Conv2d(width, channels, 5, padding=2),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, condition: LevelCondition) -> Tensor:
        coarse = condition.image
        assert coarse is not None
        inputs = torch.cat([coarse, latent.view(-1, 1, self.size, self.size)], dim=1)
        inputs = _append_plane(inputs, self.plane, condition.label)
        return coarse + self.layers(inputs.contiguous(memory_format=torch.channels_last))


class ResidualDiscriminator(nn.Module):
    """From images (coarse image plus detail), with the label as an additional channel, to logits (N,)."""

    def __init__(self, channels: int, size: int, condition_size: int | None, width: int, dropout: float):
        super().__init__()
        self.plane = LabelPlane(size, condition_size) if condition_size else None
        self.layers = nn.Sequential(
            nn.Conv2d(channels + (1 if condition_size else 0), width, 5, padding=2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(width, width, 5, 2, 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(width * (-(-size // 2)) ** 2, 1),
            nn.Flatten(0),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, sample: Tensor, condition: LevelCondition) -> Tensor:
        inputs = _append_plane(sample, self.plane, condition.label)
        return self.layers(inputs.contiguous(memory_format=torch.channels_last))


class _Levels(nn.Module):
    """Networks that training calls, and so compiles, one by one."""

    levels: nn.ModuleList

    def compile(self, *arguments: Any, **options: Any) -> None:
        for level in self.levels:
            level.compile(*arguments, **options)


class Generator(_Levels):
    """From a tuple of latents and labels (N,), attributes (N, K) or None to the finest images, level by level.

    `levels` are ascending sizes that end with `image_size`; None takes the default of `level_sizes`. The coarsest level
    has `hidden` units per layer, the others `width` channels.
    """

    def __init__(
        self,
        latent_size: int,
        image_size: int,
        channels: int,
        levels: Sequence[int] | None = None,
        condition_size: int | None = None,
        hidden: int = 1200,
        width: int = 64,
    ):
        super().__init__()
        self.sizes = sizes = tuple(level_sizes(image_size, levels))
        self.condition_size = condition_size
        finer = [ResidualGenerator(channels, size, condition_size, width) for size in sizes[1:]]
        self.levels = nn.ModuleList(
            [CoarsestGenerator(latent_size, channels, sizes[0], condition_size, hidden), *finer]
        )

    def forward(self, latent: tuple[Tensor, ...], condition: Tensor | None = None) -> Tensor:
        return self.steps(latent, condition)[-1]

    def steps(self, latent: tuple[Tensor, ...], condition: Tensor | None = None) -> list[Tensor]:
        """The images of all levels, coarse to fine."""
        images: list[Tensor] = []
        for size, level, noise in zip(self.sizes, self.levels, latent, strict=True):
            coarse = resized(images[-1], size) if images else None
            images.append(level(noise, LevelCondition(coarse, condition)))
        return images


class Discriminator(_Levels):
    """A discriminator for each size. Calling the whole module calls the finest level's.

    `spectral` normalizes all weights spectrally (Miyato et al., 2018).
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        levels: Sequence[int] | None = None,
        condition_size: int | None = None,
        hidden: int = 600,
        width: int = 64,
        dropout: float = 0.5,
        spectral: bool = False,
    ):
        super().__init__()
        self.sizes = sizes = tuple(level_sizes(image_size, levels))
        finer = [ResidualDiscriminator(channels, size, condition_size, width, dropout) for size in sizes[1:]]
        self.levels = nn.ModuleList(
            [CoarsestDiscriminator(channels, sizes[0], condition_size, hidden, dropout), *finer]
        )
        if spectral:
            apply_spectral_norm(self)

    def forward(self, sample: Tensor, condition: Any = None) -> Tensor:
        return self.levels[-1](sample, LevelCondition(None, condition))
