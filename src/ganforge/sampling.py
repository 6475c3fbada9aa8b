"""Samples of a trained model: sample i of a seed is the same whoever asks for how many."""

from math import ceil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ganforge.data.base import to_uint8
from ganforge.errors import UserError
from ganforge.models.gan import GAN
from ganforge.pictures import picture, save_picture
from ganforge.randomness import CHUNK, sample_chunk

WALK = 8
"""Pictures from one end of a walk to the other."""


def draw(model: GAN, count: int, seed: int) -> Tensor:
    """The first `count` samples of a seed: images (count, C, H, W) in [-1, 1], or points (count, 2)."""
    if count < 1:
        raise UserError(f"num_samples={count}: must be at least 1")
    if seed < 0:
        raise UserError(f"seed={seed}: must be a whole number from 0")
    return torch.cat([model.sample_chunk(chunk, seed) for chunk in range(ceil(count / CHUNK))])[:count]


def walk(model: GAN, count: int, seed: int) -> Tensor:
    """`count` / 8 straight walks of 8 pictures between neighbouring latents of a seed.

    The ends keep their length on the way, as normal latents have nearly one length in high dimensions.
    """
    walks = count // WALK
    if walks < 1:
        raise UserError(f"num_samples={count}: a walk has {WALK} pictures, so ask for at least {WALK}")
    chunks = [sample_chunk(model.latent, seed, chunk) for chunk in range(ceil((walks + 1) / CHUNK))]
    ends = torch.cat(chunks)[: walks + 1]
    position = torch.linspace(0, 1, WALK).view(1, WALK, 1)
    straight = torch.lerp(ends[:-1, None], ends[1:, None], position)
    lengths = torch.lerp(ends[:-1, None].norm(dim=-1), ends[1:, None].norm(dim=-1), position[..., 0])
    latents = straight * (lengths / straight.norm(dim=-1).clamp_min(1e-8))[..., None]
    return torch.cat([model.sample(chunk) for chunk in latents.flatten(0, 1).split(CHUNK)])


def write(samples: Tensor, folder: Path, name: str, separate: str | None, columns: int | None = None) -> Path:
    """Write a grid `<name>.png`; or, with separate="png", a folder of pictures; with separate="npz", one `.npz`."""
    if separate not in (None, "png", "npz"):
        raise UserError(f"format={separate}: must be png or npz")
    path = folder / name
    if separate is None:
        path = path.with_suffix(".png")
        save_picture(picture(samples, columns=columns), path)
    elif separate == "npz":
        path = path.with_suffix(".npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, samples=samples.numpy() if samples.ndim == 2 else to_uint8(samples).numpy())
    elif samples.ndim == 2:
        raise UserError("Points are no pictures: use format=npz for separate ones")
    else:
        for number, sample in enumerate(samples):
            save_picture(picture(sample[None], columns=1, padding=0), path / f"{number:06d}.png")
    return path
