"""A job of a sweep: the command that runs it, and what it leaves behind."""

import ctypes
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from ganforge.metrics import scores
from ganforge.runs.schemas import METRICS, read_table
from ganforge.runtime.files import write_atomic
from ganforge.runtime.overrides import as_typed, quoted

ERROR = "error.txt"
"""In the folder of a job that failed: why."""

LAUNCHED_BY = "GANFORGE_JOB"
"""In the environment of a job: the id of the process that launched it."""


class JobFailed(CompactHydraException):
    """A job of a sweep ended without a result."""


class SweepStopped(KeyboardInterrupt):
    """A signal ended a sweep; its number is the argument."""


def is_job() -> bool:
    """Whether this process is a job of a sweep, or a rank of one."""
    return LAUNCHED_BY in os.environ


def job_arguments(hydra: DictConfig, folder: Path) -> list[str]:
    """The arguments of the command that runs a job, given Hydra's config of the job."""
    options = {"main": "--config-path", "command-line": "--config-dir"}
    sources = [source for source in hydra.runtime.config_sources if source.provider in options]
    return [
        *(f"{options[source.provider]}={source.path}" for source in sources),
        f"--config-name={hydra.job.config_name}",
        *as_typed(hydra.overrides.task),
        *(override for override in as_typed(hydra.overrides.hydra) if not override.startswith("hydra.mode=")),
        f"hydra.job.num={hydra.job.num}",
        f"hydra.run.dir={quoted(folder)}",
        f"hydra.sweep.dir={quoted(hydra.sweep.dir)}",
    ]


def run_as_subprocess(script: Path) -> float | None:
    """Run the job that Hydra's config describes, from a process of a launcher, and return its objective.

    Raises JobFailed. The job receives SIGTERM, and saves, when that process ends.
    """
    hydra: Any = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    (folder / ERROR).unlink(missing_ok=True)
    command = [sys.executable, str(script), *job_arguments(hydra, folder)]
    process = subprocess.Popen(command, env={**os.environ, LAUNCHED_BY: str(os.getpid())})
    return objective_of(folder, process.wait())


def objective_of(folder: Path, status: int) -> float | None:
    """The objective of a job whose process ended with a status, negative for a signal. Raises JobFailed if not 0."""
    if status == 0:
        return objective(folder)
    path = folder / ERROR
    if not path.exists():
        number = -status if status < 0 else status - 128
        is_signal = number in set(signal.Signals)
        how = f"was stopped by {signal.Signals(number).name}" if is_signal else f"ended with status {status}"
        write_atomic(path, f"its process {how}".encode())
    reason, _, _ = path.read_text(errors="replace").partition("\n")
    raise JobFailed(f"{folder.name} failed: {reason}")


def save_error(folder: Path, error: BaseException, message: str | None) -> None:
    """Save why a job failed: the message for its user, or the traceback of an unexpected error."""
    unexpected = "\n\n".join([repr(error), "".join(traceback.format_exception(error))])
    write_atomic(folder / ERROR, (message or unexpected).encode("utf-8", "replace"))


def objective(folder: Path) -> float | None:
    """The best value of the monitored metric of a run, or its distance from the ideal; None where it has none."""
    for score in read_table(folder / "metrics.json", METRICS).values():
        if score.get("monitored"):
            value = score["best"]["value"]
            return None if value is None else scores.objective(value, scores.better_of(score))
    return None


def end_with_parent(parent: int | None = None) -> None:
    """Have this process receive SIGTERM when its parent dies, or exit if `parent` is dead already. Linux only."""
    _set_parent_death_signal(signal.SIGTERM)
    if parent not in (None, os.getppid()):
        sys.exit(128 + signal.SIGTERM)


def ignore_parent_death() -> None:
    """Ask for no further SIGTERM: when a parent with several threads dies, Linux may send one for each."""
    _set_parent_death_signal(0)


def _set_parent_death_signal(number: int) -> None:
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
