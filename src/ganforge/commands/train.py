"""Training, from its first step or from a checkpoint, to its end."""

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from ganforge.callbacks.checkpoints import latest_checkpoint, read_checkpoint, rewind
from ganforge.callbacks.health import Health, collapsed_at, state_in
from ganforge.callbacks.shutdown import Diverged
from ganforge.data.classes import save_classes
from ganforge.experiment.build import build
from ganforge.experiment.trust import trust_prefix, validate_untrusted
from ganforge.experiment.validate import check_scale, check_schedule
from ganforge.runs.folder import describe, was_stopped_at_once
from ganforge.runs.logs import continue_csv, truncate_logs
from ganforge.runs.record import add_resumed, latest_resumed, read_overrides
from ganforge.runs.untrusted import check_caches
from ganforge.runtime.devices import check_fits, rank
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import has_checkpoint, remove_parts
from ganforge.runtime.lightning_private import is_finished
from ganforge.runtime.overrides import key_of
from ganforge.runtime.trainers import callback_of
from ganforge.sweeps.job import is_job
from ganforge.sweeps.resume import resume_job_config

log = logging.getLogger(__name__)

OF_RESUMING = ("resume", "sweep")
"""Options that say what goes on, not with which settings."""


def train(config: DictConfig, folder: Path) -> int:
    """Train, or go on with, the run in a folder. Returns the exit status: 0, or 128 + the signal that ended it."""
    checkpoint, is_there = None, has_checkpoint(folder)
    if is_there and config.get("sweep"):
        config = resume_job_config(folder)
    if config.resume or config.get("sweep"):  # of somebody's record; else it is what was typed
        config = validate_untrusted(config)
        check_fits(config.trainer, _overrides())
        check_caches(OmegaConf.to_container(config), _overrides())
    if config.resume or (is_there and (config.get("sweep") or _is_requeued())):
        check_schedule(config, folder)
        if not was_stopped_at_once(folder):
            checkpoint = latest_checkpoint(folder)
        elif rank() == 0:
            log.info("This run was stopped before its first step: it begins anew.")
            truncate_logs(folder, -1)
    elif rank() == 0 and is_there:
        raise UserError(f"{folder} holds a run already: go on with it by resume={folder}, or use another hydra.run.dir")
    with _locked(folder):
        while (status := _train(config, folder, checkpoint)) is None:
            checkpoint = folder / "checkpoints" / "last.ckpt"
    return status


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others from training the same run at the same time. Raises UserError where one does."""
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
        log.info("%s is on a file system without locks: start no second process that trains this run.", folder)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _is_requeued() -> bool:
    """Whether SLURM started this job again, after it was preempted or its node failed."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _train(config: DictConfig, folder: Path, checkpoint: Path | None) -> int | None:
    """As `train`; None where training collapsed and is to go on from an earlier checkpoint, now the last one."""
    data, model, trainer, stopping = build(config, folder, is_new=checkpoint is None)
    state = None if checkpoint is None else read_checkpoint(checkpoint)
    if state is not None and (reason := _is_over(state, trainer)):
        if trainer.is_global_zero:
            log.info(reason)
        return 0
    if trainer.is_global_zero:  # other ranks start once this one has what all of them need
        data.prepare_data()
        data.setup()
        check_scale(data, model)
        if checkpoint is None or state is None:
            save_classes(data, folder)
            describe(config, folder, trainer, model.games)
            _note_settings(folder, 0)
        else:
            _prepare_folder(folder, checkpoint, state, trainer)
    health = callback_of(trainer, Health)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Diverged as error:
        if trainer.is_global_zero and (health is None or health.verdict != "rewind"):
            raise Diverged(f"{error}\nThe run is in {folder}") from error
    if health is not None and health.verdict == "rewind" and not stopping.interrupted:
        if trainer.is_global_zero:
            rewind(folder, trainer.global_step)
        trainer.strategy.barrier()
        return None
    if not trainer.is_global_zero:
        return 0  # Lightning kills rank 0 when another rank ends with a status
    step = trainer.global_step
    for profile in folder.glob("fit-profile*.txt"):
        log.info("The whole profile is in %s\n" + _beginning(profile).replace("%", "%%"), profile)
    if stopping.interrupted:
        log.info(stop_message(folder, step, trust_prefix(config)))
        return 128 + stopping.interrupted
    outcome = f"Finished {step} steps."
    if health is not None and health.verdict == "stop":
        outcome = collapsed_at(step, health.rewinds)
    log.info(finish_message(outcome, folder, step, model.from_images, trust_prefix(config)))
    return 0


