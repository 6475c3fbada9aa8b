"""The record of a run: the config in its folder, which a stranger may have written."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ganforge.errors import UserError
from ganforge.overrides import key_of


class Unreadable(UserError):
    """There is a record, but no config in it."""


def read_record(folder: Path) -> DictConfig:
    """The recorded config of a run folder. Raises UserError where there is none, or it holds more than a config.

    What it holds may be made only after `checked` has looked at it.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run folder: it has no .hydra/config.yaml. Runs are in logs/runs/<name>/<time>")
    try:
        record = OmegaConf.load(path)
    except (YAMLError, OSError, ValueError, OmegaConfBaseException) as error:
        raise Unreadable(f"{path} cannot be read: {error}") from error
    if not isinstance(record, DictConfig) or not record:
        raise Unreadable(f"{path} is no record of a run")
    if {"hydra", "defaults"} & set(record):
        raise UserError(f"{path} sets `hydra` or `defaults`, which no record does: it may run code, so it is refused")
    return record


def read_overrides(folder: Path) -> list[str]:
    """What the command of a run folder set, beside its record."""
    path = folder / ".hydra" / "overrides.yaml"
    return [str(override) for override in OmegaConf.load(path)] if path.is_file() else []


def parts_of(record: DictConfig, arguments: list[str]) -> list[str]:
    """What evaluate.py takes from a run's record: the seed and the parts, but those that are given anew."""
    given = {"callbacks", "logger", "trainer", *map(key_of, arguments)}
    parts = {str(key) for key, value in record.items() if key == "seed" or isinstance(value, DictConfig)}
    return sorted(parts - given)
