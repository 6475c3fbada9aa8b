"""Runs side by side: how they differ, what they reached, and how far seeds move that."""

import json
from collections.abc import Sequence
from math import isfinite
from os.path import commonpath, lexists
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryFile

from omegaconf import DictConfig

from ganforge.comparison.records import Run, find_runs, is_file, read_runs
from ganforge.comparison.report import report
from ganforge.comparison.tables import NOTHING, Cell, Column, duration, number, plain, print_table, setting
from ganforge.experiment.validate import check_count, check_seed
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import write_atomic


def compare(config: DictConfig) -> None:
    """Print the tables and write the report."""
    check_count("num_samples", config.num_samples)
    check_seed(config.seed)
    if config.checkpoint not in ("last", "best"):
        raise UserError(f"checkpoint={config.checkpoint}: must be last or best")
    folders = find_runs(config.runs)
    output = Path(config.output or Path(commonpath(folders), "comparison.html")).expanduser()
    _check_writable(output)
    runs = read_runs(folders)
    metrics = metrics_of(runs, config.show)
    notes = protocol_notes(runs, metrics)
    tables = {"Runs": runs_table(runs, metrics)}
    if grouped := groups(runs):
        tables["Over seeds"] = seeds_table(grouped, metrics)
    for title, columns in tables.items():
        print_table(title, columns)
    for note in notes:
        print(note)
    page = report(runs, tables, metrics, notes, config)
    write_atomic(output, page.encode(errors="replace"))
    print(f"Written to {output}")


def _check_writable(output: Path) -> None:
    if lexists(output) and not is_file(output):
        raise UserError(f"output={output}: is a link, or no file, and would be replaced: name another file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UserError(f"output={output}: cannot be written ({error.strerror}), name another file") from error


# What differs ----------------------------------------------------------------------------------------------------


def differences(runs: Sequence[Run], *besides: str) -> dict[str, str]:
    """Keys of settings that are not the same in all runs, with the shortest names that tell them apart.

    What follows from an option that differs, such as the layers of another model, is left out unless it was asked for.
    """
    runs = [run for run in runs if run.settings]  # the others are damaged
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in besides)
    values = {key: {json.dumps(run.settings.get(key), default=str) for run in runs} for key in keys}
    names = {key: key.removesuffix("._target_") for key in keys if len(values[key]) > 1}
    given = set().union(*(run.given for run in runs))
    shown = {
        key: name
        for key, name in names.items()
        if key in given or not any(name.startswith(f"{other}.") for other in names.values())
    }
    return {key: _shortest(name, list(shown.values())) for key, name in shown.items()}


