"""Where the files of a dataset lie: in a folder or in a zip, which is read in place and never extracted."""

import hashlib
import json
import os
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from torchvision.datasets.folder import IMG_EXTENSIONS

from ganforge.runtime.errors import UserError
from ganforge.runtime.text import printable

ENTRY_LIMIT = 2**29
"""Bytes of one file in a zip, all of which are read at once: as many as the largest image has that Pillow opens."""

WAYS = 100
"""Symbolic links may lead to one folder in so many ways: some that point at each other have more than can be walked."""


class Source:
    """Named files. `stamps` maps each name, a path with slashes, to what changes whenever the file does."""

    def __init__(self, path: Path, stamps: dict[str, str]):
        self.path = path
        self.stamps = stamps

    def open(self, name: str) -> BinaryIO:
        raise NotImplementedError

    def images(self) -> list[str]:
        """The names of the images, sorted; hidden files and those that archivers of macOS add are none."""
        names = [name for name in self.stamps if name.lower().endswith(IMG_EXTENSIONS) and not hidden(name)]
        if not names:
            raise UserError(f"{self.path} holds no images ({', '.join(IMG_EXTENSIONS)})")
        return sorted(names)

    def fingerprint(self, names: Sequence[str], **preparation: Any) -> str:
        """A key for these files as they are now, and for what is made of them."""
        digest = hashlib.sha256(json.dumps(preparation, sort_keys=True).encode())
        for name in names:
            digest.update(f"{name}\0{self.stamps[name]}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


class Folder(Source):
    """The files below a folder; symbolic links are followed, but not to a folder that they lie in."""

    def __init__(self, path: Path, option: str = "data.root"):
        super().__init__(path, {})
        pending = [(path, frozenset[Path]())]
        ways = Counter[Path]()
        while pending:
            folder, above = pending.pop()
            if (real := folder.resolve()) in above:
                continue
            ways[real] += 1
            if ways[real] > WAYS:
                raise UserError(
                    f"{option}={path}: symbolic links lead to {printable(real)} in more than {WAYS} ways, remove some"
                )
            with os.scandir(folder) as entries:
                for entry in entries:
                    if os.path.isdir(entry.path):  # noqa: PTH112  a link to itself makes the others raise
                        pending.append((Path(entry.path), above | {real}))
                    elif os.path.isfile(entry.path):  # noqa: PTH113  not so a broken link
                        status = entry.stat()
                        name = Path(entry.path).relative_to(path).as_posix()
                        self.stamps[name] = f"{status.st_size} {status.st_mtime_ns} {status.st_mode}"

    def open(self, name: str) -> BinaryIO:
        file = (self.path / name).open("rb")
        if not os.fstat(file.fileno()).st_size:  # nor are there bytes to wait for, as in files of a kernel
            file.close()
            raise ValueError("is empty")
        return file


class Zip(Source):
    """The files in a zip. Raises UserError where some are named as no folder can hold them."""

    def __init__(self, path: Path, option: str = "data.root"):
        self.archive = zipfile.ZipFile(path)
        entries = [entry for entry in self.archive.infolist() if not entry.is_dir()]
        for entry in entries:
            if _leads_out(entry.filename):
                raise UserError(
                    f"{option}={path} holds {printable(entry.filename)}, which is no path below a folder: make it anew"
                )
        super().__init__(path, {entry.filename: f"{entry.file_size} {entry.CRC}" for entry in entries})

    def open(self, name: str) -> BinaryIO:
        entry = self.archive.getinfo(name)
        if not entry.file_size:
            raise ValueError("is empty")
        if entry.file_size > ENTRY_LIMIT:
            raise ValueError(f"is larger than {ENTRY_LIMIT / 2**20:.3g} MiB, which no image in a zip may be")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others swell without a bound
            raise ValueError("is compressed in another way than deflate: make the zip anew")
        with self.archive.open(entry) as file:
            return BytesIO(file.read(entry.file_size))  # however much there is; at the end zipfile checks the CRC-32


def open_source(path: Path, option: str = "data.root") -> Source:
    """A folder or a zip as a source. Raises UserError, naming the option that gave the path."""
    try:
        if path.is_dir():
            return Folder(path, option)
        if path.is_file():
            return Zip(path, option)
    except _NO_ZIP as error:
        raise UserError(f"{option}={path} is neither a folder nor an intact zip") from error
    except OSError as error:
        raise UserError(
            f"{option}={path}: {printable(error.filename or path)} cannot be read ({error.strerror})"
        ) from error
    raise UserError(f"{option}={path}: there is no such {'file or folder' if option == 'input' else 'folder or zip'}")


_NO_ZIP = (zipfile.BadZipFile, NotImplementedError, OverflowError, UnicodeError, struct.error)
"""What zipfile raises on a damaged directory, or on one of a version that it does not know."""


def _leads_out(name: str) -> bool:
    """Whether a path is not one below a folder, on Linux or on Windows."""
    return ".." in name.split("/") or re.match(r"/|[A-Za-z]:", name) is not None or "\\" in name


def hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
