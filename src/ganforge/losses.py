"""Adversarial losses on logits of any shape: (N,), or the map of a patch discriminator.

To add one: a class here that returns two scalars, and a one-line file in `conf/loss/`.
"""

import torch.distributed
from torch import Tensor
from torch.distributed.nn.functional import all_reduce
from torch.nn.functional import relu, softplus

from ganforge.schedules import Schedule, check_range


def batch_mean(values: Tensor) -> Tensor:
    """The mean over the whole batch, on all devices, with gradients."""
    mean = values.mean()
    if not torch.distributed.is_initialized():
        return mean
    return all_reduce(mean) / torch.distributed.get_world_size()


class Loss:
    """What the discriminator and the generator minimize.

    `average_halves` takes the mean of the discriminator's real and fake halves instead of their sum, as many
    tutorials do: it halves the discriminator's gradient. `label_smoothing` lowers the label of real samples from 1 to
    1 - label_smoothing in the discriminator's loss (Salimans et al., 2016), if the loss `has_labels`.
    """

    has_labels = False
    """Whether the discriminator's loss compares its output with 1 for real and 0 for fake samples."""
    needs_real = False
    """Whether the generator's loss wants the logits of the real batch, as relativistic losses do."""
    boundary: float | None = 0.0
    """The logit above which D classifies a sample as real; None if the logits have no such threshold."""

    def __init__(self, average_halves: bool = False, label_smoothing: float | Schedule = 0.0):
        self.scale = 0.5 if average_halves else 1.0
        self.label_smoothing = check_range("label_smoothing", label_smoothing, 0, 1)
        if label_smoothing and not self.has_labels:
            raise ValueError(
                f"label_smoothing={label_smoothing}: {type(self).__name__} has no labels, so leave it at 0"
            )

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        raise NotImplementedError

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Minimax(Loss):
    """The original value function: G minimizes mean log(1 - D(G(z))) (Goodfellow et al., 2014, equation 1)."""

    has_labels = True

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        # -log D(x) = softplus(-logit), -log(1 - D(x)) = softplus(logit) = softplus(-logit) + logit
        real = softplus(-real_logits).mean()
        if self.label_smoothing:
            real = real + self.label_smoothing * real_logits.mean()
        return self.scale * (real + softplus(fake_logits).mean())

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return -softplus(fake_logits).mean()


class NonSaturating(Minimax):
    """G maximizes mean log D(G(z)), whose gradient does not vanish while D wins (Goodfellow et al., 2014)."""

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return softplus(-fake_logits).mean()


class LeastSquares(Loss):
    """Half the squared distance to 1 for real and to 0 for fake logits (LSGAN, Mao et al., 2017, equation 9)."""

    has_labels = True
    boundary = 0.5

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        target = 1 - self.label_smoothing
        return self.scale * 0.5 * ((real_logits - target).square().mean() + fake_logits.square().mean())

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return 0.5 * (fake_logits - 1).square().mean()


class Hinge(Loss):
    """Pushes the logits of D beyond a margin of 1 on either side (Lim and Ye, 2017; Miyato et al., 2018)."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return self.scale * (relu(1 - real_logits).mean() + relu(1 + fake_logits).mean())

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return -fake_logits.mean()


class Wasserstein(Loss):
    """The difference of mean critic values (Arjovsky et al., 2017).

    The critic must be Lipschitz: use `regularizer=gradient_penalty`.
    """

    boundary = None

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return self.scale * (fake_logits.mean() - real_logits.mean())

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return -fake_logits.mean()


class Relativistic(Loss):
    """D tells by how much a real sample is more realistic than the fake one beside it (Jolicoeur-Martineau, 2019).

    With R1 and R2 it has no dead modes and converges locally (R3GAN, Huang et al., 2024).
    """

    needs_real = True
    boundary = None

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return softplus(fake_logits - real_logits).mean()

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        assert real_logits is not None
        return softplus(real_logits - fake_logits).mean()


class RelativisticAverage(Loss):
    """D compares each sample with the mean of the other kind in the whole batch (Jolicoeur-Martineau, 2019).

    Both players' losses have two halves, on real and fake samples; `average_halves` applies to both.
    """

    needs_real = True
    boundary = None

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        real = real_logits - batch_mean(fake_logits)
        fake = fake_logits - batch_mean(real_logits)
        return self.scale * (softplus(-real).mean() + softplus(fake).mean())

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        assert real_logits is not None
        return self.discriminator(fake_logits, real_logits)
