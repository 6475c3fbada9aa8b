"""What is kept of the features of a set of samples, gathered so that it does not depend on who saw which."""

from math import ceil
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ganforge.randomness import CHUNK
from ganforge.runtime.errors import UserError

CAP = 65_536
"""The metrics that need single features look at no more samples than this, in chunks evenly spread over the set."""


class Features(NamedTuple):
    """What an extractor makes of N samples: features (N, D), and logits (N, K) where it classifies."""

    features: Tensor
    logits: Tensor | None = None


class Statistics(NamedTuple):
    """A set of samples in an extractor's eyes.

    size: samples in the set
    mean, covariance: of all features, (D,) and (D, D), float64
    features, logits, labels: of all samples, or of at most CAP evenly spread ones, (n, D), (n, K), (n,), in order;
        where they are kept, and where there are any
    """

    size: int
    mean: Tensor
    covariance: Tensor
    features: Tensor = torch.empty(0)
    logits: Tensor | None = None
    labels: Tensor | None = None


class Collector:
    """Gathers the statistics of `count` samples on rank 0, whichever rank makes the features of which chunk.

    Sums are float64 and taken in the order of the chunks, so that not one bit depends on the number of ranks. Single
    features have their place by the sample's number, so their order is that of the samples.
    """

    def __init__(self, count: int, trainer: Trainer, keeps: bool = True):
        self.count = count
        self.trainer = trainer
        self.keeps = keeps
        """Whether single features are wanted, or the sums are enough."""
        self.seen = 0
        self.chunks = ceil(count / CHUNK)
        self.every = ceil(self.chunks * CHUNK / CAP)  # chunks of which one is kept
        self.sums: list[Tensor] = []
        self.kept: dict[str, Tensor] = {}

    def update(self, chunk: int, found: Features, labels: Tensor | None = None) -> None:
        """Add a chunk, and those that the other ranks have at the same time: all of them call it, equally often.

        Rows beyond the number of samples are not counted, but every rank has to add some chunk.
        """
        values = {"features": found.features}
        if self.keeps:
            values |= {n: v for n, v in (("logits", found.logits), ("labels", labels)) if v is not None}
        shared = {name: self._of_all_ranks(value) for name, value in values.items()}
        for rank in range(self.trainer.world_size):
            self._add(chunk - self.trainer.global_rank + rank, {name: parts[rank] for name, parts in shared.items()})

    def _of_all_ranks(self, values: Tensor) -> Tensor:
        """A chunk of each rank, filled up with zeros, as the last one may have fewer rows than others."""
        if self.trainer.world_size == 1:
            return values.unsqueeze(0)
        whole = values.new_zeros(CHUNK, *values.shape[1:], device=self.trainer.strategy.root_device)
        whole[: len(values)] = values
        return self.trainer.strategy.all_gather(whole)

    def _add(self, chunk: int, values: dict[str, Tensor]) -> None:
        rows = max(0, min(CHUNK, self.count - chunk * CHUNK))
        self.seen += rows
        if not rows or not self.trainer.is_global_zero:
            return
        features = values["features"][:rows].contiguous()  # as how it lies in memory may change the rounding
        features = features.double() if features.device.type != "mps" else features.cpu().double()
        for total, part in zip(self._sums(features), (features.sum(0), features.T @ features), strict=True):
            total += part
        if self.keeps and chunk % self.every == 0:
            start = chunk // self.every * CHUNK
            for name, value in values.items():
                self._buffer(name, value)[start : start + rows] = value[:rows].cpu()

    def _sums(self, features: Tensor) -> list[Tensor]:
        if not self.sums:
            size = features.shape[1]
            self.sums = [features.new_zeros(size), features.new_zeros(size, size)]
        return self.sums

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        if name not in self.kept:
            kept = range(0, self.chunks, self.every)
            size = (len(kept) - 1) * CHUNK + min(CHUNK, self.count - kept[-1] * CHUNK)
            self.kept[name] = torch.zeros(size, *like.shape[1:], dtype=like.dtype)
        return self.kept[name]

    def result(self) -> Statistics | None:
        """The statistics of all ranks' chunks on rank 0, None on the others."""
        check_all_seen(self.seen, self.count)
        if not self.trainer.is_global_zero:
            return None
        total, outer = (value.cpu() for value in self.sums)
        mean = total / self.count
        covariance = (outer - self.count * torch.outer(mean, mean)) / max(1, self.count - 1)
        return Statistics(self.count, mean, covariance, **self.kept)


def check_all_seen(seen: int, count: int) -> None:
    """Raise UserError where a validation ended early, as an option of Lightning's may make it."""
    if seen != count:
        raise UserError(
            f"{seen} of {count} samples were there to be measured: for fewer, set num_samples, and leave the limits of "
            "the trainer alone"
        )


def all_reduce_sum(value: Tensor, trainer: Trainer) -> Tensor:
    """The sum over the ranks; where one rank has a value and the others zeros, that value."""
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="sum").cpu()
