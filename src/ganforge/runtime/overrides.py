"""Arguments of a command as Hydra reads them: `key=value`."""

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString, Sweep

PATHS = (
    *("run", "runs", "resume", "sweep", "checkpoint", "input", "output", "folder", "against", "name"),
    *("hydra.run.dir", "hydra.sweep.dir", "data.valid", "data.test"),
)
PATH_NAMES = ("root", "low_root", "cache_dir", "weights", "path", "init_from")
"""Options, and last parts of options, that are paths and nothing else: no character in them means anything to Hydra,
but brackets around a list, and the commas between the values of a sweep."""


def parts(argument: str) -> tuple[str, str]:
    """Key and value of an override; the key is meant however Hydra is told to add or remove it."""
    key, _, value = argument.partition("=")
    return key.lstrip("+~"), value


def key_of(argument: str) -> str:
    return parts(argument)[0]


def literal(argument: str, is_sweep: bool = False) -> str:
    """An override with its value quoted if it is a path, or has a "=" in it, as the folders of sweeps do."""
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    is_path = name in PATHS or name.rpartition(".")[2] in PATH_NAMES
    if not equals or key.startswith("-") or value == "null" or value[:1] in ("'", '"'):
        return argument
    if not is_path:
        return f"{key}={quoted(value)}" if "=" in value and not set(value) & set("'\"[]{}(),") else argument
    if value[:1] + value[-1:] == "[]" and "],[" not in value:  # one list, whose names may need quotes
        names = ",".join(quoted(name.strip()) for name in value[1:-1].split(",") if name.strip())
        return argument if set(value) & set("'\"") else f"{key}=[{names}]"
    if is_sweep and re.match(r"(choice|glob|sort|shuffle)\(", value):
        return argument
    return f"{key}={','.join(map(quoted, value.split(',') if is_sweep else [value]))}"


def parse_override(argument: str) -> Override:
    """An override as Hydra reads it. Raises HydraException."""
    return OverridesParser.create().parse_override(argument)


def override_values(override: Override, options: Sequence[str] = ()) -> list[Any]:
    """The values that an override sets, of a sweep one after the other; `options` are those that a glob chooses from.

    Ranges and intervals are left out: they are numbers.
    """
    value = override.value()
    if isinstance(value, Glob):
        return value.filter(list(options))
    if isinstance(value, ChoiceSweep):
        return [Override._convert_value(each) for each in value.list]
    return [] if isinstance(value, Sweep) else [value]


def unquoted(value: str) -> str:
    return str(parse_override(f"key={value}").value())


def quoted(value: object) -> str:
    """A value that Hydra takes literally on the command line."""
    return QuotedString(str(value), Quote.single).with_quotes()
