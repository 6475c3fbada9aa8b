"""The signs of a training that goes wrong: a discriminator that wins, vanishing gradients, samples that are all alike.

Their bounds lie well apart from what healthy trainings of all variants log (docs/health.md). To add one: an entry in
`SIGNS`.
"""

from collections import deque
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, NamedTuple

import numpy as np


class Sign(NamedTuple):
    """What a training that goes wrong shows in the numbers it logs."""

    name: str
    shows: Callable[[Mapping[str, float]], bool]
    """Whether these running means show it; what there is not is NaN."""
    says: str
    helps: str
    is_collapse: bool = True
    """Whether the generator learns nothing any more, rather than slowly."""


SIGNS = (
    Sign(
        "saturation",
        lambda v: v["slope"] < 0.05,
        "G's loss hardly reacts to D's output any more (slope {slope:.2g}), so G learns nothing",
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
        "D tells all real and generated samples apart (logit gap {gap:.3g}), so what G learns from it is poor",
        "a lower model.discriminator_optimizer.lr, regularizer=r1, or model.generator_steps=2",
        is_collapse=False,
    ),
    Sign(
        "lost_diversity",
        lambda v: v["diversity"] < max(0.05, 0.25 * v["peak_diversity"]),
        "generated samples are all alike (their spread is {diversity:.2g} of that of real ones)",
        "regularizer=r1, loss=hinge, a lower learning rate, or a larger data.batch_size",
    ),
    Sign(
        "lost_feature_diversity",
        lambda v: v["feature_diversity"] < 0.3,
        "generated samples have much the same features (their spread is {feature_diversity:.2g} of that of real ones)",
        "regularizer=r1, loss=hinge, a lower learning rate, or a larger data.batch_size",
    ),
    Sign(
        "lost_classes",
        lambda v: v["classes"] < 0.2,
        "generated samples are of few classes (by their entropy {classes:.0%} of the real ones' number)",
        "model=dcgan instead of perceptrons, regularizer=r1, or loss=wasserstein regularizer=gradient_penalty",
    ),
    Sign(
        "oscillation",
        lambda v: v["swing"] > 1.5,
        "the losses of D and G swing to and fro, by {swing:.1f} times their middle",
        "regularizer=r1, a lower learning rate, or optimizers with betas: [0.0, 0.9]",
        is_collapse=False,
    ),
    Sign(
        "exploding_weights",
        lambda v: v["growth"] > 30,
        "the weights explode: their norm is {growth:.0f} times that of the beginning",
        "a lower learning rate, model.gradient_clip=1, or a regularizer on D",
        is_collapse=False,
    ),
)

WATCHED = (
    *("slope", "diversity", "logits/real", "logits/fake", "accuracy/real", "accuracy/fake"),
    *("gradient_norm/d", "gradient_norm/g", "loss_d/adversarial", "loss_g/adversarial"),
)
"""What is looked at of a game's log."""

EVALUATED = {"diversity": "feature_diversity", "classes": "classes"}
"""What is looked at of an evaluation."""

MEMORY = 0.1
"""Weight of a new value in the running means of what is logged."""

WINDOW = 64
"""Values of a loss in which an oscillation is sought."""


class Values(dict[str, float]):
    """By name; NaN where there is none."""

    def __missing__(self, name: str) -> float:
        return float("nan")


class SignTracker:
    """The values of one game, or of the evaluations, and since which step each sign shows."""

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.values = Values()
        self.losses = {name: deque[float](maxlen=WINDOW) for name in ("loss_d/adversarial", "loss_g/adversarial")}
        self.shown: dict[str, list[int]] = {}
        """The first and the latest step at which a sign showed."""
        self.noticed: set[str] = set()

    def see(self, values: Mapping[str, float]) -> None:
        """Take in what was logged at a step."""
        for name, value in values.items():
            if not isfinite(value):
                continue
            before = self.values.get(name, value)
            self.values[name] = before + self.memory * (value - before)
        if "logits/real" in values:
            self.values["gap"] = self.values["logits/real"] - self.values["logits/fake"]
        if "diversity" in values:
            peak = self.values.get("peak_diversity", 0.0)
            self.values["peak_diversity"] = max(peak, min(1.0, self.values["diversity"]))
        if "accuracy/fake" in values:  # a critic's loss has no scale
            for name in self.losses.keys() & values.keys():
                self.losses[name].append(values[name])
            self.values["swing"] = min(map(swing, self.losses.values()))

    def judge(self, step: int, patience: int) -> tuple[list[Sign], list[Sign]]:
        """The signs that are noticed at this step, having shown for `patience` steps, and those that are over."""
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
        state = {"memory": self.memory, "values": dict(self.values), "losses": losses}
        return {**state, "shown": self.shown, "noticed": sorted(self.noticed)}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "SignTracker":
        watched = cls(state["memory"])
        watched.values.update(state["values"])
        for name, losses in state["losses"].items():
            watched.losses[name].extend(losses)
        watched.shown = {name: list(steps) for name, steps in state["shown"].items()}
        watched.noticed = set(state["noticed"])
        return watched


def swing(losses: deque[float]) -> float:
    """How far a loss swings, flicker apart, in units of its middle; 0 where it goes one way only."""
    if len(losses) < WINDOW:
        return 0.0
    slow = np.convolve(losses, np.ones(4) / 4, "valid")
    lowest, low, middle, high, highest = np.quantile(slow, (0.05, 0.25, 0.5, 0.75, 0.95))
    sides = np.sign(slow[(slow > high) | (slow < low)] - middle)
    turns = np.count_nonzero(np.diff(sides))
    return float((highest - lowest) / abs(middle)) if middle and turns > 1 else 0.0
