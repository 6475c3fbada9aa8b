"""Files that are there whole or not at all, also after a kill or a power cut."""

import json
import os
import zipfile
from pathlib import Path
from stat import S_ISREG
from typing import Any

from ganforge.errors import UserError

LARGEST = 64 * 2**20
"""Bytes of a text that is read."""


def write_whole(path: Path, content: Any) -> None:
    """Write bytes beside their place, and move them there once they are safely on the disk."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """A text in UTF-8. Raises FileNotFoundError, and UserError where it is no text in a file: links are not followed,
    and pipes and devices could block or never end."""
    try:
        if not S_ISREG(path.lstat().st_mode):
            raise UserError(f"{path} is {'a link' if path.is_symlink() else 'no file'}, which is not read")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST >> 20} MiB")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8") from error


def read_json(path: Path) -> dict[str, Any]:
    """A table in JSON that can be made anew: empty where there is none, or half of one."""
    try:
        table = json.loads(read_text(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder has one to go on from, intact or not."""
    return any((run / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt"))


def is_intact(path: Path) -> bool:
    """Whether every record of what torch saved has the CRC-32 that torch wrote with it."""
    if not path.is_file():  # a pipe would block
        return False
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, RuntimeError):
        return False
