"""What README and docs name exists: every command composes, and every option is one."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, composed, slow
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import OmegaConf

from ganforge.runtime.overrides import key_of, literal

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ("train", "sample", "evaluate", "compare", "export")
FOLDERS = ("resume", "sweep")  # which take the place of a composition
PLUGINS = {"submitit": "submitit_launcher", "ray": "ray_launcher"}


def commands(page: Path) -> list[str]:
    """What its blocks have to be typed in a shell, placeholders filled in, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [re.sub(r"<[^<>]*>", "placeholder", line) for line in lines if "python " in line]


@pytest.mark.parametrize("page", [PAGES[0], *map(slow, PAGES[1:])], ids=lambda page: page.stem)
def test_commands_compose(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command, comments=True)
        script, *arguments = words[words.index("python") + 1 :]
        assert (ROOT / script).is_file() or script == "-m", command
        if script.startswith("benchmarks/") or script == "-m" or "..." in arguments:
            continue
        given = [literal(argument) for argument in arguments if argument != "-m"]
        if any("n_trials" in argument for argument in given) and "sweep" in map(key_of, given):
            given.append("hydra/sweeper=optuna")  # as its record says
        wanted = [f"hydra_plugins.hydra_{PLUGINS[name]}" for name in PLUGINS if f"={name}" in command]
        if all(map(find_spec, wanted)):
            for job in jobs([argument for argument in given if key_of(argument) not in FOLDERS]):
                composed(*job, config=Path(script).stem)


def jobs(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep; of an interval, its start."""
    choices = []
    for override, parsed in zip(overrides, OverridesParser.create().parse_overrides(overrides), strict=True):
        if not parsed.is_sweep_override():
            choices.append([override])
        elif isinstance(sweep := parsed.value(), IntervalSweep):
            choices.append([f"{parsed.key_or_group}={sweep.start}"])
        else:
            choices.append([f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()])
    yield from map(list, product(*choices))


@cache
def known() -> set[str]:
    """Every key of every option of every group, and the groups."""
    groups = {path.parent.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").glob("*/*.yaml")}
    keys = groups | {"optimizer@model.placeholder_optimizer"}
    for script in SCRIPTS:
        keys |= set(_keys(OmegaConf.to_container(composed(config=script))))
    for fitting, choices in (
        ([], ("model", "data", "regularizer", "augment", "schedule", "extractor", "logger", "debug")),
        (["model=srgan", "data=pairs"], ("content", "degradation")),
    ):
        every = [
            [f"{path.parent.name}={path.stem}" for path in (ROOT / "conf" / name).glob("*.yaml")] for name in choices
        ]
        for chosen in zip_longest(*every):  # one composition tells the keys of an option of each group
            wanted = [choice for choice in chosen if choice and choice != "model=bicubic"]
            keys |= set(_keys(OmegaConf.to_container(composed(*fitting, *wanted))))
    keys |= set(_keys(OmegaConf.to_container(composed("model=bicubic", config="evaluate"))))
    return keys


def _keys(node: Any, path: str = "") -> Iterator[str]:
    for name, value in node.items() if isinstance(node, dict) else ():
        key = f"{path}.{name}".lstrip(".")
        yield key
        yield from _keys(value, key)


OF_BENCHMARKS = {"images"}


@pytest.mark.parametrize("page", [PAGES[0], *map(slow, PAGES[1:])], ids=lambda page: page.stem)
def test_options_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    codes = [code for code in re.findall(r"`([^`\n]+)`", prose) if not set("()") & set(code)]  # which are Python
    for code in codes:
        for key in re.findall(r"(?:^|[\s,\"])~?([a-z][\w@/<>.]*)=(?!True|False)", code):
            name = re.sub(r"<[^<>]*>", "placeholder", key)
            assert name in known() | OF_BENCHMARKS or name.startswith(("hydra.", "hydra/")), f"{page.name}: {code}"
