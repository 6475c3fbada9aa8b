"""Class labels from the sub-folders of an image folder or zip."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ganforge.data.sources import is_hidden, open_source
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import write_atomic
from ganforge.runtime.text import is_printable, printable


def class_folders(root: Path) -> tuple[str, list[str]]:
    """The path prefix of the class folders, and their sorted names: the sub-folders of a folder or zip.

    A single sub-folder, common in zips, is a prefix: its own sub-folders are the classes. Only lists folders, so it is
    safe with an untrusted config. Raises UserError if there are no sub-folders.
    """
    subfolders: Callable[[str], list[str]] = partial(_folder_subfolders, root)
    if not root.is_dir():
        subfolders = partial(_zip_subfolders, list(open_source(root).stamps))
    prefix, names = "", subfolders("")
    while len(names) == 1 and (inner := subfolders(f"{prefix}{names[0]}/")):
        prefix, names = f"{prefix}{names[0]}/", inner
    if not names:
        raise UserError(f"{root} has no sub-folders: data.condition=labels needs one sub-folder per class")
    invalid = next((name for name in names if not is_printable(name) or "${" in name), None)
    if invalid is not None:  # reading a run's record refuses such names
        raise UserError(
            f"data.condition=labels: the sub-folder {printable(invalid)} of {root} has an invalid name: rename it"
        )
    return prefix, names


def labels_from_folders(names: Sequence[str], prefix: str, classes: Sequence[str], root: Path) -> list[int]:
    """The class index of each image, from the sub-folder it is in.

    Raises UserError for an image outside all class folders, and for a class without images.
    """
    index = {f"{prefix}{name}": i for i, name in enumerate(classes)}
    depth = prefix.count("/") + 1
    folders = ["/".join(name.split("/")[:-1][:depth]) for name in names]
    for folder, name in zip(folders, names, strict=True):
        if folder not in index:
            raise UserError(
                f"data.condition=labels: {printable(name)} is in no sub-folder of {root / prefix}, so it has no label"
            )
    if empty := index.keys() - set(folders):
        raise UserError(f"data.condition=labels: {printable(min(empty))} in {root} has no images: remove the folder")
    return [index[folder] for folder in folders]


def save_classes(data: Any, run: Path) -> None:
    """Add the class names to a run's recorded config, so that sampling by name works without the data."""
    path = run / ".hydra" / "config.yaml"
    if data.classes and path.is_file():
        record = OmegaConf.load(path)
        record.data.num_classes, record.data.classes = data.num_classes, list(data.classes)
        write_atomic(path, OmegaConf.to_yaml(record).encode())


def _folder_subfolders(root: Path, prefix: str) -> list[str]:
    folder = root / prefix
    if prefix and folder.is_symlink():  # may lead back to a folder above
        return []
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if os.path.isdir(entry.path)]  # noqa: PTH112  no error on any link
    except OSError as error:
        raise UserError(f"data.root={root}: {printable(folder)} cannot be read ({error.strerror})") from error
    return sorted(name for name in names if not is_hidden(name))


def _zip_subfolders(names: Sequence[str], prefix: str) -> list[str]:
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix) and not is_hidden(name)]
    return sorted({name.partition("/")[0] for name in inside if "/" in name})
