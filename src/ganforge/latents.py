"""Distributions that the generator's input is drawn from."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor


class Latent:
    """A distribution over vectors of `size` independent numbers. Called as `latent(count, generator)`."""

    values: ClassVar[str] = "drawn as its class does"
    """How the numbers are distributed, for people."""

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"size={size}: a latent vector needs at least one number")
        self.size = size

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count, size)."""
        raise NotImplementedError

    def between(self, start: Tensor, end: Tensor, position: Tensor) -> Tensor:
        """Latents on the way, at positions from 0 to 1; everything broadcasts."""
        return torch.lerp(start, end, position)


class Normal(Latent):
    """Standard normal."""

    values = "standard normal"

    def between(self, start: Tensor, end: Tensor, position: Tensor) -> Tensor:
        """Keep the length on the way, as normal latents have nearly one length in high dimensions."""
        straight = super().between(start, end, position)
        lengths = super().between(start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True), position)
        return straight * lengths / straight.norm(dim=-1, keepdim=True).clamp_min(1e-8)

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.size, generator=generator)


class Uniform(Latent):
    """Uniform on [-1, 1), as in the first GAN papers (Goodfellow et al., 2014; Radford et al., 2016)."""

    values = "uniform on [-1, 1)"

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, self.size, generator=generator).mul_(2).sub_(1)


class Levels(Latent):
    """A latent for each level of a generator, in a tuple."""

    def __init__(self, levels: Sequence[Latent]):
        self.levels = levels

    def __call__(self, count: int, generator: torch.Generator) -> Any:
        return tuple(latent(count, generator) for latent in self.levels)

    def between(self, start: Any, end: Any, position: Tensor) -> Any:
        """The coarsest level is on the way; the noise of the others stays as it is."""
        first, *finer = start
        coarsest = self.levels[0].between(first, end[0], position)
        return coarsest, *(noise[:1].expand(len(coarsest), *noise.shape[1:]) for noise in finer)


def to_device(latent: Any, device: Any, dtype: Any) -> Any:
    """A latent on a device, in the precision of the network that gets it."""
    if isinstance(latent, tuple):
        return tuple(to_device(level, device, dtype) for level in latent)
    return None if latent is None else latent.to(device=device, dtype=dtype)


def cat_latents(latents: list[Any]) -> Any:
    """Draws of a latent as one."""
    return tuple(map(torch.cat, zip(*latents, strict=True))) if isinstance(latents[0], tuple) else torch.cat(latents)


def index_latents(latent: Any, rows: Tensor) -> Any:
    """Rows of a latent."""
    return tuple(level[rows] for level in latent) if isinstance(latent, tuple) else latent[rows]
