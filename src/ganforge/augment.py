"""Augmentation of the samples that the discriminator scores."""

from torch import Tensor, nn


class Augmentation(nn.Module):
    """Transforms the samples that D scores, real and fake, in the updates of D and of G, with gradients."""

    def forward(self, samples: Tensor) -> Tensor:
        raise NotImplementedError

    def observe(self, real_logits: Tensor, boundary: float | None) -> None:
        """Adapt to D's logits of real samples, in each update of D."""
