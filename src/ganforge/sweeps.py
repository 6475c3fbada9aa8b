"""Many runs by one command: their names, their processes, their failures, and going on where they stopped."""

import ctypes
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import current_thread, main_thread
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from ganforge.errors import UserError
from ganforge.files import read_json, write_whole
from ganforge.overrides import key_of, parts, quoted
from ganforge.record import read_record

RECORD = "sweep.yaml"
"""In the folder of a sweep: what was asked for, which not every sweeper of Hydra writes down."""

ERROR = "error.txt"
"""In the folder of a job that failed: why."""

IN_PROCESS = "GANFORGE_JOB"
"""In the environment of a job that has a process of its own: the number of the process that started it."""


WORKERS = "GANFORGE_WORKERS"
"""In the environment of joblib's processes: a folder where each that has had a job leaves a file with its number."""

STOP = "stop"
"""In that folder, once no more jobs are to begin."""


class Sweep(Callback):
    """Hydra's hook into a sweep."""

    folder: Path | None = None
    ended_by = signal.SIGINT
    _workers: TemporaryDirectory

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.folder = folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RECORD).exists():
            asked = {key: config.hydra.overrides[key] for key in ("task", "hydra")}
            write_whole(folder / RECORD, OmegaConf.to_yaml(asked).encode())
        if "joblib" in config.hydra.launcher._target_:
            from joblib import effective_n_jobs

            Sweep._workers = TemporaryDirectory()
            os.environ[WORKERS] = Sweep._workers.name
            config.hydra.launcher.n_jobs = min(effective_n_jobs(config.hydra.launcher.n_jobs), _jobs_at_once(config))
            _on_signals(_end_workers)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if isinstance(job_return._return_value, Stopped):  # ends the sweep where it is looked at, and not as a failure
            job_return.return_value = KeyboardInterrupt()


def report(script: str, is_complete: bool, given: list[str]) -> None:
    """Say what became of a sweep, if there was one, and what can be done next; `given` are its arguments."""
    if Sweep.folder is None:
        return
    say = partial(print, file=sys.stderr)
    for reason in sorted(Sweep.folder.glob(f"*/{ERROR}")):
        why, _, _ = reason.read_text().partition("\n")
        say(f"{reason.parent.name} failed: {why}")
    say(f"The sweep is in {Sweep.folder}")
    typed = shlex.quote(str(Sweep.folder))
    if is_complete:
        say(f"  python compare.py runs={typed}\n  tensorboard --logdir {typed}")
    elif any(Sweep.folder.glob("*/.hydra")):  # else it may be a mistake that no job can be composed of
        goes_on = any(key_of(argument) == "sweep" for argument in given)
        again = [one for one in given if key_of(one) != "sweep" and (goes_on or _is_unrecorded(one))]
        say(f"What is missing is done by:\n  python {script} sweep={typed} {shlex.join(again)}".rstrip())


SEARCH = {
    "_target_": "hydra_plugins.ganforge_search.Search",
    "storage": "'sqlite:///${hydra.sweep.dir}/search.db'",  # so that a killed search can go on, and trials be ended
    "study_name": "search",
    "n_jobs": "1",
    "max_failure_rate": "1.0",  # a trial that fails does not end the search
}
"""Options of hydra/sweeper=optuna that are not its own defaults; Hydra allows no file of that name in `conf/`."""


OWN = ("hydra.sweeper.storage", "hydra/sweeper/sampler", "hydra.sweep.subdir")
"""Choices that are not taken from a record: some storages and samplers unpickle what they read, and folders may lie
anywhere."""


def with_search(arguments: list[str]) -> list[str]:
    """The arguments, with these options where a search does not set them."""
    if "hydra/sweeper=optuna" not in arguments:
        return arguments
    given = {key_of(argument) for argument in arguments}
    missing = {f"hydra.sweeper.{key}": value for key, value in SEARCH.items() if f"hydra.sweeper.{key}" not in given}
    return [*arguments, *(f"{key}={value}" for key, value in missing.items())]


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


class Ended(SystemExit):
    """A job has nothing more to do, nor has its process: its code is the status of that."""


