"""What a run remembers of its metrics: the last and the best value of each, with their steps and how they were made."""

import json
import logging
from collections.abc import Mapping
from itertools import count
from math import isfinite, isnan
from os.path import lexists
from pathlib import Path
from typing import Any

from ganforge.runs.schemas import METRICS, read_table
from ganforge.runtime.downloads import first_line
from ganforge.runtime.errors import Damaged, UserError
from ganforge.runtime.files import write_atomic

log = logging.getLogger(__name__)

TRAINING = ("higher_is_better", "ideal", "monitored", "last", "best")
"""What training writes of a metric; `evaluated` is evaluate.py's."""

Better = bool | float
"""Which values of a metric are better: higher ones (True), lower ones (False), or those nearer to an ideal number."""


def objective(value: float, better: Better) -> float:
    """What a search minimises or maximises: the value, or how far it is from the ideal one."""
    return value if isinstance(better, bool) else abs(value - better)


def shortfall(value: float, better: Better) -> float:
    """What orders the values of a metric: less is better."""
    return -value if better is True else objective(value, better)


def better_of(score: Mapping[str, Any]) -> Better:
    """What a `metrics.json` says of a metric."""
    return float(score["ideal"]) if "ideal" in score else bool(score.get("higher_is_better", True))


class Scores(dict[str, dict[str, Any]]):
    """By a metric's name: which values are better, whether it decides which checkpoint is the best, and its `last`
    and `best` value, step and provenance."""

    def add(
        self,
        name: str,
        better: Better,
        monitored: bool,
        step: int,
        value: float,
        provenance: Mapping[str, Any],
    ) -> None:
        """Note a value. The best is sought among those that were made alike, whatever the versions of libraries."""
        now: dict[str, Any] = {"value": value, "step": step, "provenance": dict(provenance)}
        best = self[name]["best"] if name in self else now
        is_nearer = shortfall(value, better) < shortfall(best["value"], better)
        if _protocol(best) != _protocol(now) or isnan(best["value"]) or is_nearer:
            best = now
        kind = "higher_is_better" if isinstance(better, bool) else "ideal"
        self[name] = {kind: better, "monitored": monitored, "last": now, "best": best}

    def improved(self, name: str | None) -> bool:
        """Whether the value of a metric that was added last is its best."""
        return name is not None and name in self and self[name]["best"] is self[name]["last"]

    def write(self, path: Path) -> None:
        """Put these into a `metrics.json`, in place of what is there of a training."""
        metrics = read_scores(path)
        for entry in metrics.values():
            for part in TRAINING:
                entry.pop(part, None)
        for name, score in self.items():
            metrics[name] = {**score, **metrics.get(name, {})}
        _write(path, {name: entry for name, entry in metrics.items() if entry})


def write_evaluated(path: Path, values: Mapping[str, float], provenance: Mapping[str, Any]) -> None:
    """Put what evaluate.py measured into a `metrics.json`: a list beside what is there of a training, in which what was
    made in the same way is replaced."""
    metrics = read_table(path, METRICS)
    for name, value in values.items():
        now = {"value": value, "provenance": dict(provenance)}
        others = [entry for entry in metrics.get(name, {}).get("evaluated", []) if _protocol(entry) != _protocol(now)]
        metrics.setdefault(name, {})["evaluated"] = [*others, now]
    _write(path, metrics)


def write_health(path: Path, health: Mapping[str, Any]) -> None:
    """Put what callbacks.health noticed into a `metrics.json`, in place of what was there of it."""
    metrics = read_scores(path)
    if metrics.pop("health", None) or any(health.values()):
        _write(path, {**metrics, "health": health} if any(health.values()) else metrics)


def check_writable(path: Path) -> None:
    """Raise UserError where no `metrics.json` can be written, or something else would be lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        read_table(path, METRICS)
    except (OSError, Damaged) as error:
        raise UserError(f"output={path} cannot be written: {first_line(error)}") from error


def read_scores(path: Path) -> dict[str, Any]:
    """What is there; a training goes on without what is damaged, which is moved aside."""
    try:
        return read_table(path, METRICS)
    except Damaged as error:
        names = (path.with_name(f"{path.stem}.damaged-{i}.json") for i in count(1))
        aside = next(name for name in names if not lexists(name))
        path.rename(aside)
        log.warning("%s. It is kept as %s, and begun anew.", error, aside.name)
        return {}


def _protocol(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry["provenance"].items() if key != "versions"}


def _write(path: Path, metrics: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(_plain(metrics), indent=2) + "\n").encode())


def _plain(node: Any) -> Any:
    """Without what JSON does not know: NaN and infinity are null."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return None if isinstance(node, float) and not isfinite(node) else node
