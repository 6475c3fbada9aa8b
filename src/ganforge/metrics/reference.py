"""The feature statistics of real data: computed once, cached on disk and shared by all runs."""

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
from ganforge.metrics.extractors import Extractor, Points
from ganforge.metrics.statistics import MAX_SAMPLES, Collector, Statistics
from ganforge.randomness import CHUNK, chunk_rows, rank_chunks
from ganforge.runtime.files import is_intact, make_cache, write_atomic
from ganforge.runtime.progress import progress_bar

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the cached files. A new version computes all statistics again."""


def real_statistics(
    data: TensorData, split: str, extractor: Extractor, trainer: Trainer, cache_dir: str | None, keep_samples: bool
) -> Statistics | None:
    """The statistics of a split on rank 0, None on other ranks; `keep_samples` keeps the features of single samples.

    All ranks must call it. If they are not cached, all ranks compute them, while other jobs that need the same
    statistics wait.
    """
    if not trainer.is_global_zero:
        is_cached = trainer.strategy.broadcast(None)
        if not is_cached:
            _compute(data, split, extractor, trainer, keep_samples)
        return None
    inputs = FORMAT, data.fingerprint(split), extractor.digest, extractor.resize, keep_samples, MAX_SAMPLES, CHUNK
    key = hashlib.sha256(repr(inputs).encode()).hexdigest()[:16]
    is_cheap = isinstance(extractor, Points)
    with nullcontext() if is_cheap else _locked_entry(cache_dir, f"{extractor.name}-{key}.pt") as path:
        statistics = _load(path)
        trainer.strategy.broadcast(statistics is not None)
        if statistics is None:
            statistics = _compute(data, split, extractor, trainer, keep_samples)
            assert statistics is not None  # this is rank 0
            _save(statistics, path)
    return statistics


def _compute(
    data: TensorData, split: str, extractor: Extractor, trainer: Trainer, keep_samples: bool
) -> Statistics | None:
    samples, labels = data.samples(split)
    collector = Collector(len(samples), trainer, keep_samples)
    chunks = rank_chunks(len(samples), trainer.global_rank, trainer.world_size)
    with _progress(len(samples), len(chunks), trainer, isinstance(extractor, Points)) as advance:
        for chunk in chunks:
            rows = chunk_rows(chunk, len(samples))
            features = extractor.extract(samples[rows], trainer.strategy.root_device)
            collector.update(chunk, features, None if labels is None else labels[rows])
            advance()
    return collector.result()


@contextmanager
def _progress(count: int, chunks: int, trainer: Trainer, is_cheap: bool) -> Iterator[Callable[[], Any]]:
    """Yields a function that advances a progress bar, or does nothing if there is none."""
    if not trainer.is_global_zero or count < 10 * CHUNK or is_cheap:
        yield lambda: None
        return
    log.info("Measuring %s real samples, once for all runs.", f"{count:,}")
    with progress_bar("measuring", chunks) as bar:
        yield lambda: bar.advance(bar.task_ids[0])


@contextmanager
def _locked_entry(cache_dir: str | None, name: str) -> Iterator[Path | None]:
    """The locked path of a file in the cache; None, with a warning, if the cache cannot be written."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "ganforge")
    folder = Path(cache_dir or default).expanduser()
    try:
        make_cache(folder)
        lock = FileLock(folder / f"{name}.lock")
        lock.acquire()
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        log.warning("The statistics of real samples cannot be cached: %s. Choose another cache_dir", error)
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
        log.warning("The statistics of real samples cannot be cached: %s", error)
