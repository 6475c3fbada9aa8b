"""Which recorded overrides are applied: those that only choose options of `conf/` or set plain values.

A folder may be untrusted. Other overrides, which could run code or write elsewhere, have to be typed again.
"""

import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ganforge.runs.folder_contents import check_text
from ganforge.runtime.devices import max_processes, requested_devices
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import key_of, override_values, parse_override

OPTION = re.compile(r"[A-Za-z_][\w-]*")
PACKAGE = re.compile(r"[a-z_]+(\.[a-z_]+)*")

DEVICES = re.compile(r"auto|-1|\d+(,\d+)*")
"""Strings that ask for devices. An interpolation could resolve to any number of them."""

PROCESS_COUNTS = ("trainer.devices", "trainer.num_nodes", "hydra.sweeper.n_jobs")
"""Options that say how many processes to start."""


def is_plain(argument: str, conf: Path) -> bool:
    """Whether an override, also one that sweeps, only chooses options of `conf/`, or sets or removes plain values."""
    override, known = _parsed(argument), _top_level_keys(conf)
    if override is None:
        return False
    group, package = conf / override.key_or_group, override.package
    if not group.is_dir():
        return is_plain_value(argument, known) and fits(argument)
    is_known_package = package is None or (PACKAGE.fullmatch(package) and package.partition(".")[0] in known)
    options = [
        option for value in override_values(override) for option in (value if isinstance(value, list) else [value])
    ]
    return bool(is_known_package) and all(_is_option(group, option) for option in options)


def is_plain_value(argument: str, known: Collection[str]) -> bool:
    """Whether an override sets a key below the known top-level keys to plain values, or removes it."""
    override = _parsed(argument)
    if override is None or override.package is not None:
        return False
    first, *rest = override.key_or_group.split(".")
    names = [*rest, *(name for value in override_values(override) for name in _keys(value))]
    # a cache folder lies outside the run folder, so it has to be typed
    return first in known and not any(name.startswith("_") or name == "cache_dir" for name in names)


def _parsed(argument: str) -> Override | None:
    """The override; None if it cannot be parsed or has interpolations that `conf/` does not use."""
    try:
        check_text(argument)
        return parse_override(argument)
    except (UserError, HydraException):
        return None


def _is_option(group: Path, option: Any) -> bool:
    if option is None:  # ~group, or group=null
        return True
    return isinstance(option, str) and OPTION.fullmatch(option) is not None and (group / f"{option}.yaml").is_file()


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from map(str, value)
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _keys(each)


def fits(argument: str) -> bool:
    """Whether an override starts no more processes than this machine has room for."""
    override = _parsed(argument)
    if override is None:
        return False
    key = key_of(override.get_key_element())
    if key not in PROCESS_COUNTS:
        return True
    values = override_values(override)  # none for a range, which is refused
    return (
        bool(values)
        and not override.is_delete()
        and all(
            (DEVICES.fullmatch(value) if isinstance(value, str) else isinstance(value, int | list))
            and (requested_devices(value) or 0) <= max_processes(key)
            for value in values
        )
    )


@cache
def _top_level_keys(conf: Path) -> frozenset[str]:
    """The groups of `conf/` and keys of `conf/train.yaml`, without those that configure Hydra or move the run."""
    keys = yaml.safe_load((conf / "train.yaml").read_text())
    groups = {path.name for path in conf.iterdir() if path.is_dir()}
    return frozenset({*keys, *groups} - {"hydra", "defaults", "resume", "sweep"})
