"""Who plays in a step, and for what."""

from typing import NamedTuple

from torch import Tensor, nn

from ganforge.latents import Latent

LossTerms = dict[str, Tensor]
"""The summands of a loss, under their names in the config."""


class Game(NamedTuple):
    """One discriminator against one generator, which gets a latent unless that is None; `name` distinguishes the games
    of a model that plays several."""

    generator: nn.Module
    discriminator: nn.Module
    latent: Latent | None
    name: str = ""

    def tag(self, value: str) -> str:
        """The name of a value of this game in the log."""
        return f"{self.name}/{value}" if self.name else value
