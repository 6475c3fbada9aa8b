"""Resume a sweep from the record in its folder, of which only harmless overrides are applied."""

import re
from collections.abc import Collection, Iterable
from math import ceil, prod
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import RangeSweep
from omegaconf import DictConfig, OmegaConf

from ganforge.runs.folder_contents import check_folder, read_yaml
from ganforge.runs.plain_overrides import fits, is_plain
from ganforge.runs.record import read_overrides, read_record
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import as_typed, is_group, key_of, override_values, parse_override
from ganforge.runtime.text import printable
from ganforge.sweeps.sweep import RECORD, is_search, swept_keys

MAX_JOBS = 10_000

SUPER_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
"""The last bytes of an SQLite journal that names a super-journal."""

RETYPED = ("hydra.sweeper.storage", "hydra/sweeper/sampler", "hydra.sweep.subdir")
"""Options that a resumed sweep needs but that have to be typed again: they may run code or lead elsewhere.

Some storages and samplers unpickle what they read.
"""


def with_record(arguments: list[str], folder: Path, conf: Path) -> list[str]:
    """The arguments that resume a sweep: its recorded ones, with those of this command on top.

    Raises UserError if the record has more than plain choices and values, unless they are given again.
    """
    recorded = _recorded(folder, arguments, conf)
    given = {key_of(argument): argument for argument in arguments}
    for key in swept_keys(recorded) & given.keys():
        if given[key] not in recorded:
            raise UserError(f"{given[key]}: the sweep already has other values. Start a new sweep")
    for key in given:
        is_fixed = key != "logger" and not key.startswith("hydra")  # Hydra's have to be given again
        if is_fixed and is_group(given[key], conf) and given[key] not in recorded:
            raise UserError(
                f"{given[key]}: sweep={folder} cannot change a group. Set single values, such as {key}.<key>=..."
            )
    merged = {key_of(argument): argument for argument in [*recorded, *arguments]}  # in the recorded order
    return ["-m", *merged.values()]


def resume_job_config(folder: Path, composed: DictConfig) -> DictConfig:
    """The config of a job that has started: its record, with the values that were given since on top.

    Its loggers are those of the `composed` config if `logger=` was given since.
    """
    before = read_overrides(folder)
    given = [each for each in as_typed(HydraConfig.get().overrides.task) if each not in before]
    config = read_record(folder, given)
    if any(key_of(each) == "logger" for each in given):
        config.logger = composed.logger
        given = [each for each in given if key_of(each).partition(".")[0] != "logger"]
    for override in map(parse_override, given):
        if override.is_delete():
            raise UserError(f"{override.input_line}: a started job cannot drop config keys. Leave it out")
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return config


def _recorded(folder: Path, arguments: list[str], conf: Path) -> list[str]:
    """The recorded overrides of a sweep that are harmless. Hydra's others apply only if they are given again."""
    record = folder / RECORD
    if not record.is_file():
        raise UserError(f"sweep={folder} is not a sweep: {RECORD} is missing. Sweeps are in logs/sweeps/<name>/<time>")
    check_folder(folder)
    config = read_yaml(record)
    overrides: Any = OmegaConf.to_container(config) if OmegaConf.is_config(config) else None
    is_record = isinstance(overrides, dict) and overrides.keys() == {"task", "hydra"}
    if not is_record or not all(_is_list_of_strings(part) for part in overrides.values()):
        raise UserError(f"{record} is not the record of a sweep")
    given = set(map(key_of, arguments))
    for override in overrides["task"]:
        if override not in arguments and not is_plain(override, conf):
            raise UserError(
                f"{record} has {printable(override)}, which may run code, or start more processes than this machine "
                "has room for. If you trust it, pass it again"
            )
    if prod(_jobs(override) for override in overrides["task"] if override not in arguments) > MAX_JOBS:
        raise UserError(f"{record} has more than {MAX_JOBS:,} jobs. If you trust it, pass its ranges again")
    _check_journal(folder / "search.db-journal")
    for override in overrides["hydra"]:
        key = key_of(override)
        if key in RETYPED and key not in given:  # the search would start over without it
            raise UserError(f"sweep={folder} was started with {printable(override)}. If you trust it, pass it again")
    return [*overrides["task"], *(override for override in overrides["hydra"] if _is_harmless(override))]


def check_trials(trials: Iterable[Any], keys: Collection[str], conf: Path) -> None:
    """Raise UserError if a stored trial sets anything but plain values of the searched keys.

    The storage may be untrusted, and each value becomes an override.
    """
    for trial in trials:
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        for name, value in params.items():
            if name.lstrip("+") not in keys or not is_plain(f"{name}={value}", conf):
                raise UserError(
                    f"A trial of this search sets {printable(f'{name}={value}')}, which was not searched: delete "
                    "search.db or start a new search"
                )


def _check_journal(path: Path) -> None:
    """Raise UserError if a journal names a super-journal, which SQLite would delete on rollback. Ours name none."""
    if path.is_file():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(SUPER_JOURNAL_MAGIC)))
            if file.read() == SUPER_JOURNAL_MAGIC:
                raise UserError(f"{path} names a file that opening it would delete, so it is refused")


def _jobs(override: str) -> int:
    value = parse_override(override).value()
    if isinstance(value, RangeSweep):
        return max(1, ceil(abs(float(value.stop or 0) - float(value.start or 0)) / (abs(float(value.step)) or 1e-9)))
    return max(1, len(override_values(parse_override(override))))


def _is_list_of_strings(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(override, str) for override in part)


def _is_harmless(override: str) -> bool:
    """Whether an override of a search only sets the number of trials or the direction."""
    is_word = re.fullmatch(r"[\w.]+=[\w.-]+", override) is not None
    return is_search(override) and fits(override) and (is_word or override == "hydra/sweeper=optuna")
