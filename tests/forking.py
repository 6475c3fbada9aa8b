"""Entry points in forks of a process that has imported the libraries, for importing is most of the work of a short run.

Not for what starts processes by multiprocessing itself, such as joblib.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

os.environ["OMP_NUM_THREADS"] = "1"  # which torch looks at when it is imported, in the server
SERVER = multiprocessing.get_context("forkserver")
LIBRARIES = ["torch", "torchvision", "lightning.pytorch", "torchmetrics", "hydra", "torch.utils.tensorboard"]
SERVER.set_forkserver_preload([*LIBRARIES, "matplotlib.backends.backend_agg"])


def run_forked(
    script: Path, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` would return of a Python script."""
    command = [script.name, *arguments]
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_play, args=(script, arguments, cwd, environment, outputs))
        process.start()
        process.join(timeout)
        is_late = process.exitcode is None
        if is_late:
            process.kill()
            process.join()
        stdout, stderr = (path.read_text() for path in outputs)
    if is_late:
        raise subprocess.TimeoutExpired(command, timeout, stdout, stderr)
    return subprocess.CompletedProcess(command, process.exitcode or 0, stdout, stderr)


def _play(
    script: Path, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], outputs: list[Path]
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in zip((sys.stdout, sys.stderr), outputs, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream.fileno())
        os.close(file)
    np.random.seed()  # or all forks would draw the same
    sys.argv = [str(script), *arguments]
    sys.path[:1] = [str(script.parent), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        atexit._run_exitfuncs()
