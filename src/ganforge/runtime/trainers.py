"""What a trainer, or a checkpoint of one, tells only if asked in a roundabout way."""

from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer

Kind = TypeVar("Kind", bound=Callback)


def callback_of(trainer: Any, kind: type[Kind]) -> Kind | None:
    """The trainer's callback of a kind, if it has one."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def steps_of(trainer: Trainer) -> int | None:
    """How many steps the whole run has; None where it has no end."""
    limits = [trainer.max_steps] if trainer.max_steps > -1 else []
    if trainer.max_epochs is not None and trainer.max_epochs > -1:
        limits.append(int(trainer.max_epochs * trainer.num_training_batches))
    return min(limits, default=None)
