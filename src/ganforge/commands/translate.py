"""Images made from images, such as photographs super-resolved: sample.py's `input=`."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ganforge.data.images import open_image, to_8bit
from ganforge.data.sources import open_source
from ganforge.models.gan import GAN
from ganforge.pictures import save_picture
from ganforge.runtime.downloads import first_line
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_uint8, to_unit_range
from ganforge.runtime.text import printable


def translate(model: GAN, source: Path, folder: Path) -> Iterator[Path]:
    """Translate an image, or each in a folder or zip, to `<folder>/<name>.png`. Yields the paths.

    Images are turned upright by their EXIF orientation. Transparency is kept, resized with the image. Grey images stay
    grey if the model keeps colours. Raises UserError after the last image if some cannot be read.
    """
    files, root = _files(source)
    paths = output_paths(files, root, folder)
    failed = []
    for name, open_file in files.items():
        try:
            with open_file() as file, open_image(file) as image:
                original = SourceImage.of(image, model.generator.in_channels)  # type: ignore[arg-type]
        except Exception as error:  # decoders raise all kinds of errors for damaged files
            failed.append(f"  {printable(name)}: {printable(first_line(error))}")
            continue
        with writing_to(folder):
            save_picture(_translated(model, original), paths[name])
        yield paths[name]
    if failed:
        raise UserError(f"input={source}: {len(failed)} of {len(files)} cannot be read:\n" + "\n".join(failed))


def _files(source: Path) -> tuple[dict[str, Callable[[], BinaryIO]], Path]:
    """How to open each image, by its name below a folder or zip, and that folder or zip."""
    if source.is_file() and source.suffix.lower() != ".zip":
        return {source.name: partial(source.open, "rb")}, source.parent  # type: ignore[dict-item]
    images = open_source(source, "input")
    return {name: partial(images.open, name) for name in images.images()}, source


def output_paths(names: Iterable[str], source: Path, folder: Path) -> dict[str, Path]:
    """The file for each image.

    Raises UserError if one would lie outside the folder, overwrite an image of the source, or be written twice.
    """
    originals = {os.path.realpath(source / name) for name in names}
    paths = {name: (folder / name).with_suffix(".png") for name in names}
    uses, inside = Counter(paths.values()), Path(os.path.realpath(folder))
    for name, path in paths.items():
        real = os.path.realpath(path)  # Path.resolve raises on a link to itself
        if not Path(real).is_relative_to(inside):
            raise UserError(f"output={folder}: {printable(path)} lies outside of it, choose another folder")
        if real in originals:
            raise UserError(f"output={folder}: {printable(path)} would overwrite an input, choose another folder")
        if uses[path] > 1:
            raise UserError(
                f"input={source}: {printable(name)} and another image would both become {printable(path)}, rename one"
            )
    return paths


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into UserErrors about `output=`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output={folder} cannot be written: {error.strerror or error}") from error


class SourceImage(NamedTuple):
    """An image as a model takes it: `pixels` (C, H, W) in [-1, 1]; its transparency and greyness are restored later."""

    pixels: Tensor
    alpha: Image.Image | None
    is_grey: bool

    @classmethod
    def of(cls, image: Image.Image, channels: int) -> "SourceImage":
        image = ImageOps.exif_transpose(image)
        is_grey = image.mode in ("1", "L", "LA") or image.mode.startswith("I")
        alpha = None
        if image.has_transparency_data:
            image = image.convert("RGBA")
            alpha = image.getchannel("A")
            image = image.convert("RGB")
        return cls(to_unit_range(pil_to_tensor(to_8bit(image, channels))), alpha, is_grey)


def _translated(model: GAN, original: SourceImage) -> Image.Image:
    image = to_pil_image(to_uint8(model.sample(None, original.pixels[None].to(model.device)))[0].cpu())
    if original.is_grey and model.keeps_colours:
        image = image.convert("L")
    if original.alpha is not None:
        image.putalpha(original.alpha.resize(image.size, Image.Resampling.BICUBIC))
    return image
