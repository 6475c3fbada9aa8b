"""Questions about a Trainer or its checkpoint that Lightning has no direct answer to."""

from collections.abc import Mapping
from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig

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


def is_done(checkpoint: Mapping[str, Any], trainer: Trainer | DictConfig) -> bool:
    """Whether a checkpoint is from the end of a run, by the limits of this trainer or of its config."""
    steps, epochs = trainer.max_steps, -1 if trainer.max_epochs is None else trainer.max_epochs
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    epoch = checkpoint["epoch"] + progress["is_last_batch"]
    return checkpoint["global_step"] >= steps > -1 or epoch >= epochs > -1
