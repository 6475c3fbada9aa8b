"""Gradient penalties on the discriminator.

To add one: a class here, a line in `conf/regularizer/`. Several at once: `regularizer=[r1,r2]`.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ganforge.randomness import for_batch


class Regularizer:
    """A penalty, called as `(discriminator, real, fake, condition) -> scalar`; the loss gets `weight` times it.

    With `every` > 1 it is lazy (Karras et al., 2020): computed on every n-th step only, times n.
    """

    refuses: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Layers that the discriminator must not contain."""

    def __init__(self, weight: float, every: int = 1):
        if weight < 0:
            raise ValueError(f"weight={weight}: must not be negative")
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.weight = weight
        self.every = every

    def __call__(self, discriminator: nn.Module, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        raise NotImplementedError


def squared_gradient_norms(discriminator: nn.Module, samples: Tensor, condition: Tensor | None) -> Tensor:
    """Squared norm of the logits' gradient at each sample, (N,), in the weights' precision and differentiable."""
    samples = samples.detach().to(next(discriminator.parameters()).dtype).requires_grad_()
    with torch.autocast(samples.device.type, enabled=False):
        # not compiled: torch.compile cannot differentiate twice
        logits = discriminator._call_impl(samples, condition)
        (gradients,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return gradients.flatten(1).square().sum(1)


class R1(Regularizer):
    """Half the mean squared gradient norm on real samples; `weight` is the paper's gamma (Mescheder et al., 2018)."""

    def __call__(self, discriminator: nn.Module, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        return 0.5 * squared_gradient_norms(discriminator, real, condition).mean()


class R2(Regularizer):
    """Half the mean squared gradient norm on fake samples; `weight` is the paper's gamma (Mescheder et al., 2018)."""

    def __call__(self, discriminator: nn.Module, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        return 0.5 * squared_gradient_norms(discriminator, fake, condition).mean()


class GradientPenalty(Regularizer):
    """Squared distance of the gradient norm from 1, between real and fake samples (WGAN-GP, Gulrajani et al., 2017)."""

    # the penalty is on each sample's own gradient, which batch statistics would mix
    refuses = (_BatchNorm,)

    def __call__(self, discriminator: nn.Module, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        position = for_batch(lambda count, generator: torch.rand(count, generator=generator), len(real))
        position = position.to(real).view(-1, *[1] * (real.ndim - 1))
        between = torch.lerp(fake.detach().to(real), real, position)
        squares = squared_gradient_norms(discriminator, between, condition)
        norms = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()  # whose slope at 0 is infinite
        return (norms - 1).square().mean()
