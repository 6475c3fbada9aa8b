"""Gradient penalties on the discriminator.

To add one: a class here and a one-line file in `conf/regularizer/`. Several at once: `regularizer=[r1,r2]`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ganforge.randomness import for_batch


class Scored(NamedTuple):
    """Samples and the discriminator's output on them: one forward pass for the loss, the penalties and the log.

    `output` is the logits, (N,) or a map, or a NamedTuple of `logits` and further heads.
    """

    samples: Tensor
    condition: Any
    output: Any

    @property
    def logits(self) -> Tensor:
        return self.output if isinstance(self.output, Tensor) else self.output.logits

    def squared_gradient_norms(self) -> Tensor:
        """Squared norm of the logits' gradient at each sample, (N,), differentiable."""
        (gradients,) = torch.autograd.grad(self.logits.sum(), self.samples, create_graph=True)
        return gradients.flatten(1).square().sum(1)


def score(discriminator: nn.Module, samples: Tensor, condition: Any, differentiable: bool = False) -> Scored:
    """Run the discriminator once; `differentiable` also records its gradient at the samples, for penalties."""
    if not differentiable:
        return Scored(samples, condition, discriminator(samples, condition))
    samples = samples.detach().to(next(discriminator.parameters()).dtype).requires_grad_()
    samples = samples.view_as(samples)  # module hooks, such as FlopCounterMode's, fail on leaves
    # _call_impl is never compiled: torch.compile cannot differentiate twice
    return Scored(samples, condition, discriminator._call_impl(samples, condition))


class Regularizer:
    """A penalty, called as `(discriminator, real, fake) -> scalar`; D's loss gets `weight` times it.

    With `every` > 1 it is lazy (Karras et al., 2020): computed in every n-th step only, times n.
    """

    differentiates: ClassVar[str | None] = None
    """The samples at which it needs D's gradient, "real" or "fake": it then shares the forward pass of D's loss."""
    refuses: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Layers that the discriminator must not contain."""

    def __init__(self, weight: float, every: int = 1):
        if weight < 0:
            raise ValueError(f"weight={weight}: must not be negative")
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.weight = weight
        self.every = every

    def __call__(self, discriminator: nn.Module, real: Scored, fake: Scored) -> Tensor:
        raise NotImplementedError


def check_layers(regularizers: Mapping[str, Regularizer], discriminator: nn.Module) -> None:
    """Raise ValueError where a penalty does not work with a layer of the discriminator."""
    for name, regularizer in regularizers.items():
        for module in discriminator.modules():
            if isinstance(module, regularizer.refuses):
                raise ValueError(
                    f"regularizer={name} does not work with a discriminator that has {type(module).__name__}: "
                    "set model.discriminator.normalization=layer or none"
                )


class R1(Regularizer):
    """Half the mean squared gradient norm on real samples; `weight` is the paper's gamma (Mescheder et al., 2018)."""

    differentiates = "real"

    def __call__(self, discriminator: nn.Module, real: Scored, fake: Scored) -> Tensor:
        return 0.5 * real.squared_gradient_norms().mean()


class R2(Regularizer):
    """Half the mean squared gradient norm on fake samples; `weight` is the paper's gamma (Mescheder et al., 2018)."""

    differentiates = "fake"

    def __call__(self, discriminator: nn.Module, real: Scored, fake: Scored) -> Tensor:
        return 0.5 * fake.squared_gradient_norms().mean()


class GradientPenalty(Regularizer):
    """Squared distance of the gradient norm from 1, between real and fake samples (WGAN-GP, Gulrajani et al., 2017)."""

    # the penalty is on each sample's own gradient, which batch statistics would mix
    refuses = (_BatchNorm,)

    def __call__(self, discriminator: nn.Module, real: Scored, fake: Scored) -> Tensor:
        position = for_batch(lambda count, generator: torch.rand(count, generator=generator), len(real.samples))
        position = position.to(real.samples).view(-1, *[1] * (real.samples.ndim - 1))
        between = torch.lerp(fake.samples.detach().to(real.samples), real.samples.detach(), position)
        with torch.autocast(between.device.type, enabled=False):
            squares = score(discriminator, between, real.condition, differentiable=True).squared_gradient_norms()
        norms = squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt()  # the slope of the root at 0 is infinite
        return (norms - 1).square().mean()