def _shortest(name: str, names: Sequence[str]) -> str:
    parts = name.split(".")
    endings = (".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1))
    return next(end for end in endings if sum(f".{other}".endswith(f".{end}") for other in names) == 1 or end == name)


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs that differ in the seed only, where there are several."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        rest = {key: value for key, value in run.settings.items() if key != "seed"}
        found.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(run)
    return [group for group in found.values() if len({run.settings.get("seed") for run in group}) > 1]


# Metrics ---------------------------------------------------------------------------------------------------------


def metrics_of(runs: Sequence[Run], wanted: Sequence[str] | str | None) -> list[str]:
    """Those that are wanted, or all but parts of others, such as fid_digits/7. Raises UserError for what no run has."""
    there = list(dict.fromkeys(name for run in runs for name in run.scores))
    wanted = [wanted] if isinstance(wanted, str) else None if wanted is None else list(wanted)
    if wanted is None:
        return [name for name in there if "/" not in name]
    if unknown := [name for name in wanted if name not in there]:
        raise UserError(f"show={unknown[0]}: no run has it. There are {', '.join(there) or 'none'}")
    return wanted


def protocol_notes(runs: Sequence[Run], metrics: Sequence[str]) -> list[str]:
    """A sentence on each metric that was not measured in the same way in all runs."""
    notes: dict[str, list[str]] = {}
    for metric in metrics:
        if how := _protocol_differences(runs, metric):
            notes.setdefault(how, []).append(metric)
    different = "Not comparable, as measured differently"
    return [plain(f"{different}: {', '.join(names)} ({how})") for how, names in notes.items()]


def _protocol_differences(runs: Sequence[Run], metric: str) -> str:
    scores = [run.scores[metric] for run in runs if metric in run.scores]
    entries = [score[part]["provenance"] for score in scores for part in ("last", "best")]
    keys = dict.fromkeys(key for entry in entries for key in entry if key not in ("seed", "versions"))
    values = {key: dict.fromkeys(str(entry.get(key)) for entry in entries) for key in keys}
    differing = {key.replace("_", " "): found for key, found in values.items() if len(found) > 1}
    return "; ".join(f"{key}: {' or '.join(found)}" for key, found in differing.items())


# Tables ----------------------------------------------------------------------------------------------------------


def runs_table(runs: Sequence[Run], metrics: Sequence[str]) -> list[Column]:
    """A row a run."""
    columns = [Column("run", "", [Cell(plain(run.name), plain(run.name)) for run in runs], is_key=True)]
    columns += _settings(runs, differences(runs))
    for metric in metrics:
        columns += [
            Column(title, hint, [_score(run, metric, part, value) for run in runs], group=metric)
            for title, hint, part, value in (
                (_title(runs, metric), "best", "best", "value"),
                ("at step", "of the best", "best", "step"),
                ("last", plain(metric), "last", "value"),
            )
        ]
    columns.append(Column("time", "of training", [duration(run.seconds) for run in runs]))
    columns.append(Column("images/s", "median", [number(run.images_per_second, ",.0f") for run in runs]))
    for title, hint in (("status", ""), ("health", "signs noticed and not over, and since which step")):
        texts = [plain(getattr(run, title)) for run in runs]
        if any(texts):
            columns.append(Column(title, hint, [Cell(text, text) for text in texts]))
    return columns


def seeds_table(grouped: Sequence[Sequence[Run]], metrics: Sequence[str]) -> list[Column]:
    """A row for the finished runs of each group: means, and standard deviations over them."""
    finished = [list({run.settings.get("seed"): run for run in group if not run.status}.values()) for group in grouped]
    first = [group[0] for group in grouped]
    columns = _settings(first, differences([run for group in grouped for run in group], "seed"))
    seeds = [plain(", ".join(str(run.settings.get("seed")) for run in group)) for group in finished]
    columns.append(Column("seeds", "of finished runs", [Cell(text or "none finished", text) for text in seeds]))
    columns = [column._replace(is_key=True) for column in columns]
    counted = [run for group in finished for run in group]
    for metric in [metric for metric in metrics if any(metric in run.scores for run in counted)]:
        for part, title in (("best", _title(counted, metric)), ("last", "last")):
            cells = [_spread(group, metric, part) for group in finished]
            hint = f"{part} {plain(metric)}: mean ± standard deviation"
            columns.append(Column(title, hint, cells, group=metric))
    return columns


def _settings(runs: Sequence[Run], names: dict[str, str]) -> list[Column]:
    return [
        Column(plain(name), plain(key), [setting(run.settings.get(key)) for run in runs]) for key, name in names.items()
    ]


def _title(runs: Sequence[Run], metric: str) -> str:
    better = next((run.scores[metric]["better"] for run in runs if metric in run.scores), True)
    return f"{plain(metric)} {('↓', '↑')[better] if isinstance(better, bool) else f'→ {better:g}'}"


def _score(run: Run, metric: str, part: str, value: str) -> Cell:
    return number(run.scores[metric][part][value]) if metric in run.scores else NOTHING


def _spread(group: Sequence[Run], metric: str, part: str) -> Cell:
    values = [run.scores[metric][part]["value"] for run in group if metric in run.scores]
    if not all(map(isfinite, values)):
        return Cell("not finite")
    if len(values) > 1 and _protocol_differences(group, metric):
        return Cell("measured differently")
    if len(values) < 2:
        return number(values[0] if values else None)
    return Cell(f"{mean(values):.4g} ± {stdev(values):.2g}", mean(values))
