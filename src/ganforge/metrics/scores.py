"""What a run remembers of its metrics: the last and the best value of each, with their steps and how they were made."""

import json
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import Any

from ganforge.files import write_whole

TRAINING = ("higher_is_better", "last", "best")
"""What training writes of a metric; `evaluated` is evaluate.py's."""


class Scores(dict[str, dict[str, Any]]):
    """By a metric's name: whether higher is better, and its `last` and `best` value, step and provenance."""

    def add(self, name: str, higher_is_better: bool, step: int, value: float, provenance: Mapping[str, Any]) -> None:
        """Note a value. The best is sought among those that were made alike, whatever the versions of libraries."""
        now = {"value": value, "step": step, "provenance": dict(provenance)}
        score = self.setdefault(name, {"higher_is_better": higher_is_better, "last": now, "best": now})
        score["last"] = now
        best, sign = score["best"], 1 if higher_is_better else -1
        if _protocol(best) != _protocol(now) or isnan(best["value"]) or sign * value > sign * best["value"]:
            score["best"] = now

    def improved(self, name: str | None, step: int) -> bool:
        """Whether a metric was at its best at this step."""
        return name is not None and name in self and self[name]["best"]["step"] == step

    def write(self, path: Path) -> None:
        """Put these into a `metrics.json`, in place of what is there of a training."""
        metrics = _read(path)
        for entry in metrics.values():
            for part in TRAINING:
                entry.pop(part, None)
        for name, score in self.items():
            metrics[name] = {**score, **metrics.get(name, {})}
        _write(path, {name: entry for name, entry in metrics.items() if entry})


def write_evaluated(path: Path, values: Mapping[str, float], provenance: Mapping[str, Any]) -> None:
    """Put what evaluate.py measured into a `metrics.json`, beside what is there of a training."""
    metrics = _read(path)
    for name, value in values.items():
        metrics.setdefault(name, {})["evaluated"] = {"value": value, "provenance": dict(provenance)}
    _write(path, metrics)


def _protocol(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry["provenance"].items() if key != "versions"}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _write(path: Path, metrics: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(metrics, indent=2) + "\n").encode())
