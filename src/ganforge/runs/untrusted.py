"""What may be in a folder that a stranger made: ordinary files, plain YAML, and interpolations that `conf/` has too."""

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
"""Names in a run folder that are of one kind only."""

APPENDED = (".log", ".csv", ".db")
"""Endings of files that are written in place, so that another name of theirs would be written to as well."""

MAX_BYTES = 2**18
MAX_DEPTH = 40
MAX_INTERPOLATION = 1000
MAX_SIZE = 10**6
"""Of a config: bytes of its file, nesting, characters of a text that is computed, and nodes and characters when all of
it is computed. Real ones have some thousand bytes."""


# Files -----------------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Raise UserError where a run's or sweep's folder holds more than files and folders, such as a link.

    Then whoever reads or writes in the folder stays inside it, and does not wait for a FIFO. Only Weights & Biases has
    links of its own, which have to stay inside.
    """
    for entry in _entries(folder):
        is_folder = entry.is_dir(follow_symlinks=False)
        if entry.is_symlink() and _is_of_wandb(Path(entry.path), folder):
            continue
        if not is_folder and not entry.is_file(follow_symlinks=False):
            kind = "a link" if entry.is_symlink() else "neither a file nor a folder"
            raise UserError(
                f"{entry.path} is {kind}, which may lead out of the run folder: it is refused. If the folder is yours, "
                "put what it leads to in its place"
            )
        if entry.name.endswith(APPENDED) and not is_folder and entry.stat().st_nlink > 1:
            raise UserError(f"{entry.path} has a second name elsewhere (a hard link): put a copy of it in its place")
        if entry.name in (FILES if is_folder else FOLDERS):
            raise Damaged(f"{entry.path} is a {'folder' if is_folder else 'file'}: remove it, or restore the run")


def _is_of_wandb(link: Path, folder: Path) -> bool:
    is_below = "wandb" in link.relative_to(folder).parts[:-1]
    return is_below and link.resolve().is_relative_to(folder.resolve())


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; links are not followed."""
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
    """What OmegaConf makes of a YAML of a run folder, with nothing resolved.

    Raises Damaged where it is damaged, and UserError where it holds what no run writes.
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
            raise UserError(f"{path} has aliases, tags or deep nesting, which no run writes: it is refused")


def check_config(values: Any) -> None:
    """Raise UserError where a config that is not resolved yet has control characters, computes what `conf/` does not,
    or would be huge once it is resolved."""
    for text in texts(values):
        check_text(text)
    try:
        is_small = _size(values) <= MAX_SIZE
    except (RecursionError, ValueError):  # a chain of thousands, or a number of thousands of digits
        is_small = False
    if not is_small:
        raise UserError("This run's config refers to itself, or is huge once it is resolved: it is refused")


def texts(node: Any) -> Iterator[str]:
    """All texts in plain containers, names of keys included."""
    if isinstance(node, dict):
        node = [*node, *node.values()]
    if isinstance(node, list):
        for value in node:
            yield from texts(value)
    elif isinstance(node, str):
        yield node


def check_caches(node: Any, overrides: Sequence[str], place: str = "") -> None:
    """Raise UserError where a record has a cache elsewhere than where one is already, and nobody typed that."""
    if isinstance(node, dict):
        for key, value in node.items():
            check_caches(value, overrides, f"{place}.{key}".lstrip("."))
    is_ours = not place.endswith("cache_dir") or node is None or place in map(key_of, overrides)
    if not is_ours and not is_cache(Path(str(node)).expanduser()):
        raise UserError(f"{place}={node} of this run is no cache on this machine. To use it, pass {place}= again")


def check_text(text: str) -> None:
    if not is_printable(text):
        raise UserError(f"This run has control characters in {printable(text)}: it is refused")
    before, rest = "", text
    while "${" in rest and rest != before and len(text) <= MAX_INTERPOLATION:
        before, rest = rest, _COMPUTED.sub("\0", rest)  # the innermost ones first
    if "${" in rest:
        raise UserError(f"This run holds {text[:MAX_INTERPOLATION]}, which may run code or read secrets: it is refused")


_KEY = r"\.*\w+(?:\.\w+)*"
_SCALAR = r"condition_size:(?:\0|\{[^${}]*\})|slurm:\w+"
_COMPUTED = re.compile(rf"\$\{{(?:{_KEY}|oc\.select:{_KEY}(?:,[^${{}}'\"\s]*)?|{_SCALAR})\}}")
"""An interpolation with no other inside: of a key, or by a resolver that the parts of a record have in `conf/`. None of
these reads files or the environment (of SLURM's variables, two numbers)."""

_WHOLE = re.compile(rf"\$\{{(\.*)({_KEY})\}}")
_REFERENCE = re.compile(rf"\$\{{(?:oc\.select:)?(\.*)({_KEY})")


def _size(config: Any) -> float:
    """How many nodes and characters a config has once it is resolved; infinitely many where it refers to itself."""
    sizes: dict[tuple[str, ...], float] = {}

    def size(named: tuple[str, ...]) -> float:
        place, node = _followed(config, named)
        if place not in sizes:
            sizes[place] = inf  # until it is known
            if isinstance(node, dict | list):
                keys = map(str, node if isinstance(node, dict) else range(len(node)))
                sizes[place] = 1 + sum(size((*place, key)) for key in keys)
            else:
                sizes[place] = 1 + len(str(node)) + sum(map(size, _references(str(node), place)))
        return sizes[place]

    return size(())


def _followed(config: Any, place: tuple[str, ...], hops: int = 0) -> tuple[tuple[str, ...], Any]:
    """Where a place lies once references on the way to it are followed, and the node there, or None."""
    if hops > MAX_DEPTH:
        raise RecursionError
    node = config
    for i, key in enumerate(place):
        if isinstance(node, str) and (reference := _WHOLE.fullmatch(node)):
            return _followed(config, (*_target(reference[1], reference[2], place[:i]), *place[i:]), hops + 1)
        if isinstance(node, dict):  # keys may be numbers as well
            node = node[key] if key in node else next((value for name, value in node.items() if str(name) == key), None)
        else:
            node = node[int(key)] if isinstance(node, list) and key.isdecimal() and int(key) < len(node) else None
    return place, node


def _references(text: str, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The places that the interpolations of a text lead to; what is counted rather than copied is none."""
    for dots, key in _REFERENCE.findall(re.sub(r"\$\{condition_size:\$\{[^${}]*\}\}", "", text)):
        yield _target(dots, key, place)


def _target(dots: str, key: str, place: tuple[str, ...]) -> tuple[str, ...]:
    """The place of a key; one that begins with dots is relative to that of the interpolation."""
    return (*(place[: -len(dots)] if dots else ()), *key.split("."))
