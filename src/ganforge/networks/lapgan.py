"""The Laplacian pyramid, and a generator and a discriminator for each of its levels (LAPGAN, Denton et al., 2015)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ganforge.networks import mlp
from ganforge.networks.conditional import Embedding


def resized(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) at another size, smaller ones antialiased: linear in the images."""
    # in bfloat16 there is no such thing on CPUs, and elsewhere it would round the detail away
    exact = images if images.dtype == torch.float64 else images.float()
    return interpolate(exact, (size, size), mode="bilinear", antialias=True).to(images.dtype)


def gaussian_pyramid(images: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """The images at each size, each made of the next finer one. `sizes` rise to H = W."""
    levels = [images]
    for size in reversed(sizes[:-1]):
        levels.insert(0, resized(levels[0], size))
    return levels


def levels_of(image_size: int, sizes: Sequence[int] | None = None) -> list[int]:
    """The sizes as given, or halved as often as is usual: 28 -> 7, 14, 28; 64 -> 8, 16, 32, 64."""
    if sizes and (isinstance(sizes, int) or any(type(size) is not int for size in sizes)):
        raise ValueError(f"levels={sizes}: must be sizes such as [7,14,28], whole numbers that rise to {image_size}")
    found = list(sizes or [image_size])
    while not sizes and found[0] >= 12 and found[0] % 2 == 0:
        found.insert(0, found[0] // 2)
    if found != sorted(set(found)) or found[0] < 2 or found[-1] != image_size or len(found) < 2:
        raise ValueError(f"levels={found}: two or more sizes that rise to that of the images, {image_size}")
    return found


class Coarse(NamedTuple):
    """What a level is conditioned on: the image of the level below, enlarged (N, C, s, s); None at the coarsest level;
    and labels (N,) or attributes, or None."""

    image: Tensor | None
    label: Tensor | None


class CoarsestGenerator(nn.Module):
    """A perceptron from a latent (N, latent_size), beside it the label's embedding, to the coarsest images."""

    def __init__(self, latent_size: int, channels: int, size: int, condition_size: int | None, hidden: int):
        super().__init__()
        self.embedding = Embedding(condition_size, latent_size) if condition_size else None
        inputs = latent_size * (2 if condition_size else 1)
        self.layers = mlp.Generator(inputs, (channels, size, size), [hidden, hidden], nn.ReLU)

    def forward(self, latent: Tensor, condition: Coarse) -> Tensor:
        if self.embedding is not None:
            latent = torch.cat([latent, self.embedding(_given(condition.label))], dim=1)
        return self.layers(latent)


class CoarsestDiscriminator(nn.Module):
    """A perceptron from the coarsest images, beside them the label's embedding, to logits (N,)."""

    def __init__(self, channels: int, size: int, condition_size: int | None, hidden: int, dropout: float):
        super().__init__()
        self.plane = Plane(size, condition_size) if condition_size else None
        planes = channels + (1 if condition_size else 0)
        self.layers = mlp.Discriminator((planes, size, size), [hidden, hidden], LeakyDropout(dropout))

    def forward(self, sample: Tensor, condition: Coarse) -> Tensor:
        return self.layers(_with_plane(sample, self.plane, condition.label))


class LeakyDropout:
    """Makes an activation of the paper's discriminators: leaky ReLU with dropout."""

    def __init__(self, dropout: float):
        self.dropout = dropout

    def __call__(self) -> nn.Module:
        return nn.Sequential(nn.LeakyReLU(0.2), nn.Dropout(self.dropout))


class Plane(nn.Module):
    """A label as one more channel of an image: one-hot, linear, ReLU."""

    def __init__(self, size: int, condition_size: int):
        super().__init__()
        self.layers = nn.Sequential(Embedding(condition_size, size**2), nn.ReLU(), nn.Unflatten(1, (1, size, size)))

    def forward(self, label: Tensor) -> Tensor:
        return self.layers(label)


def _given(label: Tensor | None) -> Tensor:
    assert label is not None, "a conditional level needs labels"
    return label


def _with_plane(images: Tensor, plane: Plane | None, label: Tensor | None) -> Tensor:
    if plane is None:
        return images
    return torch.cat([images, plane(_given(label)).to(images.dtype)], dim=1)


class ResidualGenerator(nn.Module):
    """Adds to the enlarged coarse image the detail that it lacks, made of the image, a plane of noise and the label.

    The noise comes as (N, size * size). 7x7, 7x7 and 5x5 convolutions with ReLU; no bound on the detail.
    """

    def __init__(self, channels: int, size: int, condition_size: int | None, width: int):
        super().__init__()
        self.size = size
        self.plane = Plane(size, condition_size) if condition_size else None
        self.layers = nn.Sequential(
            nn.Conv2d(channels + (2 if condition_size else 1), width, 7, padding=3),
            nn.ReLU(),
            nn.Conv2d(width, width, 7, padding=3),
            nn.ReLU(),
            nn.Conv2d(width, channels, 5, padding=2),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor, condition: Coarse) -> Tensor:
        coarse = condition.image
        assert coarse is not None
        seen = torch.cat([coarse, latent.view(-1, 1, self.size, self.size)], dim=1)
        seen = _with_plane(seen, self.plane, condition.label)
        return coarse + self.layers(seen.contiguous(memory_format=torch.channels_last))


class ResidualDiscriminator(nn.Module):
    """Whether the coarse image and its detail, added, make a real image; the label is one more channel. Logits (N,)."""

    def __init__(self, channels: int, size: int, condition_size: int | None, width: int, dropout: float):
        super().__init__()
        self.plane = Plane(size, condition_size) if condition_size else None
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

    def forward(self, sample: Tensor, condition: Coarse) -> Tensor:
        seen = _with_plane(sample, self.plane, condition.label)
        return self.layers(seen.contiguous(memory_format=torch.channels_last))


class _Levels(nn.Module):
    """Networks that are called one by one, and so compiled one by one."""

    levels: nn.ModuleList

    def compile(self, *arguments: Any, **options: Any) -> None:
        for level in self.levels:
            level.compile(*arguments, **options)


class Generator(_Levels):
    """A generator for each size: the latents (a tuple) and a label (N,) or None to the finest images, level by level.

    `levels` are sizes that rise to `image_size`, null: halved as often as is usual. The coarsest level has `hidden`
    units a layer, the others `width` channels.
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
        self.sizes = sizes = tuple(levels_of(image_size, levels))
        self.condition_size = condition_size
        finer = [ResidualGenerator(channels, size, condition_size, width) for size in sizes[1:]]
        self.levels = nn.ModuleList(
            [CoarsestGenerator(latent_size, channels, sizes[0], condition_size, hidden), *finer]
        )

    def forward(self, latent: tuple[Tensor, ...], condition: Tensor | None = None) -> Tensor:
        return self.steps(latent, condition)[-1]

    def steps(self, latent: tuple[Tensor, ...], condition: Tensor | None = None) -> list[Tensor]:
        """The images of every level, coarse to fine."""
        images: list[Tensor] = []
        for size, level, noise in zip(self.sizes, self.levels, latent, strict=True):
            coarse = resized(images[-1], size) if images else None
            images.append(level(noise, Coarse(coarse, condition)))
        return images


class Discriminator(_Levels):
    """A discriminator for each size. Called as a whole, it is the finest one's."""

    def __init__(
        self,
        image_size: int,
        channels: int,
        levels: Sequence[int] | None = None,
        condition_size: int | None = None,
        hidden: int = 600,
        width: int = 64,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.sizes = sizes = tuple(levels_of(image_size, levels))
        finer = [ResidualDiscriminator(channels, size, condition_size, width, dropout) for size in sizes[1:]]
        self.levels = nn.ModuleList(
            [CoarsestDiscriminator(channels, sizes[0], condition_size, hidden, dropout), *finer]
        )

    def forward(self, sample: Tensor, condition: Any = None) -> Tensor:
        return self.levels[-1](sample, Coarse(None, condition))
