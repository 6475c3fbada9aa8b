"""What a run remembers of its metrics: the last and the best value of each, with their steps and how they were made."""

import json
from collections.abc import Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import Any

from ganforge.downloads import first_line
from ganforge.errors import UserError
from ganforge.files import read_json, write_whole

TRAINING = ("higher_is_better", "monitored", "last", "best")
"""What training writes of a metric; `evaluated` is evaluate.py's."""


class Scores(dict[str, dict[str, Any]]):
    """By a metric's name: whether higher is better, whether it decides which checkpoint is the best, and its `last`
    and `best` value, step and provenance."""

    def add(
        self,
        name: str,
        higher_is_better: bool,
        monitored: bool,
        step: int,
        value: float,
        provenance: Mapping[str, Any],
    ) -> None:
        """Note a value. The best is sought among those that were made alike, whatever the versions of libraries."""
        now = {"value": value, "step": step, "provenance": dict(provenance)}
        kind = {"higher_is_better": higher_is_better, "monitored": monitored}
        score = self.setdefault(name, {**kind, "last": now, "best": now})
        score["last"] = now
        best, sign = score["best"], 1 if higher_is_better else -1
        if _protocol(best) != _protocol(now) or isnan(best["value"]) or sign * value > sign * best["value"]:
            score["best"] = now

    def improved(self, name: str | None) -> bool:
        """Whether the value of a metric that was added last is its best."""
        return name is not None and name in self and self[name]["best"] is self[name]["last"]

    def write(self, path: Path) -> None:
        """Put these into a `metrics.json`, in place of what is there of a training."""
        metrics = read_json(path)
        for entry in metrics.values():
            for part in TRAINING:
                entry.pop(part, None)
        for name, score in self.items():
            metrics[name] = {**score, **metrics.get(name, {})}
        _write(path, {name: entry for name, entry in metrics.items() if entry})


def write_evaluated(path: Path, values: Mapping[str, float], provenance: Mapping[str, Any]) -> None:
    """Put what evaluate.py measured into a `metrics.json`: a list beside what is there of a training, in which what was
    made in the same way is replaced."""
    metrics = read_json(path)
    for name, value in values.items():
        now = {"value": value, "provenance": dict(provenance)}
        others = [entry for entry in metrics.get(name, {}).get("evaluated", []) if _protocol(entry) != _protocol(now)]
        metrics.setdefault(name, {})["evaluated"] = [*others, now]
    _write(path, metrics)


def write_health(path: Path, health: Mapping[str, Any]) -> None:
    """Put what callbacks.health noticed into a `metrics.json`, in place of what was there of it."""
    metrics = read_json(path)
    if metrics.pop("health", None) or any(health.values()):
        _write(path, {**metrics, "health": health} if any(health.values()) else metrics)


def check_writable(path: Path) -> None:
    """Raise UserError where no `metrics.json` can be written, or something else would be lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not isinstance(json.loads(path.read_text()), dict):
            raise ValueError("it is no table of metrics")
    except (OSError, ValueError) as error:
        raise UserError(f"output={path} cannot be written: {first_line(error)}") from error


def _protocol(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry["provenance"].items() if key != "versions"}


def _write(path: Path, metrics: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(_plain(metrics), indent=2) + "\n").encode())


def _plain(node: Any) -> Any:
    """Without what JSON does not know: NaN and infinity are null."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return None if isinstance(node, float) and not isfinite(node) else node
