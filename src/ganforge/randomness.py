"""Random numbers that are a function of their place in an experiment, never of what was drawn before.

That is what lets a killed run resume bit for bit, and one experiment be the same on any number of devices.
Numbers are drawn on the CPU, so that they do not depend on the kind of device either.
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
"""Evaluation samples are drawn and generated in chunks of this size, whoever asks for how many: rounding inside a
network depends on the shape of its batch, and the images must not."""


class Stream(IntEnum):
    """What a random number is for; separates streams that share a seed."""

    ORDER = 0
    STEP = 1
    LAYERS = 2
    SAMPLES = 3
    DATA = 4
    PLACES = 5
    AUGMENT = 6
    STANDING = 7
    CONDITIONS = 8


_MASK = 2**64 - 1


def _mix(*place: int) -> int:
    """64 bits that look random and depend on every number of a place: SplitMix64 (Steele et al., 2014)."""
    state = 0
    for number in place:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def generator(seed: int, stream: Stream, *place: int) -> torch.Generator:
    """A CPU generator for a place such as (seed, Stream.STEP, 1200)."""
    return torch.Generator().manual_seed(_mix(seed, stream, *place))


class Share(NamedTuple):
    """What a rank gets of a batch: its rows of each of the batch's `parts`."""

    parts: int = 1
    rank: int = 0
    world_size: int = 1

    def of(self, whole: Tensor) -> Tensor:
        if self.world_size == 1:
            return whole
        return whole.unflatten(0, (self.parts, self.world_size, -1))[:, self.rank].flatten(0, 1)


class RankDraws(NamedTuple):
    """Draws for this rank's rows, taken from a draw for the whole batch."""

    generator: torch.Generator
    share: Share

    def __call__(self, draw: Draw, count: int) -> Tensor:
        return self.share.of(draw(count * self.share.world_size, self.generator))


_step = RankDraws(torch.default_generator, Share())


def start_step(seed: int, step: int, rank: int, world_size: int, device: torch.device, rewinds: int = 0) -> None:
    """Begin the random streams of a training step.

    `for_batch` draws from (seed, step); layers with noise of their own, such as dropout, which draw from torch's
    global generators, from (seed, step, rank). A training that was rewound has others: `rewinds` counts how often.
    """
    global _step
    again = (rewinds,) if rewinds else ()
    _step = RankDraws(generator(seed, Stream.STEP, step, *again), Share(1, rank, world_size))
    layers = _mix(seed, Stream.LAYERS, step, rank, *again)
    # not torch.manual_seed: it formats a stack trace per call on machines without a GPU
    torch.default_generator.manual_seed(layers)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(layers)


def for_batch(draw: Draw, count: int) -> Tensor:
    """`count` rows for this rank, taken from a draw for the whole batch of the current training step."""
    return _step(draw, count)


def sample_chunk(draw: Draw, seed: int, chunk: int, stream: Stream = Stream.SAMPLES) -> Tensor:
    """The draws of evaluation samples chunk * CHUNK, ..., chunk * CHUNK + CHUNK - 1."""
    return draw(CHUNK, generator(seed, stream, chunk))


def rank_indices(count: int, rank: int, world_size: int) -> range:
    """What a rank gets of `count` things in turn: as many as every other, so the last may be one that is not there."""
    return range(rank, ceil(count / world_size) * world_size, world_size)


def chunks_of(count: int, rank: int, world_size: int) -> range:
    """The chunks of `count` samples that a rank gets. One that lies beyond the samples is not to be counted."""
    return rank_indices(ceil(count / CHUNK), rank, world_size)


def chunk_rows(chunk: int, count: int) -> Tensor:
    """The numbers of the samples in a chunk, of `count` altogether; the last again where there would be none."""
    return torch.arange(min(chunk * CHUNK, count - 1), min((chunk + 1) * CHUNK, count))
