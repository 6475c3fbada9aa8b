"""What a run folder may hold, whoever wrote it: regular files, plain YAML, and the interpolations that `conf/` uses.

What its config may instantiate is checked in `ganforge.experiment.trust`.
"""

import os
import re
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ganforge.runtime.errors import Damaged, UserError
from ganforge.runtime.files import is_cache
from ganforge.runtime.overrides import key_of
from ganforge.runtime.text import is_printable, printable

FILES = (
    *("config.yaml", "hydra.yaml", "overrides.yaml", "sweep.yaml", "metrics.json", "environment.json"),
    *("train.log", "error.txt", "search.db", "last.ckpt", "previous.ckpt", "healthy.ckpt", "metrics.csv"),
    *("fit-profile.txt", "trace.json", "hparams.yaml", "wandb_id"),
)
FOLDERS = (".hydra", "checkpoints", "samples", "export")
"""Names that are always a file, or always a folder, in a run folder."""

APPENDED = (".log", ".csv", ".db")
"""Endings of files that are appended to in place, which would write through a hard link."""

MAX_BYTES = 2**18
"""Maximum size of a YAML file. Real configs have a few thousand bytes."""
MAX_DEPTH = 40
"""Maximum depth of nesting, and of references to references."""
MAX_INTERPOLATION = 1000
"""Maximum length of a string with interpolations."""
MAX_RESOLVED_SIZE = 10**6
"""Maximum number of nodes and characters of a config once it is resolved."""


# Files -----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Raise UserError if a run's or sweep's folder holds anything but regular files and folders.

    Links could lead outside the folder, and reading a FIFO could block. Weights & Biases creates links inside its own
    folder, which are allowed.
    """
    for entry in _entries(folder):
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.is_symlink() and _is_inner_wandb_link(Path(entry.path), folder):
            continue
        if not is_folder and not entry.is_file(follow_symlinks=False):
            kind = "a link" if entry.is_symlink() else "neither a file nor a folder"
            raise UserError(
                f"{entry.path} is {kind}, which may lead out of the run folder, so it is refused. If the folder is "
                "yours, replace it with what it leads to"
            )
        if entry.name.endswith(APPENDED) and not is_folder and entry.stat().st_nlink > 1:
            raise UserError(f"{entry.path} has a second name elsewhere (a hard link): replace it with a copy")
        if entry.name in (FILES if is_folder else FOLDERS):
            raise Damaged(f"{entry.path} is a {'folder' if is_folder else 'file'}: remove it, or restore the run")


def _is_inner_wandb_link(link: Path, folder: Path) -> bool:
    is_below = "wandb" in link.relative_to(folder).parts[:-1]
    return is_below and link.resolve().is_relative_to(folder.resolve())


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All entries below a folder, without following links."""
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError as error:
            raise Damaged(f"{error.filename} cannot be read: {error.strerror}") from error


# Configs ---------------------------------------------------------------------------------------------------------


