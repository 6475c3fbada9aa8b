"""Averages: of a generator's weights, and of its BatchNorm statistics."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from ganforge.randomness import Stream

EMA_RAMPUP = 0.05
"""The largest half-life of a moving average, as a part of all updates so far."""


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and buffers, without gradients.

    While training is young, the half-life is at most `EMA_RAMPUP` of it (Karras et al., 2020), so that the random first
    weights are soon forgotten: a function of the number of updates, whatever a step is.
    """

    @torch.no_grad()
    def update(averages: Any, currents: Any, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # BatchNorm's counter
            torch._foreach_copy_(averages, currents)
            return
        updates = int(count) + 1  # with this one
        torch._foreach_lerp_(averages, currents, 1 - min(decay, 0.5 ** (1 / (EMA_RAMPUP * updates))))

    average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    average.requires_grad_(False)
    return average


@contextmanager
def preserve_mode(network: nn.Module) -> Iterator[None]:
    """Afterwards each module of a network is in the mode that it was in, train or eval."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def with_average(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `state` of another run for a model whose state is `own`: with a moving average if the model has one.

    The average is that run's, or else its generator.
    """
    found = {name: value for name, value in state.items() if name in own or not name.startswith("average.")}
    if not any(name.startswith("average.") for name in found):
        for name in own:
            if name.startswith("average."):
                found[name] = state.get(name.replace("average.module.", "generator."), own[name])
    return found


@contextmanager
def standing_statistics(model: Any, chunks: int = 16) -> Iterator[None]:
    """Inside, the generator that a GAN samples from has BatchNorm statistics of its present weights, re-estimated on
    chunks of samples (Brock et al., 2019). Afterwards it has its former ones."""
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
    """Gives torch's `update_bn` a network whose call is `forward`."""

    def __init__(self, network: nn.Module, forward: Callable[[Any], Tensor]):
        super().__init__()
        self.network = network
        self.call = forward

    def forward(self, inputs: Any) -> Tensor:
        return self.call(inputs)
