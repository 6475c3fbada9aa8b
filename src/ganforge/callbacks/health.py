"""The callback that notices failing training, and warns, stops or rewinds."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from ganforge.callbacks.health_signs import EVALUATION_METRICS, LOG_WEIGHT, LOGGED_VALUES, SIGNS, SignTracker
from ganforge.callbacks.shutdown import Diverged
from ganforge.metrics.callback import Evaluation
from ganforge.metrics.scores import read_scores, write_health
from ganforge.runs.loggers import log_text
from ganforge.runtime.lightning_private import stop_after_step
from ganforge.runtime.trainers import callback_of

log = logging.getLogger(__name__)

MAX_REWINDS = 3

HEALTHY = "healthy.ckpt"
"""The checkpoint that a rewind returns to."""

GAME, EVALUATION = "game", "evaluation"
"""Where a warning comes from: a game without a name, or the evaluations."""


class Health(Callback):
    """Checks all games and evaluations for the `SIGNS`, and reports them to console, TensorBoard and `metrics.json`.

    A sign is noticed once it has shown for `patience` steps. `on_collapse` is the reaction to a generator that has
    stopped learning: warn; stop; or rewind to the last healthy checkpoint and continue with new random numbers, at most
    three times.
    """

    def __init__(self, on_collapse: str = "warn", patience: int = 500):
        if on_collapse not in ("warn", "stop", "rewind"):
            raise ValueError(f"on_collapse={on_collapse}: must be warn, stop or rewind")
        if patience < 1:
            raise ValueError(f"patience={patience}: must be at least 1 step")
        self.on_collapse = on_collapse
        self.patience = patience
        self.noticed: list[dict[str, Any]] = []
        """The noticed signs, with the steps of their beginning and end."""
        self.rewinds: list[dict[str, int]] = []
        """The steps `from` and `to` of each rewind."""
        self.verdict = ""
        """Either stop or rewind if this callback has ended training, else empty."""
        self.can_rewind = False
        """Whether there is a healthy checkpoint; older runs have none until their next checkpoint."""
        self._trackers: dict[str, SignTracker] = {}
        self._initial_norms: dict[str, float] = {}

    @property
    def state_key(self) -> str:
        return Health.__name__  # the same for subclasses, so that checkpoints are interchangeable

    @property
    def is_healthy(self) -> bool:
        """Whether no sign of a collapse shows, not even one that is too recent to be noticed."""
        collapses = {sign.name for sign in SIGNS if sign.is_collapse}
        return all(collapses.isdisjoint(tracker.shown) for tracker in self._trackers.values())

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.verdict = ""
        # only rank 0 decides, because a shared file system may look different from other nodes
        self.can_rewind = trainer.strategy.broadcast(Path(trainer.default_root_dir, "checkpoints", HEALTHY).exists())
        if not self._initial_norms:
            self._initial_norms = {
                game.tag(f"weight_norm/{player}"): nn.utils.get_total_norm(network.parameters()).item()
                for game in pl_module.games
                for player, network in (("g", game.generator), ("d", game.discriminator))
            }
        self._report_rewind(trainer)
        self._write(trainer)  # drops what a killed run noticed after this checkpoint

    def _report_rewind(self, trainer: Trainer) -> None:
        """Report a rewind once, even if the run is killed and resumes from the rewound checkpoint again."""
        reported = read_scores(Path(trainer.default_root_dir, "metrics.json")).get("health", {}).get("rewinds", [])
        if self.rewinds and self.rewinds[-1]["to"] == trainer.global_step and self.rewinds[-1] not in reported:
            start = self.rewinds[-1]["from"]
            self._report(trainer, f"went back from step {start:,}, continuing with new random numbers")
            for logger in trainer.loggers:  # before metrics.json marks it as reported
                logger.save()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if not pl_module.step_log.is_due:
            return
        logged = pl_module.step_log.values
        for game in pl_module.games:
            values = {name: logged[game.tag(name)] for name in LOGGED_VALUES if game.tag(name) in logged}
            tags = [game.tag(f"weight_norm/{player}") for player in "gd"]
            norms = self._initial_norms
            growth = [logged[tag] / norms[tag] for tag in tags if tag in logged and norms.get(tag)]
            if growth:
                values["growth"] = max(growth)
            self._check(trainer, game.name or GAME, values, LOG_WEIGHT)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation = callback_of(trainer, Evaluation)
        if evaluation is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name.partition("_")[0]: value for name, value in evaluation.values.items()}
        values = {key: metrics[name] for name, key in EVALUATION_METRICS.items() if name in metrics}
        if values:
            self._check(trainer, EVALUATION, values, 1.0)

    def _check(self, trainer: Trainer, where: str, values: Mapping[str, float], weight: float) -> None:
        """Update the values of a game or of the evaluations, and react to their signs."""
        tracker = self._trackers.setdefault(where, SignTracker(weight))
        tracker.update(values)
        step, prefix = trainer.global_step, "" if where in (GAME, EVALUATION) else f"{where}: "
        begun, over = tracker.check(step, self.patience)
        for sign in over:
            entry = next(e for e in reversed(self.noticed) if (e["sign"], e["where"]) == (sign.name, where))
            entry["until"] = step
            self._report(trainer, f"{prefix}{sign.name} has cleared")
        for sign in begun:
            says = sign.says.format_map(tracker.values)
            since = tracker.shown[sign.name][0]
            self.noticed.append({"sign": sign.name, "where": where, "since": since, "noticed": step, "says": says})
            self._report(trainer, f"{prefix}since step {since:,} {says}. Try: {sign.helps}")
        if begun or over:
            self._write(trainer)
        if self.on_collapse != "warn" and any(sign.is_collapse for sign in begun):
            self.verdict = "rewind" if self._may_rewind else "stop"
            stop_after_step(trainer)

    @property
    def _may_rewind(self) -> bool:
        return self.on_collapse == "rewind" and len(self.rewinds) < MAX_REWINDS and self.can_rewind

    def _report(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            log.warning("step %d: %s", trainer.global_step, text)
        log_text(trainer.loggers, "health", text, trainer.global_step)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            health = {"signs": self.noticed, "rewinds": self.rewinds}
            write_health(Path(trainer.default_root_dir, "metrics.json"), health)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Diverged) and self._may_rewind:
            self.verdict = "rewind"
            if trainer.is_global_zero:
                log.warning(exception)

    def state_dict(self) -> dict[str, Any]:
        return {
            "noticed": self.noticed,
            "rewinds": self.rewinds,
            "verdict": self.verdict,
            "norms": self._initial_norms,
            "watched": {where: tracker.state() for where, tracker in self._trackers.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.noticed = [dict(entry) for entry in state_dict["noticed"]]
        self.rewinds = [dict(entry) for entry in state_dict["rewinds"]]
        self._initial_norms = dict(state_dict["norms"])
        self._trackers = {where: SignTracker.from_state(state) for where, state in state_dict["watched"].items()}


def collapsed_at(step: int, rewinds: Sequence[Any]) -> str:
    """The message about a run that `on_collapse` has stopped, after these rewinds."""
    again = f" again after {len(rewinds)} rewinds" if rewinds else ""
    return (
        f"This run was stopped at step {step} because the generator collapsed{again}. To continue anyway: "
        "python train.py resume=<run folder> callbacks.health.on_collapse=warn"
    )


def state_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The state of this callback in a checkpoint; empty if there is none."""
    return checkpoint["callbacks"].get(Health.__name__, {})
