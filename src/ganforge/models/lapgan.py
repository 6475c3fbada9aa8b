"""Coarse-to-fine generation, with one game per image size (LAPGAN, Denton et al., 2015)."""

from collections.abc import Sequence
from math import ceil, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ganforge.data.base import Batch, TensorData
from ganforge.latents import Levels, Uniform, to_device
from ganforge.models.gan import GAN, Game
from ganforge.networks.lapgan import LevelCondition, gaussian_pyramid, resized


class LAPGAN(GAN):
    """One game per level of a Laplacian pyramid. Levels train independently: finer ones refine real coarse images.

    `generator` and `discriminator` hold networks for the same `levels`. Finer levels take uniform noise on [-1, 1).
    `train_levels` is the size, or list of sizes, to train; None trains all. The other levels keep their initial weights
    or those of `init_from`.
    """

    augments: ClassVar[bool] = False

    def __init__(self, train_levels: Sequence[int] | int | None = None, **options: Any):
        super().__init__(**options)
        self.sizes: tuple[int, ...] = self.generator.sizes  # type: ignore[assignment]
        if self.discriminator.sizes != self.sizes:
            raise ValueError(f"the levels of G and D differ: {self.sizes} and {self.discriminator.sizes}")
        assert self.latent is not None
        self.latent = Levels([self.latent, *(Uniform(size**2) for size in self.sizes[1:])])
        wanted = self.sizes if train_levels is None else train_levels
        wanted = [wanted] if isinstance(wanted, int) else list(wanted)
        if not wanted or not set(wanted) <= set(self.sizes):
            raise ValueError(f"train_levels={train_levels}: the levels are {list(self.sizes)}; null trains all")
        self.train_levels = [size for size in self.sizes if size in wanted]

    @property
    def games(self) -> list[Game]:
        levels: Any = self.generator.levels, self.discriminator.levels, self.latent.levels  # type: ignore[union-attr]
        return [
            Game(generator, discriminator, latent, f"level_{size}")
            for size, generator, discriminator, latent in zip(self.sizes, *levels, strict=True)
            if size in self.train_levels
        ]

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Load the weights of another run. Levels that do not train load their moving averages: samples come from
        those, and updates of the average would pull them towards the raw weights."""
        super().start_from(state)
        if self.average is not None:
            levels: Any = self.generator.levels, self.average.module.levels
            for size, level, average in zip(self.sizes, *levels, strict=True):
                if size not in self.train_levels:
                    level.load_state_dict(average.state_dict())

    def prepare_batch(self, game: Game, batch: Batch) -> Batch:
        """Real images at the size of a level, conditioned on their version at the level below."""
        level = list(self.generator.levels).index(game.generator)  # type: ignore[arg-type]
        if level == 0:
            real, coarse = gaussian_pyramid(batch.real, self.sizes)[0], None
        else:
            below, real, *_ = gaussian_pyramid(batch.real, self.sizes[level - 1 :])
            coarse = resized(below, self.sizes[level])
        return Batch(real, LevelCondition(coarse, batch.condition))  # type: ignore[arg-type]

    @torch.no_grad()
    def preview(self, data: TensorData, count: int) -> tuple[Tensor, int]:
        """Samples from coarse to fine, side by side."""
        count = max(1, count // len(self.sizes))
        conditions = None
        if self.condition_size is not None:
            kinds = data.conditions()
            conditions = kinds[torch.arange(count) % len(kinds)].to(self.device)
        latents = to_device(self.latents(count, self.seed), self.device, self.dtype)
        steps = self.sampling_generator.steps(latents, conditions)  # type: ignore[operator]
        shown = [interpolate(images, self.sizes[-1]) for images in steps]
        return torch.stack(shown, dim=1).flatten(0, 1), len(self.sizes) * ceil(sqrt(count / len(self.sizes)))
