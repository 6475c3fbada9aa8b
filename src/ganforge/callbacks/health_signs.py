"""Signs of failing training: a discriminator that wins, vanishing gradients, collapsed samples.

Their thresholds are well apart from what healthy runs of all variants log (docs/health.md). To add one: an entry in
`SIGNS`.
"""

from collections import deque
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple

import numpy as np


class Sign(NamedTuple):
    """A symptom of failing training in the logged values."""

    name: str
    shows: Callable[[Mapping[str, float]], bool]
    """Whether running means of the values show the sign; missing values are NaN."""
    says: str
    """The message, a format string of the values."""
    helps: str
    """Remedies, as options."""
    is_collapse: bool = True
    """Whether the generator has stopped learning, rather than just learning slowly."""


SIGNS = (
    Sign(
        "saturation",
        lambda v: v["slope"] < 0.05,
        "G's loss barely responds to D's output (slope {slope:.2g}), so G has stopped learning",
        "loss=non_saturating instead of minimax, a lower model.discriminator_optimizer.lr, or regularizer=r1",
    ),
    Sign(
        "vanishing_gradient",
        lambda v: v["gradient_norm/g"] < 1e-3 * v["gradient_norm/d"],
        "G's gradient has vanished (norm {gradient_norm/g:.2g}, D's {gradient_norm/d:.2g})",
        "a lower model.generator_optimizer.lr or model.discriminator_optimizer.lr, or normalization in the generator",
    ),
    Sign(
        "discriminator_wins",
        lambda v: min(v["accuracy/real"], v["accuracy/fake"]) > 0.995,
        "D separates real from generated samples almost perfectly (logit gap {gap:.3g}), so G learns little from it",
        "a lower model.discriminator_optimizer.lr, regularizer=r1, or model.generator_steps=2",
        is_collapse=False,
    ),
    Sign(
        "lost_diversity",
        lambda v: v["diversity"] < max(0.05, 0.25 * v["peak_diversity"]),
        "generated samples have lost diversity ({diversity:.2g} of that of real samples)",
        "regularizer=r1, loss=hinge, a lower learning rate, or a larger data.batch_size",
    ),
    Sign(
        "lost_feature_diversity",
        lambda v: v["feature_diversity"] < 0.3,
        "generated samples have similar features (their diversity is {feature_diversity:.2g} of real samples')",
        "regularizer=r1, loss=hinge, a lower learning rate, or a larger data.batch_size",
    ),
    Sign(
        "lost_classes",
        lambda v: v["classes"] < 0.2,
        "generated samples cover few classes (effective number: {classes:.0%} of real)",
        "model=dcgan instead of model=gan, regularizer=r1, or loss=wasserstein regularizer=gradient_penalty",
    ),
    Sign(
        "oscillation",
        lambda v: v["swing"] > 1.5,
        "the losses of D and G oscillate, by {swing:.1f} times their median",
        "regularizer=r1, a lower learning rate, or optimizers with betas: [0.0, 0.9]",
        is_collapse=False,
    ),
    Sign(
        "exploding_weights",
        lambda v: v["growth"] > 30,
        "the weights explode (their norm has grown by a factor of {growth:.0f})",
        "a lower learning rate, model.gradient_clip=1, or a regularizer on D",
        is_collapse=False,
    ),
)

LOGGED_VALUES = (
    *("slope", "diversity", "logits/real", "logits/fake", "accuracy/real", "accuracy/fake"),
    *("gradient_norm/d", "gradient_norm/g", "loss_d/adversarial", "loss_g/adversarial"),
)
"""The logged values of a game that the signs use."""

EVALUATION_METRICS = {"diversity": "feature_diversity", "classes": "classes"}
"""The metrics of an evaluation that the signs use, and the names of their values."""

LOG_WEIGHT = 0.1
"""Weight of a new value in the running means of logged values."""

WINDOW = 64
"""Number of losses that are searched for an oscillation."""


class Values(dict[str, float]):
    """Values by name; missing ones are NaN."""

    def __missing__(self, name: str) -> float:
        return float("nan")


class SignTracker:
    """Running means of the values of one game, or of the evaluations, and the signs that they show.

    `weight` is that of a new value in the means.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.values = Values()
        self.losses = {name: deque[float](maxlen=WINDOW) for name in ("loss_d/adversarial", "loss_g/adversarial")}
        self.shown: dict[str, list[int]] = {}
        """The first and the latest step at which each sign showed."""
        self.noticed: set[str] = set()

    def update(self, values: Mapping[str, float]) -> None:
        """Update the running means with the values of a step."""
        for name, value in values.items():
            if not isfinite(value):
                continue
            before = self.values.get(name, value)
            self.values[name] = before + self.weight * (value - before)
        if "logits/real" in values:
            self.values["gap"] = self.values["logits/real"] - self.values["logits/fake"]
        if "diversity" in values:
            peak = self.values.get("peak_diversity", 0.0)
            self.values["peak_diversity"] = max(peak, min(1.0, self.values["diversity"]))
        if "accuracy/fake" in values:  # a critic's loss has no scale
            for name in self.losses.keys() & values.keys():
                self.losses[name].append(values[name])
            self.values["swing"] = min(map(swing, self.losses.values()))

    def check(self, step: int, patience: int) -> tuple[list[Sign], list[Sign]]:
        """Signs that have just reached `patience` steps, and reported ones absent for as long."""
        begun, over = [], []
        for sign in SIGNS:
            if sign.shows(self.values):
                self.shown.setdefault(sign.name, [step, step])[1] = step
                if sign.name not in self.noticed and step - self.shown[sign.name][0] >= patience:
                    self.noticed.add(sign.name)
                    begun.append(sign)
            elif sign.name not in self.noticed:
                self.shown.pop(sign.name, None)
            elif step - self.shown[sign.name][1] >= patience:
                self.noticed.remove(sign.name)
                del self.shown[sign.name]
                over.append(sign)
        return begun, over

    def state(self) -> dict[str, Any]:
        losses = {name: list(values) for name, values in self.losses.items()}
        state = {"memory": self.weight, "values": dict(self.values), "losses": losses}
        return {**state, "shown": self.shown, "noticed": sorted(self.noticed)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SignTracker":
        tracker = cls(state["memory"])
        tracker.values.update(state["values"])
        for name, losses in state["losses"].items():
            tracker.losses[name].extend(losses)
        tracker.shown = {name: list(steps) for name, steps in state["shown"].items()}
        tracker.noticed = set(state["noticed"])
        return tracker


def swing(losses: deque[float]) -> float:
    """The range of a smoothed loss, relative to its median; 0 if it crosses the median at most once."""
    if len(losses) < WINDOW:
        return 0.0
    smooth = np.convolve(losses, np.ones(4) / 4, "valid")
    lowest, low, median, high, highest = np.quantile(smooth, (0.05, 0.25, 0.5, 0.75, 0.95))
    sides = np.sign(smooth[(smooth > high) | (smooth < low)] - median)
    crossings = np.count_nonzero(np.diff(sides))
    return float((highest - lowest) / abs(median)) if median and crossings > 1 else 0.0
