"""Draw samples from a trained model. Sample i of a seed is the same for every `num_samples`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ganforge.commands.styles import check_style_options, mix_styles
from ganforge.commands.translate import translate, writing_to
from ganforge.experiment.load import load_run
from ganforge.experiment.validate import check_count, check_flag, check_seed
from ganforge.export.interface import interface_of
from ganforge.latents import index_latents
from ganforge.models.gan import GAN
from ganforge.pictures import picture, save_picture
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_uint8
from ganforge.runtime.text import printable, safe_file_name

WALK_STEPS = 8
"""Samples per interpolation, both ends included."""


def sample(config: DictConfig) -> None:
    """Write the samples that the config asks for, and print their paths. Raises UserError."""
    record, model, *_ = load_run(config.run, config.checkpoint)
    check_options(model, config)
    output = Path(config.output).expanduser()
    if config.input:
        for path in translate(model, Path(config.input).expanduser(), output):
            print(printable(path))
        return
    labels = config.labels if config.labels is None or OmegaConf.is_list(config.labels) else [config.labels]
    interface = None if model.condition_size is None else interface_of(model, record)
    conditions = None if interface is None else interface.conditions(None if labels is None else list(labels))
    samples, columns, name = draw(model, config, conditions)
    row_names = None
    if interface is not None and labels is not None:
        row_names = label_names(labels, conditions, interface.names)
        name += safe_file_name("-labels-" + "-".join(row_names))
    row_names = None if config.interpolate or config.style_mixing else row_names
    with writing_to(output):
        path = write(samples, output, name, config.format if config.separate else None, columns, row_names)
        print(printable(path))


def draw(model: GAN, config: DictConfig, conditions: Tensor | None) -> tuple[Tensor, int | None, str]:
    """The samples, the columns of their grid, None if any number will do, and the name of the file."""
    count, seed = config.num_samples, config.seed
    name = f"seed-{seed}"
    if config.truncation != 1:
        model.sampling_generator.truncation = config.truncation
        name += f"-truncation-{config.truncation:g}"
    if config.style_mixing:
        layers = config.style_layers
        return *mix_styles(model, count, seed, conditions, layers), f"mixed-{layers}-{name}"
    if config.interpolate:
        return *interpolate(model, count, seed, conditions), f"walk-{name}"
    return *model.sample_grid(count, seed, conditions), f"samples-{name}"


def check_options(model: GAN, config: DictConfig) -> None:
    """Raise UserError for options that are wrong, or that do not apply to this model."""
    check_count("num_samples", config.num_samples)
    check_seed(config.seed)
    if not config.output:
        raise UserError("output= must name a folder")
    for option in ("interpolate", "separate", "style_mixing"):
        check_flag(option, config[option])
    if config.format not in ("png", "npz"):
        raise UserError(f"format={config.format}: must be png or npz, with separate=true")
    if config.format == "npz" and not config.separate:
        raise UserError("format=npz: needs separate=true as well")
    if Path(config.output).suffix.lower() in IMG_EXTENSIONS:
        raise UserError(f"output={config.output}: must be a folder")
    if model.from_images and not config.input:
        raise UserError("This is an image-to-image model: pass input=<image or folder>")
    if config.input and not model.from_images:
        raise UserError(f"input={config.input}: this model samples from noise. Leave out input=")
    if config.labels is not None and model.condition_size is None:
        raise UserError("labels=: this model is not conditioned on labels. Leave it out")
    check_style_options(model, config)


def label_names(labels: Sequence[Any], conditions: Tensor | None, class_names: Sequence[str] | None) -> list[str]:
    """The labels for file names: the names of the classes if they have any, else the labels as given."""
    if class_names and conditions is not None:
        return [class_names[int(i)] for i in conditions]
    return list(map(str, labels))


def interpolate(model: GAN, count: int, seed: int, conditions: Tensor | None = None) -> tuple[Tensor, int]:
    """`count` / 8 walks of 8 samples between neighbouring latents of a seed, one a row; and the columns, 8.

    Walks cycle through the conditions.
    """
    walks = count // WALK_STEPS
    if walks < 1:
        raise UserError(f"num_samples={count}: must be at least {WALK_STEPS}, the samples of one walk")
    latents = model.latents(walks + 1, seed)
    start = torch.arange(walks).repeat_interleave(WALK_STEPS)
    position = torch.linspace(0, 1, WALK_STEPS).repeat(walks)[:, None]
    steps = model.latent.between(index_latents(latents, start), index_latents(latents, start + 1), position)  # type: ignore[union-attr]
    walk_conditions = None if conditions is None else conditions[start % len(conditions)]
    return model.sample_all(steps, walk_conditions), WALK_STEPS


def write(
    samples: Tensor,
    folder: Path,
    name: str,
    separate: str | None,
    columns: int | None = None,
    row_names: Sequence[str] | None = None,
) -> Path:
    """Write a grid `<name>.png`; with separate="png", a folder of images; with separate="npz", one `.npz`.

    Separate images have `row_names`, those of the grid's rows, in their file names.
    """
    if separate is None:
        path = folder / f"{name}.png"  # not with_suffix: a name may contain a dot
        save_picture(picture(samples, columns=columns), path)
    elif separate == "npz":
        path = folder / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, samples=samples.numpy() if samples.ndim == 2 else to_uint8(samples).numpy())
    elif samples.ndim == 2:
        raise UserError("format=png: points are not images, use format=npz")
    elif (path := folder / name).exists():
        raise UserError(f"output={folder}: {path} already exists. Remove it, or choose another folder")
    else:
        for number, sample in enumerate(samples):
            label = f"-{safe_file_name(row_names[number * len(row_names) // len(samples)])}" if row_names else ""
            save_picture(picture(sample[None], columns=1, padding=0), path / f"{number:06d}{label}.png")
    return path
