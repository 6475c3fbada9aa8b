"""Which overrides that a folder holds are taken from it: those that do no more than set what a stranger may set."""

import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig

from ganforge.devices import available
from ganforge.errors import UserError
from ganforge.overrides import key_of
from ganforge.record import read_resumed
from ganforge.trust import check_text

NAME = re.compile(r"[A-Za-z_][\w-]*")
PACKAGE = re.compile(r"[a-z_]+(\.[a-z_]+)*")

COUNTS = ("trainer.devices", "trainer.num_nodes", "hydra.sweeper.n_jobs")
"""How many processes there are to be."""


def resumed_with(folder: Path, record: DictConfig, given: list[str]) -> list[str]:
    """What was given when the run in a folder was resumed before, the latest of each key, less what is given anew.

    Raises UserError where that is more than plain values: a stranger may have written it.
    """
    latest = {key_of(override): override for _, overrides in read_resumed(folder) for override in overrides}
    kept = [override for key, override in latest.items() if key not in set(map(key_of, given))]
    for override in kept:
        if not _is_value(_parsed(override), set(map(str, record))):
            raise UserError(
                f"{folder} was resumed with {override}, which may run code, or start more processes than this machine "
                "has room for. If you know it is harmless, give it again"
            )
    return kept


def is_plain(override: str, conf: Path) -> bool:
    """Whether an override of a sweep, as Hydra reads it, does no more than choose an option of a group in `conf/`, set
    a key of ours to plain values, or remove one."""
    parsed, known = _parsed(override), _top_level(conf)
    if parsed is None or not (conf / parsed.key_or_group).is_dir():
        return _is_value(parsed, known)
    package, group = parsed.package, conf / parsed.key_or_group
    goes_where_it_may = package is None or (PACKAGE.fullmatch(package) and package.partition(".")[0] in known)
    options = [option for value in _values(parsed) for option in (value if isinstance(value, list) else [value])]
    return bool(goes_where_it_may) and all(_is_option(group, option) for option in options)


def _parsed(override: str) -> Override | None:
    """None where an override is none, or computes what `conf/` does not."""
    try:
        check_text(override)
        return OverridesParser.create().parse_override(override)
    except (UserError, HydraException):
        return None


def _is_value(override: Override | None, known: Collection[str]) -> bool:
    """Whether an override sets a key below known ones to plain values, or removes it."""
    if override is None or override.package is not None:
        return False
    try:
        values = _values(override)
    except TypeError:
        return False
    first, *rest = override.key_or_group.split(".")
    names = [*rest, *(name for value in values for name in _keys(value))]
    return first in known and not any(name.startswith("_") for name in names) and fits(override.input_line or "")


def _is_option(group: Path, option: Any) -> bool:
    if option is None:  # of ~group, and of group=null
        return True
    return isinstance(option, str) and NAME.fullmatch(option) is not None and (group / f"{option}.yaml").is_file()


def _values(override: Override) -> list[Any]:
    """The values that an override sets, those of ranges and intervals left out: they are numbers."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [_converted(each) for each in value.list]
    return [] if isinstance(value, Sweep | Glob) else [_converted(value)]


def _converted(value: Any) -> Any:
    """A value without Hydra's own types. Raises TypeError where it is of another kind than texts and numbers."""
    if isinstance(value, dict):
        return {_converted(key): _converted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_converted(each) for each in value]
    if isinstance(value, QuotedString):
        return value.text
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(value)


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from map(str, value)
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _keys(each)


def fits(override: str) -> bool:
    """Whether an override starts no more processes than this machine has room for."""
    key, _, value = override.partition("=")
    key = key.lstrip("+")
    if key not in COUNTS or value in ("auto", "-1"):
        return True
    is_number = re.fullmatch(r"\[?\d+(,\d+)*\]?", value) is not None
    return is_number and max(map(int, re.findall(r"\d+", value))) <= available(key)


@cache
def _top_level(conf: Path) -> frozenset[str]:
    """The names of the groups and keys of `conf/train.yaml`, but those that steer where a run is and Hydra itself."""
    keys = yaml.safe_load((conf / "train.yaml").read_text())
    groups = {path.name for path in conf.iterdir() if path.is_dir()}
    return frozenset({*keys, *groups} - {"hydra", "defaults", "resume", "sweep"})
