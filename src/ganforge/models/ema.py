"""Averages: of a generator's weights, and of its BatchNorm statistics."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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


class ForwardAdapter(nn.Module):
    """A network in the hands of `feed`, which calls it on what it makes of its input: for torch's `update_bn`."""

    def __init__(self, network: nn.Module, feed: Callable[[Any], Any]):
        super().__init__()
        self.network = network
        self.feed = feed

    def forward(self, source: Any) -> Any:
        return self.feed(source)
