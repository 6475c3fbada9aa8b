"""A job of a sweep, in whatever process: how it begins, what it leaves, and how it ends when it has to."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import current_thread, main_thread
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ganforge.metrics import scores
from ganforge.runs.schemas import METRICS, read_table
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import write_atomic
from ganforge.runtime.overrides import quoted

ERROR = "error.txt"
"""In the folder of a job that failed: why."""

IN_PROCESS = "GANFORGE_JOB"
"""In the environment of a job that has a process of its own: the number of the process that started it."""

WORKERS = "GANFORGE_WORKERS"
"""In the environment of joblib's processes: a folder where each that has had a job leaves a file with its number."""

STOP = "stop"
"""In that folder, once no more jobs are to begin."""

ended_by: int = signal.SIGINT
"""The signal that ended a sweep by joblib."""

_team: TemporaryDirectory
"""Of the processes that joblib starts; on the disk as long as this process lives."""


def is_job() -> bool:
    """Whether this is a job of a sweep, in whatever process."""
    return IN_PROCESS in os.environ or (HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def begin_job(folder: Path) -> None:
    """Forget why a job failed before."""
    (folder / ERROR).unlink(missing_ok=True)


class JobExit(SystemExit):
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

    def leave_if_orphaned() -> None:
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    def stop() -> None:
        leave_if_orphaned()
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
        leave_if_orphaned()
        if (team / STOP).exists():
            raise Stopped
    try:
        yield
    except (JobExit, KeyboardInterrupt):  # other exits are of the launcher: submitit submits a job anew by one
        stop()
        raise Stopped from None
    finally:
        _on_signals(hear)
        leave_if_orphaned()


def _on_signals(handler: Any) -> dict[int, Any]:
    """Returns the handlers of before. Does nothing outside of the main thread, where Python allows no handlers."""
    if current_thread() is not main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


def note_failure(folder: Path, error: BaseException, message: str | None) -> None:
    """Leave in a job's folder why it failed, in its first line, and what developers need where that is no mistake of
    the person's."""
    unexpected = "\n\n".join([repr(error), "".join(traceback.format_exception(error))])
    write_atomic(folder / ERROR, (message or unexpected).encode("utf-8", "replace"))


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

    before = _on_signals(pass_on)
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


def lead_workers() -> None:
    """Before joblib starts its processes: let a signal for the sweep reach the jobs, and wait until these saved."""
    global _team
    _team = TemporaryDirectory()
    os.environ[WORKERS] = _team.name
    _on_signals(_end_workers)


def _end_workers(number: int, _: Any) -> None:
    global ended_by
    ended_by = number
    _on_signals(signal.default_int_handler)
    team = Path(os.environ[WORKERS])
    (team / STOP).touch()
    begun = [child for child in multiprocessing.active_children() if (team / str(child.pid)).exists()]
    if not begun:
        raise KeyboardInterrupt
    for child in begun:  # the end of one that has had no job yet would be the end of all: none waits for signals there
        child.terminate()


def end_with_parent() -> None:
    """Have this process stop, as on SIGTERM, when the one that started it dies. On Linux; elsewhere there is no way."""
    _signal_at_parents_end(signal.SIGTERM)
    if IN_PROCESS in os.environ and "LOCAL_RANK" not in os.environ and os.environ[IN_PROCESS] != str(os.getppid()):
        sys.exit(128 + signal.SIGTERM)  # it has died already


def heard() -> None:
    """Ask for no more signals: as a parent with several threads dies, Linux may send one for each."""
    _signal_at_parents_end(0)


def _signal_at_parents_end(number: int) -> None:
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def objective(folder: Path) -> float | None:
    """The best value of the metric that a run monitored, or how far it is from the ideal one; None where none was
    measured."""
    for score in read_table(folder / "metrics.json", METRICS).values():
        if score.get("monitored"):
            value = score["best"]["value"]
            return None if value is None else scores.objective(value, scores.better_of(score))
    return None
