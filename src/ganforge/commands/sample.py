"""Samples of a trained model: sample i of a seed is the same whoever asks for how many. And images made of images."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from ganforge.data.base import to_uint8, to_unit_range
from ganforge.data.images import open_image, to_8bit
from ganforge.data.sources import open_source
from ganforge.experiment.load import load_run
from ganforge.experiment.validate import check_count, check_flag, check_seed
from ganforge.export.interface import conditions_of, interface_of
from ganforge.latents import index_latents
from ganforge.models.gan import GAN
from ganforge.pictures import picture, save_picture
from ganforge.runtime.downloads import first_line
from ganforge.runtime.errors import UserError
from ganforge.runtime.text import printable, safe_file_name

WALK = 8
"""Pictures from one end of a walk to the other."""


def sample(config: DictConfig) -> None:
    """Draw what is asked for of a run, and print the paths of what is written. Raises UserError."""
    record, model, *_ = load_run(config.run, config.checkpoint)
    check_request(model, config)
    output = Path(config.output).expanduser()
    if config.input:
        for path in translate(model, Path(config.input).expanduser(), output):
            print(printable(path))
        return
    labels = config.labels if config.labels is None or OmegaConf.is_list(config.labels) else [config.labels]
    conditions = conditions_of(model, record, labels)
    draw = walk if config.interpolate else GAN.sample_grid
    samples, columns = draw(model, config.num_samples, config.seed, conditions)
    name = f"{'walk' if config.interpolate else 'samples'}-seed-{config.seed}"
    rows = None if labels is None else names_of(labels, conditions, interface_of(model, record).names)
    if rows is not None:
        name += safe_file_name("-labels-" + "-".join(rows))
    rows = None if config.interpolate else rows
    with written_to(output):
        print(printable(write(samples, output, name, config.format if config.separate else None, columns, rows)))


def check_request(model: GAN, config: DictConfig) -> None:
    """Raise UserError where a model is asked for what it does not do, or in words that sample.py does not know."""
    source, labels = config.input, config.labels
    check_count("num_samples", config.num_samples)
    check_seed(config.seed)
    if not config.output:
        raise UserError("output= has to name a folder")
    for option in ("interpolate", "separate"):
        check_flag(option, config[option])
    if config.format not in ("png", "npz"):
        raise UserError(f"format={config.format}: must be png or npz, of separate=true")
    if config.format == "npz" and not config.separate:
        raise UserError("format=npz: is of separate=true, give that too")
    if Path(config.output).suffix.lower() in IMG_EXTENSIONS:
        raise UserError(f"output={config.output}: must be a folder")
    if model.from_images and not source:
        raise UserError("This model makes images of images: name one, or a folder of them, with input=...")
    if source and not model.from_images:
        raise UserError(f"input={source}: this model draws its samples from noise, leave input= out")
    if labels is not None and model.condition_size is None:
        raise UserError("labels: this model was trained without labels, leave them out")


def names_of(labels: Sequence[Any], conditions: Tensor | None, names: Sequence[str] | None) -> list[str]:
    """What labels are called in names of files: as their classes are, whether they were asked for so or by number."""
    return [names[int(i)] for i in conditions] if names and conditions is not None else list(map(str, labels))


def walk(model: GAN, count: int, seed: int, conditions: Tensor | None = None) -> tuple[Tensor, int]:
    """`count` / 8 walks of 8 pictures between neighbouring latents of a seed, and that they make rows of 8.

    Conditions take turns.
    """
    walks = count // WALK
    if walks < 1:
        raise UserError(f"num_samples={count}: a walk has {WALK} pictures, so ask for at least {WALK}")
    latents = model.latents(walks + 1, seed)
    start = torch.arange(walks).repeat_interleave(WALK)
    position = torch.linspace(0, 1, WALK).repeat(walks)[:, None]
    steps = model.latent.between(index_latents(latents, start), index_latents(latents, start + 1), position)  # type: ignore[union-attr]
    return model.sample_all(steps, None if conditions is None else conditions[start % len(conditions)]), WALK


def write(
    samples: Tensor, folder: Path, name: str, separate: str | None, columns: int | None = None, labels: Any = None
) -> Path:
    """Write a grid `<name>.png`; or, with separate="png", a folder of pictures; with separate="npz", one `.npz`.

    `labels` are those of the grid's rows, which separate pictures have in their names.
    """
    path = folder / name
    if separate is None:
        path = folder / f"{name}.png"  # a name may have a dot of its own
        save_picture(picture(samples, columns=columns), path)
    elif separate == "npz":
        path = folder / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, samples=samples.numpy() if samples.ndim == 2 else to_uint8(samples).numpy())
    elif samples.ndim == 2:
        raise UserError("Points are no pictures: use format=npz for separate ones")
    elif path.exists():
        raise UserError(f"output={folder}: {path} is there already: remove it, or choose another folder")
    else:
        for number, sample in enumerate(samples):
            label = f"-{safe_file_name(labels[number * len(labels) // len(samples)])}" if labels else ""
            save_picture(picture(sample[None], columns=1, padding=0), path / f"{number:06d}{label}.png")
    return path


def translate(model: GAN, source: Path, folder: Path) -> Iterator[Path]:
    """Make an image of an image, or of each in a folder or zip: `<folder>/<name>.png`, which are yielded.

    Images are taken upright. Transparency is carried over, resized as the image is; what was grey stays grey where
    the model does not change colours.
    """
    files: dict[str, Callable[[], BinaryIO]]
    given, channels = source, model.generator.in_channels
    if source.is_file() and source.suffix.lower() != ".zip":
        source, files = source.parent, {source.name: partial(source.open, "rb")}  # type: ignore[dict-item]
    else:
        images = open_source(source, "input")
        files = {name: partial(images.open, name) for name in images.images()}
    paths = placed(files, source, folder)
    bad = []
    for name, opened in files.items():
        try:
            with opened() as file, open_image(file) as image:
                seen = SourceImage.of(image, channels)  # type: ignore[arg-type]
        except Exception as error:  # broken files make libraries raise all kinds of errors
            bad.append(f"  {printable(name)}: {printable(first_line(error))}")
            continue
        with written_to(folder):
            save_picture(translated(model, seen), paths[name])
        yield paths[name]
    if bad:
        raise UserError(f"input={given}: {len(bad)} of {len(files)} cannot be read:\n" + "\n".join(bad))


def placed(names: Iterable[str], source: Path, folder: Path) -> dict[str, Path]:
    """Where what is made of each file goes. Raises UserError where that is a place that it must not go to."""
    originals = {os.path.realpath(source / name) for name in names}
    paths = {name: (folder / name).with_suffix(".png") for name in names}
    times, inside = Counter(paths.values()), Path(os.path.realpath(folder))
    for name, path in paths.items():
        real = os.path.realpath(path)  # which, unlike Path.resolve, bears a link to itself
        if not Path(real).is_relative_to(inside):
            raise UserError(f"output={folder}: {printable(path)} lies outside of it, choose another folder")
        if real in originals:
            raise UserError(f"output={folder}: {printable(path)} would be written over, choose another folder")
        if times[path] > 1:
            raise UserError(
                f"input={source}: {printable(name)} and another image would both become {printable(path)}, rename one"
            )
    return paths


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Raise UserError where something inside cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"output={folder} cannot be written: {error.strerror or error}") from error


class SourceImage(NamedTuple):
    """An image as a model takes it: `pixels` (C, H, W) in [-1, 1], and what is put back on what is made of it."""

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


def translated(model: GAN, seen: SourceImage) -> Image.Image:
    """What a model of images makes of one."""
    made = to_pil_image(to_uint8(model.sample(None, seen.pixels[None].to(model.device)))[0].cpu())
    if seen.is_grey and model.keeps_colours:
        made = made.convert("L")
    if seen.alpha is not None:
        made.putalpha(seen.alpha.resize(made.size, Image.Resampling.BICUBIC))
    return made
