"""Trainer helpers that Lightning lacks."""

from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer

Kind = TypeVar("Kind", bound=Callback)


def callback_of(trainer: Any, kind: type[Kind]) -> Kind | None:
    """The trainer's callback of a class, or None."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def total_steps(trainer: Trainer) -> int | None:
    """The number of steps of the whole run; None if it is unlimited."""
    limits = [trainer.max_steps] if trainer.max_steps > -1 else []
    if trainer.max_epochs is not None and trainer.max_epochs > -1:
        limits.append(int(trainer.max_epochs * trainer.num_training_batches))
    return min(limits, default=None)
