"""Super-resolution of photographs (SRGAN, Ledig et al., 2017)."""

import logging
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from ganforge.content import Pixels
from ganforge.data.base import Batch
from ganforge.models.gan import Game, LossTerms
from ganforge.models.pix2pix import Pix2Pix
from ganforge.models.tiling import in_tiles
from ganforge.regularizers import Scored
from ganforge.schedules import Schedule, check_range

log = logging.getLogger(__name__)


class SRGAN(Pix2Pix):
    """`stage` pretrain minimizes only the squared error of pixels; stage adversarial starts from it (`init_from`).

    `pixel_weight` adds the squared error to the second stage as well (0 in the paper): features alone do not constrain
    contrast. Images of more than `tile` pixels a side are made in tiles that overlap by `margin`; null: always whole.
    """

    augments: ClassVar[bool] = True  # D sees no condition
    keeps_colours: ClassVar[bool] = True

    def __init__(
        self,
        stage: str = "pretrain",
        pixel_weight: float | Schedule = 0.0,
        tile: int | None = 256,
        margin: int = 48,
        **options: Any,
    ):
        super().__init__(**options)
        if stage not in ("pretrain", "adversarial"):
            raise ValueError(f"stage={stage}: must be pretrain or adversarial")
        if margin < 0 or (tile is not None and tile < 1):
            raise ValueError(f"margin={margin}, tile={tile}: must not be negative, and at least 1, or null")
        self.stage = stage
        self.pixels = Pixels(power=2)
        if stage == "pretrain":
            self.content = self.pixels  # needs no downloaded weights
            self.discriminator_steps = 1  # D is not trained: load one batch per step
            self.discriminator.requires_grad_(False)
        self.pixel_weight = check_range("pixel_weight", pixel_weight, 0)
        self.tile = tile
        self.margin = margin

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.stage == "adversarial" and self.init_from is None and self.global_rank == 0:
            log.warning(
                "model.stage=adversarial starts from random weights. Set model.init_from=<run folder of stage=pretrain>"
            )

    def play(self, game: Game, batch: Batch, optimizer_d: Optimizer, optimizer_g: Optimizer) -> None:
        if self.stage == "adversarial":
            super().play(game, batch, optimizer_d, optimizer_g)
            return
        fake = self.generate(game, None, batch.condition)
        self.update(game, "g", game.generator, optimizer_g, {"pixels": self.pixels(fake, batch.real)})

    def generator_loss(self, game: Game, batch: Batch, fake: Scored, real: Scored | None = None) -> LossTerms:
        terms = super().generator_loss(game, batch, fake, real)
        if self.pixel_weight:
            terms["pixels"] = self.pixel_weight * self.pixels(fake.samples, batch.real)
        return terms

    def generate(self, game: Game, latent: Any, condition: Any) -> Tensor:
        if self.tile is None or game.generator.training:
            return super().generate(game, latent, condition)
        return in_tiles(lambda part: game.generator(latent, part), condition, self.tile, self.margin)

    def start_from(self, state: dict[str, Tensor]) -> None:
        """Load the weights of another run. The discriminator's are left out if they do not fit: they depend on the size
        of the crops, and stage pretrain does not train them."""
        mine = {name: value for name, value in self.state_dict().items() if name.startswith("discriminator.")}
        theirs = {name: value.shape for name, value in state.items() if name.startswith("discriminator.")}
        fits = theirs == {name: value.shape for name, value in mine.items()}
        if not fits:
            log.info("The discriminator is reinitialized: its layers differ from those in model.init_from.")
        super().start_from(state if fits else state | mine)
