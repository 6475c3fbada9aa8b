"""Which overrides that a folder holds are taken from it: those that do no more than set what a stranger may set."""

import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ganforge.runs.untrusted import check_text
from ganforge.runtime.devices import max_processes
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import override_values, parse_override, parts

NAME = re.compile(r"[A-Za-z_][\w-]*")
PACKAGE = re.compile(r"[a-z_]+(\.[a-z_]+)*")

COUNTS = ("trainer.devices", "trainer.num_nodes", "hydra.sweeper.n_jobs")
"""How many processes there are to be."""


def is_plain(argument: str, conf: Path) -> bool:
    """Whether an override of a sweep, as Hydra reads it, does no more than choose an option of a group in `conf/`, set
    a key of ours to plain values, or remove one."""
    override, known = _checked(argument), _top_level(conf)
    if override is None:
        return False
    group, package = conf / override.key_or_group, override.package
    if not group.is_dir():
        return is_plain_value(argument, known) and fits(argument)
    goes_where_it_may = package is None or (PACKAGE.fullmatch(package) and package.partition(".")[0] in known)
    options = [
        option for value in override_values(override) for option in (value if isinstance(value, list) else [value])
    ]
    return bool(goes_where_it_may) and all(_is_option(group, option) for option in options)


def is_plain_value(argument: str, known: Collection[str]) -> bool:
    """Whether an override sets a key below known ones to plain values, or removes it."""
    override = _checked(argument)
    if override is None or override.package is not None:
        return False
    first, *rest = override.key_or_group.split(".")
    names = [*rest, *(name for value in override_values(override) for name in _keys(value))]
    # a place for a cache lies outside of the run's folder, so it has to be typed
    return first in known and not any(name.startswith("_") or name == "cache_dir" for name in names)


def _checked(argument: str) -> Override | None:
    """None where an override is none, or computes what `conf/` does not."""
    try:
        check_text(argument)
        return parse_override(argument)
    except (UserError, HydraException):
        return None


def _is_option(group: Path, option: Any) -> bool:
    if option is None:  # of ~group, and of group=null
        return True
    return isinstance(option, str) and NAME.fullmatch(option) is not None and (group / f"{option}.yaml").is_file()


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from map(str, value)
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _keys(each)


def fits(argument: str) -> bool:
    """Whether an override starts no more processes than this machine has room for."""
    key, value = parts(argument)
    if key not in COUNTS or value in ("auto", "-1"):
        return True
    if re.fullmatch(r"\[\d+(,\d+)*\]", value):
        return value.count(",") < max_processes(key)
    return re.fullmatch(r"\d+(,\d+)*", value) is not None and max(map(int, value.split(","))) <= max_processes(key)


@cache
def _top_level(conf: Path) -> frozenset[str]:
    """The names of the groups and keys of `conf/train.yaml`, but those that steer where a run is and Hydra itself."""
    keys = yaml.safe_load((conf / "train.yaml").read_text())
    groups = {path.name for path in conf.iterdir() if path.is_dir()}
    return frozenset({*keys, *groups} - {"hydra", "defaults", "resume", "sweep"})
