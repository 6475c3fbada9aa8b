"""The moving average of a generator, and BatchNorm statistics re-estimated for evaluation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from ganforge.models.updates import profiled
from ganforge.randomness import Stream
from ganforge.schedules import Schedule, check_range


class MovingAverage(AveragedModel):
    """An exponential moving average of the weights and buffers of a network, without gradients.

    It is updated after `every` steps, by a `decay` per step, or by that of a `half_life` in images. The half-life is at
    most `rampup` times the training so far (Karras et al., 2020a), so that the random initial weights are soon
    forgotten; None: no ramp.
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float | None = 0.999,
        half_life: float | Schedule | None = None,
        rampup: float | None = 0.05,
        every: int = 10,
    ):
        super().__init__(network, multi_avg_fn=self._lerp, use_buffers=True)
        self.requires_grad_(False)
        check_range("moving_average_every", every, 1)
        self.decay = check_range("moving_average_decay", decay or 0.0, 0, 1)
        self.half_life = None if half_life is None else check_range("moving_average_half_life", half_life, 0)
        if rampup is not None and not rampup > 0:
            raise ValueError(f"moving_average_rampup={rampup}: must be positive, or null for no ramp")
        self.rampup = rampup
        self.every = every

    def step(self, network: nn.Module, step: int, images: int) -> None:
        """Follow the network after a step, counted from 1, on so many images."""
        if step % self.every == 0:
            if self.half_life is not None:
                self.decay = 0.5 ** (images / max(self.half_life, 1e-9))
            with profiled("moving average"):
                self.update_parameters(network)

    @torch.no_grad()
    def _lerp(self, averages: Any, currents: Any, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # num_batches_tracked of BatchNorm
            torch._foreach_copy_(averages, currents)
            return
        ramped = 1.0 if self.rampup is None else 0.5 ** (1 / (self.rampup * (int(count) + 1)))
        torch._foreach_lerp_(averages, currents, 1 - min(self.decay**self.every, ramped))


@contextmanager
def preserve_mode(network: nn.Module) -> Iterator[None]:
    """Restore the mode of each module of a network, train or eval, on exit."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def with_average(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `state` of another run, made to fit a model whose state is `own`: with a moving average if the model has one.

    The average starts as the other run's, or as its generator if it has none.
    """
    found = {name: value for name, value in state.items() if name in own or not name.startswith("average.")}
    if not any(name.startswith("average.") for name in found):
        for name in own:
            if name.startswith("average."):
                found[name] = state.get(name.replace("average.module.", "generator."), own[name])
    return found


def with_augment(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `state` of a run with other augmentations, made to fit a model whose state is `own`: new ones start anew."""
    kept = {name: value for name, value in state.items() if name in own or not name.startswith("augment.")}
    return kept | {name: value for name, value in own.items() if name.startswith("augment.") and name not in kept}


@contextmanager
def standing_statistics(model: Any, chunks: int = 16) -> Iterator[None]:
    """Re-estimate the BatchNorm statistics of a GAN's sampling generator on chunks of samples (Brock et al., 2019), and
    restore the running statistics on exit."""
    generator = model.sampling_generator

    def forward(chunk: int) -> Tensor:
        return model.generate(model.sampling_game, *model.sample_inputs(chunk, stream=Stream.STANDING))

    before = {name: buffer.clone() for name, buffer in generator.named_buffers()}
    with preserve_mode(generator):
        update_bn(range(chunks), _Forward(generator, forward))
    try:
        yield
    finally:
        for name, buffer in generator.named_buffers():
            buffer.copy_(before[name])


class _Forward(nn.Module):
    """A network for torch's `update_bn`, whose forward pass is a function."""

    def __init__(self, network: nn.Module, forward: Callable[[Any], Tensor]):
        super().__init__()
        self.network = network
        self.call = forward

    def forward(self, inputs: Any) -> Tensor:
        return self.call(inputs)
