"""What all datasets share: a batch is a gather from tensors in memory, and a function of the step's number."""

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

from ganforge.data.conditions import of_classes
from ganforge.randomness import RankDraws, Share, Stream, chunks_of, generator
from ganforge.runtime.errors import UserError

log = logging.getLogger(__name__)


class Batch(NamedTuple):
    """Samples with what they are conditioned on.

    real: images (N, C, H, W) float32 in [-1, 1], or points (N, 2)
    condition: None, integer labels (N,), attributes (N, K), or images (N, C, h, w)

    On their way to the device images are uint8 still.
    """

    real: Tensor
    condition: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.real)

    def split(self, parts: int) -> list["Batch"]:
        if parts == 1:
            return [self]
        conditions = [None] * parts if self.condition is None else self.condition.chunk(parts)
        return [Batch(*part) for part in zip(self.real.chunk(parts), conditions, strict=True)]


@lru_cache(maxsize=2)  # a batch on the border of two epochs needs both
def _order(seed: int, epoch: int, size: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, Stream.ORDER, epoch))


class Steps:
    """The batches of an endless run of steps, in epochs for Lightning's sake.

    The rows follow one permutation of the data after the other, each from (seed, epoch), without a gap: an incomplete
    batch is completed from the next one. Every step takes `share.parts` batches, of each of which this rank gets its
    share, and has `take` make a batch of them. Starts at the step that `current_step` returns, so it needs no state to
    resume in the middle of an epoch. With `overfit_batches`, the first so many steps come over and over.
    """

    def __init__(
        self,
        take: Callable[[Tensor, int], Batch],
        size: int,
        batch_size: int,
        seed: int,
        share: Share,
        current_step: Callable[[], int],
        overfit_batches: int | None = None,
    ):
        self.take = take
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.share = share
        self.current_step = current_step
        self.overfit_batches = overfit_batches

    def __len__(self) -> int:
        """Steps per epoch: the fewest that take as many rows as there are."""
        return ceil(self.size / (self.batch_size * self.share.parts))

    def __iter__(self) -> Iterator[Batch]:
        first = self.current_step()
        for step in range(first, (first // len(self) + 1) * len(self)):
            yield self.batch(step)

    def rows(self, step: int) -> Tensor:
        """Which rows of the data the step (from 0) takes, all ranks together."""
        size, count = self.size, self.batch_size * self.share.parts
        start, end = step * count, (step + 1) * count
        return torch.cat(
            [
                _order(self.seed, epoch, size)[max(start - epoch * size, 0) : end - epoch * size]
                for epoch in range(start // size, ceil(end / size))
            ]
        )

    def batch(self, step: int) -> Batch:
        step = repeated(step, self.overfit_batches)
        return self.take(self.share.of(self.rows(step)), step)

    # The state that resuming needs is the trainer's step. Lightning asks for these before it trusts a loader.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def repeated(step: int, overfit_batches: int | None) -> int:
    """The step whose batch a step gets: its own, or one of the first `overfit_batches`."""
    return step % overfit_batches if overfit_batches else step


class TensorData(LightningDataModule):
    """Data that lies in memory or in a mapped file: uint8 images (N, C, H, W), or float points (N, 2).

    A subclass implements `load`. `shape` and `num_classes` are the facts that models are built on, and are checked
    against what was loaded. `batch_size` is the batch of the experiment, shared out over the devices; `num_samples`
    is how many samples a validation generates; `flip` mirrors every other training image, at random;
    `overfit_batches` is how many batches come over and over, flips and all; null: all.
    """

    terms: ClassVar[str] = "The data are files of whoever trained this: ask on which terms they have them."
    """Where the licence of the data is, for whoever gets a model that was trained on them."""
    labels: ClassVar[str] = ""
    """What the integer labels stand for."""

    def __init__(
        self,
        batch_size: int,
        shape: Sequence[int],
        num_classes: int | None = None,
        num_samples: int = 10_000,
        flip: bool = False,
        seed: int = 0,
        overfit_batches: int | None = None,
    ):
        super().__init__()
        if overfit_batches is not None and overfit_batches < 1:
            raise ValueError(f"overfit_batches={overfit_batches}: data.overfit_batches must be at least 1, or null")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: data.batch_size must be at least 1")
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples}: data.num_samples must be at least 1")
        self.batch_size = batch_size
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.classes: Sequence[str] = ()
        """Names of the integer labels, where they have any."""
        self.num_samples = num_samples
        self.flip = flip
        self.seed = seed
        self.overfit_batches = overfit_batches
        self.identity = ""
        """Names what the training data were made of, where that may change between two runs."""
        self.evaluated: Sequence[Any] = ()
        """Sets of whole images that the present validation is about, where the data are pairs."""
        self.real: Tensor | None = None
        self.condition: Tensor | None = None

    def load(self, split: str = "train") -> tuple[Tensor, Tensor | None]:
        """Return the data of a split and their conditions. Raises UserError where there is no such split."""
        raise NotImplementedError

    def samples(self, split: str) -> tuple[Any, Tensor | None]:
        """The samples of a split, as they are stored, and their conditions."""
        return (self.real, self.condition) if split == "train" and self.real is not None else self.load(split)

    def draw_conditions(self, count: int, generator: torch.Generator) -> Tensor:
        """Conditions as frequent as they are in the data, for samples that are compared with them."""
        assert self.condition is not None
        return self.condition[torch.randint(len(self.condition), (count,), generator=generator)]

    def conditions(self, labels: Sequence[Any] | None = None) -> Tensor:
        """What these labels stand for, in a batch; by default of all, or of ten that are evenly spread.

        Raises UserError for a label that the data do not have.
        """
        return of_classes(labels, self.num_classes or 0, self.classes)

    def fingerprint(self, split: str) -> str:
        """Tells the samples of this split from all others."""
        samples, condition = self.samples(split)
        digest = hashlib.sha256(self.identity.encode() if split == "train" else b"")
        named = split == "train" and self.identity
        for values in (None if named else samples, condition):
            if values is not None:
                digest.update(repr((values.shape, values.dtype)).encode())
                digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()

    def setup(self, stage: str | None = None) -> None:
        if self.real is None:
            self.real, self.condition = self.load()
            classes = None if self.condition is None or self.condition.ndim > 1 else int(self.condition.max()) + 1
            if self.real.shape[1:] != self.shape:
                raise UserError(f"data.shape={list(self.shape)}: the data have shape {list(self.real.shape[1:])}")
            if (classes or 0) > (self.num_classes or 0) or (classes is None and self.num_classes is not None):
                raise UserError(
                    f"data.num_classes={self.num_classes}: the data have {classes or 'no'} classes, so set it to "
                    f"{classes or 'null'}"
                )
            if len(self.real) < self.batch_size:
                raise UserError(
                    f"data.batch_size={self.batch_size} is more than the {len(self.real)} samples there are: lower it"
                )

    def take(self, rows: Tensor, step: int) -> Batch:
        """These rows of the training data, as they are stored, for a step (from 0)."""
        assert self.real is not None
        # copies rows, where indexing would copy elements
        condition = None if self.condition is None else self.condition.index_select(0, rows)
        return Batch(self.real.index_select(0, rows), condition)

    @property
    def share(self) -> Share:
        """What this rank gets of the rows of a step."""
        assert self.trainer is not None
        parts = getattr(self.trainer.lightning_module, "discriminator_steps", 1)
        return Share(parts, self.trainer.global_rank, self.trainer.world_size)

    def draws(self, stream: Stream, step: int) -> RankDraws:
        """Random numbers for the rows of a step."""
        return RankDraws(generator(self.seed, stream, repeated(step, self.overfit_batches)), self.share)

    def train_dataloader(self) -> Steps:
        assert self.real is not None
        assert self.trainer is not None
        trainer, options = self.trainer, (self.batch_size, self.seed, self.share)
        return Steps(self.take, len(self.real), *options, lambda: trainer.global_step, self.overfit_batches)

    def val_dataloader(self) -> DataLoader:
        """The chunks of sample indices that this rank generates."""
        assert self.trainer is not None
        chunks = chunks_of(self.num_samples, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(chunks, batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return {"identity": self.identity}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not isinstance(state_dict, dict) or state_dict.get("identity") != self.identity:
            log.warning("The data have changed since this run began: it goes on, but not as it would have gone on.")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scale and augment a batch, on its device."""
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


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], on the images' own device."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to rounded uint8."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
