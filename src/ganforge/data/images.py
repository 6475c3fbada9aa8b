"""Datasets of image files: each image is decoded, cropped and resized once, then packed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ganforge.data.base import TensorData
from ganforge.data.classes import class_folders, labels_from_folders
from ganforge.data.packing import pack, refuse_bad
from ganforge.data.sources import Source, open_source
from ganforge.runtime.errors import UserError
from ganforge.runtime.text import join_names

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, whatever a file's suffix: Pillow hands others, such as PostScript, to external programs."""


class ImageList(NamedTuple):
    """The files of a split, and the condition of each."""

    source: Source
    names: Sequence[str]
    condition: Tensor | None = None


class Images(TensorData):
    """Images of one size, from the files below a folder or zip (`root`).

    A subclass implements `list_images`. `crop` is the side of the central square as a fraction of the shorter side; the
    square is resized to `image_size` pixels, antialiased. `channels` is 1 or 3. The packed images are kept in
    `cache_dir`, by default beside the data. A file that cannot be read stops the run, or is left out with
    `on_error="skip"`.
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
            raise ValueError(f"crop={crop}: must be a fraction of the shorter side, above 0 and up to 1")
        if image_size < 1:
            raise ValueError(f"image_size={image_size}: must be at least 1")
        check_on_error(on_error)
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.channels = channels
        self.crop = crop
        self.cache_dir = cache_dir
        self.on_error = on_error

    def list_images(self, split: str) -> ImageList:
        """The files of a split and their conditions. Raises UserError for an unknown split."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        self.setup()

    def load(self, split: str = "train") -> tuple[Tensor, Tensor | None]:
        source, names, condition = self.list_images(split)
        preparation = {"image_size": self.image_size, "channels": self.channels, "crop": self.crop}
        shape = (self.channels, self.image_size, self.image_size)

        def decode(name: str) -> np.ndarray:
            with source.open(name) as file, open_image(file) as image:
                square = crop_and_resize(to_8bit(image, self.channels), self.image_size, self.crop)
            return np.asarray(square).reshape(self.image_size, self.image_size, self.channels).transpose(2, 0, 1)

        name = f"{self.title}-{self.image_size}-{source.fingerprint(names, **preparation)}"
        packed = pack(names, decode, cache_folder(source.path, self.cache_dir), name, shape)
        refuse_bad(packed, names, self.on_error, source.path)
        if split == "train":
            self.identity = name
        if condition is not None and packed.bad:
            condition = condition[packed.good_indices(len(names))]
        return packed.bytes.view(-1, *shape), condition


def check_on_error(on_error: str) -> None:
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error={on_error}: must be stop or skip")


def cache_folder(source: Path, cache_dir: str | None) -> Path:
    """The folder for the packed images of a folder or zip: `cache_dir`, or one beside the source."""
    path = source.resolve()
    return Path(cache_dir).expanduser() if cache_dir else path.with_name(f"{path.name}.packed")


def open_image(file: BinaryIO) -> Image.Image:
    """Read the header of an image. Raises Pillow's errors on a damaged header or on too many pixels."""
    Image.init()  # loads all formats, once
    try:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise ValueError("is not an image") from error


def to_8bit(image: Image.Image, channels: int) -> Image.Image:
    """8-bit grey or RGB, rotated according to EXIF, transparent parts over white. Raises ValueError on float pixels."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("has floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):  # 16 bits, which Pillow's convert clips
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def crop_and_resize(image: Image.Image, size: int, crop: float) -> Image.Image:
    """The central square, `crop` of the shorter side, resized to `size` pixels a side."""
    side = max(1.0, crop * min(image.size))
    left, top = ((length - side) / 2 for length in image.size)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


class ImageFolder(Images):
    """Any images. With `condition="labels"` the classes are the sorted names of the sub-folders of `root`.

    A run records them as `classes`; when it resumes, the data must have the same sub-folders.
    """

    title = "folder"
    labels = "the sub-folders of the training images, sorted by name"

    def __init__(self, condition: str = "none", classes: Sequence[Any] | None = None, **options: Any):
        super().__init__(**options)
        if condition not in ("none", "labels"):
            raise ValueError(f"condition={condition}: must be none or labels")
        self.condition_kind = condition
        if classes is not None:
            self._set_classes([str(name) for name in classes])

    def list_images(self, split: str) -> ImageList:
        if split != "train":
            raise UserError(f"split={split}: data=folder has only train")
        source = open_source(self.root)
        names = source.images()
        if self.condition_kind == "none":
            return ImageList(source, names)
        prefix, classes = class_folders(self.root)
        self._set_classes(classes)
        return ImageList(source, names, torch.tensor(labels_from_folders(names, prefix, self.classes, self.root)))

    def conditions(self, labels: Sequence[Any] | None = None) -> Tensor:
        if self.num_classes is None:  # neither loaded yet, nor recorded by a run
            self._set_classes(class_folders(self.root)[1])
        return super().conditions(labels)

    def _set_classes(self, classes: Sequence[str]) -> None:
        """Set the class names. Raises UserError if they differ from those known already."""
        if self.condition_kind != "labels" or len(set(classes)) < len(classes):
            raise UserError("data.classes: must be distinct names, and needs data.condition=labels")
        if self.classes and set(self.classes) != set(classes):
            raise UserError(
                f"data.root={self.root} has the sub-folders {join_names(classes)}, but the classes of this run are "
                f"{join_names(self.classes)}: choose a folder with those"
            )
        if self.num_classes not in (None, len(classes)):
            raise UserError(
                f"data.num_classes={self.num_classes}: there are {len(classes)} classes, {join_names(classes)}: "
                "leave it out to have them counted"
            )
        self.classes, self.num_classes = self.classes or tuple(classes), len(classes)
