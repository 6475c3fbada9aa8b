"""Images decoded once, into a file that is memory-mapped.

`<name>.uint8` holds the pixels of all images, `<name>.json` their shapes. The name changes with the files and with the
options of their preparation. While packing, both end in `.part`: every so often the pixels are flushed to disk and then
the json records the progress, so that the next process can continue after a kill.
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
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ganforge.runtime.devices import cpu_count
from ganforge.runtime.downloads import first_line
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import make_cache, read_json, write_atomic
from ganforge.runtime.progress import progress_bar
from ganforge.runtime.text import printable

log = logging.getLogger(__name__)

FLUSH_BYTES = 2**25
"""Bytes between two flushes, all of which are in memory at once."""

MAX_LISTED = 50
"""Most bad files that a message lists; the json has all of them."""

Decode = Callable[[str], np.ndarray]
"""File name to uint8 pixels. Raises on a bad file."""


class Packed(NamedTuple):
    """Packed images.

    bytes: the pixels of all images in order, uint8, memory-mapped
    shapes: the shape of each image
    bad: the reason for each bad file, keyed by its index in the list of names
    """

    bytes: Tensor
    shapes: list[tuple[int, ...]]
    bad: dict[int, str]

    def good_indices(self, count: int) -> Tensor:
        """The indices of the packed files among all `count` names."""
        return torch.tensor([i for i in range(count) if i not in self.bad])


def pack(
    names: Sequence[str],
    decode: Decode,
    folder: Path,
    name: str,
    shape: tuple[int, ...] | None = None,
    measure: Callable[[str], int] | None = None,
) -> Packed:
    """Decode the files `names` into `folder` as `name`, or map what an earlier call has packed.

    `shape` is the shape of all images. Without it the shapes vary, and `measure` returns the bytes that a file will
    need. Several processes may call this at once: one packs, the others wait. Raises UserError if `folder` cannot be
    written or has too little space.
    """
    data, record = folder / f"{name}.uint8", folder / f"{name}.json"
    if not _is_complete(data, record):
        try:
            make_cache(folder)
            with _locked(folder / f"{name}.lock", name):
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
    """Raise UserError that lists the bad files; with on_error="skip", only log how many are left out."""
    if not packed.bad:
        return
    if on_error == "skip" and len(packed.bad) < len(names):
        log.warning("%d of %d files of %s cannot be used and are left out.", len(packed.bad), len(names), source)
        return
    listed = [f"  {printable(names[i])}: {printable(reason)}" for i, reason in list(packed.bad.items())[:MAX_LISTED]]
    if len(packed.bad) > MAX_LISTED:
        listed.append(f"  and {len(packed.bad) - MAX_LISTED} more")
    raise UserError(
        f"{len(packed.bad)} of {len(names)} files of {source} cannot be used:\n"
        + "\n".join(listed)
        + "\nRepair or remove them, or leave them out with data.on_error=skip"
    )


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process that is packing %s.", name)
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
    state = _resumed_state(part, progress, len(names))
    todo = names[state["looked_at"] :]
    sizes = [prod(shape or ())] * len(todo) if measure is None else _sizes(measure, todo)
    _check_space(data.parent, sum(sizes))
    with (
        part.open("r+b" if part.exists() else "wb") as file,
        ThreadPoolExecutor(cpu_count()) as pool,
        progress_bar("packing", len(names), state["looked_at"]) as bar,
    ):
        file.truncate(state["bytes"])
        file.seek(state["bytes"])
        for group in _groups(todo, sizes):
            for i, image in enumerate(pool.map(_return_error(decode), group), state["looked_at"]):
                bar.advance(bar.task_ids[0])
                _append(file, state, i, image, has_shape=shape is None)
            state["looked_at"] += len(group)
            file.flush()
            os.fsync(file.fileno())
            write_atomic(progress, json.dumps(state).encode())
    part.replace(data)
    progress.replace(record)


def _resumed_state(part: Path, progress: Path, count: int) -> dict[str, Any]:
    """The progress of an interrupted packing run, or a fresh one."""
    state = read_json(progress)
    if state and part.exists() and part.stat().st_size >= state["bytes"]:
        log.info("Packing resumes after %d of %d files.", state["looked_at"], count)
        return state
    progress.unlink(missing_ok=True)  # its pixels are gone
    return {"looked_at": 0, "bytes": 0, "shapes": [], "bad": {}}


def _append(file: BinaryIO, state: dict[str, Any], index: int, image: np.ndarray | str, has_shape: bool) -> None:
    """Write an image, or record why there is none."""
    if isinstance(image, str):
        state["bad"][index] = image
        return
    if has_shape:
        state["shapes"].append(image.shape)
    file.write(image.tobytes())
    state["bytes"] += image.nbytes


def _sizes(measure: Callable[[str], int], names: Sequence[str]) -> list[int]:
    with ThreadPoolExecutor(cpu_count()) as pool:
        return [size if isinstance(size, int) else 0 for size in pool.map(_return_error(measure), names)]


def _groups(names: Sequence[str], sizes: Sequence[int]) -> Iterator[list[str]]:
    """The names in groups of about FLUSH_BYTES."""
    group, total = [], 0
    for name, size in zip(names, sizes, strict=True):
        group.append(name)
        total += size
        if total >= FLUSH_BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


def _return_error(function: Callable[[str], Any]) -> Callable[[str], Any]:
    """The function, but returning the message of an error: broken files make libraries raise errors of all kinds."""

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