class Stopped(Exception):
    """A job in a launcher's process was ended by a signal, with what it had saved, or not begun after one."""


@contextmanager
def worker(launched_by: int) -> Iterator[None]:
    """Around each job in a launcher's process: on Ctrl-C, SIGTERM and the end of its parent the job ends, raising
    Stopped, and under joblib no other begins.

    The process itself goes on, for its end would be the end of all others, before they have saved.
    """
    team = Path(os.environ[WORKERS]) if WORKERS in os.environ else None
    end_with_parent()
    parent = launched_by if team else os.getppid()  # that of submitit and ray is one of theirs

    def stop() -> None:
        if os.getppid() != parent:  # nobody waits for this process
            os._exit(128 + signal.SIGTERM)
        if team:
            (team / STOP).touch()

    def hear(_: int, __: Any) -> None:
        stop()

    def interrupt(_: int, __: Any) -> None:  # outside of training, where `Stopping` hears it
        _on_signals(hear)
        stop()
        raise KeyboardInterrupt

    _on_signals(interrupt)
    if team:
        (team / str(os.getpid())).touch()
        if (team / STOP).exists() or os.getppid() != parent:
            stop()
            raise Stopped
    try:
        yield
    except (Ended, KeyboardInterrupt):  # other exits are of the launcher: submitit submits a job anew by one
        stop()
        raise Stopped from None
    finally:
        _on_signals(hear)


def _on_signals(handler: Any) -> None:
    if current_thread() is not main_thread():  # where Python allows no handlers
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


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
    process = subprocess.Popen(command, env={**os.environ, IN_PROCESS: str(os.getpid())}, start_new_session=True)
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


def _end_workers(number: int, _: Any) -> None:
    """On a signal for a sweep by joblib: pass it on, and let joblib wait until the jobs have saved."""
    _on_signals(signal.default_int_handler)
    Sweep.ended_by = signal.Signals(number)
    team = Path(os.environ[WORKERS])
    (team / STOP).touch()
    begun = [child for child in multiprocessing.active_children() if (team / str(child.pid)).exists()]
    if not begun:
        raise KeyboardInterrupt
    for child in begun:  # the end of one that has had no job yet would be the end of all: none waits for signals there
        child.terminate()


