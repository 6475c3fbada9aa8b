"""A discriminator that also learns to reconstruct real samples (FastGAN, Liu et al., 2021)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ganforge.content import Content
from ganforge.data.base import Batch
from ganforge.models.gan import GAN, Game, LossTerms
from ganforge.networks.fastgan import quarter
from ganforge.randomness import for_batch
from ganforge.regularizers import Scored
from ganforge.schedules import Schedule, check_range


class FastGAN(GAN):
    """Adds to D's loss how far its reconstructions of real samples are from these.

    Decoding keeps D's features from overfitting to a few images. `content` compares three reconstructions, each with
    `content_weight`: from either branch of D the sample at half its size, and a quarter of it, drawn for each sample.
    """

    def __init__(self, content: Content, content_weight: float | Schedule = 1.0, **options: Any):
        super().__init__(**options)
        self.content = content
        self.content_weight = check_range("content_weight", content_weight, 0)

    def prepare(self) -> None:
        self.content.prepare()

    def discriminator_loss(self, game: Game, batch: Batch, real: Scored, fake: Scored) -> LossTerms:
        terms = super().discriminator_loss(game, batch, real, fake)
        return {**terms, "content": self.content_weight * self.reconstruction_error(game, real)}

    def reconstruction_error(self, game: Game, real: Scored) -> Tensor:
        discriminator: Any = game.discriminator  # one that reconstructs
        images = real.seen.detach()
        numbers = for_batch(lambda count, generator: torch.randint(4, (count,), generator=generator), len(images))
        numbers = numbers.to(images.device)
        made = discriminator.reconstruct(real.output, numbers)
        halved = avg_pool2d(images, 2)
        targets = halved, halved, quarter(images, numbers)
        shape = len(real.samples), -1, *halved.shape[2:]  # packs are taken apart: features need 1 or 3 channels
        pairs = zip(made, targets, strict=True)
        return torch.stack([self.content(image.reshape(shape), target.reshape(shape)) for image, target in pairs]).sum()
