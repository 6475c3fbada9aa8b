"""Images decoded once, into a file that is mapped into memory.

`<name>-<key>.uint8` holds the images one after the other, `<name>-<key>.json` what they are; the key changes with the
files and with what is made of them. Until all is done both are called `.part`: every so often the images are flushed
to the disk, then the json says how far it is, so a killed packing goes on from there.
"""

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ganforge.errors import UserError

log = logging.getLogger(__name__)

GROUP = 512
"""Images between two flushes."""

NAMED = 50
"""A message names at most so many bad files; the others are in the json."""

Decode = Callable[[str], np.ndarray]
"""Makes the uint8 array that is packed of a file's name. Raises one of BROKEN where the file is no good."""

BROKEN = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError, zipfile.BadZipFile)
"""What Pillow and zipfile raise for files that are broken, of another format, encrypted, or absurdly large."""


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
    names: Sequence[str], decode: Decode, folder: Path, title: str, shape: tuple[int, ...] | None = None
) -> Packed:
    """Pack the files of these names as `title` into `folder`, or take what was packed there before.

    `shape` is that of all images, None where they differ. Several processes may call this at once: one packs.
    """
    data, record = folder / f"{title}.uint8", folder / f"{title}.json"
    if not _is_complete(data, record):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{title}.lock", title):
                if not _is_complete(data, record):
                    _write(names, decode, data, record, shape)
        except PermissionError as error:
            raise UserError(f"{folder} cannot be written: choose another folder with data.cache_dir") from error
    state = json.loads(record.read_text())
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
    listed = [f"  {names[i]}: {reason}" for i, reason in list(packed.bad.items())[:NAMED]]
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
    return record.exists() and data.exists() and data.stat().st_size == json.loads(record.read_text())["bytes"]


def _write(names: Sequence[str], decode: Decode, data: Path, record: Path, shape: tuple[int, ...] | None) -> None:
    log.info("Packing %d images into %s.", len(names), data)
    part, progress = data.with_suffix(".uint8.part"), record.with_suffix(".json.part")
    state: dict[str, Any] = {"looked_at": 0, "bytes": 0, "shapes": [], "bad": {}}
    if part.exists() and progress.exists():
        state = json.loads(progress.read_text())
        log.info("Packing goes on after %d of %d files.", state["looked_at"], len(names))
    if shape is not None:
        _check_space(data.parent, (len(names) - state["looked_at"]) * prod(shape))
    with (
        part.open("r+b" if part.exists() else "wb") as file,
        ThreadPoolExecutor(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ) as pool,
        _bar(len(names), state["looked_at"]) as bar,
    ):
        file.truncate(state["bytes"])
        file.seek(state["bytes"])
        while state["looked_at"] < len(names):
            start = state["looked_at"]
            group = names[start : start + GROUP]
            for i, image in enumerate(pool.map(lambda name: _attempt(decode, name), group), start):
                if isinstance(image, str):
                    state["bad"][i] = image
                    continue
                if shape is None:
                    _check_space(data.parent, image.nbytes)
                    state["shapes"].append(image.shape)
                file.write(image.tobytes())
                state["bytes"] += image.nbytes
                bar.advance(bar.task_ids[0])
            state["looked_at"] += len(group)
            file.flush()
            os.fsync(file.fileno())
            _write_whole(progress, json.dumps(state))
    part.replace(data)
    progress.replace(record)


def _attempt(decode: Decode, name: str) -> np.ndarray | str:
    try:
        return decode(name)
    except BROKEN as error:
        return f"{error}".partition("\n")[0] or type(error).__name__


def _write_whole(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, packing needs {needed / 1e9:.1f} GB: make room, or choose another "
            "folder with data.cache_dir"
        )


def _bar(total: int, completed: int) -> Progress:
    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    bar.add_task("", total=total, completed=completed)
    return bar
