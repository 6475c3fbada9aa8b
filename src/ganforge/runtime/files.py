"""Files that are there whole or not at all, also after a kill or a power cut."""

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from stat import S_ISREG
from typing import Any, BinaryIO

from ganforge.runtime.errors import UserError

TAG, SIGNATURE = "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55"

LARGEST = 64 * 2**20
"""Bytes of a text that is read."""


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
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


def write_atomic(path: Path, content: Any) -> None:
    """Write bytes in place of what is there, if anything."""
    with open_atomic(path) as file:
        file.write(content)


def make_cache(folder: Path) -> None:
    """Make a folder for what can be made anew, and mark it as such: backups leave it out, and `is_cache` knows it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_cache(folder):
        write_atomic(folder / TAG, f"{SIGNATURE}\n# of ganforge, see https://bford.info/cachedir\n".encode())


def is_cache(folder: Path) -> bool:
    """Whether a folder was made by `make_cache`, rather than by another program that tags its caches."""
    tag = folder / TAG
    return tag.is_file() and "ganforge" in tag.read_text(errors="replace")


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left of files that they did not finish."""
    for part in folder.rglob(".*.part"):
        part.unlink()


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
    """Whether every record of what torch saved has the CRC-32 that torch wrote with it.

    torch does not compress: a file that says so could take hours to unpack.
    """
    if not path.is_file():  # a pipe would block
        return False
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            is_small = sum(entry.file_size for entry in entries) <= path.stat().st_size
            return is_stored and is_small and file.testzip() is None
    except (OSError, zipfile.BadZipFile, RuntimeError):
        return False
