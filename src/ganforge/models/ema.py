"""The moving average of a generator, and BatchNorm statistics re-estimated for evaluation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from ganforge.randomness import Stream

EMA_RAMPUP = 0.05
"""Maximum EMA half-life as a fraction of the updates so far (StyleGAN2-ADA's rampup)."""


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and buffers, without gradients.

    The half-life ramps up: it is at most `EMA_RAMPUP` times the number of updates so far (Karras et al., 2020), so the
    random initial weights are soon forgotten.
    """

    @torch.no_grad()
    def update(averages: Any, currents: Any, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # num_batches_tracked of BatchNorm
            torch._foreach_copy_(averages, currents)
            return
        updates = int(count) + 1
        torch._foreach_lerp_(averages, currents, 1 - min(decay, 0.5 ** (1 / (EMA_RAMPUP * updates))))

    average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    average.requires_grad_(False)
    return average


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
