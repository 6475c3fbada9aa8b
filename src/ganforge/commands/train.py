"""Train a run, from scratch or from its last checkpoint."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from ganforge.callbacks.checkpoints import latest_checkpoint, read_checkpoint, rewind
from ganforge.callbacks.health import Health, collapsed_at, state_in
from ganforge.callbacks.shutdown import Diverged
from ganforge.commands.train_messages import finish_message, stop_message
from ganforge.data.classes import save_classes
from ganforge.experiment.build import Experiment, build
from ganforge.experiment.compatibility import check_scale
from ganforge.experiment.trust import trust_prefix, validate_untrusted
from ganforge.experiment.validate import warn_of_stretching
from ganforge.runs.folder import was_stopped_at_once, write_environment
from ganforge.runs.folder_contents import check_caches
from ganforge.runs.loggers import describe_run, resume_logs
from ganforge.runs.logs import truncate_logs
from ganforge.runs.record import TRAINING_SECTIONS, add_resumed, latest_resumed, read_overrides
from ganforge.runtime.devices import check_fits, rank
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import has_checkpoint, remove_parts
from ganforge.runtime.lightning_private import is_finished
from ganforge.runtime.overrides import as_typed, key_of
from ganforge.runtime.trainers import callback_of
from ganforge.sweeps.job import is_job
from ganforge.sweeps.resume import resume_job_config

log = logging.getLogger(__name__)

COMMAND_OPTIONS = ("resume", "sweep")
"""Options of a command that resumes a run. They are not settings of the run."""


def train(config: DictConfig, folder: Path) -> int:
    """Train the run in a folder, or resume it. Returns the exit status: 0, or 128 + the signal that stopped it."""
    if config.get("sweep") and has_checkpoint(folder):
        config = resume_job_config(folder, config)
    if config.resume or config.get("sweep"):  # the config may be untrusted
        config = validate_untrusted(config, exempt=["logger"] if _typed_loggers() else [])
        check_fits(config.trainer, _overrides())
        check_caches(OmegaConf.to_container(config), _overrides())
    checkpoint = _starting_checkpoint(config, folder)
    with _locked(folder):
        while (status := _train(config, folder, checkpoint)) is None:
            checkpoint = folder / "checkpoints" / "last.ckpt"
    return status


def _train(config: DictConfig, folder: Path, checkpoint: Path | None) -> int | None:
    """Build the experiment, fit it, and report. None if it collapsed and was rewound: it resumes from `last.ckpt`."""
    experiment = build(config, folder, is_new=checkpoint is None)
    trainer = experiment.trainer
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    if state is not None and (reason := _why_over(state, trainer)):
        if trainer.is_global_zero:
            log.info(reason)
        return 0
    if trainer.is_global_zero:  # fit starts the other ranks, which need all of this
        _prepare_data(experiment)
        if checkpoint is None or state is None:
            _begin_folder(config, folder, experiment)
        else:
            step = _prepare_folder(folder, checkpoint, state, trainer)
            resume_logs(trainer.loggers, config, folder, experiment.model.games, step)
    if _fit(experiment, folder, checkpoint):
        return None
    if not trainer.is_global_zero:
        return 0  # Lightning kills rank 0 when another rank has an exit status
    return _report(config, folder, experiment)


# Before training -------------------------------------------------------------------------------------------------


def _starting_checkpoint(config: DictConfig, folder: Path) -> Path | None:
    """The checkpoint to resume from, None for a new run. Raises UserError if the folder holds another run."""
    has_run = has_checkpoint(folder)
    if not (config.resume or (has_run and (config.get("sweep") or _is_requeued()))):
        if has_run and rank() == 0:
            raise UserError(f"{folder} already holds a run: resume={folder} resumes it, hydra.run.dir= takes another")
        return None
    if rank() == 0:
        warn_of_stretching(config, folder)
    if not was_stopped_at_once(folder):
        return latest_checkpoint(folder)
    if rank() == 0:
        log.info("This run was stopped before its first step. It starts from scratch.")
        truncate_logs(folder, -1)
    return None


def _is_requeued() -> bool:
    """Whether SLURM restarted this job, after a preemption or a node failure."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the run against other processes. Raises UserError if one of them is training it."""
    if rank() > 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{folder}: another process is training this run. Wait for it, or stop it") from error
    except (OSError, NotImplementedError):
        log.info("%s is on a file system without locks: make sure that no other process trains this run.", folder)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _why_over(state: dict[str, Any], trainer: Trainer) -> str:
    """Why training is already complete at a checkpoint; empty if it is not."""
    step, health = state["global_step"], callback_of(trainer, Health)
    if is_finished(state, trainer):
        limit = "max_steps" if -1 < trainer.max_steps <= step else "max_epochs"
        return f"This run is finished: all {step} steps are done. Raise trainer.{limit} to train longer."
    if health is not None and health.on_collapse != "warn" and state_in(state).get("verdict") == "stop":
        return collapsed_at(step, state_in(state)["rewinds"])
    return ""


