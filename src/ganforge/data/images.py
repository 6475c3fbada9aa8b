"""Datasets of image files: each image is decoded, cropped and resized once, and packed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ganforge.data.base import TensorData
from ganforge.data.packing import Packed, pack, refuse_bad
from ganforge.data.sources import Source, open_source
from ganforge.errors import UserError


class Listing(NamedTuple):
    """The images of a split, and what each is conditioned on."""

    source: Source
    names: Sequence[str]
    condition: Tensor | None = None


class Images(TensorData):
    """Images of one size from the files below `root`, a folder or a zip.

    A subclass implements `listing`. `crop` is the side of the square cut from the centre, as a fraction of the shorter
    side; it is resized to `image_size`, antialiased. `channels` is 1 or 3. What is packed lies in `cache_dir`, or
    beside the data. With `on_error="skip"` files that cannot be read are left out, otherwise they stop the run.
    """

    title = "images"

    def __init__(
        self,
        root: str,
        image_size: int,
        channels: int = 3,
        crop: float = 1.0,
        cache_dir: str | None = None,
        on_error: str = "stop",
        **options: Any,
    ):
        super().__init__(**options)
        if channels not in (1, 3):
            raise ValueError(f"channels={channels}: images have 1 channel (grey) or 3 (RGB)")
        if not 0 < crop <= 1:
            raise ValueError(f"crop={crop}: a fraction of the shorter side, above 0 and up to 1")
        if image_size < 1:
            raise ValueError(f"image_size={image_size}: must be at least 1")
        check_on_error(on_error)
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.channels = channels
        self.crop = crop
        self.cache_dir = cache_dir
        self.on_error = on_error

    def listing(self, split: str) -> Listing:
        raise NotImplementedError

    def prepare_data(self) -> None:
        self.setup()

    def load(self, split: str = "train") -> tuple[Tensor, Tensor | None]:
        source, names, condition = self.listing(split)
        preparation = {"image_size": self.image_size, "channels": self.channels, "crop": self.crop}
        shape = (self.channels, self.image_size, self.image_size)

        def decode(name: str) -> np.ndarray:
            with source.open(name) as file, Image.open(file) as image:
                square = resized(upright(image, self.channels), self.image_size, self.crop)
            return np.asarray(square).reshape(self.image_size, self.image_size, self.channels).transpose(2, 0, 1)

        title = f"{self.title}-{self.image_size}-{source.fingerprint(names, **preparation)}"
        packed = pack(names, decode, cache_folder(source.path, self.cache_dir), title, shape)
        refuse_bad(packed, names, self.on_error, source.path)
        if split == "train":
            self.identity = title
        return packed.bytes.view(-1, *shape), kept(packed, condition)


def check_on_error(on_error: str) -> None:
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error={on_error}: must be stop or skip")


def cache_folder(source: Path, cache_dir: str | None) -> Path:
    """Where what is made of a folder or zip is kept: beside it, unless a folder is given."""
    path = source.resolve()
    return Path(cache_dir).expanduser() if cache_dir else path.with_name(f"{path.name}.packed")


def kept(packed: Packed, condition: Tensor | None) -> Tensor | None:
    """The conditions of the files that could be packed."""
    return condition if condition is None or not packed.bad else condition[packed.good(len(condition))]


def upright(image: Image.Image, channels: int) -> Image.Image:
    """An image as one sees it: turned as its EXIF data say, over white where transparent, in 8-bit grey or RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("has floating-point pixels, whose range nobody knows")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def resized(image: Image.Image, size: int, crop: float) -> Image.Image:
    """The square in the centre, resized to `size` pixels."""
    side = max(1.0, crop * min(image.size))
    left, top = ((length - side) / 2 for length in image.size)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


class ImageFolder(Images):
    """Any images: labels are the names of the folders they lie in, sorted, where `condition` is "labels"."""

    title = "folder"
    labels = "the sub-folders of the training images, in the order of their names"

    def __init__(self, condition: str = "none", **options: Any):
        super().__init__(**options)
        if condition not in ("none", "labels"):
            raise ValueError(f"condition={condition}: must be none or labels")
        self.condition_kind = condition

    def listing(self, split: str) -> Listing:
        if split != "train":
            raise UserError(f"split={split}: data=folder has train only")
        source = open_source(self.root)
        names = source.images()
        if self.condition_kind == "none":
            return Listing(source, names)
        folders = [name.rpartition("/")[0] for name in names]
        if "" in folders:
            raise UserError(
                f"data.condition=labels: {names[folders.index('')]} lies in no sub-folder of {self.root}, so it has no "
                "label"
            )
        number = {folder: i for i, folder in enumerate(sorted(set(folders)))}
        return Listing(source, names, torch.tensor([number[folder] for folder in folders]))
