"""CelebA: faces with attributes and identities (Liu et al., 2015)."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganforge.data.conditions import of_attributes
from ganforge.data.images import Images, Listing
from ganforge.data.sources import Source, open_source
from ganforge.randomness import Stream, generator
from ganforge.runtime.downloads import first_line, time_limit
from ganforge.runtime.errors import UserError
from ganforge.runtime.text import printable

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")

MANUAL = """By hand: get img_align_celeba.zip, which need not be unpacked, list_attr_celeba.txt, identity_CelebA.txt and
list_eval_partition.txt from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and put them into {folder}"""


class CelebA(Images):
    """202,599 aligned faces, or as many of them as are there, at any stored size.

    `root`, or `root/celeba`, holds `img_align_celeba/` or `img_align_celeba.zip`, and the annotations beside it.
    `split` is official, or random: 80, 10 and 10 per cent of the files that are there, drawn from `split_seed`.
    `condition` is none, identity (labels (N,)) or attributes: 0 or 1 for each of `attributes`, (N, K).
    """

    title = "celeba"
    terms = (
        "CelebA (Liu et al., 2015) is for non-commercial research only; neither images nor what is derived from them "
        "may be sold: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
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
            raise ValueError("condition=attributes: say which, with data.attributes=[Smiling,Male]")
        self.split, self.split_seed = split, split_seed
        self.condition_kind = condition
        self.attributes = [attributes] if isinstance(attributes, str) else attributes or []
        self.download = download

    def prepare_data(self) -> None:
        if self.download and self._folder() is None:
            _download(self.root)
        super().prepare_data()

    def listing(self, split: str) -> Listing:
        folder = self._folder()
        if folder is None:
            raise UserError(
                f"data.root={self.root}: CelebA is not there. data.download=true fetches it. "
                + MANUAL.format(folder=self.root)
            )
        source, names = self._images(folder)
        chosen = self._split(folder, names, split)
        if not len(chosen):
            raise UserError(
                f"None of the {len(names)} images in {folder} belong to CelebA's official {split} split: use "
                "data.split=random"
            )
        condition = self._condition(folder, names)
        names = [names[i] for i in chosen.tolist()]
        return Listing(source, names, None if condition is None else condition[chosen])

    def conditions(self, labels: Sequence[Any] | None = None) -> Tensor:
        """Of attributes: `Smiling`, or `Smiling+Male` for both, or `none`; by default none, and each alone."""
        if self.condition_kind != "attributes":
            return super().conditions(labels)
        return of_attributes(labels, self.attributes)

    def _folder(self) -> Path | None:
        folders = [self.root / "celeba", self.root]
        return next((folder for folder in folders if any(map(Path.exists, _stores(folder)))), None)

    def _images(self, folder: Path) -> tuple[Source, list[str]]:
        source = open_source(next(path for path in _stores(folder) if path.exists()))
        return source, source.images()

    def _split(self, folder: Path, names: list[str], split: str) -> Tensor:
        """Positions of the images of a split."""
        if split not in SPLITS:
            raise UserError(f"split={split}: CelebA has {', '.join(SPLITS)}")
        if self.split == "official":
            path = folder / "list_eval_partition.txt"
            part = _numbers(path, _table(path, names, "data.split=official", "data.split=random"))
            return (torch.tensor(part) == SPLITS.index(split)).nonzero()[:, 0]
        order = torch.randperm(len(names), generator=generator(self.split_seed, Stream.DATA))
        tenth = len(names) // 10
        valid, test, train = order.split([tenth, tenth, len(names) - 2 * tenth])
        return {"train": train, "valid": valid, "test": test}[split].sort().values

    def _condition(self, folder: Path, names: list[str]) -> Tensor | None:
        if self.condition_kind == "none":
            return None
        need = f"data.condition={self.condition_kind}"
        if self.condition_kind == "identity":
            path = folder / "identity_CelebA.txt"
            return torch.tensor(_numbers(path, _table(path, names, need, "data.condition=none"), 1)) - 1
        path = folder / "list_attr_celeba.txt"
        rows = _table(path, names, need, "data.condition=none")
        known = "".join(_lines(path)[1:2]).split()
        unknown = [name for name in self.attributes if name not in known]
        if unknown:
            raise UserError(f"data.attributes: CelebA has no {', '.join(unknown)}. It has {', '.join(known)}")
        columns = [known.index(name) for name in self.attributes]
        if any(len(row) != len(known) for row in rows):
            raise UserError(f"{path} is damaged: it has rows that do not fit its {len(known)} attributes")
        return torch.tensor([[float(row[column] == "1") for column in columns] for row in rows])


def _stores(folder: Path) -> list[Path]:
    return [folder / "img_align_celeba", folder / "img_align_celeba.zip"]


def _table(path: Path, names: list[str], need: str, otherwise: str) -> list[list[str]]:
    """The rows of an annotation file that belong to images, without the images' names."""
    if not path.is_file():
        raise UserError(f"{need} needs {path}, which is not there: put it there, or use {otherwise}")
    rows = {row[0]: row[1:] for row in map(str.split, _lines(path)) if len(row) > 1}
    files = [Path(name).name for name in names]
    missing = [name for name in files if name not in rows]
    if missing:
        raise UserError(f"{path} has no row for {len(missing)} of the images, such as {missing[0]}: use {otherwise}")
    return [rows[name] for name in files]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _numbers(path: Path, rows: list[list[str]], least: int = 0) -> list[int]:
    """The first column of a table. Raises UserError where that has anything but numbers from `least`."""
    for row in rows:
        if not row[0].isdecimal() or not least <= int(row[0]) < 2**31:
            raise UserError(f"{path} is damaged: {printable(row[0])} is no whole number from {least}")
    return [int(row[0]) for row in rows]


def _download(root: Path) -> None:
    try:
        import gdown  # noqa: F401
    except ImportError as error:
        raise UserError("data.download=true needs gdown: pip install gdown. " + MANUAL.format(folder=root)) from error
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        with time_limit(10):
            datasets.CelebA(str(root), download=True)
    except Exception as error:  # Google Drive refuses in many ways
        raise UserError(
            f"data.download=true: CelebA could not be fetched ({first_line(error)}). " + MANUAL.format(folder=root)
        ) from error
