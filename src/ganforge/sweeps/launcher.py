"""`hydra/launcher=local`: the jobs of a sweep on this machine.

Each job is a fork of the sweep's process, which has imported the libraries, so that a job starts within a second. A job
then runs its command as if it were typed: Lightning can start further ranks with it.
"""

import logging
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from ganforge.runtime.devices import cpu_count
from ganforge.runtime.overrides import as_typed
from ganforge.sweeps.job import ERROR, LAUNCHED_BY, JobFailed, SweepStopped, job_arguments, objective_of

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

USED_BY_JOBS = ("torch.utils.tensorboard", "tensorboard.compat.tensorflow_stub", "matplotlib.backends.backend_agg")
"""Libraries that are imported late, and by most jobs."""


class LocalLauncher(Launcher):
    """Runs up to `n_jobs` jobs at a time. SIGINT and SIGTERM reach the jobs, which save, and then end the sweep."""

    def __init__(self, n_jobs: int = 1):
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        if self.n_jobs < 1:  # Hydra would wrap an error of the constructor
            raise CompactHydraException(f"hydra.launcher.n_jobs={self.n_jobs}: must be at least 1")
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        script = Path(sys.argv[0]).resolve()
        for module in (f"ganforge.commands.{script.stem}", *USED_BY_JOBS):
            with suppress(ModuleNotFoundError):  # a script of the user's own
                import_module(module)
        results = self._run(list(enumerate(job_overrides, initial_job_idx)), script)
        return [results[number] for number in sorted(results)]

    def _run(self, waiting: list[tuple[int, Sequence[str]]], script: Path) -> dict[int, JobReturn]:
        """Run numbered jobs, and return their results by number."""
        results: dict[int, JobReturn] = {}
        running: list[JobProcess] = []
        stopped_by = None
        with _stop_signals() as signals, _terminated_on_error(running):
            while running or waiting:
                while waiting and len(running) < self.n_jobs:
                    job = JobProcess(self._compose(*waiting.pop(0)), script, self.n_jobs)
                    job.start()
                    running.append(job)
                ready = wait([signals, *(job.sentinel for job in running)])
                if number := _read(signals):
                    stopped_by, waiting = number, []
                    for job in running:
                        job.send_signal(number)
                for job in [job for job in running if job.sentinel in ready]:
                    running.remove(job)
                    job.finish()
                    if not stopped_by:
                        results[job.config.hydra.job.num] = job.result()
            stopped_by = stopped_by or _read(signals)
        if stopped_by:
            raise SweepStopped(stopped_by)
        return results

    def _compose(self, number: int, overrides: Sequence[str]) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        HydraConfig.instance().set_config(config)
        return config


class JobProcess(PROCESSES.Process):  # type: ignore[name-defined]
    """Runs a job's command in a session of its own, whose processes end with it."""

    def __init__(self, config: DictConfig, script: Path, n_jobs: int):
        super().__init__()
        self.config, self.script, self.n_jobs, self.launched_by = config, script, n_jobs, os.getpid()
        self.folder = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
        self.arguments = job_arguments(config.hydra, self.folder)
        (self.folder / ERROR).unlink(missing_ok=True)

    def start(self) -> None:
        """A signal that arrives meanwhile waits until the job no longer shares the launcher's handlers."""
        log.info("Job %s", self.folder.name)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def run(self) -> None:
        os.setsid()
        os.environ[LAUNCHED_BY] = str(self.launched_by)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        GlobalHydra.instance().clear()
        np.random.seed()  # else all jobs would share the launcher's state
        if self.n_jobs > 1 and "OMP_NUM_THREADS" not in os.environ:  # the jobs share the cores
            threads = max(1, (cpu_count() or 1) // self.n_jobs)
            os.environ["OMP_NUM_THREADS"] = str(threads)  # for further ranks
            torch.set_num_threads(threads)
        sys.argv = [str(self.script), *self.arguments]
        runpy.run_path(str(self.script), run_name="__main__")

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def finish(self) -> None:
        """Kill processes the job left behind, such as ranks that wait for it."""
        self.join()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def result(self) -> JobReturn:
        result = JobReturn(as_typed(self.config.hydra.overrides.task), self.config, status=JobStatus.COMPLETED)
        try:
            result.return_value = objective_of(self.folder, self.exitcode)
        except JobFailed as error:
            result.status, result.return_value = JobStatus.FAILED, error
        return result


@contextmanager
def _terminated_on_error(running: list[JobProcess]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for job in running:
            job.send_signal(signal.SIGTERM)
        for job in running:
            job.finish()
        raise


@contextmanager
def _stop_signals() -> Iterator[int]:
    """A file descriptor from which `_read` returns the numbers of signals that would end this process."""
    reader, writer = os.pipe()
    for descriptor in (reader, writer):
        os.set_blocking(descriptor, False)
    wakeup = signal.set_wakeup_fd(writer)
    handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    try:
        yield reader
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.close(reader)
        os.close(writer)


def _read(signals: int) -> int | None:
    """The number of a signal that has arrived, if any."""
    try:
        return os.read(signals, 1)[0]
    except BlockingIOError:
        return None
