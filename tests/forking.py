"""Commands and ranks in forks of a process that has imported the libraries: importing is most of a short run's work.

Not for what starts processes by multiprocessing itself, such as joblib.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np


@cache
def server() -> ForkServerContext:
    """The process that commands are forked from, started for the first of them; see prepared.py."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prepared"])
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    # torch looks at the number of threads when it is imported
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}):
        forkserver.ensure_running()
    return context


class Command:
    """A Python script that runs in a fork, in a process group of its own, while the test goes on."""

    def __init__(self, script: Path, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str]):
        self.arguments = [script.name, *arguments]
        self._folder = TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._outputs:
            path.touch()
        self._process = server().Process(target=_play, args=(script, arguments, cwd, environment, self._outputs))
        self._process.start()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to those that it has started, as Ctrl-C in a terminal does."""
        os.killpg(self._process.pid or 0, number)

    def kill(self) -> None:
        """End the process and those that it has started at once, where they run."""
        with suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self._process.kill()  # where it is too young to have a group
        self._process.join()

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` would return. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        is_late = self.is_running()
        self.kill()  # what it has started as well
        stdout, stderr = (path.read_text() for path in self._outputs)
        if is_late:
            raise subprocess.TimeoutExpired(self.arguments, timeout, stdout, stderr)
        return subprocess.CompletedProcess(self.arguments, self._process.exitcode or 0, stdout, stderr)


def _play(
    script: Path, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], outputs: list[Path]
) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in zip((sys.stdout, sys.stderr), outputs, strict=True):
        file = os.open(path, os.O_WRONLY)
        os.dup2(file, stream.fileno())
        os.close(file)
    np.random.seed()  # or all forks would draw the same
    sys.argv = [str(script), *arguments]
    sys.path[:1] = [str(script.parent), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        atexit._run_exitfuncs()


class Ranks:
    """Processes that call a function together, as the ranks of a training, and stay for the next test."""

    def __init__(self, count: int):
        self.count = count
        self._pools: list[Pool] = []

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> list[Any]:
        """What the function returns in each rank. All ranks end where one of them fails."""
        if not self._pools:
            port = free_port()
            self._pools = [server().Pool(1, _be_rank, (rank, port)) for rank in range(self.count)]
        results = [pool.apply_async(function, arguments) for pool in self._pools]
        try:
            return [result.get(timeout) for result in results]
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        for pool in self._pools:
            pool.terminate()
        self._pools = []


def _be_rank(rank: int, port: int) -> None:
    os.environ.update(LOCAL_RANK=str(rank), MASTER_PORT=str(port))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
        return port
