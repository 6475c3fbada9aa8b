"""What all datasets share: a batch is one gather from tensors in memory, and depends on nothing but the step."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from math import ceil
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from ganforge.data.conditions import class_labels
from ganforge.randomness import Shard, ShardedDraw, Stream, generator, rank_chunks
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_unit_range

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Samples and their conditions.

    real: images (N, C, H, W) float32 in [-1, 1], or points (N, 2)
    condition: None, integer labels (N,), attributes (N, K), or images (N, C, h, w)

    Images stay uint8 until they are on the device.
    """

    real: Tensor
    condition: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.real)

    def split(self, parts: int) -> list["Batch"]:
        """Equal batches in order; the size must be a multiple of `parts`."""
        if parts == 1:
            return [self]
        conditions = [None] * parts if self.condition is None else self.condition.chunk(parts)
        return [Batch(*part) for part in zip(self.real.chunk(parts), conditions, strict=True)]


@lru_cache(maxsize=2)  # a batch that spans two epochs needs both
def _permutation(seed: int, epoch: int, size: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, Stream.ORDER, epoch))


class StepLoader:
    """Endless batches, one per step, cut into epochs because Lightning expects them.

    The rows come from successive permutations of the data, each drawn from (seed, epoch); the next permutation
    completes an incomplete batch. A step consumes `shard.parts` batches of `batch_size` rows. This rank's rows of them
    go to `take(rows, step)`, which returns the Batch. Iteration starts at the step that `current_step` returns, so
    resuming in the middle of an epoch needs no state. With `overfit_batches`, it cycles through the batches of the
    first `overfit_batches` steps.
    """

    def __init__(
        self,
        take: Callable[[Tensor, int], Batch],
        size: int,
        batch_size: int,
        seed: int,
        shard: Shard,
        current_step: Callable[[], int],
        overfit_batches: int | None = None,
    ):
        self.take = take
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shard = shard
        self.current_step = current_step
        self.overfit_batches = overfit_batches

    def __len__(self) -> int:
        """Steps per epoch, rounded up."""
        return ceil(self.size / (self.batch_size * self.shard.parts))

    def __iter__(self) -> Iterator[Batch]:
        first = self.current_step()
        for step in range(first, (first // len(self) + 1) * len(self)):
            yield self.batch(step)

    def rows(self, step: int) -> Tensor:
        """The rows of the data that all ranks together use in a step (counted from 0)."""
        size, count = self.size, self.batch_size * self.shard.parts
        start, end = step * count, (step + 1) * count
        return torch.cat(
            [
                _permutation(self.seed, epoch, size)[max(start - epoch * size, 0) : end - epoch * size]
                for epoch in range(start // size, ceil(end / size))
            ]
        )

    def batch(self, step: int) -> Batch:
        """This rank's batch of a step (counted from 0)."""
        step = repeated_step(step, self.overfit_batches)
        return self.take(self.shard.select(self.rows(step)), step)

    # Lightning resumes within an epoch only with loaders that have these. The trainer's step is the state.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def repeated_step(step: int, overfit_batches: int | None) -> int:
    """The step whose batch a step gets: its own, or one of the first `overfit_batches`."""
    return step % overfit_batches if overfit_batches else step


class TensorData(LightningDataModule):
    """Data in memory or in a memory-mapped file: uint8 images (N, C, H, W), or float points (N, 2).

    A subclass implements `load`. Models are built from `shape` and `num_classes`, which `setup` checks against the
    data. `batch_size` is the batch of the experiment, divided among the devices. `num_samples` is the number of
    samples that a validation generates. `flip` mirrors training images at random, with probability 0.5.
    `overfit_batches` trains repeatedly on that many batches, with the same flips; null: on all of the data. Models for
    images read `image_size` and `channels` from the config: they repeat what `shape` says.
    """

    license_note: ClassVar[str] = (
        "ganforge does not know the licence of the training data: ask whoever trained this model."
    )
    """The licence of the data, for the model card."""
    labels: ClassVar[str] = ""
    """The meaning of the integer labels, for the model card."""

    def __init__(
        self,
        batch_size: int,
        shape: Sequence[int],
        num_classes: int | None = None,
        num_samples: int = 10_000,
        flip: bool = False,
        seed: int = 0,
        overfit_batches: int | None = None,
        image_size: int | None = None,
        channels: int | None = None,
    ):
        super().__init__()
        if image_size is not None and tuple(shape) != (channels, image_size, image_size):
            raise ValueError(f"shape={list(shape)}: must be [channels, image_size, image_size]")
        if overfit_batches is not None and overfit_batches < 1:
            raise ValueError(f"overfit_batches={overfit_batches}: must be at least 1, or null")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: must be at least 1")
        self.batch_size = batch_size
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.classes: Sequence[str] = ()
        """Names of the integer labels, if they have names."""
        self.num_samples = num_samples
        self.flip = flip
        self.seed = seed
        self.overfit_batches = overfit_batches
        self.identity = ""
        """Identifies the files of the training data, which may change between two runs; empty for fixed data."""
        self.eval_sets: Sequence[Any] = ()
        """Sets of whole images that the current validation measures, for image-to-image data."""
        self.real: Tensor | None = None
        self.condition: Tensor | None = None

    def load(self, split: str = "train") -> tuple[Tensor, Tensor | None]:
        """Return the samples of a split and their conditions. Raises UserError for an unknown split."""
        raise NotImplementedError

    def samples(self, split: str) -> tuple[Any, Tensor | None]:
        """The stored samples of a split and their conditions, from memory where possible."""
        return (self.real, self.condition) if split == "train" and self.real is not None else self.load(split)

    def draw_conditions(self, count: int, generator: torch.Generator) -> Tensor:
        """Random conditions of training samples (count, ...), for fakes with the distribution of the data."""
        assert self.condition is not None
        return self.condition[torch.randint(len(self.condition), (count,), generator=generator)]

    def conditions(self, labels: Sequence[Any] | None = None) -> Tensor:
        """The conditions that these labels stand for (N, ...); by default those of all classes, or of ten evenly spaced
        ones. Raises UserError for an unknown label.
        """
        return class_labels(labels, self.num_classes or 0, self.classes)

    def fingerprint(self, split: str) -> str:
        """A digest that identifies the samples and conditions of a split."""
        samples, condition = self.samples(split)
        digest = hashlib.sha256(self.identity.encode() if split == "train" else b"")
        is_identified = split == "train" and self.identity
        for values in (None if is_identified else samples, condition):
            if values is not None:
                digest.update(repr((values.shape, values.dtype)).encode())
                digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()

    def setup(self, stage: str | None = None) -> None:
        if self.real is not None:
            return
        self.real, self.condition = self.load()
        classes = None if self.condition is None or self.condition.ndim > 1 else int(self.condition.max()) + 1
        if self.real.shape[1:] != self.shape:
            raise UserError(f"data.shape={list(self.shape)}: the data have shape {list(self.real.shape[1:])}")
        if (classes or 0) > (self.num_classes or 0) or (classes is None and self.num_classes is not None):
            raise UserError(
                f"data.num_classes={self.num_classes}: the data have {classes or 'no'} classes, so set it to "
                f"{classes or 'null'}"
            )
        self.check_batch_size(len(self.real))

    def check_batch_size(self, count: int) -> None:
        """Raise UserError unless `count` samples fill a batch."""
        if count < self.batch_size:
            raise UserError(f"data.batch_size={self.batch_size} is more than the {count} samples of the data: lower it")

    def take(self, rows: Tensor, step: int) -> Batch:
        """These rows of the training data as stored, for a step (counted from 0)."""
        assert self.real is not None
        # index_select copies whole rows; indexing copies element by element
        condition = None if self.condition is None else self.condition.index_select(0, rows)
        return Batch(self.real.index_select(0, rows), condition)

    @property
    def shard(self) -> Shard:
        """This rank's part of the rows of a step."""
        assert self.trainer is not None
        parts = getattr(self.trainer.lightning_module, "discriminator_steps", 1)
        return Shard(parts, self.trainer.global_rank, self.trainer.world_size)

    def draws(self, stream: Stream, step: int) -> ShardedDraw:
        """Random numbers for this rank's rows of a step."""
        return ShardedDraw(generator(self.seed, stream, repeated_step(step, self.overfit_batches)), self.shard)

    def train_dataloader(self) -> StepLoader:
        assert self.real is not None
        assert self.trainer is not None
        trainer, size = self.trainer, len(self.real)
        options = (self.batch_size, self.seed, self.shard)
        return StepLoader(self.take, size, *options, lambda: trainer.global_step, self.overfit_batches)

    def val_dataloader(self) -> DataLoader:
        """The chunks of sample indices that this rank generates."""
        assert self.trainer is not None
        chunks = rank_chunks(self.num_samples, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(chunks, batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return {"identity": self.identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not isinstance(state_dict, dict) or state_dict.get("identity") != self.identity:
            log.warning("The data have changed since this run began, so it will not reproduce the original run.")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment a batch and scale it to [-1, 1], on its device."""
        if not isinstance(batch, Batch) or batch.real.dtype != torch.uint8:
            return batch
        assert self.trainer is not None
        real = batch.real
        if self.flip and self.trainer.training:
            draw = self.draws(Stream.AUGMENT, self.trainer.global_step)
            mirrored = draw(lambda count, generator: torch.rand(count, generator=generator) < 0.5, len(real))
            real = torch.where(mirrored.to(real.device).view(-1, 1, 1, 1), real.flip(-1), real)
        dtype = self.trainer.lightning_module.dtype  # double under trainer.precision=64-true
        return batch._replace(real=to_unit_range(real).to(dtype=dtype))  # type: ignore[arg-type]
