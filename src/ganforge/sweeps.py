"""Many runs by one command: their names, their processes, their failures, and going on where they stopped."""

import ctypes
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import traceback
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from ganforge.errors import UserError
from ganforge.files import read_json
from ganforge.overrides import key_of, quoted

log = logging.getLogger(__name__)

RECORD = "sweep.yaml"
"""In the folder of a sweep: what was asked for, which not every sweeper of Hydra writes down."""

ERROR = "error.txt"
"""In the folder of a job that failed: why."""

IN_PROCESS = "GANFORGE_JOB"
"""In the environment of a job that has a process of its own: the folder of the job."""


class Sweep(Callback):
    """Hydra's hook at the start of a sweep, before any of its jobs."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.folder = folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save({key: config.hydra.overrides[key] for key in ("task", "hydra")}, folder / RECORD)
        if "storage" in config.hydra.sweeper:
            settle_trials(config.hydra.sweeper)


def report(script: str, is_complete: bool) -> None:
    """Say what became of a sweep, if there was one, and what can be done next."""
    if Sweep.folder is None:
        return
    say = partial(print, file=sys.stderr)
    for reason in sorted(Sweep.folder.glob(f"*/{ERROR}")):
        say(f"{reason.parent.name} failed: {reason.read_text().splitlines()[0]}")
    say(f"The sweep is in {Sweep.folder}")
    typed = shlex.quote(str(Sweep.folder))
    if is_complete:
        say(f"  python compare.py runs={typed}\n  tensorboard --logdir {typed}")
    else:
        say(f"What is missing is done by:\n  python {script} sweep={typed}")


SEARCH = {
    "storage": "'sqlite:///${hydra.sweep.dir}/search.db'",  # so that a killed search can go on, and trials be ended
    "study_name": "search",
    "n_jobs": "1",
    "max_failure_rate": "1.0",  # a trial that fails does not end the search
}
"""Options of hydra/sweeper=optuna that are not its own defaults; Hydra allows no file of that name in `conf/`."""


OWN = ("hydra.sweeper.storage", "hydra/sweeper/sampler")
"""Choices of a search that are not taken from a record: some storages and samplers unpickle what they read."""


def with_search(arguments: list[str]) -> list[str]:
    """The arguments, with these options where a search does not set them."""
    if "hydra/sweeper=optuna" not in arguments:
        return arguments
    given = {key_of(argument) for argument in arguments}
    missing = {f"hydra.sweeper.{key}": value for key, value in SEARCH.items() if f"hydra.sweeper.{key}" not in given}
    return [*arguments, *(f"{key}={value}" for key, value in missing.items())]


def settle_trials(sweeper: DictConfig) -> None:
    """Before a search: of the trials that its storage knows, leave out the finished and try again the killed ones.

    hydra-optuna-sweeper would run all `n_trials` again.
    """
    import optuna

    if sweeper.storage is None:
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=sweeper.study_name,
        storage=sweeper.storage,
        direction=direction_of(sweeper),
        load_if_exists=True,
    )
    running = optuna.trial.TrialState.RUNNING
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == running:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
                study.enqueue_trial(trial.params)
    done = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if done:
        log.info("The search goes on after %d of %d trials.", len(done), sweeper.n_trials)
    with open_dict(sweeper):
        sweeper.n_trials = max(0, sweeper.n_trials - len(done))


def direction_of(sweeper: DictConfig) -> str:
    """minimize or maximize, which Hydra holds as an enumeration of the plugin."""
    return str(sweeper.direction).rpartition(".")[2]


# The jobs --------------------------------------------------------------------------------------------------------


def is_job() -> bool:
    """Whether this is a job of a sweep, in whatever process."""
    return IN_PROCESS in os.environ or (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def begin_job(folder: Path) -> None:
    """Forget why a job failed before."""
    (folder / ERROR).unlink(missing_ok=True)


def note_failure(folder: Path, error: BaseException, message: str | None) -> None:
    """Leave in a job's folder why it failed, in its first line, and what developers need where that is no mistake of
    the person's."""
    unexpected = "\n\n".join([repr(error), "".join(traceback.format_exception(error))])
    (folder / ERROR).write_text(message or unexpected)


def run_in_process(script: Path) -> int:
    """Run the present job in a process of its own, and end what it started when it ends. Returns its exit status.

    torch's process groups do not survive a second one in a process, and the ranks of a job have to be started by the
    job's own command. A signal for the sweep reaches the job, which then saves.
    """
    job = HydraConfig.get()
    hydra = [override for override in job.overrides.hydra if not override.startswith("hydra.mode=")]
    folder = job.runtime.output_dir
    places = [f"hydra.run.dir={quoted(folder)}", f"hydra.sweep.dir={quoted(job.sweep.dir)}", "hydra.output_subdir=null"]
    command = [sys.executable, str(script), *job.overrides.task, *hydra, *places]
    process = subprocess.Popen(command, env={**os.environ, IN_PROCESS: folder}, start_new_session=True)
    received = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        process.send_signal(number)

    signals = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
    before = {number: signal.signal(number, pass_on) for number in signals}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if received:
        return 128 + received[0]
    if status in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM):
        return status
    reason = Path(folder, ERROR)
    raise UserError(reason.read_text() if reason.exists() else f"its process ended with status {status}")


