"""Seeded sampling: sample i does not depend on how many are drawn."""

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ganforge import randomness
from ganforge.data.base import TensorData
from ganforge.latents import Latent, cat_latents, index_latents, to_device
from ganforge.models.ema import MovingAverage, preserve_mode
from ganforge.randomness import CHUNK, Stream


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


class ModelSampler(Sampler):
    """Samples of a LightningModule with a `generator`, for evaluation and previews. Training is not affected."""

    generator: nn.Module
    average: MovingAverage | None
    device: Any
    dtype: Any
    trainer: Any
    generate: Any
    sampling_game: Any

    @property
    def sampling_generator(self) -> nn.Module:
        """The generator that samples are drawn from: the moving average if there is one."""
        return self.generator if self.average is None else self.average.module

    @property
    def condition_size(self) -> int | None:
        """How many classes or attributes the generator is conditioned on; None if on none."""
        return getattr(self.generator, "condition_size", None)

    @torch.no_grad()
    def sample(self, latent: Any, condition: Tensor | None = None) -> Tensor:
        """Generate samples without changing the training state."""
        generator = self.sampling_generator
        with preserve_mode(generator):
            generator.eval()
            condition = None if condition is None else condition.to(self.device)
            return self.generate(self.sampling_game, to_device(latent, self.device, self.dtype), condition)

    def preview(self, data: TensorData, count: int) -> tuple[Tensor, int | None]:
        """About `count` samples for a grid during training, and its number of columns, or None."""
        return self.sample_grid(count, conditions=None if self.condition_size is None else data.conditions())

    def sample_inputs(self, chunk: int, stream: Stream = Stream.SAMPLES) -> tuple[Any, Tensor | None]:
        """Latents of the evaluation samples chunk * CHUNK, ..., and conditions like those of the data."""
        assert self.latent is not None
        latent = randomness.sample_chunk(self.latent, self.seed, chunk, stream)
        latent = to_device(latent, self.device, self.dtype)
        if self.condition_size is None:
            return latent, None
        place = randomness.generator(self.seed, Stream.CONDITIONS, stream, chunk)
        return latent, self.trainer.datamodule.draw_conditions(CHUNK, place).to(self.device)
