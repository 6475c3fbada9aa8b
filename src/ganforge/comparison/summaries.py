"""The two tables of a comparison: a row for each run, and a row for each group of seeds."""

from collections.abc import Sequence
from math import isfinite
from statistics import mean, stdev

from ganforge.comparison.differences import protocol_differences, setting_differences
from ganforge.comparison.records import Run
from ganforge.comparison.tables import EMPTY, Cell, Column, duration, number, setting
from ganforge.runtime.text import printable


def runs_table(runs: Sequence[Run], metrics: Sequence[str]) -> list[Column]:
    """The columns of the runs' names, differing settings, metrics, speed, status and health."""
    columns = [Column("run", "", [Cell(printable(run.name), printable(run.name)) for run in runs], is_key=True)]
    columns += _settings(runs, setting_differences(runs))
    for metric in metrics:
        columns += [
            Column(title, hint, [_score(run, metric, part, value) for run in runs], group=metric)
            for title, hint, part, value in (
                (_metric_title(runs, metric), "best", "best", "value"),
                ("at step", "of the best", "best", "step"),
                ("last", printable(metric), "last", "value"),
            )
        ]
    columns.append(Column("time", "of training", [duration(run.seconds) for run in runs]))
    columns.append(Column("images/s", "median", [number(run.images_per_second, ",.0f") for run in runs]))
    for title, hint in (("status", ""), ("health", "warning signs at the end, and the steps that they began at")):
        texts = [printable(getattr(run, title)) for run in runs]
        if any(texts):
            columns.append(Column(title, hint, [Cell(text, text) for text in texts]))
    return columns


def seeds_table(groups: Sequence[Sequence[Run]], metrics: Sequence[str]) -> list[Column]:
    """The columns of the groups' settings, seeds, and means and standard deviations over finished runs."""
    finished = [list({run.settings.get("seed"): run for run in group if not run.status}.values()) for group in groups]
    first = [group[0] for group in groups]
    columns = _settings(first, setting_differences([run for group in groups for run in group], "seed"))
    seeds = [printable(", ".join(str(run.settings.get("seed")) for run in group)) for group in finished]
    columns.append(Column("seeds", "of finished runs", [Cell(text or "none finished", text) for text in seeds]))
    columns = [column._replace(is_key=True) for column in columns]
    counted = [run for group in finished for run in group]
    for metric in [metric for metric in metrics if any(metric in run.scores for run in counted)]:
        for part, title in (("best", _metric_title(counted, metric)), ("last", "last")):
            cells = [_mean_and_deviation(group, metric, part) for group in finished]
            hint = f"{part} {printable(metric)}: mean ± standard deviation"
            columns.append(Column(title, hint, cells, group=metric))
    return columns


def _settings(runs: Sequence[Run], names: dict[str, str]) -> list[Column]:
    return [
        Column(printable(name), printable(key), [setting(run.settings.get(key)) for run in runs])
        for key, name in names.items()
    ]


def _metric_title(runs: Sequence[Run], metric: str) -> str:
    """The metric's name with an arrow to its better values."""
    better = next((run.scores[metric]["better"] for run in runs if metric in run.scores), True)
    return f"{printable(metric)} {('↓', '↑')[better] if isinstance(better, bool) else f'→ {better:g}'}"


def _score(run: Run, metric: str, part: str, value: str) -> Cell:
    return number(run.scores[metric][part][value]) if metric in run.scores else EMPTY


def _mean_and_deviation(group: Sequence[Run], metric: str, part: str) -> Cell:
    values = [run.scores[metric][part]["value"] for run in group if metric in run.scores]
    if not all(map(isfinite, values)):
        return Cell("not finite")
    if len(values) > 1 and protocol_differences(group, metric):
        return Cell("measured differently")
    if len(values) < 2:
        return number(values[0] if values else None)
    return Cell(f"{mean(values):.4g} ± {stdev(values):.2g}", mean(values))
