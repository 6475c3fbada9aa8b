"""How runs differ: in their settings, in their seeds only, and in how their metrics were measured."""

import json
from collections.abc import Sequence

from ganforge.comparison.records import Run
from ganforge.runtime.errors import UserError
from ganforge.runtime.text import printable


def setting_differences(runs: Sequence[Run], *ignored: str) -> dict[str, str]:
    """The keys of the settings that differ between runs, each with the shortest unambiguous name.

    Settings that follow from an option that differs, such as the layers of another model, are left out unless a
    command line set them.
    """
    runs = [run for run in runs if run.settings]  # damaged runs have none
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in ignored)
    values = {key: {json.dumps(run.settings.get(key), default=str) for run in runs} for key in keys}
    names = {key: key.removesuffix("._target_") for key in keys if len(values[key]) > 1}
    overridden = set().union(*(run.overridden for run in runs))
    shown = {
        key: name
        for key, name in names.items()
        if key in overridden or not any(name.startswith(f"{other}.") for other in names.values())
    }
    return {key: _shortest(name, list(shown.values())) for key, name in shown.items()}


def _shortest(name: str, names: Sequence[str]) -> str:
    """The fewest last parts of a dotted name that no other name ends with."""
    parts = name.split(".")
    endings = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
    return next(end for end in endings if sum(f".{other}".endswith(f".{end}") for other in names) == 1 or end == name)


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs with equal settings except for the seed, in groups of at least two seeds."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.settings.items() if key != "seed"}
        groups.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(run)
    return [group for group in groups.values() if len({run.settings.get("seed") for run in group}) > 1]


def select_metrics(runs: Sequence[Run], wanted: Sequence[str] | str | None) -> list[str]:
    """The wanted metrics; by default all except values of one class or set, such as fid_digits/7.

    Raises UserError for a metric that no run has.
    """
    available = list(dict.fromkeys(name for run in runs for name in run.scores))
    if wanted is None:
        return [name for name in available if "/" not in name]
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if unknown := [name for name in wanted if name not in available]:
        raise UserError(f"show={unknown[0]}: no run has this metric. Available: {', '.join(available) or 'none'}")
    return wanted


def protocol_notes(runs: Sequence[Run], metrics: Sequence[str]) -> list[str]:
    """A sentence for each set of metrics whose protocols differ between runs in the same way."""
    notes: dict[str, list[str]] = {}
    for metric in metrics:
        if differences := protocol_differences(runs, metric):
            notes.setdefault(differences, []).append(metric)
    return [
        printable(f"Measured differently, so not comparable: {', '.join(names)} ({differences})")
        for differences, names in notes.items()
    ]


def protocol_differences(runs: Sequence[Run], metric: str) -> str:
    """What differs in how a metric was measured, such as "fake samples: 1000 or 50"; empty if nothing does.

    Seeds and versions of libraries may differ.
    """
    scores = [run.scores[metric] for run in runs if metric in run.scores]
    entries = [score[part]["provenance"] for score in scores for part in ("last", "best")]
    keys = dict.fromkeys(key for entry in entries for key in entry if key not in ("seed", "versions"))
    values = {key: dict.fromkeys(str(entry.get(key)) for entry in entries) for key in keys}
    differing = {key.replace("_", " "): found for key, found in values.items() if len(found) > 1}
    return "; ".join(f"{key}: {' or '.join(found)}" for key, found in differing.items())
