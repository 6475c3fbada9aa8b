"""Many runs by one command: what they are called, what is said of them, and going on where they stopped."""

import os
import re
import shlex
import sys
from collections.abc import Iterable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from ganforge.errors import UserError
from ganforge.files import write_whole
from ganforge.jobs import ERROR, Stopped, lead_workers
from ganforge.overrides import key_of, parts
from ganforge.record import read_overrides, read_record

RECORD = "sweep.yaml"
"""In the folder of a sweep: what was asked for, which not every sweeper of Hydra writes down."""


class Sweep(Callback):
    """Hydra's hook into a sweep."""

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.folder = folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RECORD).exists():
            asked = {key: config.hydra.overrides[key] for key in ("task", "hydra")}
            write_whole(folder / RECORD, OmegaConf.to_yaml(asked).encode())
        if "joblib" in config.hydra.launcher._target_:
            from joblib import effective_n_jobs

            config.hydra.launcher.n_jobs = min(effective_n_jobs(config.hydra.launcher.n_jobs), _jobs_at_once(config))
            lead_workers()

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
    before = read_overrides(folder)
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
    return {key_of(override.get_key_element()) for override in overrides if override.is_sweep_override()}


def swept(overrides: Iterable[str]) -> str:
    """[model=dcgan, model.generator.hidden=[16,8], trainer=cpu] -> `model=dcgan,hidden=16,8` where the first two are
    swept."""
    keys = os.environ.get("GANFORGE_SWEPT")  # not on other machines of a cluster
    pairs = [parts(override) for override in overrides]
    chosen = pairs if keys is None else [pair for pair in pairs if pair[0] in keys.split(",")]
    name = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in chosen)
    return re.sub(r"[^\w=,.+-]+", "-", re.sub(r"[\[\]{}()'\"]", "", name))[:120] or "job"
