"""Ending hopeless trials of a search by Optuna."""

import logging
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from ganforge.metrics.callback import Evaluation
from ganforge.metrics.scores import Better, objective
from ganforge.runtime.errors import UserError
from ganforge.runtime.lightning_private import stop_after_step
from ganforge.runtime.trainers import callback_of
from ganforge.sweeps.sweep import direction_of

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Ends a trial of a search early whose monitored metric is worse than the median of others at the same step.

    The first `startup_trials` run to their end, and each trial its first `warmup_steps`. Idle outside searches that
    have a storage: that is how a trial knows of the others.
    """

    def __init__(self, startup_trials: int = 5, warmup_steps: int = 0):
        for name, value in {"startup_trials": startup_trials, "warmup_steps": warmup_steps}.items():
            if value < 0:
                raise ValueError(f"{name}={value}: must be at least 0")
        self.startup_trials = startup_trials
        self.warmup_steps = warmup_steps
        self.ended = False
        self._monitor: str | None = None
        self._better: Better = True
        self._trial: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sweeper: Any = HydraConfig.get().sweeper if HydraConfig.initialized() else {}
        if "storage" not in sweeper:
            return
        evaluation = callback_of(trainer, Evaluation)
        self._monitor = evaluation.selection.monitor if evaluation else None
        if evaluation is None or self._monitor is None:
            raise UserError("hydra/sweeper=optuna searches for the best metrics.monitor: set that, and evaluate_every")
        self._better = evaluation.selection.names[self._monitor]
        right = "maximize" if self._better is True else "minimize"  # such as the distance to the ideal value
        if direction_of(sweeper) != right:
            raise UserError(f"hydra.sweeper.direction={direction_of(sweeper)}: {self._monitor} asks for {right}")
        if sweeper.storage is not None and trainer.is_global_zero:
            self._trial = self._find(sweeper)

    def _find(self, sweeper: DictConfig) -> Any:
        """The trial of this job: the latest with these parameters, which its overrides say."""
        import optuna

        pruner = optuna.pruners.MedianPruner(self.startup_trials, self.warmup_steps)
        study = optuna.load_study(sweeper.study_name, sweeper.storage, pruner=pruner)
        given = set(HydraConfig.get().overrides.task)
        for trial in reversed(study.get_trials(deepcopy=False)):
            if {f"{name}={value}" for name, value in trial.params.items()} <= given:
                return optuna.trial.Trial(study, trial._trial_id)
        return None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        is_hopeless = False
        if self._trial is not None:
            value = trainer.callback_metrics[self._monitor].item()
            self._trial.report(objective(value, self._better), trainer.global_step)
            is_hopeless = self._trial.should_prune()
        if trainer.strategy.broadcast(is_hopeless):
            if trainer.is_global_zero:
                log.info("Ended: %s is worse than that of most trials at step %d.", self._monitor, trainer.global_step)
            self.ended = True
            stop_after_step(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self.ended}
