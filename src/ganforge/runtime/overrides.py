"""Hydra overrides on the command line: `key=value`."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString, Sweep
from omegaconf import OmegaConf

PATHS = (
    *("run", "runs", "resume", "sweep", "checkpoint", "input", "output", "folder", "against", "name"),
    *("hydra.run.dir", "hydra.sweep.dir", "data.valid", "data.test"),
)
PATH_NAMES = ("root", "low_root", "cache_dir", "weights", "path", "init_from")
"""Options, and last parts of options, whose values are always paths. Hydra's grammar does not apply to them, except for
the brackets of a list and the commas between the values of a sweep."""


def parts(argument: str) -> tuple[str, str]:
    """Key and value of an override; the key without Hydra's prefixes `+`, `++` and `~`."""
    key, _, value = argument.partition("=")
    return key.lstrip("+~"), value


def key_of(argument: str) -> str:
    return parts(argument)[0]


def is_group(argument: str, conf: Path) -> bool:
    """Whether an override chooses an option of a config group, such as `loss=hinge` or `optimizer@model.x=sgd`."""
    return (conf / key_of(argument).partition("@")[0]).is_dir()


def literal(argument: str, is_sweep: bool = False) -> str:
    """The override with its value quoted if it is a path, or contains "=" like the folder of a sweep's job."""
    key, equals, value = argument.partition("=")
    name = key.lstrip("+")
    is_path = name in PATHS or name.rpartition(".")[2] in PATH_NAMES
    if not equals or key.startswith("-") or value == "null" or value[:1] in ("'", '"'):
        return argument
    if not is_path:
        return f"{key}={quoted(value)}" if "=" in value and not set(value) & set("'\"[]{}(),") else argument
    if value[:1] + value[-1:] == "[]" and "],[" not in value:  # a single list, whose items may need quotes
        names = ",".join(quoted(name.strip()) for name in value[1:-1].split(",") if name.strip())
        return argument if set(value) & set("'\"") else f"{key}=[{names}]"
    if is_sweep and re.match(r"(choice|glob|sort|shuffle)\(", value):
        return argument
    return f"{key}={','.join(map(quoted, value.split(',') if is_sweep else [value]))}"


def as_typed(overrides: Iterable[str]) -> list[str]:
    """The overrides that Hydra lists, as they were typed: reading its list would resolve interpolations in them."""
    listed: Any = OmegaConf.to_container(overrides) if OmegaConf.is_config(overrides) else overrides
    return list(map(str, listed))


def parse_override(argument: str) -> Override:
    """Parse an override by Hydra's grammar. Raises HydraException."""
    return OverridesParser.create().parse_override(argument)


def override_values(override: Override, options: Sequence[str] = ()) -> list[Any]:
    """The value of an override, or all values of a sweep. A glob matches against `options`.

    Ranges and intervals, which are numbers, are left out.
    """
    value = override.value()
    if isinstance(value, Glob):
        return value.filter(list(options))
    if isinstance(value, ChoiceSweep):
        return [Override._convert_value(each) for each in value.list]
    return [] if isinstance(value, Sweep) else [value]


def unquoted(value: str) -> str:
    """The value as Hydra parses it."""
    return str(parse_override(f"key={value}").value())


def quoted(value: object) -> str:
    """The value in quotes, so that Hydra takes it literally."""
    return QuotedString(str(value), Quote.single).with_quotes()
