"""Images of different sizes, decoded once and packed end to end, so that random crops of them are one gather."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ganforge.data.images import cache_folder, open_image, to_8bit
from ganforge.data.packing import pack, refuse_bad
from ganforge.data.sources import Source, open_source
from ganforge.runtime.errors import UserError


class RaggedImages:
    """uint8 images (H, W, C) of different sizes, end to end in `pixels`; `sizes` (N, 2) are their (H, W)."""

    def __init__(self, pixels: Tensor, shapes: Sequence[tuple[int, ...]]):
        self.pixels = pixels
        self.channels = shapes[0][2]
        self.sizes = torch.tensor(shapes)[:, :2]
        lengths = self.sizes.prod(1) * self.channels
        self.offsets = lengths.cumsum(0) - lengths

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> Tensor:
        """A whole image (C, H, W)."""
        height, width = self.sizes[index].tolist()
        start = int(self.offsets[index])
        pixels = self.pixels[start : start + height * width * self.channels]
        return pixels.view(height, width, self.channels).permute(2, 0, 1)

    def select(self, indices: Tensor) -> "RaggedImages":
        """These images in this order, sharing the pixels."""
        subset = copy(self)
        subset.sizes, subset.offsets = self.sizes[indices], self.offsets[indices]
        return subset

    def crops(self, indices: Tensor, corners: Tensor, side: int) -> Tensor:
        """Squares (N, C, side, side) with the top left `corners` (N, 2): one gather of all their lines."""
        line = side * self.channels
        stride = self.sizes[indices, 1] * self.channels
        first = self.offsets[indices] + corners[:, 0] * stride + corners[:, 1] * self.channels
        starts = first[:, None] + torch.arange(side) * stride[:, None]
        windows = self.pixels.as_strided((len(self.pixels) - line + 1, line), (1, 1))  # a line from each byte on
        return windows[starts.flatten()].view(len(indices), side, side, self.channels).permute(0, 3, 1, 2)


class Loaded(NamedTuple):
    """Images with their file names, and the name of the packed file they are in."""

    names: list[str]
    images: RaggedImages
    packed_name: str


def load_images(
    path: Path, exclude: Sequence[Path], min_side: int, channels: int, cache_dir: str | None, on_error: str
) -> Loaded:
    """The images in a folder or zip, except those below the folders `exclude`, packed at their full size.

    Images with a side below `min_side` pixels count as bad files. Raises UserError if there are no images, and for bad
    files unless on_error="skip".
    """
    source = open_source(path)
    names = _names_outside(source, path.resolve(), exclude)
    if not names:
        raise UserError(f"{path} holds no images other than those of data.valid and data.test")

    def decode(name: str) -> np.ndarray:
        with source.open(name) as file, open_image(file) as image:
            pixels = np.asarray(to_8bit(image, channels))
        return pixels.reshape(*pixels.shape[:2], channels)

    def measure(name: str) -> int:
        with source.open(name) as file, open_image(file) as image:  # reads the header only
            return image.width * image.height * channels

    packed_name = f"photographs-{source.fingerprint(names, channels=channels)}"
    packed = pack(names, decode, cache_folder(path, cache_dir), packed_name, measure=measure)
    good = packed.good_indices(len(names)).tolist()
    too_small = {
        i: f"{width} x {height} pixels are less than data.image_size={min_side}"
        for i, (height, width, _) in zip(good, packed.shapes, strict=True)
        if min(height, width) < min_side
    }
    refuse_bad(packed._replace(bad=packed.bad | too_small), names, on_error, path)
    positions = [position for position, i in enumerate(good) if i not in too_small]
    images = RaggedImages(packed.bytes, packed.shapes).select(torch.tensor(positions))
    return Loaded([names[good[position]] for position in positions], images, packed_name)


def _names_outside(source: Source, root: Path, exclude: Sequence[Path]) -> list[str]:
    inside = [folder.resolve() for folder in exclude if folder.resolve().is_relative_to(root)]
    prefixes = tuple(f"{folder.relative_to(root).as_posix()}/" for folder in inside)
    return [name for name in source.images() if not name.startswith(prefixes)]
