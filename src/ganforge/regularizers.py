"""What the discriminator minimizes beside its loss: gradient penalties, constraints on its weights, a term on labels.

To add one: a class here and a one-line file in `conf/regularizer/`. Several at once: `regularizer=[r1,r2]`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.modules.batchnorm import _BatchNorm

from ganforge.losses import batch_mean
from ganforge.randomness import for_batch
from ganforge.schedules import Schedule, check_range


class Scored(NamedTuple):
    """Samples and the discriminator's output on them: one forward pass for the loss, the penalties and the log.

    `seen` is what D saw: the samples after augmentation. `output` is the logits, (N,) or a map, or a NamedTuple of
    `logits` and further heads; with packs of m samples, N / m logits.
    """

    samples: Tensor
    condition: Any
    seen: Tensor
    output: Any

    @property
    def logits(self) -> Tensor:
        """In float32 under mixed precision, so that losses and penalties are."""
        logits = self.output if isinstance(self.output, Tensor) else self.output.logits
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def squared_gradient_norms(self) -> Tensor:
        """Squared norm of the logits' gradient at each sample, or pack of samples, (N,), differentiable."""
        logits = self.logits
        (gradients,) = torch.autograd.grad(logits.sum(), self.samples, create_graph=True)
        return gradients.reshape(len(logits), -1).square().sum(1)


