"""What a run folder says about its run: the environment, and the settings."""

import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from ganforge import __version__
from ganforge.runs.folder_contents import read_yaml, strings
from ganforge.runs.record import read_resumed
from ganforge.runtime.files import write_atomic
from ganforge.runtime.overrides import parse_override

PACKAGES = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "torch-fidelity", "numpy")

UNTRAINED_SECTIONS = {"name", "resume", "sweep", "checkpoint_every", "sample_every", "evaluate_every"}
UNTRAINED_SECTIONS |= {"callbacks", "logger", "metrics", "extractor", "trainer"}
"""Sections of a config that do not affect the weights, except for `TRAINING`."""
TRAINING = {"trainer.max_steps", "trainer.max_epochs", "trainer.precision", "trainer.devices", "trainer.num_nodes"}
TRAINING |= {"trainer.sync_batchnorm", "trainer.deterministic"}
TRAINING |= {"callbacks.health.on_collapse", "callbacks.health.patience"}
"""Options in these sections that affect the weights."""


def write_environment(config: DictConfig, folder: Path, trainer: Trainer) -> None:
    """Write `environment.json` of a new run. It keeps the overrides of earlier attempts."""
    folder.mkdir(parents=True, exist_ok=True)
    resumed = [{"step": step, "overrides": overrides} for step, overrides in read_resumed(folder)]
    content = environment(config, trainer) | ({"resumed": resumed} if resumed else {})
    write_atomic(folder / "environment.json", (json.dumps(content, indent=2) + "\n").encode())


def settings(folder: Path) -> dict[str, Any]:
    """The settings of a run: group options and values by their key in the config, without interpolated values.

    {"loss": "hinge", "model.generator_optimizer.lr": 0.001}
    """
    recorded = _recorded(folder / ".hydra" / "hydra.yaml").get("hydra", {}).get("runtime", {}).get("choices", {})
    choices = {group.rpartition("@")[2]: option for group, option in recorded.items() if not group.startswith("hydra/")}
    config = dict(_leaves(_recorded(folder / ".hydra" / "config.yaml")))
    for step, overrides in read_resumed(folder):
        config |= _changed(config, step, overrides)
    values = {key: value for key, value in config.items() if key.removesuffix("._target_") not in choices}
    return {
        key: value
        for key, value in {**choices, **values}.items()
        if key in TRAINING or key.partition(".")[0] not in UNTRAINED_SECTIONS
    }


def _changed(config: Mapping[str, Any], step: int, overrides: list[str]) -> dict[str, Any]:
    """The values that a run was resumed with after a step; those that affect the weights with the value before."""
    found = {}
    for override in map(parse_override, overrides):
        key, value = override.key_or_group, override.value()
        is_silent = step == 0 or key in TRAINING or config.get(key, value) == value
        found[key] = value if is_silent else f"{config[key]}, from step {step:,} {value}"
    return found


def hyperparameters(folder: Path) -> dict[str, float | str]:
    """The settings without paths, as TensorBoard's HParams take them."""
    given = {key: value for key, value in settings(folder).items() if value is not None and "/" not in str(value)}
    return {
        key.removesuffix("._target_"): value if isinstance(value, int | float | str) else str(value)
        for key, value in given.items()
    }


def _recorded(path: Path) -> dict[str, Any]:
    found = OmegaConf.to_container(read_yaml(path)) if path.is_file() else {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _leaves(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from _leaves(value, key)
        elif name == "_target_":
            yield key, str(value).rpartition(".")[2]
        elif name not in ("_partial_", "cache_dir", "classes") and not _is_reference(value):
            yield key, value


def _is_reference(value: Any) -> bool:
    """Whether a value stands elsewhere in the config, unlike that of a schedule such as ${cosine:2.0,0.2}."""
    return any("${" in text and not re.match(r"\$\{(linear|cosine):", text) for text in strings(value))


def environment(config: DictConfig, trainer: Trainer) -> dict[str, Any]:
    """What is needed to reproduce a run elsewhere."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "accelerator": type(trainer.accelerator).__name__,
        "devices": trainer.world_size,
        "seed": config.seed,
    }


def versions() -> dict[str, str | None]:
    """The version of each package; null where it runs from its sources, without being installed."""
    found: dict[str, str | None] = {"ganforge": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def was_stopped_at_once(folder: Path) -> bool:
    """Whether a run was stopped before its checkpoint of step 0 was written, so that there is nothing to lose."""
    checkpoints, pictures = folder / "checkpoints", (folder / "samples").glob("step-*.png")
    if checkpoints.is_symlink() or any(path.stem != "step-00000000" for path in pictures):
        return False
    return all(path.name.lstrip(".").startswith("next.ckpt") for path in checkpoints.glob("*"))
