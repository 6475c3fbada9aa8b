"""Read run folders, without instantiating anything that they hold."""

import logging
import re
from collections.abc import Iterable, Iterator
from math import nan
from os.path import commonpath, lexists
from pathlib import Path
from stat import S_ISREG
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ganforge.callbacks.checkpoints import latest_checkpoint, read_checkpoint
from ganforge.callbacks.health import state_in
from ganforge.callbacks.pruning import Pruning
from ganforge.experiment.trust import validate_untrusted
from ganforge.metrics.scores import better_of
from ganforge.runs.folder import settings
from ganforge.runs.record import read_overrides, read_record
from ganforge.runs.schemas import METRICS, read_table
from ganforge.runtime.errors import Damaged, UserError
from ganforge.runtime.files import has_checkpoint, read_text
from ganforge.runtime.lightning_private import is_finished
from ganforge.runtime.overrides import key_of
from ganforge.runtime.text import printable
from ganforge.sweeps.job import ERROR

log = logging.getLogger(__name__)

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values."""

MAX_EVENT_BYTES = 4 * 2**30
"""Larger event files are skipped. A long training with its images writes a tenth of it."""
MAX_POINTS = 100_000
"""Longer curves are sampled."""
MAX_ERROR = 300
"""Characters shown of a job's error."""


class Run(NamedTuple):
    folder: Path
    name: str
    settings: dict[str, Any]
    overridden: set[str]
    """The keys that its command line set."""
    scores: dict[str, dict[str, Any]]
    """By metric: `last` and `best` as in `metrics.json`, and which values are `better`."""
    curves: dict[str, Curve]
    """By TensorBoard tag."""
    seconds: float
    """Of training, without the time between a kill and the next start."""
    status: str
    """Why the run is not finished; empty if it is."""
    health: str
    """The warning signs that lasted until the end of training; empty if there were none."""

    @property
    def images_per_second(self) -> float | None:
        _, rates = self.curves.get("time/images_per_second", ((), ()))
        return median(map(float, rates)) if len(rates) else None

    @property
    def has_checkpoint(self) -> bool:
        return has_checkpoint(self.folder)


def find_runs(runs: str | Iterable[str]) -> list[Path]:
    """The run folders below folders and globs, at any depth, in natural order. Raises UserError if there are none."""
    found: set[Path] = set()
    for entry in map(str, runs if isinstance(runs, list | ListConfig) else [runs]):
        path = Path(entry).expanduser()
        matches = [path] if path.exists() else list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        records = [record for match in matches for record in match.rglob(".hydra/config.yaml")]
        if not records:
            raise UserError(f"runs={entry}: there is no run. Name a folder that contains runs, such as logs, or a glob")
        found |= {record.parent.parent.resolve() for record in records}
    return sorted(found, key=lambda folder: natural_key(str(folder)))


def natural_key(name: str) -> list[tuple[str, int]]:
    """A sort key that orders 2 before 10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def read_runs(folders: list[Path]) -> list[Run]:
    """Read every run; damaged ones are marked. Raises UserError if one cannot be trusted."""
    common = Path(commonpath([folder.parent for folder in folders]))
    return [_read(folder, str(folder.relative_to(common))) for folder in folders]


def _read(folder: Path, name: str) -> Run:
    try:
        record = read_record(folder)
        _check_trust(record, lexists(folder / ERROR))
        overridden, status = set(map(key_of, read_overrides(folder))), _status(folder, record)
        curves, seconds = _events(folder)
        metrics = read_table(folder / "metrics.json", METRICS)
        return Run(
            folder, name, settings(folder), overridden, _scores(metrics), curves, seconds, status, _health(metrics)
        )
    except Exception as error:  # libraries raise all kinds of errors for damaged files
        if isinstance(error, UserError) and not isinstance(error, Damaged):  # not damaged but untrustworthy
            raise UserError(printable(f"{folder}: {error}")) from error
        log.warning("%s", printable(f"{folder} has no readable config: {error!r}"))
        return Run(folder, name, {}, set(), {}, {}, 0.0, "damaged: its recorded config cannot be read", "")


def _check_trust(record: DictConfig, has_failed: bool) -> None:
    try:
        validate_untrusted(record, exempt=["logger"])  # none is made here
    except OmegaConfBaseException:
        if not has_failed:  # a job may fail because its config does not resolve
            raise


def _status(folder: Path, record: DictConfig) -> str:
    if lexists(folder / ERROR):
        return f"failed: {_reason(folder / ERROR)}"
    if not has_checkpoint(folder):
        return "" if (folder / "metrics.json").exists() else "not started"
    try:
        path = latest_checkpoint(folder)
    except UserError:
        return "damaged: no checkpoint can be read"
    try:
        checkpoint = read_checkpoint(path)
    except Damaged as error:
        return f"damaged: {str(error).replace(str(path), path.name)}"
    step = checkpoint["global_step"]
    if state_in(checkpoint).get("verdict") == "stop":
        return f"stopped at step {step:,}: collapsed"
    if checkpoint["callbacks"].get(Pruning.__name__, {}).get("ended"):
        return f"ended by the search at step {step:,}"
    if is_finished(checkpoint, record.trainer):
        return ""
    steps = record.trainer.max_steps
    return f"unfinished: step {step:,}" + (f" of {steps:,}" if steps > -1 else "")


def _reason(path: Path) -> str:
    """The first line of a failed job's error."""
    try:
        return read_text(path).strip().partition("\n")[0][:MAX_ERROR]
    except (UserError, FileNotFoundError):
        return f"{path.name} cannot be read"


def _scores(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores that training wrote, without evaluate.py's."""
    entries = {name: entry for name, entry in metrics.items() if "last" in entry}
    return {
        name: {
            "better": better_of(entry),
            **{part: _score(**entry[part]) for part in ("last", "best")},
        }
        for name, entry in entries.items()
    }


def _health(metrics: dict[str, Any]) -> str:
    signs = [sign for sign in metrics.get("health", {}).get("signs", []) if "until" not in sign]
    return ", ".join(f"{sign['sign']} since {int(sign['since']):,}" for sign in signs)


def _score(value: float | None, step: int, provenance: dict[str, Any]) -> dict[str, Any]:
    return {"value": nan if value is None else float(value), "step": int(step), "provenance": dict(provenance)}


def _events(folder: Path) -> tuple[dict[str, Curve], float]:
    points: dict[str, list[Any]] = {}
    seconds = 0.0
    for path in _event_files(folder):
        events = EventAccumulator(str(path), size_guidance={"scalars": MAX_POINTS, "images": 1, "tensors": 1})
        events.Reload()
        found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        for tag, values in found.items():
            points.setdefault(tag, []).extend(values)
        if found:
            seconds += max(values[-1].wall_time for values in found.values()) - events.FirstEventTimestamp()
    curves = {
        tag: (np.array([point.step for point in values]), np.array([point.value for point in values]))
        for tag, values in points.items()
    }
    return curves, seconds


def _event_files(folder: Path) -> Iterator[Path]:
    """One for each start or resume of training."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        if is_regular_file(path) and path.stat().st_size <= MAX_EVENT_BYTES:
            yield path
        else:
            log.warning(
                "%s",
                printable(f"{path} is skipped: it is not a regular file, or larger than {MAX_EVENT_BYTES >> 30} GiB"),
            )


def is_regular_file(path: Path) -> bool:
    """Whether a path is a file itself, not a link (which may lead elsewhere) or a pipe (which may block)."""
    return lexists(path) and S_ISREG(path.lstat().st_mode)
