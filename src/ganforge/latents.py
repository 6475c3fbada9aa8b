"""Distributions of the generator's latents."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor


class Latent:
    """A distribution over vectors of `size` independent numbers; `latent(count, generator)` draws (count, size)."""

    values: ClassVar[str] = "of a custom distribution"
    """Describes the distribution in model cards."""

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"size={size}: a latent vector needs at least one number")
        self.size = size

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count, size)."""
        raise NotImplementedError

    def between(self, start: Tensor, end: Tensor, position: Tensor) -> Tensor:
        """Interpolate from start (position 0) to end (position 1); all arguments broadcast."""
        return torch.lerp(start, end, position)


class Normal(Latent):
    """Standard normal."""

    values = "standard normal"

    def between(self, start: Tensor, end: Tensor, position: Tensor) -> Tensor:
        """Interpolate direction and norm separately: in high dimensions, normal latents have nearly the same norm."""
        latents = super().between(start, end, position)
        norms = super().between(start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True), position)
        return latents * norms / latents.norm(dim=-1, keepdim=True).clamp_min(1e-8)

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.size, generator=generator)


class Uniform(Latent):
    """Uniform on [-1, 1), as in the first GAN papers (Goodfellow et al., 2014; Radford et al., 2016)."""

    values = "uniform on [-1, 1)"

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, self.size, generator=generator).mul_(2).sub_(1)


class Levels(Latent):
    """A tuple of latents, one for each level of a generator."""

    def __init__(self, levels: Sequence[Latent]):
        self.levels = levels

    def __call__(self, count: int, generator: torch.Generator) -> Any:
        return tuple(latent(count, generator) for latent in self.levels)

    def between(self, start: Any, end: Any, position: Tensor) -> Any:
        """Interpolate the coarsest level; the noise of the finer levels is that of the first start."""
        first, *finer = start
        coarsest = self.levels[0].between(first, end[0], position)
        return coarsest, *(noise[:1].expand(len(coarsest), *noise.shape[1:]) for noise in finer)


def to_device(latent: Any, device: Any, dtype: Any) -> Any:
    """A latent on a device, in the precision of the network that gets it."""
    if isinstance(latent, tuple):
        return tuple(to_device(level, device, dtype) for level in latent)
    return None if latent is None else latent.to(device=device, dtype=dtype)


def cat_latents(latents: list[Any]) -> Any:
    """Concatenate latents, tuples of levels included."""
    return tuple(map(torch.cat, zip(*latents, strict=True))) if isinstance(latents[0], tuple) else torch.cat(latents)


def index_latents(latent: Any, rows: Tensor) -> Any:
    """Select rows of a latent, which may be a tuple of levels."""
    return tuple(level[rows] for level in latent) if isinstance(latent, tuple) else latent[rows]
