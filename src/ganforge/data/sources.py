"""Where the files of a dataset lie: in a folder or in a zip, which is read in place and never extracted."""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from torchvision.datasets.folder import IMG_EXTENSIONS

from ganforge.errors import UserError


class Source:
    """Named files. `stamps` maps each name, a path with slashes, to what changes whenever the file does."""

    def __init__(self, path: Path, stamps: dict[str, str]):
        self.path = path
        self.stamps = stamps

    def open(self, name: str) -> BinaryIO:
        raise NotImplementedError

    def images(self) -> list[str]:
        """The names of the images, sorted; hidden files and those that archivers of macOS add are none."""
        names = [name for name in self.stamps if name.lower().endswith(IMG_EXTENSIONS) and not _hidden(name)]
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

    def __init__(self, path: Path):
        super().__init__(path, {})
        pending = [(path, frozenset[Path]())]
        while pending:
            folder, above = pending.pop()
            if (real := folder.resolve()) in above:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if os.path.isdir(entry.path):  # noqa: PTH112  a link to itself makes the others raise
                        pending.append((Path(entry.path), above | {real}))
                    elif os.path.isfile(entry.path):  # noqa: PTH113  not so a broken link
                        status = entry.stat()
                        name = Path(entry.path).relative_to(path).as_posix()
                        self.stamps[name] = f"{status.st_size} {status.st_mtime_ns} {status.st_mode}"

    def open(self, name: str) -> BinaryIO:
        return (self.path / name).open("rb")


class Zip(Source):
    """The files in a zip."""

    def __init__(self, path: Path):
        self.archive = zipfile.ZipFile(path)
        entries = [entry for entry in self.archive.infolist() if not entry.is_dir()]
        super().__init__(path, {entry.filename: f"{entry.file_size} {entry.CRC}" for entry in entries})

    def open(self, name: str) -> BinaryIO:
        return BytesIO(self.archive.read(name))  # which checks its CRC-32


def open_source(path: Path, option: str = "data.root") -> Source:
    """A folder or a zip as a source. Raises UserError, naming the option that gave the path."""
    try:
        if path.is_dir():
            return Folder(path)
        if path.is_file():
            return Zip(path)
    except PermissionError as error:
        raise UserError(f"{option}={path}: {error.filename or path} cannot be read") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"{option}={path} is neither a folder nor an intact zip") from error
    raise UserError(f"{option}={path}: there is no such {'file or folder' if option == 'input' else 'folder or zip'}")


def _hidden(name: str) -> bool:
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in name.split("/"))
