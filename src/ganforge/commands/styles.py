"""What sample.py can do with style-based generators: truncation, and grids of mixed styles."""

from math import isfinite, isqrt
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ganforge.latents import to_device
from ganforge.models.gan import GAN
from ganforge.randomness import CHUNK
from ganforge.runtime.errors import UserError


def check_style_options(model: GAN, config: DictConfig) -> None:
    """Raise UserError for options that are wrong, or that the model's generator does not have."""
    generator: Any = model.sampling_generator
    psi = config.truncation
    if isinstance(psi, bool) or not isinstance(psi, int | float) or not isfinite(psi):
        raise UserError(f"truncation={psi}: must be a finite number, 1 for none")
    if psi != 1 and not hasattr(generator, "truncation"):
        raise UserError(f"truncation={psi}: this model's generator has no mapping network. Leave it out")
    if not config.style_mixing:
        return
    if not hasattr(generator, "layer_groups"):
        raise UserError("style_mixing=true: this model's generator has no styles. Leave it out")
    if config.style_layers not in (groups := generator.layer_groups()):
        raise UserError(f"style_layers={config.style_layers}: must be {', '.join(groups)}")
    if config.interpolate or config.separate:
        other = "interpolate" if config.interpolate else "separate"
        raise UserError(f"style_mixing=true: draws one grid of its own. Leave out {other}=true")


@torch.no_grad()
def mix_styles(model: GAN, count: int, seed: int, conditions: Tensor | None, layers: str) -> tuple[Tensor, int]:
    """A square of at most `count` samples, each of a row's styles but for a group of `layers`, which are a column's.

    The unmixed samples of the rows and columns, which cycle through the conditions, stand at its left and top. Also
    returns the number of columns, theirs included.
    """
    side = isqrt(count)
    generator: Any = model.sampling_generator
    if conditions is not None:
        conditions = conditions[torch.arange(2 * side) % len(conditions)].to(model.device)
    latents = to_device(model.latents(2 * side, seed), model.device, model.dtype)
    sources = generator.truncated(generator.mapping(latents, conditions))[:, None]
    sources = sources.expand(-1, generator.synthesis.num_layers, -1)
    rows, columns = sources.chunk(2)
    mixed = rows[:, None].repeat(1, side, 1, 1)
    group = generator.layer_groups()[layers]
    mixed[:, :, group] = columns[None, :, group]
    parts = torch.cat([columns, torch.cat([rows[:, None], mixed], dim=1).flatten(0, 1)]).split(CHUNK)
    images = torch.cat([generator.synthesis(part).cpu() for part in parts])
    return torch.cat([torch.ones_like(images[:1]), images]), side + 1