def _prepare_data(experiment: Experiment) -> None:
    experiment.data.prepare_data()
    experiment.data.setup()
    check_scale(experiment.data, experiment.model)


def _begin_folder(config: DictConfig, folder: Path, experiment: Experiment) -> None:
    """Write what a run's folder says about it before the first step."""
    save_classes(experiment.data, folder)
    write_environment(config, folder, experiment.trainer)
    describe_run(experiment.trainer.loggers, config, folder, experiment.model.games)
    _record_overrides(folder, 0)


def _prepare_folder(folder: Path, checkpoint: Path, state: dict[str, Any], trainer: Trainer) -> int:
    """Discard what the folder recorded after the checkpoint, and return the checkpoint's step."""
    step, health = state["global_step"], callback_of(trainer, Health)
    if health is not None and health.on_collapse == "rewind" and state_in(state).get("verdict") == "rewind":
        step = rewind(folder, step)  # a signal came before training rewound
    given = _record_overrides(folder, step)
    log.info("Resuming after step %d%s.", step, f" with {' '.join(given)}" if given else "")
    remove_parts(folder)
    for profile in folder.glob("fit-profile*.txt"):  # Lightning would append to it
        profile.unlink()
    if checkpoint.name != "last.ckpt":  # the next save would keep a damaged last.ckpt as previous.ckpt
        checkpoint.with_name("last.ckpt").unlink(missing_ok=True)
    return step


def _overrides() -> list[str]:
    """The overrides of this command; in a job of a sweep, also those in the sweep's record."""
    return as_typed(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _typed_loggers() -> list[str]:
    """The overrides that choose and set the loggers of a command that resumes a run: they apply to it alone."""
    keys = [key_of(override) for override in _overrides()]
    if not {"logger", "resume"} <= set(keys):
        return []
    found = [override for override in _overrides() if key_of(override).partition(".")[0] == "logger"]
    return [override.removeprefix("+") if key_of(override) == "logger" else override for override in found]


def _record_overrides(folder: Path, step: int) -> list[str]:
    """Record the overrides that are new to this run, with the step that it resumes after, and return them."""
    known = {key_of(override): override for override in read_overrides(folder)} | latest_resumed(folder)
    overrides = {key_of(each): each for each in _overrides()}  # of an option that is given twice, the last value
    new = {key: each for key, each in overrides.items() if known.get(key) != each and key not in COMMAND_OPTIONS}
    if "logger" in new:  # other loggers, and their options, apply to one command
        new = {key: each for key, each in new.items() if key.partition(".")[0] != "logger"}
    if new:
        add_resumed(folder, step, list(new.values()))
    return list(new.values())


# Training and after ----------------------------------------------------------------------------------------------


def _fit(experiment: Experiment, folder: Path, checkpoint: Path | None) -> bool:
    """Train to the end. Returns whether training collapsed and `last.ckpt` is now an earlier, healthy checkpoint."""
    trainer, health = experiment.trainer, callback_of(experiment.trainer, Health)
    try:
        trainer.fit(experiment.model, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True)
    except Diverged as error:
        if trainer.is_global_zero and (health is None or health.verdict != "rewind"):
            raise Diverged(f"{error}\nThe run is in {folder}") from error
    if health is None or health.verdict != "rewind" or experiment.stopping.interrupted:
        return False
    if trainer.is_global_zero:
        rewind(folder, trainer.global_step)
    trainer.strategy.barrier()
    return True


def _report(config: DictConfig, folder: Path, experiment: Experiment) -> int:
    """Say how training ended and what to do next. Returns the exit status."""
    step, signal = experiment.trainer.global_step, experiment.stopping.interrupted
    health = callback_of(experiment.trainer, Health)
    for profile in folder.glob("fit-profile*.txt"):
        log.info("The whole profile is in %s\n" + _first_lines(profile).replace("%", "%%"), profile)
    if signal:
        loggers = _typed_loggers()
        trust = trust_prefix(config, exempt=["logger"] if loggers else [])
        log.info(stop_message(folder, step, is_job(), trust, loggers))
        return 128 + signal
    outcome = f"Finished {step} steps."
    if health is not None and health.verdict == "stop":
        outcome = collapsed_at(step, health.rewinds)
    trust = trust_prefix(config, exempt=TRAINING_SECTIONS)  # the commands to try next instantiate none of them
    log.info(finish_message(outcome, folder, step, experiment.model.from_images, is_job(), trust))
    return 0


def _first_lines(path: Path, count: int = 30) -> str:
    with path.open() as file:
        return "".join(islice(file, count)).expandtabs(4).rstrip()
