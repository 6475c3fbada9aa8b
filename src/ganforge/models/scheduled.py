"""The numbers of a model that are schedules: attributes of its parts, and options of its optimizers."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ganforge.schedules import Schedule, at_step

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
"""A partial optimizer, which takes the parameters."""


def make_optimizer(make: MakeOptimizer, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """An optimizer, with the numbers of the first step in place of the schedules among its options."""
    if not isinstance(make, partial):
        return make(parameters)
    parameters = list(parameters)
    first, last = at_step(make.keywords, 1, 1), at_step(make.keywords, 10**9, 1)
    if last != first:
        make.func(*make.args, parameters, **last)  # checks these numbers as well
    return make.func(*make.args, parameters, **first)


class Scheduled:
    """Sets numbers at the start of each step: attributes of objects, and options of `optimizers`.

    `parts` are the objects by what their attributes' names in the config begin with, such as `loss.`.
    """

    def __init__(self, parts: Mapping[str, object]):
        self.optimizers: list[OptimizerOptions] = []
        self._attributes = [
            (prefix + key, part, key, value)
            for prefix, part in parts.items()
            for key, value in getattr(part, "__dict__", {}).items()
            if isinstance(value, Schedule) and prefix + key != "model.schedule"
        ]

    def restore(self) -> None:
        """Replace the optimizers' options that a checkpoint has loaded by those of the config."""
        for options in self.optimizers:
            options.restore()

    def set(self, step: int, run_steps: int) -> dict[str, float]:
        """Set the numbers of a step, and return them by their names in the config."""
        numbers = {}
        for name, part, key, schedule in self._attributes:
            numbers[name] = schedule(step, run_steps)
            setattr(part, key, numbers[name])
        for options in self.optimizers:
            numbers |= options.set(step, run_steps)
        return numbers


class OptimizerOptions:
    """An optimizer and its options, as configured: loading a checkpoint replaces them by those of the checkpoint.

    `factor` scales the learning rate.
    """

    def __init__(self, name: str, make: MakeOptimizer, parameters: Iterable[nn.Parameter], factor: Schedule | None):
        self._name = name
        self.optimizer = make_optimizer(make, parameters)
        groups = self.optimizer.param_groups
        self._configured = [{key: group[key] for key in group if key != "params"} for group in groups]
        keywords = make.keywords if isinstance(make, partial) else {}
        self._scheduled = {key: value for key, value in keywords.items() if at_step(value, 1, 1) != value}
        self._factor = factor

    def restore(self) -> None:
        for group, configured in zip(self.optimizer.param_groups, self._configured, strict=True):
            group.update(configured)

    def set(self, step: int, run_steps: int) -> dict[str, float]:
        options = at_step(self._scheduled, step, run_steps)
        for group, configured in zip(self.optimizer.param_groups, self._configured, strict=True):
            group.update(options)
            if self._factor is not None:
                group["lr"] = options.get("lr", configured["lr"]) * self._factor(step, run_steps)
        if self._factor is not None:
            options["lr"] = group["lr"]
        return {
            name: number for key, value in options.items() for name, number in _numbers(f"{self._name}.{key}", value)
        }


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    if isinstance(value, list | tuple):
        return [number for i, item in enumerate(value) for number in _numbers(f"{name}.{i}", item)]
    return [(name, value)]
