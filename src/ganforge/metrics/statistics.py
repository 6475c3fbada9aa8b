"""What is kept of the features of a set of samples, gathered so that it does not depend on who saw which."""

from math import ceil
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ganforge.errors import UserError
from ganforge.randomness import CHUNK

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
    """Gathers the statistics of `count` samples, of which every rank sees the chunks that are dealt to it.

    Sums are float64. Single features have their place by the sample's number, so their order is that of the samples.
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
        """Add a chunk. Rows beyond the number of samples are not counted, but every rank has to add some chunk."""
        rows = max(0, min(CHUNK, self.count - chunk * CHUNK))
        self.seen += rows
        features = found.features[:rows]
        features = features.double() if features.device.type != "mps" else features.cpu().double()
        for total, part in zip(self._sums(features), (features.sum(0), features.T @ features), strict=True):
            total += part
        for name, values in (("features", found.features), ("logits", found.logits), ("labels", labels)):
            if values is not None and self.keeps:
                buffer = self._buffer(name, values)
                if chunk % self.every == 0:
                    start = chunk // self.every * CHUNK
                    buffer[start : start + rows] = values[:rows].cpu()

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

    def result(self) -> Statistics:
        """The statistics of all ranks' chunks, on every rank."""
        seen = int(over_ranks(torch.tensor(self.seen), self.trainer))
        check_all_seen(seen, self.count)
        total, outer = (over_ranks(value, self.trainer).cpu() for value in self.sums)
        kept = {name: over_ranks(values, self.trainer) for name, values in self.kept.items()}
        mean = total / self.count
        covariance = (outer - self.count * torch.outer(mean, mean)) / max(1, self.count - 1)
        return Statistics(self.count, mean, covariance, **kept)


def check_all_seen(seen: int, count: int) -> None:
    """Raise UserError where a validation ended early, as an option of Lightning's may make it."""
    if seen != count:
        raise UserError(
            f"{seen} of {count} samples were there to be measured: for fewer, set num_samples, and leave the limits of "
            "the trainer alone"
        )


def over_ranks(value: Tensor, trainer: Trainer) -> Tensor:
    """The sum over the ranks; where one rank has a value and the others zeros, that value."""
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="sum").cpu()
