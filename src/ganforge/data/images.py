"""Datasets of image files: each image is decoded, cropped and resized once, and packed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ganforge.data.base import TensorData
from ganforge.data.classes import class_folders, classes_of
from ganforge.data.packing import Packed, pack, refuse_bad
from ganforge.data.sources import Source, open_source
from ganforge.runtime.errors import UserError
from ganforge.runtime.text import join_names

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, whatever a file is called: Pillow hands others, such as PostScript, to programs beside it."""


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
            with source.open(name) as file, open_image(file) as image:
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


def open_image(file: BinaryIO) -> Image.Image:
    """An image whose header is read. Raises what Pillow raises where that is damaged, or tells of too many pixels."""
    Image.init()  # of which the first call alone takes time
    try:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise ValueError("no image") from error


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
    """Any images: labels are the names of the sub-folders of `root`, sorted, where `condition` is "labels".

    A run's record holds these as `classes`, which have to be those of the data then.
    """

    title = "folder"
    labels = "the sub-folders of the training images, in the order of their names"

    def __init__(self, condition: str = "none", classes: Sequence[Any] | None = None, **options: Any):
        super().__init__(**options)
        if condition not in ("none", "labels"):
            raise ValueError(f"condition={condition}: must be none or labels")
        self.condition_kind = condition
        if classes is not None:
            self._name([str(name) for name in classes])

    def listing(self, split: str) -> Listing:
        if split != "train":
            raise UserError(f"split={split}: data=folder has train only")
        source = open_source(self.root)
        names = source.images()
        if self.condition_kind == "none":
            return Listing(source, names)
        prefix, found = class_folders(self.root)
        self._name(found)
        return Listing(source, names, torch.tensor(classes_of(names, prefix, self.classes, self.root)))

    def conditions(self, labels: Sequence[Any] | None = None) -> Tensor:
        if self.num_classes is None:  # of data that are not loaded yet, and no run's
            self._name(class_folders(self.root)[1])
        return super().conditions(labels)

    def _name(self, classes: Sequence[str]) -> None:
        """Take the names of the classes. Raises UserError where others are known already."""
        if self.condition_kind != "labels" or len(set(classes)) < len(classes):
            raise UserError("data.classes: must be different names, with data.condition=labels")
        if self.classes and set(self.classes) != set(classes):
            raise UserError(
                f"data.root={self.root} has the sub-folders {join_names(classes)}, but the classes of this run are "
                f"{join_names(self.classes)}: give it a folder with those"
            )
        if self.num_classes not in (None, len(classes)):
            raise UserError(
                f"data.num_classes={self.num_classes}: there are {len(classes)} classes, {join_names(classes)}, "
                "which are counted if you leave it out"
            )
        self.classes, self.num_classes = self.classes or tuple(classes), len(classes)
