"""Seeded sampling: sample i does not depend on how many are drawn."""

from math import ceil
from typing import Any

import torch
from torch import Tensor

from ganforge import randomness
from ganforge.latents import Latent, cat_latents, index_latents
from ganforge.randomness import CHUNK


class Sampler:
    """Draws samples from a generator with a `latent`; a subclass implements `sample`."""

    latent: Latent | None
    seed: int

    def sample(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def samples(self, count: int, seed: int | None = None, conditions: Tensor | None = None) -> Tensor:
        """The first `count` samples of a seed, by default that of the run.

        With `conditions` (R, ...), R rows of ceil(count / R) samples: one condition per row, one latent per column.
        """
        columns = count if conditions is None else ceil(count / len(conditions))
        latents = self.latents(columns, self.seed if seed is None else seed)
        if conditions is None:
            return self.sample_all(latents)
        column = torch.arange(columns).repeat(len(conditions))
        return self.sample_all(index_latents(latents, column), conditions.repeat_interleave(columns, dim=0))

    def sample_grid(
        self, count: int, seed: int | None = None, conditions: Tensor | None = None
    ) -> tuple[Tensor, int | None]:
        """`samples`, and the number of columns of their grid; None without conditions, where any number will do."""
        samples = self.samples(count, seed, conditions)
        return samples, None if conditions is None else len(samples) // len(conditions)

    def latents(self, count: int, seed: int) -> Any:
        """The latents of the first `count` evaluation samples of a seed."""
        assert self.latent is not None
        drawn = [randomness.sample_chunk(self.latent, seed, chunk) for chunk in range(ceil(count / CHUNK))]
        return index_latents(cat_latents(drawn), torch.arange(count))

    def sample_all(self, latents: Any, conditions: Tensor | None = None) -> Tensor:
        """One sample per latent, generated in chunks."""
        count = len(latents[0] if isinstance(latents, tuple) else latents)
        found = []
        for rows in torch.arange(ceil(count / CHUNK) * CHUNK).clamp_max(count - 1).split(CHUNK):
            condition = None if conditions is None else conditions[rows]
            found.append(self.sample(index_latents(latents, rows), condition))
        return torch.cat(found)[:count]
