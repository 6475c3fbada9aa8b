"""Checks of the range of a number."""

from math import inf


def check_range(name: str, value: float, low: float = -inf, high: float = inf) -> None:
    """Raise ValueError if a number is outside [low, high]."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: must be from {low:g} to {high:g}")
