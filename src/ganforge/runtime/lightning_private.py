"""Every use of Lightning's private names, each with its reason. Tests fail when Lightning changes one of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

if TYPE_CHECKING:  # takes seconds to import, and the entry points need the rank at once
    from lightning.pytorch import Trainer


def environment_rank() -> int | None:
    """The rank of this process as the environment states it.

    Lightning exposes ranks on a trainer only; downloads, caches and run folders need them before there is one.
    """
    from lightning.fabric.utilities import rank_zero  # imports all of Lightning

    return rank_zero._get_rank()


def step_uncounted(optimizer: Any) -> Any:
    """Keep Lightning from counting each call of a LightningOptimizer's `step` as a step of the run.

    A GAN's step has several optimizer calls (Lightning's issue 17958). Returns the optimizer.
    """
    optimizer._on_before_step = optimizer._on_after_step = _nothing
    return optimizer


def count_step(trainer: "Trainer") -> None:
    """Count one step of the run: under manual optimization `trainer.global_step` counts optimizer calls otherwise."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
    progress.increment_ready()
    progress.increment_completed()


def stop_after_step(trainer: "Trainer") -> None:
    """End training after the current step. `trainer.should_stop` would run a validation that is not due."""
    trainer.fit_loop.epoch_loop.max_steps = trainer.global_step


def is_last_step(trainer: "Trainer") -> bool:
    """Whether training ends with the current step: Lightning tells its callbacks only once it has ended."""
    loop = trainer.fit_loop.epoch_loop
    is_at_limit = trainer.global_step >= loop.max_steps > -1 or trainer.current_epoch + 1 == trainer.max_epochs
    return trainer.should_stop or (loop._is_training_done and is_at_limit)


def validates_after_step(trainer: "Trainer") -> bool:
    """Whether a validation follows the current step."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def correct_progress(checkpoint: dict[str, Any], trainer: "Trainer") -> None:
    """Write the progress of an uninterrupted run into a checkpoint.

    After resuming from the end of an epoch Lightning counts one epoch too few, and would train one too many.
    """
    loops, step = checkpoint["loops"]["fit_loop"], trainer.global_step
    completed = max(step - 1, 0) // int(trainer.num_training_batches)
    started = completed + (step > 0)
    for progress in loops["epoch_progress"].values():
        progress.update(ready=started, started=started, processed=completed, completed=completed)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = max(step - 1, 0)
    checkpoint["epoch"] = completed


def is_finished(checkpoint: Mapping[str, Any], trainer: "Trainer | DictConfig") -> bool:
    """Whether a checkpoint is of the end of a run with this trainer, or with a trainer of this config."""
    steps, epochs = trainer.max_steps, -1 if trainer.max_epochs is None else trainer.max_epochs
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    epoch = checkpoint["epoch"] + progress["is_last_batch"]
    return checkpoint["global_step"] >= steps > -1 or epoch >= epochs > -1


def _nothing() -> None: ...
