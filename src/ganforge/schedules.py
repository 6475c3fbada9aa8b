"""Numbers as functions of the step: learning rates, betas, weights of penalties, strengths of augmentations, ...

Most options that are a number take a schedule instead: `regularizer.r1.weight='${cosine:2.0,0.2}'`. A schedule depends
on nothing but the step, so a run that is killed resumes exactly.

To add one: a class here that implements `value`.
"""

from math import cos, inf, pi
from typing import Any, cast

from ganforge.runtime.errors import UserError


class Schedule:
    """A number that changes from `start` to `end`, called as `schedule(step, run_steps)` with steps counted from 1.

    It rises linearly from 0 to `start` over the first `warmup` steps, stays at `start` for `hold` steps, and reaches
    `end` after `steps` steps, warmup and hold included; null: at the end of the run.
    """

    def __init__(self, start: float, end: float, steps: int | None = None, hold: int = 0, warmup: int = 0):
        if min(hold, warmup) < 0:
            raise ValueError(f"hold={hold}, warmup={warmup}: must not be negative")
        if steps is not None and steps <= hold + warmup:
            raise ValueError(f"steps={steps}: must be more than hold + warmup, which are {hold + warmup}")
        self.start = start
        self.end = end
        self.steps = steps
        self.hold = hold
        self.warmup = warmup

    def __call__(self, step: int, run_steps: int) -> float:
        if self.steps is None and run_steps < 0:
            raise UserError(
                "A schedule without steps spans trainer.max_steps: set that, or the steps of the schedule, as in "
                "'${cosine:2.0,0.2,10000}'"
            )
        if step <= self.warmup:
            return self.start * step / self.warmup
        before = self.warmup + self.hold
        position = (step - 1 - before) / max(1, (run_steps if self.steps is None else self.steps) - before)
        return self.value(min(max(position, 0.0), 1.0))

    def value(self, position: float) -> float:
        """The number at a position from 0, its start, to 1, its end."""
        raise NotImplementedError


class Linear(Schedule):
    """Along a straight line."""

    def value(self, position: float) -> float:
        return self.start * (1 - position) + self.end * position  # exact at both ends


class Cosine(Schedule):
    """Along half a period of a cosine, which is flat at both ends (Loshchilov and Hutter, 2017)."""

    def value(self, position: float) -> float:
        return self.end + (self.start - self.end) * (1 + cos(pi * position)) / 2


class Steps(Schedule):
    """`start`, multiplied by `gamma` at each of the `milestones`, in steps."""

    def __init__(self, start: float, milestones: list[int], gamma: float = 0.1, warmup: int = 0):
        super().__init__(start, start * gamma ** len(milestones), warmup=warmup)
        self.milestones = milestones
        self.gamma = gamma

    def __call__(self, step: int, run_steps: int) -> float:
        if step <= self.warmup:
            return self.start * step / self.warmup
        return self.start * self.gamma ** sum(step > milestone for milestone in self.milestones)


def check_range(name: str, value: float | Schedule, low: float = -inf, high: float = inf) -> float:
    """The value, or ValueError if it, or an end of the schedule, is out of the range from `low` to `high`.

    A schedule passes for a number: that of the step replaces it before it is used.
    """
    ends = (value.start, value.end) if isinstance(value, Schedule) else (value,)
    if not all(low <= end <= high for end in ends):
        allowed = f"from {low:g} to {high:g}" if high < inf else "non-negative" if low == 0 else f"at least {low:g}"
        raise ValueError(f"{name}={' to '.join(map(str, ends))}: must be {allowed}")
    return cast(float, value)


def at_step(value: Any, step: int, run_steps: int) -> Any:
    """A value, or a dict or list of values, with the numbers of a step in place of its schedules."""
    if isinstance(value, dict):
        return {key: at_step(item, step, run_steps) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(at_step(item, step, run_steps) for item in value)
    return value(step, run_steps) if isinstance(value, Schedule) else value
