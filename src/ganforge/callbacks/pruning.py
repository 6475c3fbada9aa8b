"""Prunes trials of a search by Optuna."""

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
from ganforge.sweeps.job import is_job

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Ends a trial early if its monitored metric is worse than the median of the other trials at the same step.

    The first `startup_trials` run to their end, and each trial its first `warmup_steps`. Idle outside of searches.
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
        hydra: Any = HydraConfig.get() if HydraConfig.initialized() else {}
        if "n_trials" not in hydra.get("sweeper", {}):
            return
        evaluation = callback_of(trainer, Evaluation)
        self._monitor = evaluation.selection.monitor if evaluation else None
        if evaluation is None or self._monitor is None:
            raise UserError("hydra/sweeper=optuna needs a metric: set metrics.monitor= and evaluate_every=")
        self._better = evaluation.selection.names[self._monitor]
        needed = "maximize" if self._better is True else "minimize"  # such as the distance to the ideal value
        if hydra.sweeper.direction != needed:
            raise UserError(
                f"hydra.sweeper.direction={hydra.sweeper.direction}: {self._monitor} needs "
                f"hydra.sweeper.direction={needed}"
            )
        if trainer.is_global_zero and is_job():
            self._trial = self._load_trial(hydra.sweeper, hydra.job.num)

    def _load_trial(self, sweeper: DictConfig, number: int) -> Any:
        import optuna

        pruner = optuna.pruners.MedianPruner(self.startup_trials, self.warmup_steps)
        study = optuna.load_study(study_name=sweeper.study_name, storage=sweeper.storage, pruner=pruner)
        return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._monitor is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        is_pruned = False
        if self._trial is not None:
            value = trainer.callback_metrics[self._monitor].item()
            self._trial.report(objective(value, self._better), trainer.global_step)
            is_pruned = self._trial.should_prune()
        if trainer.strategy.broadcast(is_pruned):
            if self._trial is not None:
                from optuna.trial import TrialState

                self._trial.study.tell(self._trial, state=TrialState.PRUNED)
                step = trainer.global_step
                log.info("Pruned at step %d: %s is worse than the median of the other trials.", step, self._monitor)
            self.ended = True
            stop_after_step(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"ended": self.ended}
