"""Feature statistics of a set of samples, gathered so that they do not depend on the number of ranks."""

from math import ceil
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from ganforge.randomness import CHUNK
from ganforge.runtime.errors import UserError

MAX_SAMPLES = 65_536
"""Most samples whose single features are kept, in chunks evenly spaced over the set."""


class Features(NamedTuple):
    """The output of an extractor: features (N, D), and logits (N, K) if it is a classifier."""

    features: Tensor
    logits: Tensor | None = None


class Statistics(NamedTuple):
    """Feature statistics of a set of samples.

    size: the number of samples
    mean, covariance: of all features, (D,) and (D, D), float64
    features, logits, labels: (n, D), (n, K), (n,) of at most MAX_SAMPLES evenly spaced samples, in order; empty or None
        if they are not kept or do not exist
    """

    size: int
    mean: Tensor
    covariance: Tensor
    features: Tensor = torch.empty(0)
    logits: Tensor | None = None
    labels: Tensor | None = None


class Collector:
    """Gathers the statistics of `count` samples on rank 0, from features that all ranks extract in chunks.

    Sums are float64 and taken in the order of the chunks, so that not one bit depends on the number of ranks. Single
    features are stored at the index of their sample. `keep_samples=False` keeps only the sums.
    """

    def __init__(self, count: int, trainer: Trainer, keep_samples: bool = True):
        self.count = count
        self.trainer = trainer
        self.keep_samples = keep_samples
        self.added = 0
        self.chunks = ceil(count / CHUNK)
        self.stride = ceil(self.chunks * CHUNK / MAX_SAMPLES)  # every stride-th chunk is kept
        self.sums: list[Tensor] = []
        self.buffers: dict[str, Tensor] = {}

    def update(self, chunk: int, output: Features, labels: Tensor | None = None) -> None:
        """Add this rank's chunk and those of the other ranks. All ranks must call it the same number of times.

        Rows beyond the number of samples are ignored.
        """
        values = {"features": output.features}
        if self.keep_samples:
            values |= {n: v for n, v in (("logits", output.logits), ("labels", labels)) if v is not None}
        gathered = {name: self._all_gather(value) for name, value in values.items()}
        for rank in range(self.trainer.world_size):
            self._add(chunk - self.trainer.global_rank + rank, {name: parts[rank] for name, parts in gathered.items()})

    def _all_gather(self, values: Tensor) -> Tensor:
        """The chunks of all ranks (world_size, CHUNK, ...), padded with zeros because the last one may be shorter."""
        if self.trainer.world_size == 1:
            return values.unsqueeze(0)
        padded = values.new_zeros(CHUNK, *values.shape[1:], device=self.trainer.strategy.root_device)
        padded[: len(values)] = values
        return self.trainer.strategy.all_gather(padded)

    def _add(self, chunk: int, values: dict[str, Tensor]) -> None:
        rows = max(0, min(CHUNK, self.count - chunk * CHUNK))
        self.added += rows
        if not rows or not self.trainer.is_global_zero:
            return
        features = values["features"][:rows].contiguous()  # the memory layout may change the rounding
        features = features.double() if features.device.type != "mps" else features.cpu().double()
        for total, part in zip(self._sums(features), (features.sum(0), features.T @ features), strict=True):
            total += part
        if self.keep_samples and chunk % self.stride == 0:
            start = chunk // self.stride * CHUNK
            for name, value in values.items():
                self._buffer(name, value)[start : start + rows] = value[:rows].cpu()

    def _sums(self, features: Tensor) -> list[Tensor]:
        if not self.sums:
            size = features.shape[1]
            self.sums = [features.new_zeros(size), features.new_zeros(size, size)]
        return self.sums

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        if name not in self.buffers:
            kept = range(0, self.chunks, self.stride)
            size = (len(kept) - 1) * CHUNK + min(CHUNK, self.count - kept[-1] * CHUNK)
            self.buffers[name] = torch.zeros(size, *like.shape[1:], dtype=like.dtype)
        return self.buffers[name]

    def result(self) -> Statistics | None:
        """The statistics of all samples on rank 0, None on other ranks. Raises UserError if samples are missing."""
        check_complete(self.added, self.count)
        if not self.trainer.is_global_zero:
            return None
        total, outer = (value.cpu() for value in self.sums)
        mean = total / self.count
        covariance = (outer - self.count * torch.outer(mean, mean)) / max(1, self.count - 1)
        return Statistics(self.count, mean, covariance, **self.buffers)


def check_complete(added: int, count: int) -> None:
    """Raise UserError if a validation ended early, for example because of trainer.limit_val_batches."""
    if added != count:
        raise UserError(
            f"Only {added} of {count} samples were generated: set num_samples instead of trainer.limit_val_batches"
        )


def all_reduce_sum(value: Tensor, trainer: Trainer) -> Tensor:
    """The sum of a CPU tensor over all ranks."""
    if trainer.world_size == 1:
        return value
    return trainer.strategy.reduce(value.to(trainer.strategy.root_device), reduce_op="sum").cpu()
