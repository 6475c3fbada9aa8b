"""CelebA: faces with attributes and identities (Liu et al., 2015)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganforge.data.conditions import attribute_vectors
from ganforge.data.images import ImageList, Images
from ganforge.data.sources import open_source
from ganforge.randomness import Stream, generator
from ganforge.runtime.downloads import first_line, time_limit
from ganforge.runtime.errors import UserError
from ganforge.runtime.text import printable

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")

MANUAL_DOWNLOAD = """To download it by hand, get img_align_celeba.zip (no need to unpack it), list_attr_celeba.txt,
identity_CelebA.txt and list_eval_partition.txt from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and put them
into {folder}"""


class CelebA(Images):
    """The 202,599 aligned faces, or a subset of them, stored at any size.

    `root` or `root/celeba` holds `img_align_celeba/` or `img_align_celeba.zip`, with the annotation files beside it.
    `split` is official, or random: 80, 10 and 10 percent of the files, drawn from `split_seed`.
    `condition` is none, identity (integer labels (N,)), or attributes: 0 or 1 for each of `attributes`, (N, K).
    """

    title = "celeba"
    license_note = (
        "CelebA (Liu et al., 2015) is for non-commercial research only; neither the images nor anything derived from "
        "them may be sold: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    )
    labels = "identities"

    def __init__(
        self,
        split: str = "official",
        split_seed: int = 0,
        condition: str = "none",
        attributes: list[str] | str | None = None,
        download: bool = False,
        **options: Any,
    ):
        super().__init__(**options)
        if split not in ("official", "random"):
            raise ValueError(f"split={split}: must be official or random")
        if condition not in ("none", "attributes", "identity"):
            raise ValueError(f"condition={condition}: must be none, attributes or identity")
        if condition == "attributes" and not attributes:
            raise ValueError("condition=attributes: needs their names, such as data.attributes=[Smiling,Male]")
        self.split, self.split_seed = split, split_seed
        self.condition_kind = condition
        self.attributes = [attributes] if isinstance(attributes, str) else attributes or []
        self.download = download

    def prepare_data(self) -> None:
        if self.download and self._folder() is None:
            _download(self.root)
        super().prepare_data()

    def list_images(self, split: str) -> ImageList:
        folder = self._folder()
        if folder is None:
            raise UserError(
                f"data.root={self.root}: CelebA is not there. data.download=true fetches it. "
                + MANUAL_DOWNLOAD.format(folder=self.root)
            )
        source = open_source(next(path for path in _image_paths(folder) if path.exists()))
        names = source.images()
        rows = self._split(folder, names, split)
        if not len(rows):
            raise UserError(
                f"None of the {len(names)} images in {folder} belong to CelebA's official {split} split: use "
                "data.split=random"
            )
        condition = self._condition(folder, names)
        names = [names[i] for i in rows.tolist()]
        return ImageList(source, names, None if condition is None else condition[rows])

    def conditions(self, labels: Sequence[Any] | None = None) -> Tensor:
        """As in TensorData; for attributes see `attribute_vectors`."""
        if self.condition_kind != "attributes":
            return super().conditions(labels)
        return attribute_vectors(labels, self.attributes)

    def _folder(self) -> Path | None:
        folders = [self.root / "celeba", self.root]
        return next((folder for folder in folders if any(map(Path.exists, _image_paths(folder)))), None)

    def _split(self, folder: Path, names: list[str], split: str) -> Tensor:
        """The indices of the images of a split."""
        if split not in SPLITS:
            raise UserError(f"split={split}: CelebA has {', '.join(SPLITS)}")
        if self.split == "official":
            path = folder / "list_eval_partition.txt"
            partition = _first_column(path, _annotations(path, names, "data.split=official", "data.split=random"))
            return (torch.tensor(partition) == SPLITS.index(split)).nonzero()[:, 0]
        order = torch.randperm(len(names), generator=generator(self.split_seed, Stream.DATA))
        tenth = len(names) // 10
        valid, test, train = order.split([tenth, tenth, len(names) - 2 * tenth])
        return {"train": train, "valid": valid, "test": test}[split].sort().values

    def _condition(self, folder: Path, names: list[str]) -> Tensor | None:
        if self.condition_kind == "none":
            return None
        option = f"data.condition={self.condition_kind}"
        if self.condition_kind == "identity":
            path = folder / "identity_CelebA.txt"
            rows = _annotations(path, names, option, "data.condition=none")
            return torch.tensor(_first_column(path, rows, minimum=1)) - 1
        path = folder / "list_attr_celeba.txt"
        rows = _annotations(path, names, option, "data.condition=none")
        known = "".join(_lines(path)[1:2]).split()
        unknown = [name for name in self.attributes if name not in known]
        if unknown:
            raise UserError(f"data.attributes: CelebA has no {', '.join(unknown)}. It has {', '.join(known)}")
        columns = [known.index(name) for name in self.attributes]
        if any(len(row) != len(known) for row in rows):
            raise UserError(f"{path} is damaged: some rows do not have a value for each of its {len(known)} attributes")
        return torch.tensor([[float(row[column] == "1") for column in columns] for row in rows])


def _image_paths(folder: Path) -> list[Path]:
    return [folder / "img_align_celeba", folder / "img_align_celeba.zip"]


def _annotations(path: Path, names: list[str], option: str, fallback: str) -> list[list[str]]:
    """The row of each image in an annotation file, without the image's name.

    Raises UserError that names the `option` which needs the file, and a `fallback` that does not.
    """
    if not path.is_file():
        raise UserError(f"{option} needs {path}, which does not exist: add it, or use {fallback}")
    rows = {row[0]: row[1:] for row in map(str.split, _lines(path)) if len(row) > 1}
    files = [Path(name).name for name in names]
    missing = [name for name in files if name not in rows]
    if missing:
        raise UserError(f"{path} has no row for {len(missing)} of the images, such as {missing[0]}: use {fallback}")
    return [rows[name] for name in files]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _first_column(path: Path, rows: list[list[str]], minimum: int = 0) -> list[int]:
    """The integers of the first column. Raises UserError for anything but integers from `minimum`."""
    for row in rows:
        if not row[0].isdecimal() or not minimum <= int(row[0]) < 2**31:
            raise UserError(f"{path} is damaged: {printable(row[0])} is not a whole number from {minimum}")
    return [int(row[0]) for row in rows]


def _download(root: Path) -> None:
    try:
        import gdown  # noqa: F401
    except ImportError as error:
        raise UserError(
            "data.download=true needs gdown: pip install gdown. " + MANUAL_DOWNLOAD.format(folder=root)
        ) from error
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        with time_limit(10):
            datasets.CelebA(str(root), download=True)
    except Exception as error:  # Google Drive refuses in many ways
        raise UserError(
            f"data.download=true: CelebA could not be downloaded ({first_line(error)}). "
            + MANUAL_DOWNLOAD.format(folder=root)
        ) from error
