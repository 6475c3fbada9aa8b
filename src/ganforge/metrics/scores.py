"""The scores of a run: the last and the best value of each metric, with step and provenance, and `metrics.json`."""

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

TRAINING_KEYS = ("higher_is_better", "ideal", "monitored", "last", "best")
"""The keys of a metric that training writes; evaluate.py writes `evaluated`."""

Better = bool | float
"""Which values of a metric are better: higher ones (True), lower ones (False), or those nearer to an ideal number."""


def objective(value: float, better: Better) -> float:
    """What a search optimizes: the value, or its distance to the ideal one."""
    return value if isinstance(better, bool) else abs(value - better)


def better_of(score: Mapping[str, Any]) -> Better:
    """Which values of a metric in `metrics.json` are better."""
    return float(score["ideal"]) if "ideal" in score else bool(score.get("higher_is_better", True))


def _cost(value: float, better: Better) -> float:
    """Lower is better, whatever the metric."""
    return -value if better is True else objective(value, better)


class Scores(dict[str, dict[str, Any]]):
    """Maps the name of a metric to: which values are better, whether it is `monitored` (chooses the best checkpoint),
    and its `last` and `best` entry, each with value, step and provenance."""

    def add(
        self,
        name: str,
        better: Better,
        monitored: bool,
        step: int,
        value: float,
        provenance: Mapping[str, Any],
    ) -> None:
        """Add a value. It competes only with values of the same protocol: equal provenance, except for `versions`."""
        last: dict[str, Any] = {"value": value, "step": step, "provenance": dict(provenance)}
        best = self[name]["best"] if name in self else last
        is_better = _cost(value, better) < _cost(best["value"], better)
        if _protocol(best) != _protocol(last) or isnan(best["value"]) or is_better:
            best = last
        kind = "higher_is_better" if isinstance(better, bool) else "ideal"
        self[name] = {kind: better, "monitored": monitored, "last": last, "best": best}

    def improved(self, name: str | None) -> bool:
        """Whether the last value of a metric is its best."""
        return name is not None and name in self and self[name]["best"] is self[name]["last"]

    def write(self, path: Path) -> None:
        """Write these into a `metrics.json`, replacing everything from training and keeping the rest."""
        metrics = read_scores(path)
        for entry in metrics.values():
            for key in TRAINING_KEYS:
                entry.pop(key, None)
        for name, score in self.items():
            metrics[name] = {**score, **metrics.get(name, {})}
        _write(path, {name: entry for name, entry in metrics.items() if entry})


def write_evaluated(path: Path, values: Mapping[str, float], provenance: Mapping[str, Any]) -> None:
    """Add values from evaluate.py to a `metrics.json`, replacing those with the same protocol."""
    metrics = read_table(path, METRICS)
    for name, value in values.items():
        new = {"value": value, "provenance": dict(provenance)}
        others = [entry for entry in metrics.get(name, {}).get("evaluated", []) if _protocol(entry) != _protocol(new)]
        metrics.setdefault(name, {})["evaluated"] = [*others, new]
    _write(path, metrics)


def write_health(path: Path, health: Mapping[str, Any]) -> None:
    """Replace the findings of the health callback in a `metrics.json`."""
    metrics = read_scores(path)
    if metrics.pop("health", None) or any(health.values()):
        _write(path, {**metrics, "health": health} if any(health.values()) else metrics)


def check_writable(path: Path) -> None:
    """Raise UserError if a `metrics.json` cannot be written, or would overwrite a file of another kind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        read_table(path, METRICS)
    except (OSError, Damaged) as error:
        raise UserError(f"output={path} cannot be written: {first_line(error)}") from error


def read_scores(path: Path) -> dict[str, Any]:
    """The content of a `metrics.json`. A damaged file is renamed, so that training continues with a new one."""
    try:
        return read_table(path, METRICS)
    except Damaged as error:
        names = (path.with_name(f"{path.stem}.damaged-{i}.json") for i in count(1))
        backup = next(name for name in names if not lexists(name))
        path.rename(backup)
        log.warning("%s. It is renamed to %s, and a new file is started.", error, backup.name)
        return {}


def _protocol(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry["provenance"].items() if key != "versions"}


def _write(path: Path, metrics: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(_null_non_finite(metrics), indent=2) + "\n").encode())


def _null_non_finite(node: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(node, Mapping):
        return {key: _null_non_finite(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_null_non_finite(value) for value in node]
    return None if isinstance(node, float) and not isfinite(node) else node