def read_yaml(path: Path) -> Any:
    """Parse a YAML file of a run folder, without resolving interpolations.

    Raises Damaged if it cannot be parsed, and UserError if it has features that no run writes.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Damaged(f"{path} is larger than the config of any run")
        text = path.read_text(encoding="utf-8")
        _check_structure(text, path)
        return OmegaConf.create(text)
    except UserError:
        raise
    except (yaml.YAMLError, OSError, ValueError, AssertionError, OmegaConfBaseException) as error:
        raise Damaged(f"{path} cannot be read: {error}") from error


def _check_structure(text: str, path: Path) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) or depth > MAX_DEPTH:
            raise UserError(f"{path} has aliases, tags or deep nesting, which no run writes, so it is refused")


def check_config(values: Any) -> None:
    """Raise UserError for control characters, for unknown interpolations, and for a config that resolves to a huge one.

    values: the plain containers of the config
    """
    for text in strings(values):
        check_text(text)
    try:
        is_small = _resolved_size(values) <= MAX_RESOLVED_SIZE
    except (RecursionError, ValueError):  # a chain of thousands of references, or a number of thousands of digits
        is_small = False
    if not is_small:
        raise UserError("This run's config refers to itself, or is huge once it is resolved, so it is refused")


def strings(node: Any) -> Iterator[str]:
    """All strings in plain containers, keys included."""
    if isinstance(node, dict):
        node = [*node, *node.values()]
    if isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def check_caches(node: Any, overrides: Sequence[str], place: str = "") -> None:
    """Raise UserError if a record names a cache folder that does not exist here and that no override sets."""
    if isinstance(node, dict):
        for key, value in node.items():
            check_caches(value, overrides, f"{place}.{key}".lstrip("."))
    is_allowed = not place.endswith("cache_dir") or node is None or place in map(key_of, overrides)
    if not is_allowed and not is_cache(Path(str(node)).expanduser()):
        raise UserError(
            f"{place}={node} of this run is not a ganforge cache on this machine. To use it, pass {place}= explicitly"
        )


def check_text(text: str) -> None:
    """Raise UserError if a string of a config has control characters or unknown interpolations."""
    if not is_printable(text):
        raise UserError(f"This run has control characters in {printable(text)}, so it is refused")
    previous, rest = "", text
    while "${" in rest and rest != previous and len(text) <= MAX_INTERPOLATION:
        previous, rest = rest, _INTERPOLATION.sub("\0", rest)  # the innermost first
    if "${" in rest:
        raise UserError(
            f"This run holds {text[:MAX_INTERPOLATION]}, which may run code or read secrets, so it is refused"
        )


_KEY = r"\.*\w+(?:\.\w+)*"
_NUMBERS = r"(?:linear|cosine|packed):[-+.,\w\0 ]*"
_RESOLVER = rf"condition_size:(?:\0|\{{[^${{}}]*\}})|slurm:\w+|{_NUMBERS}"
_INTERPOLATION = re.compile(rf"\$\{{(?:{_KEY}|oc\.select:{_KEY}(?:,[^${{}}'\"\s]*)?|{_RESOLVER})\}}")
"""An allowed interpolation with no other inside: a key, or a resolver that `conf/` uses in the groups of a record.

None of them reads files or the environment, except for two numbers of SLURM's.
"""

_WHOLE = re.compile(rf"\$\{{(\.*)({_KEY})\}}")
_REFERENCE = re.compile(rf"\$\{{(?:oc\.select:)?(\.*)({_KEY})")


def _resolved_size(config: Any) -> float:
    """The nodes and characters of a config once it is resolved; infinite if it refers to itself."""
    sizes: dict[tuple[str, ...], float] = {}

    def size(named: tuple[str, ...]) -> float:
        place, node = _dereference(config, named)
        if place not in sizes:
            sizes[place] = inf  # stays so for a reference to itself
            if isinstance(node, dict | list):
                keys = map(str, node if isinstance(node, dict) else range(len(node)))
                sizes[place] = 1 + sum(size((*place, key)) for key in keys)
            else:
                sizes[place] = 1 + len(str(node)) + sum(map(size, _references(str(node), place)))
        return sizes[place]

    return size(())


def _dereference(config: Any, place: tuple[str, ...], hops: int = 0) -> tuple[tuple[str, ...], Any]:
    """The place itself once the references on the way to it are followed, and its node, or None if there is none."""
    if hops > MAX_DEPTH:
        raise RecursionError
    node = config
    for i, key in enumerate(place):
        if isinstance(node, str) and (reference := _WHOLE.fullmatch(node)):
            return _dereference(config, (*_target(reference[1], reference[2], place[:i]), *place[i:]), hops + 1)
        if isinstance(node, dict):  # keys may be numbers as well
            node = node[key] if key in node else next((value for name, value in node.items() if str(name) == key), None)
        else:
            node = node[int(key)] if isinstance(node, list) and key.isdecimal() and int(key) < len(node) else None
    return place, node


def _references(text: str, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The places that a string's interpolations copy. `condition_size` only counts what it refers to."""
    for dots, key in _REFERENCE.findall(re.sub(r"\$\{condition_size:\$\{[^${}]*\}\}", "", text)):
        yield _target(dots, key, place)


def _target(dots: str, key: str, place: tuple[str, ...]) -> tuple[str, ...]:
    """The place of a key. Leading dots make it relative to the place of the interpolation."""
    return (*(place[: -len(dots)] if dots else ()), *key.split("."))
