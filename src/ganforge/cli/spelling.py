"""Find misspelt options before Hydra does, and suggest the nearest ones."""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice, product
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ganforge.cli.trainer_options import OTHER_WORDS
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import override_values, parse_override, quoted

UNCHECKED = ("hydra", "recorded")
"""Groups that Hydra checks itself, and the one that evaluate.py adds to its arguments."""

MAX_COMBINATIONS = 16
"""Most combinations of swept groups that the check composes."""


def check_spelling(arguments: list[str], conf: Path, config_name: str, record: DictConfig | None = None) -> None:
    """Raise UserError for an argument that is not an option of `conf/<config_name>.yaml`, or of the given record."""
    overrides = [_parsed(argument) for argument in arguments if not argument.startswith("-")]
    defaults = _default_groups(conf, config_name)
    checked = [override for override in overrides if re.split(r"[./]", override.key_or_group)[0] not in UNCHECKED]
    groups = [override for override in checked if _chooses_option(override, conf)]
    for override in overrides:
        if override.key_or_group == "hydra/sweeper/sampler":
            _check_options(override, conf)
    for override in groups:
        if override.is_add() and override.package is None and override.key_or_group in defaults:
            raise UserError(f"+{override.key_or_group}= is already chosen: leave out the +")
        _check_options(override, conf)
    set_keys = [override for override in checked if override not in groups and not override.is_add()]
    keys = [key for override in set_keys for key in _set_by(override)]
    if not keys and all(override.key_or_group in defaults for override in groups):
        return  # saves composing, which takes tenths of a second
    fixed = [override.input_line or "" for override in overrides if override not in checked]
    for config in [record] if record is not None else _compositions(groups, fixed, conf, config_name):
        values = OmegaConf.to_container(config)
        for key in keys:
            if not _is_in(values, key.split(".")):
                raise UserError(_unknown_key(key, [*_keys(values), *_groups(conf)]))


def _parsed(argument: str) -> Override:
    key, equals, value = argument.partition("=")
    try:
        return parse_override(argument)
    except HydraException as error:
        if not equals:
            raise UserError(f"{argument}: options are given as key=value, such as model=dcgan") from error
        raise UserError(f'{key}: Hydra cannot parse {value}. To mean it literally: "{key}={quoted(value)}"') from error


# Groups ----------------------------------------------------------------------------------------------------------


def _chooses_option(override: Override, conf: Path) -> bool:
    """Whether an override chooses an option of a group. Hydra takes a dict as values of the option's keys."""
    return (conf / override.key_or_group).is_dir() and not isinstance(override.value(), dict)


def _default_groups(conf: Path, config_name: str) -> set[str]:
    """The groups in the defaults list of a primary config."""
    defaults = yaml.safe_load((conf / f"{config_name}.yaml").read_text())["defaults"]
    return {group for entry in defaults if isinstance(entry, dict) for group in entry}


def options_of(group: Path) -> list[str]:
    """The options of a group, a folder of `conf/`."""
    return sorted(path.stem for path in group.glob("*.yaml"))


def _check_options(override: Override, conf: Path) -> None:
    group = override.key_or_group
    options = options_of(conf / group)
    for choice in override_values(override, options):
        for option in choice if isinstance(choice, list) else [choice]:
            if option is not None and not (conf / group / f"{option}.yaml").is_file():
                near = get_close_matches(str(option).lower(), options, n=1)
                meant = f"Did you mean {group}={near[0]}? " if near else ""
                raise UserError(f"{group}={option}: there is no such option. {meant}Choose from {', '.join(options)}")


def _compositions(groups: list[Override], fixed: list[str], conf: Path, config_name: str) -> Iterator[DictConfig]:
    """The composed configs, one for each combination of swept groups."""
    swept = [override for override in groups if override.is_sweep_override()]
    fixed = fixed + [override.input_line or "" for override in groups if override not in swept]
    names = [override.get_key_element() for override in swept]
    choices_of = [override_values(override, options_of(conf / override.key_or_group)) for override in swept]
    with initialize_config_dir(str(conf), version_base="1.3"):
        for choices in islice(product(*choices_of), MAX_COMBINATIONS):
            chosen = [f"{name}={_as_typed(choice)}" for name, choice in zip(names, choices, strict=True)]
            try:
                yield compose(config_name, [*fixed, *chosen])
            except HydraException as error:
                raise UserError(_reworded(error)) from error


def _as_typed(choice: Any) -> str:
    return f"[{','.join(map(str, choice))}]" if isinstance(choice, list) else str(choice)


def _reworded(error: HydraException) -> str:
    """The first line of Hydra's error, or our message for two common mistakes."""
    first_line = str(error).partition("\n")[0]
    if first_line.startswith("Multiple values for "):
        return f"{first_line.split()[3].rstrip('.')}= is already chosen: leave out the +"
    if first_line.startswith("Could not override '"):
        group = first_line.split("'")[1].partition("@")[0]
        return f"{group}=: the chosen model and data do not use this group. Leave it out, or choose others"
    return first_line


# Keys ------------------------------------------------------------------------------------------------------------


def _set_by(override: Override) -> list[str]:
    """The key of an override, and those below it if its value is a dict."""
    key, value = override.key_or_group, override.value()
    return [key, *(f"{key}.{name}" for name in (_keys(value) if isinstance(value, dict) else ()))]


def _is_in(node: Any, key: list[str]) -> bool:
    if not key or (isinstance(node, str) and "${" in node):  # an interpolation is resolved later
        return True
    if isinstance(node, Mapping):
        names = {str(name): value for name, value in node.items()}
        return key[0] in names and _is_in(names[key[0]], key[1:])
    return False


def _keys(node: Any, path: str = "") -> Iterator[str]:
    """All keys below a node, inner and outer ones."""
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if not str(name).startswith("_"):
            key = f"{path}.{name}".lstrip(".")
            yield key
            yield from _keys(value, key)


def _groups(conf: Path) -> list[str]:
    return [path.name for path in conf.iterdir() if path.is_dir() and path.name != "hydra"]


def _unknown_key(key: str, options: list[str]) -> str:
    name = key.rpartition(".")[2]
    options = [option for option in options if not key.startswith(f"{option}.")]
    if name in OTHER_WORDS:
        return f"{key}: no such option; {OTHER_WORDS[name]}"
    if near := nearest(key, options):
        return f"{key}: there is no such option. Did you mean {' or '.join(near)}?"
    return f"{key}: there is no such option. If a class accepts it, +{key}= adds it. --help lists all"


def nearest(key: str, options: Iterable[str], count: int = 2) -> list[str]:
    """The options closest to a misspelt key, the likeliest first."""
    options = list(dict.fromkeys(options))
    name = key.rpartition(".")[2]
    same = [option for option in options if f".{option}".endswith(f".{name}")]
    same.sort(key=lambda option: option.partition(".")[0] != key.partition(".")[0])
    matches = [*same, *get_close_matches(key, options, n=count, cutoff=0.75)]
    if not matches:  # compare the last part alone
        names = get_close_matches(name, {option.rpartition(".")[2] for option in options}, n=count, cutoff=0.75)
        matches = [option for option in options if option.rpartition(".")[2] in names]
    return list(dict.fromkeys(matches))[:count]
