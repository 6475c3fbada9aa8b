"""Files of a dataset in a folder, or in a zip that is read in place and never extracted."""

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

MAX_ENTRY_BYTES = 2**29
"""Largest file in a zip. It is read into memory whole. The limit is larger than any image Pillow will decode."""

MAX_LINK_PATHS = 100
"""Most paths that may lead to one folder: folders that link to each other have more paths than can be walked."""

_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, OverflowError, UnicodeError, struct.error)
"""Raised by zipfile on a damaged directory, or on an unknown version."""


class Source:
    """Named files. `stamps` maps each name (a path with slashes) to a string that changes whenever the file does."""

    def __init__(self, path: Path, stamps: dict[str, str]):
        self.path = path
        self.stamps = stamps

    def open(self, name: str) -> BinaryIO:
        raise NotImplementedError

    def images(self) -> list[str]:
        """The sorted names of the image files, without hidden ones. Raises UserError if there are none."""
        names = [name for name in self.stamps if name.lower().endswith(IMG_EXTENSIONS) and not is_hidden(name)]
        if not names:
            raise UserError(f"{self.path} holds no images ({', '.join(IMG_EXTENSIONS)})")
        return sorted(names)

    def fingerprint(self, names: Sequence[str], **preparation: Any) -> str:
        """A digest of these files in their current state and of the options of their preparation."""
        digest = hashlib.sha256(json.dumps(preparation, sort_keys=True).encode())
        for name in names:
            digest.update(f"{name}\0{self.stamps[name]}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]


class Folder(Source):
    """The files below a folder. Follows symbolic links, except to a folder that contains the link."""

    def __init__(self, path: Path, option: str = "data.root"):
        super().__init__(path, {})
        pending = [(path, frozenset[Path]())]
        visits = Counter[Path]()
        while pending:
            folder, parents = pending.pop()
            if (target := folder.resolve()) in parents:
                continue
            visits[target] += 1
            if visits[target] > MAX_LINK_PATHS:
                raise UserError(
                    f"{option}={path}: symbolic links lead to {printable(target)} in more than {MAX_LINK_PATHS} ways: "
                    "remove some of them"
                )
            with os.scandir(folder) as entries:
                for entry in entries:
                    if os.path.isdir(entry.path):  # noqa: PTH112  os.path accepts links to themselves; others raise
                        pending.append((Path(entry.path), parents | {target}))
                    elif os.path.isfile(entry.path):  # noqa: PTH113  False for a broken link
                        status = entry.stat()
                        name = Path(entry.path).relative_to(path).as_posix()
                        self.stamps[name] = f"{status.st_size} {status.st_mtime_ns} {status.st_mode}"

    def open(self, name: str) -> BinaryIO:
        file = (self.path / name).open("rb")
        if not os.fstat(file.fileno()).st_size:  # refuses the endless files of a kernel too, such as those in /proc
            file.close()
            raise ValueError("is empty")
        return file


class Zip(Source):
    """The files in a zip. Raises UserError for a name that leads out of the zip's folder."""

    def __init__(self, path: Path, option: str = "data.root"):
        self.archive = zipfile.ZipFile(path)
        entries = [entry for entry in self.archive.infolist() if not entry.is_dir()]
        for entry in entries:
            if _escapes_folder(entry.filename):
                raise UserError(
                    f"{option}={path} holds {printable(entry.filename)}, which is not a path inside a folder: "
                    "create the zip again without it"
                )
        super().__init__(path, {entry.filename: f"{entry.file_size} {entry.CRC}" for entry in entries})

    def open(self, name: str) -> BinaryIO:
        entry = self.archive.getinfo(name)
        if not entry.file_size:
            raise ValueError("is empty")
        if entry.file_size > MAX_ENTRY_BYTES:
            raise ValueError(f"is larger than {MAX_ENTRY_BYTES / 2**20:.3g} MiB, the limit for an image in a zip")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others expand without a bound
            raise ValueError("is not compressed with deflate: create the zip again")
        with self.archive.open(entry) as file:
            return BytesIO(file.read(entry.file_size))  # bounded by the stated size; zipfile checks the CRC-32


def open_source(path: Path, option: str = "data.root") -> Source:
    """Open a folder or a zip. `option` is the name of the path's option in a UserError."""
    try:
        if path.is_dir():
            return Folder(path, option)
        if path.is_file():
            return Zip(path, option)
    except _ZIP_ERRORS as error:
        raise UserError(f"{option}={path} is neither a folder nor an intact zip") from error
    except OSError as error:
        raise UserError(
            f"{option}={path}: {printable(error.filename or path)} cannot be read ({error.strerror})"
        ) from error
    raise UserError(f"{option}={path}: there is no such {'file or folder' if option == 'input' else 'folder or zip'}")


def _escapes_folder(name: str) -> bool:
    """Whether a relative name leads out of its folder, on Linux or on Windows."""
    return ".." in name.split("/") or re.match(r"/|[A-Za-z]:", name) is not None or "\\" in name


def is_hidden(name: str) -> bool:
    """Whether a file is in a hidden folder, hidden itself, or added by the archiver of macOS."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