def end_with_parent() -> None:
    """Have this process stop, as on SIGTERM, when the one that started it dies. On Linux; elsewhere there is no way."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if IN_PROCESS in os.environ and "LOCAL_RANK" not in os.environ and os.environ[IN_PROCESS] != str(os.getppid()):
        sys.exit(128 + signal.SIGTERM)  # it has died already


def objective(folder: Path) -> float | None:
    """The best value of the metric that a run monitored; None where none was measured."""
    monitored = (score for score in read_json(folder / "metrics.json").values() if score.get("monitored"))
    return next((score["best"]["value"] for score in monitored), None)


# Going on with a sweep -------------------------------------------------------------------------------------------


def with_record(arguments: list[str], folder: Path, conf: Path) -> list[str]:
    """The arguments of a sweep that was begun in a folder: as recorded there, and what is given now on top.

    Of what was told to Hydra itself only a search's harmless options are taken. The others could run code of whoever
    wrote the folder: options of a launcher run commands, some storages and samplers unpickle.
    """
    record = folder / RECORD
    if not record.is_file():
        raise UserError(f"sweep={folder} is no sweep: it has no {RECORD}. Sweeps are in logs/sweeps/<name>/<time>")
    try:
        overrides: Any = OmegaConf.to_container(OmegaConf.load(record))
    except (YAMLError, ValueError, OSError) as error:
        raise UserError(f"{record} cannot be read: {error}") from error
    if not isinstance(overrides, dict) or not {"task", "hydra"} <= overrides.keys():
        raise UserError(f"{record} is no record of a sweep")
    given = {key_of(argument): argument for argument in arguments}
    _check_recorded(folder, overrides, set(given))
    recorded = [*overrides["task"], *filter(_is_search, overrides["hydra"])]
    for key in swept_keys(recorded) & given.keys():
        if given[key] not in recorded:
            raise UserError(f"{given[key]}: sweep={folder} has other values of it. More of them are a new sweep")
    for key in given:
        if (conf / key.partition("@")[0]).is_dir() and given[key] not in recorded:
            raise UserError(
                f"{given[key]}: sweep={folder} has settled that. Set single values, such as {key}.<key>=..."
            )
    merged = {key_of(argument): argument for argument in [*recorded, *arguments]}  # in the order of before
    return ["-m", *merged.values()]


def gone_on_with(folder: Path) -> DictConfig:
    """The config of a job that was begun: its record, and on top the values that are given only now."""
    config, overrides = read_record(folder), HydraConfig.get().overrides.task
    path = folder / ".hydra" / "overrides.yaml"
    before = set(OmegaConf.load(path)) if path.is_file() else set()
    for override in OverridesParser.create().parse_overrides([each for each in overrides if each not in before]):
        if override.is_delete():
            raise UserError(f"{override.input_line}: a job that was begun keeps its parts. Leave that out")
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return config


def _check_recorded(folder: Path, overrides: dict[str, list[str]], given: set[str]) -> None:
    """Raise UserError where a record may run code, or where a choice is missing that could."""
    for override in overrides["task"]:
        if _steers_hydra(override):
            raise UserError(f"{folder / RECORD} has {override}, which no sweep writes: it may run code and is refused")
    for override in overrides["hydra"]:
        is_own = key_of(override) in OWN and override != f"hydra.sweeper.storage={SEARCH['storage']}"
        if is_own and key_of(override) not in given:  # without it the search would begin anew, or be another
            raise UserError(f"sweep={folder} was begun with {override}: give that again, if you know it is harmless")


def _is_unrecorded(argument: str) -> bool:
    """Whether an argument of a sweep has to be given again to go on with it."""
    return argument.startswith("--config") or (key_of(argument).startswith("hydra") and not _is_search(argument))


def _steers_hydra(override: str) -> bool:
    """Whether an override is more than a value of our config, or an option of one of its groups."""
    key = key_of(override)
    leaves_conf = "." not in key.partition("@")[0] and key not in ("name", "sweep") and set(override) & set("/\\$")
    return override.startswith("-") or key.startswith("hydra") or bool(leaves_conf)


def _is_search(override: str) -> bool:
    key = key_of(override)
    names = ("n_trials", "n_jobs", "direction", "study_name", "max_failure_rate")
    return override == "hydra/sweeper=optuna" or key in [f"hydra.sweeper.{name}" for name in names]


# Names -----------------------------------------------------------------------------------------------------------


def remember(arguments: list[str]) -> None:
    """Note which keys are swept, also for jobs that a launcher starts elsewhere: a job sees only its own values."""
    os.environ["GANFORGE_SWEPT"] = ",".join(swept_keys(arguments))


def _jobs_at_once(config: DictConfig) -> int:
    """How many jobs a sweep has for its launcher at a time. A process too many would die of Ctrl-C, and take all others
    with it."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return sweeper.n_jobs
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides(list(config.hydra.overrides.task))
    jobs = prod(len(list(each.sweep_string_iterator())) for each in overrides if each.is_discrete_sweep())
    return min(jobs, sweeper.max_batch_size or jobs)


def swept_keys(arguments: list[str]) -> set[str]:
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] != "-"])
    except CompactHydraException:
        return set()  # Hydra reports it better
    return {str(override.key_or_group) for override in overrides if override.is_sweep_override()}


def swept(overrides: Iterable[str]) -> str:
    """[model=dcgan, model.generator.hidden=[16,8], trainer=cpu] -> `model=dcgan,hidden=16,8` where the first two are
    swept."""
    keys = os.environ.get("GANFORGE_SWEPT")  # not on other machines of a cluster
    pairs = [parts(override) for override in overrides]
    chosen = pairs if keys is None else [pair for pair in pairs if pair[0] in keys.split(",")]
    name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in chosen)
    return re.sub(r"[^\w=,.+-]+", "-", re.sub(r"[\[\]{}()'\"]", "", name))[:120] or "job"
