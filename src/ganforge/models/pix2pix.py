"""Image-to-image translation from pairs (Isola et al., 2017)."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ganforge.content import Content
from ganforge.data.base import Batch
from ganforge.models.gan import GAN, Game, LossTerms
from ganforge.regularizers import Scored
from ganforge.schedules import Schedule, check_range


class Pix2Pix(GAN):
    """Translates an image, the condition, into one that looks real and matches its counterpart.

    The generator's loss is `adversarial_weight` times the adversarial one plus `content_weight` times `content`.
    """

    from_images: ClassVar[bool] = True
    augments: ClassVar[bool] = False

    def __init__(
        self,
        content: Content,
        content_weight: float | Schedule = 100.0,
        adversarial_weight: float | Schedule = 1.0,
        **options: Any,
    ):
        super().__init__(**options)
        self.content = content
        self.content_weight = check_range("content_weight", content_weight, 0)
        self.adversarial_weight = check_range("adversarial_weight", adversarial_weight, 0)

    def generator_loss(self, game: Game, batch: Batch, fake: Scored, real: Scored | None = None) -> LossTerms:
        adversarial = self.adversarial_weight * super().generator_loss(game, batch, fake, real)["adversarial"]
        return {"adversarial": adversarial, "content": self.content_weight * self.content(fake.samples, batch.real)}

    def prepare(self) -> None:
        self.content.prepare()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Tensor:  # type: ignore[override]
        return self.sample(None, batch.condition)

    def preview(self, data: Any, count: int) -> tuple[Tensor, int]:
        """Triples of condition, output and ground truth."""
        real, condition = data.examples(max(1, count // 3))
        fake = torch.cat([self.sample(None, image.to(self.device, self.dtype)) for image in condition.split(1)]).cpu()
        shown = interpolate(condition, real.shape[-2:]).expand_as(real)
        return torch.stack([shown, fake.float(), real], 1).flatten(0, 1), 9