def end_with_parent() -> None:
    """Have this process stop, as on SIGTERM, when the one that started it dies. On Linux; elsewhere there is no way."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def objective(folder: Path) -> float | None:
    """The best value of the metric that a run monitored; None where none was measured."""
    monitored = (score for score in read_json(folder / "metrics.json").values() if score.get("monitored"))
    return next((score["best"]["value"] for score in monitored), None)


# Going on with a sweep -------------------------------------------------------------------------------------------


def with_record(arguments: list[str], folder: Path) -> list[str]:
    """The arguments of a sweep that was begun in a folder: as recorded there, and what is given now on top.

    Of what was told to Hydra itself only a search's harmless options are taken. The others could run code of whoever
    wrote the folder: options of a launcher run commands, some storages and samplers unpickle.
    """
    record = folder / RECORD
    if not record.is_file():
        raise UserError(f"sweep={folder} is no sweep: it has no {RECORD}. Sweeps are in logs/sweeps/<name>/<time>")
    overrides: Any = OmegaConf.to_container(OmegaConf.load(record))
    if not isinstance(overrides, dict) or not {"task", "hydra"} <= overrides.keys():
        raise UserError(f"{record} is no record of a sweep")
    given = {key_of(argument): argument for argument in arguments}
    _check_recorded(folder, overrides, set(given))
    recorded = [*overrides["task"], *filter(_is_search, overrides["hydra"])]
    for key in swept_keys(recorded) & given.keys():
        if given[key] not in recorded:
            raise UserError(f"{given[key]}: sweep={folder} has other values of it. More of them are a new sweep")
    merged = {key_of(argument): argument for argument in [*recorded, *arguments]}  # in the order of before
    return ["-m", *merged.values()]


def _check_recorded(folder: Path, overrides: dict[str, list[str]], given: set[str]) -> None:
    """Raise UserError where a record may run code, or where a choice is missing that could."""
    for override in overrides["task"]:
        if _steers_hydra(override):
            raise UserError(f"{folder / RECORD} has {override}, which no sweep writes: it may run code and is refused")
    for override in overrides["hydra"]:
        is_own = key_of(override) in OWN and override != f"hydra.sweeper.storage={SEARCH['storage']}"
        if is_own and key_of(override) not in given:  # without it the search would begin anew, or be another
            raise UserError(f"sweep={folder} was begun with {override}: give that again, if you know it is harmless")


def _steers_hydra(override: str) -> bool:
    """Whether an override is more than a value of our config, or an option of one of its groups."""
    key = key_of(override)
    leaves_conf = "." not in key.partition("@")[0] and key not in ("name", "sweep") and set(override) & set("/\\$")
    return override.startswith("-") or key.startswith("hydra") or bool(leaves_conf)


def _is_search(override: str) -> bool:
    key = key_of(override)
    names = ("n_trials", "n_jobs", "direction", "study_name", "max_failure_rate")
    is_option = key in [f"hydra.sweeper.{name}" for name in names] or key.startswith("hydra.sweeper.params.")
    return (override == "hydra/sweeper=optuna" or is_option) and "_target_" not in override


# Names -----------------------------------------------------------------------------------------------------------


def remember(arguments: list[str]) -> None:
    """Note which keys are swept, also for jobs that a launcher starts elsewhere: a job sees only its own values."""
    os.environ["GANFORGE_SWEPT"] = ",".join(key.removeprefix("hydra.sweeper.params.") for key in swept_keys(arguments))


def swept_keys(arguments: list[str]) -> set[str]:
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] != "-"])
    except CompactHydraException:
        return set()  # Hydra reports it better
    return {str(override.key_or_group) for override in overrides if override.is_sweep_override()}


def swept(overrides: str) -> str:
    """`model=dcgan,model.loss.weight=2,trainer=cpu` -> `model=dcgan,weight=2` where model and weight are swept."""
    keys = os.environ.get("GANFORGE_SWEPT", "").split(",")
    pairs = [pair.partition("=") for pair in overrides.split(",") if "=" in pair]
    chosen = [pair for pair in pairs if pair[0].lstrip("+~") in keys] or pairs
    name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, _, value in chosen)
    return re.sub(r"[^\w=,.+-]+", "-", name)[:120] or "job"
