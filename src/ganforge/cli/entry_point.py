"""What every entry point does before and after its work: compose the config, resume, report errors."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import rmtree

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ganforge import __version__
from ganforge.cli.arguments import resolve_arguments
from ganforge.cli.resolvers import register_resolvers
from ganforge.runtime.devices import rank
from ganforge.runtime.errors import UserError, explanation
from ganforge.runtime.overrides import key_of
from ganforge.runtime.text import printable
from ganforge.sweeps import job, sweep

Task = Callable[[DictConfig], int | None]
"""Does an entry point's work and returns its exit status, None for success."""


def entry_point(config_name: str) -> Callable[[Task], Callable[[], None]]:
    """Make a script's `main(config)` a command: `conf/<config_name>.yaml` beside the script, overridden by arguments.

    A user error ends in one message and exit status 2; inside a sweep it fails its job only.
    """
    return lambda task: partial(_main, task, config_name)


def _main(task: Task, config_name: str) -> None:
    typed = sys.argv[1:]
    if "--version" in typed:
        print(f"ganforge {__version__}")
        return
    script = Path(task.__code__.co_filename).resolve()
    register_resolvers()
    if job.is_job() and "LOCAL_RANK" not in os.environ:
        job.end_with_parent(int(os.environ[job.LAUNCHED_BY]))
    elif "LOCAL_RANK" in os.environ:
        job.end_with_parent()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            sys.argv[1:] = resolve_arguments(typed, script.parent / "conf", config_name, Path(scratch))
        except UserError as error:
            if os.environ.get("HYDRA_FULL_ERROR"):
                raise
            sys.exit(_print_error(str(error)))
        _run_hydra(task, config_name, script, typed)


def _run_hydra(task: Task, config_name: str, script: Path, typed: list[str]) -> None:
    """Compose the config and run the task with it, or a job for each config of a sweep."""

    def run(config: DictConfig) -> float | None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # in a process of a third-party launcher
            return job.run_as_subprocess(script)
        sys.argv[1:] = typed  # Lightning starts the other ranks with these
        if status := _run_task(task, config, is_new_run=config_name == "train" and _is_new(typed)):
            sys.exit(status)
        return None

    is_complete = False
    try:
        hydra.main(version_base="1.3", config_path=str(script.parent / "conf"), config_name=config_name)(run)()
        is_complete = True
    except KeyboardInterrupt as interrupt:  # of a sweep
        sys.exit(128 + (interrupt.args or [signal.SIGINT])[0])
    finally:
        sweep.report(script.name, is_complete, typed)


def _is_new(typed: list[str]) -> bool:
    """Whether a run gets a folder of its own."""
    return not {"hydra.run.dir", "resume"} & set(map(key_of, typed))


def _run_task(task: Task, config: DictConfig, is_new_run: bool) -> int | None:
    """Returns the exit status. Raises errors that are not the user's."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        return task(config)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as error:  # Lightning's, on a second Ctrl-C
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        return 128 + signal.SIGINT
    except Exception as error:
        message = explanation(error)
        if job.is_job():
            job.save_error(folder, error, message)
        if message is None or os.environ.get("HYDRA_FULL_ERROR"):
            raise
        if is_new_run and rank() == 0:
            _remove_unused(folder)
        return _print_error(message)


def _remove_unused(folder: Path) -> None:
    """Remove the new folder of a run if it holds only the config of a command that failed validation."""
    if {path.name for path in folder.iterdir()} <= {".hydra", "train.log"}:
        rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # it holds other runs
            folder.parent.rmdir()


def _print_error(message: str) -> int:
    print("\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    return 2
