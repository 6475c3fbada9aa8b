"""Adversarial losses on logits of any shape: (N,), or the map of a patch discriminator.

To add one: a class here that returns two scalars, and a one-line file in `conf/loss/`.
"""

from torch import Tensor
from torch.nn.functional import relu, softplus


class Loss:
    """What the discriminator and the generator minimize.

    `average_halves` takes the mean of the discriminator's real and fake halves instead of their sum, as many
    tutorials do: it halves the discriminator's gradient.
    """

    needs_real = False
    """Whether the generator's loss wants the logits of the real batch, as relativistic losses do."""
    boundary: float | None = 0.0
    """The logit above which D classifies a sample as real; None if the logits have no such threshold."""

    def __init__(self, average_halves: bool = False):
        self.scale = 0.5 if average_halves else 1.0

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        raise NotImplementedError

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        raise NotImplementedError


class Minimax(Loss):
    """The original value function: G minimizes mean log(1 - D(G(z))) (Goodfellow et al., 2014, equation 1)."""

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        # -log D(x) = softplus(-logit), -log(1 - D(x)) = softplus(logit)
        return self.scale * (softplus(-real_logits).mean() + softplus(fake_logits).mean())

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return -softplus(fake_logits).mean()


class NonSaturating(Minimax):
    """G maximizes mean log D(G(z)), whose gradient does not vanish while D wins (Goodfellow et al., 2014)."""

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        return softplus(-fake_logits).mean()


class LeastSquares(Loss):
    """Half the squared distance to 1 for real and to 0 for fake logits (LSGAN, Mao et al., 2017, equation 9)."""

    boundary = 0.5

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return self.scale * 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())

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
    """Stand-in until the branch has the real one."""

    needs_real = True
    boundary = None

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return softplus(fake_logits - real_logits).mean()

    def generator(self, fake_logits: Tensor, real_logits: Tensor | None = None) -> Tensor:
        assert real_logits is not None
        return softplus(real_logits - fake_logits).mean()