def _is_over(state: dict[str, Any], trainer: Trainer) -> str:
    """Why a run is not to be gone on with from a checkpoint, or nothing."""
    step, health = state["global_step"], callback_of(trainer, Health)
    if is_finished(state, trainer):
        limit = "max_steps" if -1 < trainer.max_steps <= step else "max_epochs"
        return f"This run is finished: its {step} steps are done. Raise trainer.{limit} to go on."
    if health is not None and health.on_collapse != "warn" and state_in(state).get("verdict") == "stop":
        return collapsed_at(step, state_in(state)["rewinds"])
    return ""


def _prepare_folder(folder: Path, checkpoint: Path, state: dict[str, Any], trainer: Trainer) -> None:
    """Make ready for going on from a checkpoint."""
    step, health = state["global_step"], callback_of(trainer, Health)
    if health is not None and health.on_collapse == "rewind" and state_in(state).get("verdict") == "rewind":
        step = rewind(folder, step)  # a signal came in between
    given = _note_settings(folder, step)
    log.info("Going on after step %d%s.", step, f" with {' '.join(given)}" if given else "")
    remove_parts(folder)
    for profile in folder.glob("fit-profile*.txt"):  # Lightning would append to it
        profile.unlink()
    truncate_logs(folder, step)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            continue_csv(logger, step)
    if checkpoint.name != "last.ckpt":  # or the next save would keep the damaged one in place of the good one
        checkpoint.with_name("last.ckpt").unlink(missing_ok=True)


def _beginning(text: Path, lines: int = 30) -> str:
    with text.open() as file:
        return "".join(islice(file, lines)).expandtabs(4).rstrip()


def _overrides() -> list[str]:
    """What was typed, or recorded of earlier commands."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _note_settings(folder: Path, step: int) -> list[str]:
    """Write down what is given for a run that goes on after a step, where it is neither in its record nor was given
    before, and return it."""
    known = {key_of(override): override for override in read_overrides(folder)} | latest_resumed(folder)
    typed = {key_of(each): each for each in _overrides()}  # of an option that is given twice, the last value
    given = [each for key, each in typed.items() if known.get(key) != each and key not in OF_RESUMING]
    if given:
        add_resumed(folder, step, given)
    return given


# Messages --------------------------------------------------------------------------------------------------------


def stop_message(folder: Path, step: int, trust: str = "") -> str:
    """What a person wants to know when a signal ended training; commands that read the run begin with `trust`."""
    if is_job():  # the sweep says at its end how to go on
        return f"Stopped after step {step}."
    return f"Stopped after step {step}. Go on with:\n  {trust}python train.py resume={_short(folder)}"


def finish_message(outcome: str, folder: Path, step: int, from_images: bool, trust: str = "") -> str:
    """What a person wants to know when training ends. `from_images`: whether the model makes images of images;
    `trust` as above."""
    run = _short(folder)
    done = [
        outcome,
        f"  run folder   {run}",
        f"  samples      {run}/samples/step-{step:08d}.png",
    ]
    if is_job():  # as above
        return "\n".join(done)
    draw = ["input=<image or folder>"] if from_images else ["num_samples=100 seed=1", "interpolate=true"]
    return "\n".join(
        [
            *done,
            "Try next:",
            f"  {trust}python evaluate.py run={run}",
            *(f"  {trust}python sample.py run={run} {options}" for options in draw),
            "  tensorboard --logdir logs",
        ]
    )


def _short(folder: Path) -> str:
    """The folder as one would type it, from here."""
    path = folder.resolve()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
