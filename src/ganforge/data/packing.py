"""Images decoded once, into a file that is mapped into memory.

`<name>-<key>.uint8` holds the images one after the other, `<name>-<key>.json` what they are; the key changes with the
files and with what is made of them. Until all is done both are called `.part`: every so often the images are flushed
to the disk, then the json says how far it is, so a killed packing goes on from there.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ganforge.runtime.devices import cpu_count
from ganforge.runtime.downloads import first_line
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import make_cache, read_json, write_atomic
from ganforge.runtime.text import printable

log = logging.getLogger(__name__)

GROUP = 2**25
"""Bytes between two flushes, which are also in memory at once."""

NAMED = 50
"""A message names at most so many bad files; the others are in the json."""

Decode = Callable[[str], np.ndarray]
"""Makes the uint8 array that is packed of a file's name. Raises where the file is no good."""


class Packed(NamedTuple):
    """What was packed.

    bytes: all images in order, uint8, mapped from the file
    shapes: of each image
    bad: reasons, by the position that each bad file had in the list of names
    """

    bytes: Tensor
    shapes: list[tuple[int, ...]]
    bad: dict[int, str]

    def good(self, count: int) -> Tensor:
        """Which of the `count` names have been packed, in order."""
        return torch.tensor([i for i in range(count) if i not in self.bad])


def pack(
    names: Sequence[str],
    decode: Decode,
    folder: Path,
    title: str,
    shape: tuple[int, ...] | None = None,
    measure: Callable[[str], int] | None = None,
) -> Packed:
    """Pack the files of these names as `title` into `folder`, or take what was packed there before.

    `shape` is that of all images; where they differ, `measure` tells the bytes that one will need. Several processes
    may call this at once: one packs.
    """
    data, record = folder / f"{title}.uint8", folder / f"{title}.json"
    if not _is_complete(data, record):
        try:
            make_cache(folder)
            with _locked(folder / f"{title}.lock", title):
                if not _is_complete(data, record):
                    _write(names, decode, data, record, shape, measure)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = error.strerror or error
            raise UserError(f"{folder} cannot be written ({reason}): choose a folder with data.cache_dir") from error
    state = read_json(record)
    size = state["bytes"]
    images = torch.from_file(str(data), size=size, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
    count = len(names) - len(state["bad"])
    shapes = [tuple(shape) for shape in state["shapes"]] if shape is None else [shape] * count
    return Packed(images, shapes, {int(i): reason for i, reason in state["bad"].items()})


def refuse_bad(packed: Packed, names: Sequence[str], on_error: str, source: Path) -> None:
    """Raise UserError that names the bad files, or with on_error="skip" say how many are left out."""
    if not packed.bad:
        return
    if on_error == "skip" and len(packed.bad) < len(names):
        log.warning("%d of %d files of %s are no good and left out.", len(packed.bad), len(names), source)
        return
    listed = [f"  {printable(names[i])}: {printable(reason)}" for i, reason in list(packed.bad.items())[:NAMED]]
    if len(packed.bad) > NAMED:
        listed.append(f"  and {len(packed.bad) - NAMED} more")
    raise UserError(
        f"{len(packed.bad)} of {len(names)} files of {source} are no good:\n"
        + "\n".join(listed)
        + "\nMend or remove them, or leave them out with data.on_error=skip"
    )


@contextmanager
def _locked(path: Path, title: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process that is packing %s.", title)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_complete(data: Path, record: Path) -> bool:
    return data.exists() and data.stat().st_size == read_json(record).get("bytes")


def _write(
    names: Sequence[str],
    decode: Decode,
    data: Path,
    record: Path,
    shape: tuple[int, ...] | None,
    measure: Callable[[str], int] | None,
) -> None:
    log.info("Packing %d images into %s.", len(names), data)
    part, progress = data.with_suffix(".uint8.part"), record.with_suffix(".json.part")
    state = read_json(progress)
    if state and part.exists() and part.stat().st_size >= state["bytes"]:
        log.info("Packing goes on after %d of %d files.", state["looked_at"], len(names))
    else:
        progress.unlink(missing_ok=True)  # it tells of a file that is gone
        state = {"looked_at": 0, "bytes": 0, "shapes": [], "bad": {}}
    todo = names[state["looked_at"] :]
    sizes = [prod(shape or ())] * len(todo)
    if measure is not None:
        with ThreadPoolExecutor(cpu_count()) as pool:
            sizes = [size if isinstance(size, int) else 0 for size in pool.map(_guarded(measure), todo)]
    _check_space(data.parent, sum(sizes))
    with (
        part.open("r+b" if part.exists() else "wb") as file,
        ThreadPoolExecutor(cpu_count()) as pool,
        progress_bar("packing", len(names), state["looked_at"]) as bar,
    ):
        file.truncate(state["bytes"])
        file.seek(state["bytes"])
        for group in _groups(todo, sizes):
            for i, image in enumerate(pool.map(_guarded(decode), group), state["looked_at"]):
                bar.advance(bar.task_ids[0])
                if isinstance(image, str):
                    state["bad"][i] = image
                    continue
                if shape is None:
                    state["shapes"].append(image.shape)
                file.write(image.tobytes())
                state["bytes"] += image.nbytes
            state["looked_at"] += len(group)
            file.flush()
            os.fsync(file.fileno())
            write_atomic(progress, json.dumps(state).encode())
    part.replace(data)
    progress.replace(record)


def _groups(names: Sequence[str], sizes: Sequence[int]) -> Iterator[list[str]]:
    """The names in lists of about GROUP bytes."""
    group, total = [], 0
    for name, size in zip(names, sizes, strict=True):
        group.append(name)
        total += size
        if total >= GROUP:
            yield group
            group, total = [], 0
    if group:
        yield group


def _guarded(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """The function, returning the reason where it fails: broken files make libraries raise all kinds of errors."""

    def attempt(name: str) -> Any:
        try:
            return function(name)
        except Exception as error:
            return first_line(error)

    return attempt


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, packing needs {needed / 1e9:.1f} GB: make room, or choose another "
            "folder with data.cache_dir"
        )


def progress_bar(doing: str, total: int, completed: int = 0) -> Progress:
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    bar.add_task("", total=total, completed=completed)
    return bar
