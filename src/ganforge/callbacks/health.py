"""Noticing that a training goes wrong, and what follows from it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from ganforge.callbacks.health_signs import EVALUATED, MEMORY, SIGNS, WATCHED, SignTracker
from ganforge.callbacks.shutdown import Diverged
from ganforge.metrics.callback import Evaluation
from ganforge.metrics.scores import read_scores, write_health
from ganforge.runtime.lightning_private import stop_after_step
from ganforge.runtime.trainers import callback_of

log = logging.getLogger(__name__)

MAX_REWINDS = 3

HEALTHY = "healthy.ckpt"
"""Of the checkpoints, the one that a rewind goes back to."""

GAME, EVALUATION = "game", "evaluation"
"""Where a sign showed, where the game has no name."""


class Health(Callback):
    """Watches the games and the evaluations for the `SIGNS`; the console, TensorBoard and `metrics.json` have them.

    A sign is noticed once it has shown for `patience` steps. `on_collapse` is what follows where the generator learns
    nothing any more: warn; stop; or rewind, to the last checkpoint without such a sign and on with other random
    numbers, at most three times.
    """

    def __init__(self, on_collapse: str = "warn", patience: int = 500):
        if on_collapse not in ("warn", "stop", "rewind"):
            raise ValueError(f"on_collapse={on_collapse}: must be warn, stop or rewind")
        if patience < 1:
            raise ValueError(f"patience={patience}: must be at least 1 step")
        self.on_collapse = on_collapse
        self.patience = patience
        self.noticed: list[dict[str, Any]] = []
        """The signs, since when and until when."""
        self.rewinds: list[dict[str, int]] = []
        """From which steps training was rewound, and to which."""
        self.verdict = ""
        """Why training was ended: stop or rewind, or nothing."""
        self.can_rewind = False
        """Whether there is a checkpoint to rewind to; where this option came with resuming, not before the next one."""
        self._watched: dict[str, SignTracker] = {}
        self._norms: dict[str, float] = {}  # of the weights, at the beginning

    @property
    def state_key(self) -> str:
        return Health.__name__  # of subclasses as well, for those who read checkpoints

    @property
    def is_healthy(self) -> bool:
        """Whether nothing looks like a collapse, not even for a moment."""
        return not any(sign.is_collapse and sign.name in w.shown for w in self._watched.values() for sign in SIGNS)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.verdict = ""
        # asked once and by one rank: file systems of several nodes need not agree at every moment
        self.can_rewind = trainer.strategy.broadcast(Path(trainer.default_root_dir, "checkpoints", HEALTHY).exists())
        if not self._norms:
            self._norms = {
                game.tag(f"weight_norm/{player}"): nn.utils.get_total_norm(network.parameters()).item()
                for game in pl_module.games
                for player, network in (("g", game.generator), ("d", game.discriminator))
            }
        self._report_rewind(trainer)
        self._write(trainer)  # without what a killed run noticed after its checkpoint

    def _report_rewind(self, trainer: Trainer) -> None:
        """Once: a run that is killed before its next checkpoint begins at the rewound one again."""
        told = read_scores(Path(trainer.default_root_dir, "metrics.json")).get("health", {}).get("rewinds", [])
        if self.rewinds and self.rewinds[-1]["to"] == trainer.global_step and self.rewinds[-1] not in told:
            self._say(trainer, f"went back from step {self.rewinds[-1]['from']:,}, continuing with new random numbers")
            for logger in trainer.loggers:  # before metrics.json vouches for it
                logger.save()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if not pl_module.step_log.is_due:
            return
        logged = pl_module.step_log.values
        for game in pl_module.games:
            values = {name: logged[game.tag(name)] for name in WATCHED if game.tag(name) in logged}
            tags = [game.tag(f"weight_norm/{player}") for player in "gd"]
            grown = [logged[tag] / self._norms[tag] for tag in tags if tag in logged and self._norms.get(tag)]
            if grown:
                values["growth"] = max(grown)
            self._judge(trainer, game.name or GAME, values, MEMORY)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        evaluation = callback_of(trainer, Evaluation)
        if evaluation is None or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        found = {name.partition("_")[0]: value for name, value in evaluation.values.items()}
        values = {key: found[name] for name, key in EVALUATED.items() if name in found}
        if values:
            self._judge(trainer, EVALUATION, values, 1.0)

    def _judge(self, trainer: Trainer, name: str, values: Mapping[str, float], memory: float) -> None:
        watched = self._watched.setdefault(name, SignTracker(memory))
        watched.see(values)
        step, prefix = trainer.global_step, "" if name in (GAME, EVALUATION) else f"{name}: "
        begun, over = watched.judge(step, self.patience)
        for sign in over:
            entry = next(e for e in reversed(self.noticed) if (e["sign"], e["where"]) == (sign.name, name))
            entry["until"] = step
            self._say(trainer, f"{prefix}{sign.name} is over")
        for sign in begun:
            says = sign.says.format_map(watched.values)
            since = watched.shown[sign.name][0]
            self.noticed.append({"sign": sign.name, "where": name, "since": since, "noticed": step, "says": says})
            self._say(trainer, f"{prefix}since step {since:,} {says}. What often helps: {sign.helps}")
        if begun or over:
            self._write(trainer)
        if self.on_collapse != "warn" and any(sign.is_collapse for sign in begun):
            self.verdict = "rewind" if self._may_rewind else "stop"
            stop_after_step(trainer)

    @property
    def _may_rewind(self) -> bool:
        return self.on_collapse == "rewind" and len(self.rewinds) < MAX_REWINDS and self.can_rewind

    def _say(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            log.warning("step %d: %s", trainer.global_step, text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("health", text, trainer.global_step)

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
            "norms": self._norms,
            "watched": {name: watched.state() for name, watched in self._watched.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.noticed = [dict(entry) for entry in state_dict["noticed"]]
        self.rewinds = [dict(entry) for entry in state_dict["rewinds"]]
        self._norms = dict(state_dict["norms"])
        self._watched = {name: SignTracker.of(state) for name, state in state_dict["watched"].items()}


def collapsed_at(step: int, rewinds: Sequence[Any]) -> str:
    """What to say of a run that was stopped at a step, after these rewinds."""
    what = f"had collapsed again after {len(rewinds)} rewinds" if rewinds else "had collapsed"
    return f"This run was stopped at step {step}, for it {what}. callbacks.health.on_collapse=warn goes on."


def state_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of this callback."""
    return checkpoint["callbacks"].get(Health.__name__, {})
