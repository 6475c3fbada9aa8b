"""Atomic files: complete or absent, even after a kill or a power cut; and safe reading of untrusted ones."""

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
"""The Cache Directory Tagging Specification, https://bford.info/cachedir, which backup programs know."""

MAX_TEXT_BYTES = 64 * 2**20
"""Largest text file that is read."""


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` once it is complete and flushed to disk.

    Until then it has a random name and is opened exclusively, so that it never writes through a link that someone else
    put into the folder.
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
    """Write bytes to a file, replacing it atomically if it exists."""
    with open_atomic(path) as file:
        file.write(content)


def make_cache(folder: Path) -> None:
    """Create a folder for regenerable files and tag it as a cache, so that backups skip it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not is_cache(folder):
        write_atomic(folder / TAG, f"{SIGNATURE}\n# of ganforge, see https://bford.info/cachedir\n".encode())


def is_cache(folder: Path) -> bool:
    """Whether a folder was created by `make_cache`, rather than by another program that tags its caches."""
    tag = folder / TAG
    return tag.is_file() and "ganforge" in tag.read_text(errors="replace")


def remove_parts(folder: Path) -> None:
    """Remove unfinished files that killed processes have left."""
    for part in folder.rglob(".*.part"):
        part.unlink()


def read_text(path: Path) -> str:
    """Read a UTF-8 text. Raises FileNotFoundError, and UserError for anything but a regular text file.

    Links are not followed. Pipes and devices are refused, because they may block or never end.
    """
    try:
        if not S_ISREG(path.lstat().st_mode):
            raise UserError(f"{path} is {'a link' if path.is_symlink() else 'not a regular file'}, so it is not read")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_TEXT_BYTES:
        raise UserError(f"{path} is larger than {MAX_TEXT_BYTES >> 20} MiB")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file is missing or damaged. For files that can be created again."""
    try:
        table = json.loads(read_text(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder has a checkpoint to resume from, intact or not."""
    return any((run / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt"))


def is_intact(path: Path) -> bool:
    """Whether all records in a file from torch.save match their CRC-32.

    torch does not compress, so compressed files are refused: they could take hours to unpack.
    """
    if not path.is_file():  # reading a pipe blocks
        return False
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            is_small = sum(entry.file_size for entry in entries) <= path.stat().st_size
            return is_stored and is_small and file.testzip() is None
    except (OSError, zipfile.BadZipFile, RuntimeError):
        return False
