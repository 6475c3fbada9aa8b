"""Random numbers keyed by where they are used (seed, stream, step ...), independent of all draws before them.

So a killed run resumes bit for bit on deterministic hardware, and the draws are the same on any number of devices. All
numbers are drawn on the CPU, so they do not depend on the kind of device either.
"""

from collections.abc import Callable
from enum import IntEnum
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

Draw = Callable[[int, torch.Generator], Tensor]
"""Draws `count` rows from a generator."""

CHUNK = 64
"""Evaluation samples are drawn and generated in chunks of this size, however many are asked for: rounding inside a
network depends on the batch size, and the images must not."""


class Stream(IntEnum):
    """The purpose of a random number; keeps the streams of one seed apart."""

    ORDER = 0
    STEP = 1
    LAYERS = 2
    SAMPLES = 3
    DATA = 4
    CROPS = 5
    AUGMENT = 6
    STANDING = 7
    CONDITIONS = 8


_MASK = 2**64 - 1


def _hash(*key: int) -> int:
    """A 64-bit seed from the numbers of a key: SplitMix64 (Steele et al., 2014)."""
    state = 0
    for number in key:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def generator(seed: int, stream: Stream, *key: int) -> torch.Generator:
    """A CPU generator for a key such as (seed, Stream.STEP, 1200)."""
    return torch.Generator().manual_seed(_hash(seed, stream, *key))


class Shard(NamedTuple):
    """The rows of a rank. A step consumes `parts` batches, one per discriminator update, each split over the ranks."""

    parts: int = 1
    rank: int = 0
    world_size: int = 1

    def select(self, whole: Tensor) -> Tensor:
        """This rank's rows of all batches of a step, (parts * world_size * n, ...) to (parts * n, ...)."""
        if self.world_size == 1:
            return whole
        return whole.unflatten(0, (self.parts, self.world_size, -1))[:, self.rank].flatten(0, 1)


class ShardedDraw(NamedTuple):
    """Draws for all ranks and returns this rank's `count` rows, so the numbers do not depend on the number of ranks."""

    generator: torch.Generator
    shard: Shard

    def __call__(self, draw: Draw, count: int) -> Tensor:
        return self.shard.select(draw(count * self.shard.world_size, self.generator))


_step = ShardedDraw(torch.default_generator, Shard())


def start_step(seed: int, step: int, rank: int, world_size: int, device: torch.device, rewinds: int = 0) -> None:
    """Seed the random streams of a training step.

    `for_batch` draws from (seed, step). Layers with noise of their own, such as dropout, draw from torch's global
    generators, which are seeded with (seed, step, rank). `rewinds` counts how often the run has gone back to an earlier
    checkpoint: each time it continues with new random numbers.
    """
    global _step
    retry = (rewinds,) if rewinds else ()
    _step = ShardedDraw(generator(seed, Stream.STEP, step, *retry), Shard(1, rank, world_size))
    layers = _hash(seed, Stream.LAYERS, step, rank, *retry)
    # torch.manual_seed formats a stack trace per call on machines without a GPU
    torch.default_generator.manual_seed(layers)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(layers)


def for_batch(draw: Draw, count: int) -> Tensor:
    """This rank's `count` rows of a draw for the whole batch of the current training step."""
    return _step(draw, count)


def sample_chunk(draw: Draw, seed: int, chunk: int, stream: Stream = Stream.SAMPLES) -> Tensor:
    """Draw for the evaluation samples chunk * CHUNK, ..., (chunk + 1) * CHUNK - 1."""
    return draw(CHUNK, generator(seed, stream, chunk))


def rank_indices(count: int, rank: int, world_size: int) -> range:
    """Every `world_size`-th index from `rank`. All ranks get equally many, so the last index may be `count` or more."""
    return range(rank, ceil(count / world_size) * world_size, world_size)


def rank_chunks(count: int, rank: int, world_size: int) -> range:
    """The chunks of `count` samples that a rank generates. The last chunk may lie beyond the samples: discard it."""
    return rank_indices(ceil(count / CHUNK), rank, world_size)


def chunk_rows(chunk: int, count: int) -> Tensor:
    """The sample indices in a chunk, out of `count` samples; the last index for a chunk beyond the samples."""
    return torch.arange(min(chunk * CHUNK, count - 1), min((chunk + 1) * CHUNK, count))
