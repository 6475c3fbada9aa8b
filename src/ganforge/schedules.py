"""Checks of the range of a number."""

from math import inf


def check_range(name: str, value: float, low: float = -inf, high: float = inf) -> float:
    """The value, or ValueError if it is outside [low, high]."""
    if not low <= value <= high:
        raise ValueError(f"{name}={value}: must be from {low:g} to {high:g}")
    return value