class Critic(NamedTuple):
    """A discriminator, and how it sees samples: augmented, and in packs of `pack` stacked along the channels."""

    network: nn.Module
    augment: Iterable[nn.Module] = ()
    pack: int = 1

    def __call__(self, samples: Tensor, condition: Any = None, differentiable: bool = False) -> Scored:
        """Run D once; `differentiable` also records its gradient at the samples, before augmentation."""
        run: Callable[..., Any] = self.network
        if differentiable:
            samples = samples.detach().to(next(self.network.parameters()).dtype).requires_grad_()
            samples = samples.view_as(samples)  # module hooks, such as FlopCounterMode's, fail on leaves
            run = self.network._call_impl  # never compiled: torch.compile cannot differentiate twice
        seen = samples
        for augmentation in self.augment:
            seen = augmentation(seen)
        if self.pack > 1:  # PacGAN (Lin et al., 2018)
            seen = seen.reshape(len(seen) // self.pack, -1, *seen.shape[2:])
        return Scored(samples, condition, seen, run(seen, condition))


class Regularizer:
    """A penalty, called as `(critic, real, fake) -> scalar`; D's loss gets `weight` times it.

    With `every` > 1 it is lazy (Karras et al., 2020): computed in every n-th step only, times n. It may also return
    None and `constrain` the weights instead.
    """

    differentiates: ClassVar[str | None] = None
    """The samples at which it needs D's gradient, "real" or "fake": it then shares the forward pass of D's loss."""
    refuses: ClassVar[tuple[type[nn.Module], ...]] = ()
    """Layers that the discriminator must not contain."""

    def __init__(self, weight: float | Schedule, every: int = 1):
        if every < 1:
            raise ValueError(f"every={every}: must be at least 1")
        self.weight = check_range("weight", weight, 0)
        self.every = every

    def __call__(self, critic: Critic, real: Scored, fake: Scored) -> Tensor | None:
        raise NotImplementedError

    def constrain(self, network: nn.Module) -> None:
        """Change the weights of D after its update."""


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
    """Half the mean squared gradient norm on real samples; `weight` is the paper's gamma (Mescheder et al., 2018).

    The weight `auto` is StyleGAN2-ADA's 0.0002 * resolution^2 / batch size, of a `shape` (C, H, W) and a `batch_size`
    (Karras et al., 2020a).
    """

    differentiates = "real"

    def __init__(
        self,
        weight: float | Schedule | str,
        every: int = 1,
        shape: Sequence[int] | None = None,
        batch_size: int | None = None,
    ):
        if isinstance(weight, str):
            if weight != "auto" or batch_size is None or shape is None or len(shape) != 3:
                raise ValueError(f"weight={weight}: must be a number, or for images auto, with shape and batch_size")
            weight = 0.0002 * prod(shape[1:]) / batch_size
        super().__init__(weight, every)

    def __call__(self, critic: Critic, real: Scored, fake: Scored) -> Tensor:
        return 0.5 * real.squared_gradient_norms().mean()


class R2(Regularizer):
    """Half the mean squared gradient norm on fake samples; `weight` is the paper's gamma (Mescheder et al., 2018)."""

    differentiates = "fake"

    def __call__(self, critic: Critic, real: Scored, fake: Scored) -> Tensor:
        return 0.5 * fake.squared_gradient_norms().mean()


class GradientPenalty(Regularizer):
    """Squared distance of the gradient norm from 1, between real and fake samples (WGAN-GP, Gulrajani et al., 2017)."""

    # the penalty is on each sample's own gradient, which batch statistics would mix
    refuses = (_BatchNorm,)

    def __call__(self, critic: Critic, real: Scored, fake: Scored) -> Tensor:
        points = self.points(real.samples.detach(), fake.samples.detach().to(real.samples))
        with torch.autocast(points.device.type, enabled=False):
            return self.penalty(critic(points, real.condition, differentiable=True).squared_gradient_norms())

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        """Where the gradient is penalized."""
        return torch.lerp(fake, real, _uniform_like(real, per_sample=True))

    def penalty(self, squared_norms: Tensor) -> Tensor:
        tiny = torch.finfo(squared_norms.dtype).tiny  # the slope of the root at 0 is infinite
        return (squared_norms.clamp_min(tiny).sqrt() - 1).square().mean()


class ZeroCentred(GradientPenalty):
    """Mean squared gradient norm between real and fake samples (Thanh-Tung et al., 2019)."""

    def penalty(self, squared_norms: Tensor) -> Tensor:
        return squared_norms.mean()


class DRAGAN(GradientPenalty):
    """Squared distance of the gradient norm from 1, around real samples (Kodali et al., 2017).

    The noise is uniform from 0 to `scale` standard deviations of the batch, as in the authors' code.
    """

    def __init__(self, weight: float | Schedule, every: int = 1, scale: float | Schedule = 0.5):
        super().__init__(weight, every)
        self.scale = check_range("scale", scale, 0)

    def points(self, real: Tensor, fake: Tensor) -> Tensor:
        std = batch_mean((real - batch_mean(real)).square()).sqrt()
        return real + _uniform_like(real, per_sample=True) * self.scale * std * _uniform_like(real)


class Mismatch(Regularizer):
    """Ranks the label y of each real sample above y', that of the next sample: -log sigmoid(D(x, y) - D(x, y')).

    Without it, D cares little about the label of a sample that looks real, and G confuses labels. A matching-aware D
    (Reed et al., 2016) counts the pairs (x, y') as fake instead; a difference suits all losses.
    """

    def __call__(self, critic: Critic, real: Scored, fake: Scored) -> Tensor:
        as_seen = Critic(critic.network)  # real samples are augmented already
        other = as_seen(real.seen.detach(), next_in_batch(real.condition))
        return softplus(other.logits - real.logits).mean()


class WeightClipping(Regularizer):
    """Clips the weights of D to [-limit, limit] after its updates (WGAN, Arjovsky et al., 2017)."""

    def __init__(self, limit: float | Schedule = 0.01, every: int = 1):
        super().__init__(0.0, every)
        self.limit = check_range("limit", limit, 0)

    def __call__(self, critic: Critic, real: Scored, fake: Scored) -> None:
        return None

    def constrain(self, network: nn.Module) -> None:
        with torch.no_grad():
            for weights in network.parameters():
                weights.clamp_(-self.limit, self.limit)


def next_in_batch(values: Tensor) -> Tensor:
    """The rows of the next samples in the whole batch, on all devices; the first one follows the last."""
    first = values[:1].contiguous()
    if torch.distributed.is_initialized():
        firsts = [torch.empty_like(first) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(firsts, first)
        first = firsts[(torch.distributed.get_rank() + 1) % len(firsts)]
    return torch.cat([values[1:], first])


def _uniform_like(samples: Tensor, per_sample: bool = False) -> Tensor:
    """Uniform numbers on [0, 1), one for each value or for each sample of this rank."""
    shape = [1] * (samples.ndim - 1) if per_sample else samples.shape[1:]
    numbers = for_batch(lambda count, generator: torch.rand(count, *shape, generator=generator), len(samples))
    return numbers.to(samples)
