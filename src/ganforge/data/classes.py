"""The classes of a folder of images: its sub-folders, whose names a run keeps in its record."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ganforge.data.sources import hidden, open_source
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import write_atomic
from ganforge.runtime.text import is_printable, printable


def class_folders(root: Path) -> tuple[str, list[str]]:
    """What comes before the names of classes in the names of images, and these names, sorted: the sub-folders of a
    folder or zip.

    Where there is but one, as there often is in a zip, its own sub-folders are meant. Folders are listed and no more,
    whoever wrote the config that asks. Raises UserError where there are none.
    """
    below: Callable[[str], list[str]] = partial(_in_folder, root)
    if not root.is_dir():
        below = partial(_in_zip, list(open_source(root).stamps))
    prefix, names = "", below("")
    while len(names) == 1 and (inner := below(f"{prefix}{names[0]}/")):
        prefix, names = f"{prefix}{names[0]}/", inner
    if not names:
        raise UserError(f"data.condition=labels: {root} has no sub-folders, whose names are the labels")
    odd = next((name for name in names if not is_printable(name) or "${" in name), None)
    if odd is not None:  # no record may hold it
        raise UserError(f"data.condition=labels: {root} has a sub-folder {printable(odd)}, an odd name: rename it")
    return prefix, names


def classes_of(names: Sequence[str], prefix: str, classes: Sequence[str], root: Path) -> list[int]:
    """The classes of images by the sub-folders they lie in. Raises UserError where one has none, or none is of it."""
    number = {f"{prefix}{name}": i for i, name in enumerate(classes)}
    depth = prefix.count("/") + 1
    folders = ["/".join(name.split("/")[:-1][:depth]) for name in names]
    for folder, name in zip(folders, names, strict=True):
        if folder not in number:
            raise UserError(
                f"data.condition=labels: {printable(name)} lies in no sub-folder of {root / prefix}, so it has no label"
            )
    if empty := number.keys() - set(folders):
        raise UserError(f"data.condition=labels: {printable(min(empty))} in {root} holds no images, move it elsewhere")
    return [number[folder] for folder in folders]


def save_classes(data: Any, run: Path) -> None:
    """Write the names of the classes into a run's record as its training begins, for whoever has not the data."""
    path = run / ".hydra" / "config.yaml"
    if data.classes and path.is_file():
        record = OmegaConf.load(path)
        record.data.num_classes, record.data.classes = data.num_classes, list(data.classes)
        write_atomic(path, OmegaConf.to_yaml(record).encode())


def _in_folder(root: Path, prefix: str) -> list[str]:
    folder = root / prefix
    if prefix and folder.is_symlink():  # perhaps to one that it lies in
        return []
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if os.path.isdir(entry.path)]  # noqa: PTH112  bears any link
    except OSError as error:
        raise UserError(f"data.root={root}: {printable(folder)} cannot be read ({error.strerror})") from error
    return sorted(name for name in found if not hidden(name))


def _in_zip(names: Sequence[str], prefix: str) -> list[str]:
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix) and not hidden(name)]
    return sorted({name.partition("/")[0] for name in inside if "/" in name})
