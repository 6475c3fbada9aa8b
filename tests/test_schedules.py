"""Schedules against their formulas."""

from math import cos, pi

import pytest

from ganforge.runtime.errors import UserError
from ganforge.schedules import Cosine, Linear, Schedule, Steps, at_step, check_range


def numbers(schedule: Schedule, steps: int = 8) -> list[float]:
    return [schedule(step, steps) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Linear(1.0, 0.0), [1 - step / 8 for step in range(8)]),
        (Cosine(2.0, 1.0), [1.5 + 0.5 * cos(pi * step / 8) for step in range(8)]),
        (Linear(1.0, 0.0, steps=4), [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]),
        (Linear(1.0, 0.0, steps=6, hold=1, warmup=3), [1 / 3, 2 / 3, 1, 1, 1, 0.5, 0, 0]),
        (Linear(0.0, 3e-4, steps=3), [0, 1e-4, 2e-4, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4]),
        (Steps(4.0, [2, 5], gamma=0.5), [4, 4, 2, 2, 2, 1, 1, 1]),
        (Steps(4.0, [5], warmup=2), [2, 4, 4, 4, 4, 0.4, 0.4, 0.4]),
    ],
)
def test_values(schedule: Schedule, expected: list[float]) -> None:
    assert numbers(schedule) == pytest.approx(expected)


def test_without_an_end() -> None:
    with pytest.raises(UserError, match=r"spans trainer\.max_steps: set that, or the steps"):
        Linear(1.0, 0.0, warmup=3)(1, -1)
    assert Linear(1.0, 0.0, steps=4)(3, -1) == 0.5


@pytest.mark.parametrize("options", [{"hold": -1}, {"warmup": -1}, {"steps": 5, "hold": 2, "warmup": 3}])
def test_senseless_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must"):
        Linear(1.0, 0.0, **options)


def test_ranges_hold_for_both_ends_of_a_schedule() -> None:
    assert check_range("p", 1, 0, 1) == 1
    check_range("p", Linear(0, 1), 0, 1)
    with pytest.raises(ValueError, match=r"p=2: must be from 0 to 1"):
        check_range("p", 2, 0, 1)
    with pytest.raises(ValueError, match=r"weight=1 to -1: must be non-negative"):
        check_range("weight", Cosine(1, -1), 0)


def test_schedules_within_options() -> None:
    options = {"lr": Linear(1.0, 0.0), "betas": (0.0, Linear(0.9, 0.99)), "fused": True}
    assert at_step(options, 1, 4) == {"lr": 1.0, "betas": (0.0, 0.9), "fused": True}
