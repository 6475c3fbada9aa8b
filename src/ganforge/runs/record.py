"""The record of a run: the config in its folder, which a stranger may have written."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from ganforge.runs.plain_overrides import is_plain_value
from ganforge.runs.schemas import ENVIRONMENT, read_table
from ganforge.runs.untrusted import check_config, check_folder, read_yaml
from ganforge.runtime.errors import Damaged, UserError
from ganforge.runtime.files import write_atomic
from ganforge.runtime.overrides import key_of, parse_override

SECTIONS = ("model", "data", "trainer", "callbacks", "logger")
"""What every record has, with keys of its own."""

OF_TRAINING = ("callbacks", "logger", "trainer")
OF_EVALUATION = ("run", "checkpoint", "folder", "against", "reference", "cache_dir", "output", "recorded")
"""What evaluate.py does not take from a record: sections that it does not need, and names of its own options."""


def read_record(folder: Path, given: Sequence[str] = ()) -> DictConfig:
    """The config of a run: as it is recorded in its folder, with what the run was resumed with since, less the keys
    that are `given` anew.

    Raises UserError where there is none, or the folder is not to be trusted. What it holds may be made only after
    `validate_untrusted` has looked at it.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a run folder: it has no .hydra/config.yaml. Runs are in logs/runs/<name>/<time>"
        )
    check_folder(folder)
    record = read_yaml(path)
    if not isinstance(record, DictConfig) or not record:
        raise Damaged(f"{path} is no record of a run")
    if {"hydra", "defaults"} & set(record):
        raise UserError(f"{path} sets `hydra` or `defaults`, which no record does: it may run code, so it is refused")
    for override in _resumed_with(folder, record, set(map(key_of, given))):
        _apply(override, record)
    values = cast(dict[Any, Any], OmegaConf.to_container(record))
    check_config(values)
    for section in SECTIONS:
        if not isinstance(values.get(section), dict):
            raise Damaged(f"{path} is damaged: {section} is {'missing' if section not in values else 'no section'}")
    return record


def _resumed_with(folder: Path, record: DictConfig, given: Collection[str]) -> list[Override]:
    """What a run was resumed with, the latest of each key. Raises UserError where it is more than plain values: a
    stranger may have written it."""
    kept = [argument for key, argument in latest_resumed(folder).items() if key not in given]
    for argument in kept:
        if "." not in key_of(argument) and isinstance(record.get(key_of(argument)), DictConfig):
            raise UserError(f"{folder} was resumed with {argument}, which no resuming takes: a section is settled")
        if not is_plain_value(argument, set(map(str, record))):
            raise UserError(
                f"{folder} was resumed with {argument}, which is not taken from a run folder: it could run code. "
                "If you trust it, resume with it again"
            )
    return list(map(parse_override, kept))


def _apply(override: Override, record: DictConfig) -> None:
    *parents, name = override.key_or_group.split(".")
    if not override.is_delete():
        OmegaConf.update(record, override.key_or_group, override.value(), force_add=True)
    elif isinstance(parent := OmegaConf.select(record, ".".join(parents)) if parents else record, DictConfig):
        parent.pop(name, None)


def read_overrides(folder: Path) -> list[str]:
    """What the command of a run folder set, beside its record."""
    path = folder / ".hydra" / "overrides.yaml"
    found = read_yaml(path) if path.is_file() else []
    return list(map(str, found)) if isinstance(found, list | ListConfig) else []


def read_resumed(folder: Path) -> list[tuple[int, list[str]]]:
    """From which steps a run was resumed with other settings, and with which, in the order of the commands."""
    entries = read_table(folder / "environment.json", ENVIRONMENT).get("resumed", [])
    return [(entry["step"], entry["overrides"]) for entry in entries]


def latest_resumed(folder: Path) -> dict[str, str]:
    """By key, the latest override that a run was resumed with."""
    return {key_of(argument): argument for _, arguments in read_resumed(folder) for argument in arguments}


def add_resumed(folder: Path, step: int, overrides: list[str]) -> None:
    """Note what is given when a run is resumed after a step, for later commands that resume it."""
    path = folder / "environment.json"
    environment = read_table(path, ENVIRONMENT)
    environment.setdefault("resumed", []).append({"step": step, "overrides": overrides})
    write_atomic(path, (json.dumps(environment, indent=2) + "\n").encode())


def evaluation_sections(record: DictConfig, arguments: list[str]) -> list[str]:
    """What evaluate.py takes from a run's record: the seed and the parts, but those that are given anew."""
    others = {*OF_TRAINING, *OF_EVALUATION, *map(key_of, arguments)}
    parts = {str(key) for key, value in record.items() if key == "seed" or isinstance(value, DictConfig)}
    return sorted(parts - others)
