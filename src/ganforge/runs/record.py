"""The record of a run: the config that it started with, and the overrides that it was resumed with."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from ganforge.runs.folder_contents import check_config, check_folder, read_yaml
from ganforge.runs.plain_overrides import is_plain_value
from ganforge.runs.schemas import ENVIRONMENT, read_table
from ganforge.runtime.errors import Damaged, UserError
from ganforge.runtime.files import write_atomic
from ganforge.runtime.overrides import as_typed, key_of, parse_override

SECTIONS = ("model", "data", "trainer", "callbacks", "logger")
"""The config groups that every record has."""

TRAINING_SECTIONS = ("callbacks", "logger", "trainer")
EVALUATION_OPTIONS = ("run", "checkpoint", "folder", "against", "reference", "cache_dir", "output", "recorded")
"""Keys that evaluate.py does not take from a record."""


def read_record(folder: Path, given: Sequence[str] = ()) -> DictConfig:
    """The config of a run as recorded in its folder, with the overrides that the run was resumed with.

    given: overrides of this command, whose keys replace those of earlier ones

    Pass it through `validate_untrusted` before anything is instantiated. Raises UserError if the folder has no record
    or cannot be trusted.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a run folder: it has no .hydra/config.yaml. Runs are in logs/runs/<name>/<time>"
        )
    check_folder(folder)
    record = read_yaml(path)
    if not isinstance(record, DictConfig) or not record:
        raise Damaged(f"{path} is not the recorded config of a run")
    if {"hydra", "defaults"} & set(record):
        raise UserError(
            f"{path} sets `hydra` or `defaults`, as no recorded config does. It may run code, so it is refused"
        )
    for override in _resume_overrides(folder, record, set(map(key_of, given))):
        _apply(override, record)
    values = cast(dict[Any, Any], OmegaConf.to_container(record))
    check_config(values)
    for section in SECTIONS:
        if not isinstance(values.get(section), dict):
            raise Damaged(f"{path} is damaged: {section} is {'missing' if section not in values else 'not a section'}")
    return record


def _resume_overrides(folder: Path, record: DictConfig, given: Collection[str]) -> list[Override]:
    """The latest override of each key that the run was resumed with, except for the given keys.

    Raises UserError if one sets more than plain values, as the folder may be untrusted.
    """
    applied = [argument for key, argument in latest_resumed(folder).items() if key not in given]
    for argument in applied:
        if "." not in key_of(argument) and isinstance(record.get(key_of(argument)), DictConfig):
            raise UserError(f"{folder} was resumed with {argument}, but resuming cannot replace a whole section")
        if not is_plain_value(argument, set(map(str, record))):
            raise UserError(
                f"{folder} was resumed with {argument}, which could run code. If you trust it, pass it again"
            )
    return list(map(parse_override, applied))


def _apply(override: Override, record: DictConfig) -> None:
    *parents, name = override.key_or_group.split(".")
    if not override.is_delete():
        OmegaConf.update(record, override.key_or_group, override.value(), force_add=True)
    elif isinstance(parent := OmegaConf.select(record, ".".join(parents)) if parents else record, DictConfig):
        parent.pop(name, None)


def read_overrides(folder: Path) -> list[str]:
    """The overrides of the command that started a run."""
    path = folder / ".hydra" / "overrides.yaml"
    overrides = read_yaml(path) if path.is_file() else []
    return as_typed(overrides) if isinstance(overrides, list | ListConfig) else []


def read_resumed(folder: Path) -> list[tuple[int, list[str]]]:
    """The steps that a run resumed after with new overrides, and those overrides, in the order of the commands."""
    entries = read_table(folder / "environment.json", ENVIRONMENT).get("resumed", [])
    return [(entry["step"], entry["overrides"]) for entry in entries]


def latest_resumed(folder: Path) -> dict[str, str]:
    """The latest override of each key that a run was resumed with."""
    return {key_of(argument): argument for _, arguments in read_resumed(folder) for argument in arguments}


def add_resumed(folder: Path, step: int, overrides: list[str]) -> None:
    """Record the overrides of a command that resumes a run after a step. They apply when it is resumed again."""
    path = folder / "environment.json"
    environment = read_table(path, ENVIRONMENT)
    environment.setdefault("resumed", []).append({"step": step, "overrides": overrides})
    write_atomic(path, (json.dumps(environment, indent=2) + "\n").encode())


def evaluation_sections(record: DictConfig, arguments: list[str]) -> list[str]:
    """The keys that evaluate.py takes from a record: the seed and the sections, except for those set by arguments."""
    excluded = {*TRAINING_SECTIONS, *EVALUATION_OPTIONS, *map(key_of, arguments)}
    keys = {str(key) for key, value in record.items() if key == "seed" or isinstance(value, DictConfig)}
    return sorted(keys - excluded)
