"""Arguments of a command as Hydra reads them: `key=value`."""

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

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
    if value[:1] + value[-1:] == "[]":  # a list, whose names may need quotes
        names = ",".join(quoted(name.strip()) for name in value[1:-1].split(",") if name.strip())
        return argument if set(value) & set("'\"") else f"{key}=[{names}]"
    if is_sweep and re.match(r"(choice|glob|sort|shuffle)\(", value):
        return argument
    return f"{key}={','.join(map(quoted, value.split(',') if is_sweep else [value]))}"


def key_and_value(argument: str) -> tuple[str, Any]:
    """Key and value of an override, as Hydra reads it."""
    override = OverridesParser.create().parse_override(argument)
    return override.key_or_group, override.value()


def unquoted(value: str) -> str:
    return str(key_and_value(f"key={value}")[1])


def quoted(value: object) -> str:
    """A value that Hydra takes literally on the command line."""
    return QuotedString(str(value), Quote.single).with_quotes()
