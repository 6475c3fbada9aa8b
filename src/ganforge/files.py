"""Files that are there whole or not at all, also after a kill or a power cut."""

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which takes the place of `path` once it is complete and safely on the disk.

    Until then it has a name that nobody can guess, and it is opened exclusively: what lies in the folder, such as a
    link that a stranger put there, is never written through.
    """
    part = path.with_name(f".{path.name[:100]}.{token_hex(8)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: Any) -> None:
    """Write bytes in place of what is there, if anything."""
    with replacing(path) as file:
        file.write(content)


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left of files that they did not finish."""
    for part in folder.rglob(".*.part"):
        part.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """A json; empty where there is none, or half of one."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder has one to go on from, intact or not."""
    return any((run / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt"))


def is_intact(path: Path) -> bool:
    """Whether every record of what torch saved has the CRC-32 that torch wrote with it."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, RuntimeError):
        return False
