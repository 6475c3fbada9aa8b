"""Many runs by one command: their record, their names, and the report at the end."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ganforge.runtime.files import write_atomic
from ganforge.runtime.overrides import as_typed, key_of, parts
from ganforge.runtime.text import printable
from ganforge.sweeps.job import ERROR, SweepStopped, is_job

RECORD = "sweep.yaml"
"""In the folder of a sweep: its arguments, which not every sweeper of Hydra records."""


class Sweep(Callback):
    """Hydra's hook into a sweep."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        signal.signal(signal.SIGTERM, _stop)
        Sweep.folder = folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RECORD).exists():
            asked = {key: config.hydra.overrides[key] for key in ("task", "hydra")}
            write_atomic(folder / RECORD, OmegaConf.to_yaml(asked).encode())


def _stop(number: int, _: Any) -> None:
    raise SweepStopped(number)


def report(script: str, is_complete: bool, given: list[str]) -> None:
    """Report a sweep's outcome, if there was one: its failures and what to do next. `given` are its arguments."""
    if Sweep.folder is None or is_job():
        return
    if {path.name for path in Sweep.folder.iterdir()} <= {"multirun.yaml", "sweep.yaml"}:  # refused: it has no jobs
        rmtree(Sweep.folder)
        return
    say = partial(print, file=sys.stderr)
    for reason in sorted(Sweep.folder.glob(f"*/{ERROR}")):
        why, _, _ = reason.read_text(errors="replace").partition("\n")
        say(f"{printable(reason.parent.name)} failed: {printable(why)}")
    say(f"The sweep is in {Sweep.folder}")
    typed = shlex.quote(str(Sweep.folder))
    if is_complete:
        say(f"  python compare.py runs={typed}\n  tensorboard --logdir {typed}")
    elif any(Sweep.folder.glob("*/.hydra")):  # else no job could be composed
        is_resumed = any(key_of(argument) == "sweep" for argument in given)
        again = [one for one in given if key_of(one) != "sweep" and (is_resumed or _is_unrecorded(one))]
        say(f"To run the missing jobs:\n  python {script} sweep={typed} {shlex.join(again)}".rstrip())


def _is_unrecorded(argument: str) -> bool:
    """Whether an argument of a sweep has to be given again to resume it."""
    return argument.startswith("--config") or (key_of(argument).startswith("hydra") and not is_search(argument))


def is_search(override: str) -> bool:
    """Whether an override sets the number of trials of a search, or what is best."""
    names = ("n_trials", "n_jobs", "direction", "study_name")
    return override == "hydra/sweeper=optuna" or key_of(override) in [f"hydra.sweeper.{name}" for name in names]


# Names -----------------------------------------------------------------------------------------------------------


def remember_swept_keys(arguments: list[str]) -> None:
    """Note which keys are swept, also for the processes of launchers: a job sees only its own values."""
    os.environ["GANFORGE_SWEPT"] = ",".join(swept_keys(arguments))


def swept_keys(arguments: list[str]) -> set[str]:
    try:
        overrides = OverridesParser.create().parse_overrides([a for a in arguments if "=" in a and a[0] != "-"])
    except CompactHydraException:
        return set()  # Hydra reports it better
    return {key_of(override.get_key_element()) for override in overrides if override.is_sweep_override()}


def job_name(overrides: Iterable[str]) -> str:
    """[model=dcgan, model.generator.hidden=[16,8], trainer=cpu] -> `model=dcgan,hidden=16,8` where the first two are
    swept."""
    keys = os.environ.get("GANFORGE_SWEPT")  # not on other machines of a cluster
    pairs = list(map(parts, as_typed(overrides)))
    chosen = pairs if keys is None else [pair for pair in pairs if pair[0] in keys.split(",")]
    name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in chosen)
    return re.sub(r"[^\w=,.+-]+", "-", re.sub(r"[\[\]{}()'\"$\\]", "", name))[:120] or "job"
