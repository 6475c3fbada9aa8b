"""Options that there are not: found before Hydra looks for them, and answered with the nearest ones."""

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

from ganforge.experiment.trainer_options import OTHER_WORDS
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import override_values, parse_override, quoted

NOT_OURS = ("hydra", "recorded")
"""What Hydra checks itself, and what evaluate.py adds to its arguments."""

COMBINATIONS = 16
"""At most this many combinations of swept groups are composed for the check."""


def check_spelling(arguments: list[str], conf: Path, config_name: str, record: DictConfig | None = None) -> None:
    """Raise UserError for an argument that names no option of `conf/<config_name>.yaml`, or of a record."""
    overrides = [_parsed(argument) for argument in arguments if not argument.startswith("-")]
    there = _always_there(conf, config_name)
    ours = [override for override in overrides if re.split(r"[./]", override.key_or_group)[0] not in NOT_OURS]
    groups = [override for override in ours if (conf / override.key_or_group).is_dir()]
    for override in groups:
        if override.is_add() and override.package is None and override.key_or_group in there:
            raise UserError(f"+{override.key_or_group}= is chosen already: leave out the +")
        _check_options(override, conf)
    keys = [override.key_or_group for override in ours if override not in groups and not override.is_add()]
    if not keys and all(override.key_or_group in there for override in groups):
        return  # composing takes some tenths of a second
    fixed = [override.input_line or "" for override in overrides if override not in ours]
    for config in [record] if record is not None else _compositions(groups, fixed, conf, config_name):
        values = OmegaConf.to_container(config)
        for key in keys:
            if not _is_in(values, key.split(".")):
                raise UserError(_no_such(key, [*_keys(values), *_groups(conf)]))


def _parsed(argument: str) -> Override:
    key, equals, value = argument.partition("=")
    try:
        return parse_override(argument)
    except HydraException as error:
        if not equals:
            raise UserError(f"{argument}: options are given as key=value, such as model=dcgan") from error
        raise UserError(f'{key}: Hydra cannot parse {value}. To mean it literally: "{key}={quoted(value)}"') from error


# Groups ----------------------------------------------------------------------------------------------------------


def _always_there(conf: Path, config_name: str) -> set[str]:
    """The groups that a config chooses from, whatever is chosen."""
    defaults = yaml.safe_load((conf / f"{config_name}.yaml").read_text())["defaults"]
    return {group for entry in defaults if isinstance(entry, dict) for group in entry}


def _options(group: Path) -> list[str]:
    return sorted(path.stem for path in group.glob("*.yaml"))


def _check_options(override: Override, conf: Path) -> None:
    group = override.key_or_group
    there = _options(conf / group)
    for choice in override_values(override, there):
        for option in choice if isinstance(choice, list) else [choice]:
            if option is not None and not (conf / group / f"{option}.yaml").is_file():
                near = get_close_matches(str(option).lower(), there, n=1)
                meant = f"Did you mean {group}={near[0]}? " if near else ""
                raise UserError(f"{group}={option}: there is no such option. {meant}There are {', '.join(there)}")


def _compositions(groups: list[Override], fixed: list[str], conf: Path, config_name: str) -> Iterator[DictConfig]:
    """The configs of the chosen options, of each job where they are swept."""
    swept = [override for override in groups if override.is_sweep_override()]
    fixed = fixed + [override.input_line or "" for override in groups if override not in swept]
    names = [override.get_key_element() for override in swept]
    choices_of = [override_values(override, _options(conf / override.key_or_group)) for override in swept]
    with initialize_config_dir(str(conf), version_base="1.3"):
        for choices in islice(product(*choices_of), COMBINATIONS):
            chosen = [f"{name}={_as_typed(choice)}" for name, choice in zip(names, choices, strict=True)]
            try:
                yield compose(config_name, [*fixed, *chosen])
            except HydraException as error:
                raise UserError(_first_sentence(error)) from error


def _as_typed(choice: Any) -> str:
    return f"[{','.join(map(str, choice))}]" if isinstance(choice, list) else str(choice)


def _first_sentence(error: HydraException) -> str:
    said = str(error).partition("\n")[0]
    if said.startswith("Multiple values for "):
        return f"{said.split()[3].rstrip('.')}= is chosen already: leave out the +"
    if said.startswith("Could not override '"):
        group = said.split("'")[1].partition("@")[0]
        return f"{group}=: the chosen model and data have no such part: leave it out, or choose others"
    return said


# Keys ------------------------------------------------------------------------------------------------------------


def _is_in(node: Any, key: list[str]) -> bool:
    if not key or (isinstance(node, str) and "${" in node):  # what it refers to is known only later
        return True
    if isinstance(node, Mapping):
        names = {str(name): value for name, value in node.items()}
        return key[0] in names and _is_in(names[key[0]], key[1:])
    return False


def _keys(node: Any, path: str = "") -> Iterator[str]:
    """All keys below a node, inner ones included."""
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if not str(name).startswith("_"):
            key = f"{path}.{name}".lstrip(".")
            yield key
            yield from _keys(value, key)


def _groups(conf: Path) -> list[str]:
    return [path.name for path in conf.iterdir() if path.is_dir() and path.name != "hydra"]


def _no_such(key: str, options: list[str]) -> str:
    name = key.rpartition(".")[2]
    if name in OTHER_WORDS:
        return f"{key}: there is no such option: {OTHER_WORDS[name]}"
    near = nearest(key, options)
    meant = f"Did you mean {' or '.join(near)}?" if near else f"If a class accepts it, +{key}= adds it"
    return f"{key}: there is no such option. {meant}{'' if near else '. --help lists all'}"


def nearest(key: str, options: Iterable[str], count: int = 2) -> list[str]:
    """The options that somebody who typed a key may have meant, the likeliest ones first."""
    options = list(dict.fromkeys(options))
    name = key.rpartition(".")[2]
    same = [option for option in options if f".{option}".endswith(f".{name}")]
    same.sort(key=lambda option: option.partition(".")[0] != key.partition(".")[0])
    found = [*same, *get_close_matches(key, options, n=count, cutoff=0.75)]
    if not found:  # the last part alone
        names = get_close_matches(name, {option.rpartition(".")[2] for option in options}, n=count, cutoff=0.75)
        found = [option for option in options if option.rpartition(".")[2] in names]
    return list(dict.fromkeys(found))[:count]
