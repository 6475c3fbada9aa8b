"""StyleGAN2's path length regularization (Karras et al., 2020); without it, its step is that of any GAN."""

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ganforge.data.base import Batch
from ganforge.models.gan import GAN, Game, LossTerms
from ganforge.networks.stylegan2 import in_float32
from ganforge.regularizers import Scored
from ganforge.schedules import Schedule, check_range

PATH_LENGTH_DECAY = 0.99
"""Of the running mean, per penalty."""


class StyleGAN2(GAN):
    """Penalizes the generator where equal steps in w do not change the image equally (path length regularization).

    `path_length_weight` is 2 in Karras et al. (2020), and 0 leaves the penalty out. It is computed in every
    `path_length_every`-th step, times that number, on latents of its own, half a batch of them.
    """

    path_length_mean: Tensor

    def __init__(self, path_length_weight: float | Schedule = 0.0, path_length_every: int = 4, **options: Any):
        super().__init__(**options)
        if path_length_every < 1:
            raise ValueError(f"path_length_every={path_length_every}: must be at least 1")
        self.path_length_weight = check_range("path_length_weight", path_length_weight, 0)
        self.path_length_every = path_length_every
        self.register_buffer("path_length_mean", torch.zeros(()))

    def generator_loss(self, game: Game, batch: Batch, fake: Scored, real: Scored | None = None) -> LossTerms:
        terms = super().generator_loss(game, batch, fake, real)
        if self.path_length_weight and self.step_number % self.path_length_every == 0:
            count = max(1, batch.size // 2)
            latent = self.draw_latent(game, count)
            condition = None if batch.condition is None else batch.condition[:count]
            with in_float32(self.path_length_mean):
                lengths = path_lengths(game.generator, latent, condition)
            penalty = (lengths - self._updated_mean(lengths)).square().mean()
            terms["path_length"] = self.path_length_weight * self.path_length_every * penalty
        return terms

    @torch.no_grad()
    def _updated_mean(self, lengths: Tensor) -> Tensor:
        """The running mean of path lengths over all ranks."""
        mean = self.trainer.strategy.reduce(lengths.mean(), reduce_op="mean")
        return self.path_length_mean.lerp_(mean.to(self.path_length_mean), 1 - PATH_LENGTH_DECAY)


def path_lengths(generator: nn.Module, latent: Tensor | None, condition: Tensor | None) -> Tensor:
    """Lengths (N,) of the gradient of images, projected on noise, at w: how far w moves the image.

    The root mean square over the layers, differentiable.
    """
    synthesis: Any = generator.synthesis
    w = generator.mapping(latent, condition)  # type: ignore[operator]
    styles = w[:, None].expand(-1, synthesis.num_layers, -1)
    images = synthesis(styles)
    noise = torch.randn_like(images) / sqrt(images.shape[2] * images.shape[3])
    (gradients,) = torch.autograd.grad((images * noise).sum(), styles, create_graph=True)
    return gradients.square().sum(2).mean(1).sqrt()
