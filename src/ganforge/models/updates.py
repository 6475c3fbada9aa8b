"""What surrounds the optimizer calls of a step: frozen opponents, hooks, names for profilers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import Optimizer
from torch.profiler import record_function

UPDATE_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""Lightning's hooks around an update."""

_NOT_PROFILED = nullcontext()


def profiled(name: str) -> AbstractContextManager[Any]:
    """A name in the traces of PyTorch's profiler; without one, nothing: record_function takes 20 microseconds."""
    return record_function(name) if torch.autograd.profiler._is_profiler_enabled else _NOT_PROFILED


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


@contextmanager
def frozen(optimizer: Optimizer) -> Iterator[None]:
    """Keep the parameters of an optimizer out of the graph."""
    parameters = [parameter for parameter in parameters_of(optimizer) if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def has_update_hooks(module: LightningModule, trainer: Trainer) -> bool:
    """Whether a module or a callback has hooks around updates: empty ones cost a few percent of a small step."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(
        is_overridden(hook, module, parent=LightningModule)
        or any(is_overridden(hook, callback, parent=Callback) for callback in callbacks)
        for hook in UPDATE_HOOKS
    )
