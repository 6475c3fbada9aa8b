"""The statistics of real data: computed once, kept on disk, shared by all runs."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning.pytorch import Trainer

from ganforge.data.base import TensorData
from ganforge.data.packing import progress_bar
from ganforge.metrics.extractors import Extractor, Points
from ganforge.metrics.statistics import CAP, Collector, Statistics
from ganforge.randomness import CHUNK, chunk_rows, chunks_of
from ganforge.runtime.files import is_intact, make_cache, write_atomic

log = logging.getLogger(__name__)

FORMAT = 1
"""Of what is kept. Another one, and all is measured anew."""


def real_statistics(
    data: TensorData, split: str, extractor: Extractor, trainer: Trainer, cache_dir: str | None, keeps: bool
) -> Statistics | None:
    """The statistics of a split, on rank 0; None on others. `keeps` says whether single features are wanted.

    All ranks call it. Where the cache does not have them, one job computes on all of its ranks, and others that need
    the same wait.
    """
    if not trainer.is_global_zero:
        if not trainer.strategy.broadcast(None):
            _computed(data, split, extractor, trainer, keeps)
        return None
    what = FORMAT, data.fingerprint(split), extractor.digest, extractor.resize, keeps, CAP, CHUNK
    key = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
    is_quick = isinstance(extractor, Points)
    with nullcontext() if is_quick else _entry(cache_dir, f"{extractor.name}-{key}.pt") as path:
        kept = _load(path)
        trainer.strategy.broadcast(kept is not None)
        if kept is None:
            kept = _computed(data, split, extractor, trainer, keeps)
            assert kept is not None  # on rank 0
            _save(kept, path)
    return kept


def _computed(data: TensorData, split: str, extractor: Extractor, trainer: Trainer, keeps: bool) -> Statistics | None:
    samples, labels = data.samples(split)
    collector = Collector(len(samples), trainer, keeps)
    chunks = chunks_of(len(samples), trainer.global_rank, trainer.world_size)
    with _progress(len(samples), len(chunks), trainer, isinstance(extractor, Points)) as advance:
        for chunk in chunks:
            rows = chunk_rows(chunk, len(samples))
            found = extractor.features_of(samples[rows], trainer.strategy.root_device)
            collector.update(chunk, found, None if labels is None else labels[rows])
            advance()
    return collector.result()


@contextmanager
def _progress(count: int, chunks: int, trainer: Trainer, is_quick: bool) -> Iterator[Callable[[], Any]]:
    if not trainer.is_global_zero or count < 10 * CHUNK or is_quick:
        yield lambda: None
        return
    log.info("Measuring %s real samples, once for all runs.", f"{count:,}")
    with progress_bar("measuring", chunks) as bar:
        yield lambda: bar.advance(bar.task_ids[0])


@contextmanager
def _entry(cache_dir: str | None, name: str) -> Iterator[Path | None]:
    """The file of a cache, locked; None, with a warning, where the cache cannot be written."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ganforge")
    folder = Path(cache_dir or default).expanduser()
    try:
        make_cache(folder)
        lock = FileLock(folder / f"{name}.lock")
        lock.acquire()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        log.warning("The statistics of real samples are not kept: %s. Choose another cache_dir", error)
        yield None
        return
    try:
        yield folder / name
    finally:
        lock.release()


def _load(path: Path | None) -> Statistics | None:
    if path is None or not is_intact(path):
        return None
    return Statistics(**torch.load(path, weights_only=True, map_location="cpu", mmap=True))


def _save(statistics: Statistics, path: Path | None) -> None:
    if path is None:
        return
    content = BytesIO()
    torch.save({name: value for name, value in statistics._asdict().items() if value is not None}, content)
    try:
        write_atomic(path, content.getbuffer())
    except OSError as error:
        log.warning("The statistics of real samples are not kept: %s", error)
