"""The results of benchmarks/gpu.py, written after every case so that a crash loses little."""

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from signal import ITIMER_REAL, SIGALRM, setitimer, signal
from typing import Any, NamedTuple

Values = dict[str, Any]


class Case(NamedTuple):
    """A measurement: `measure(setting)` returns values, of which `passes`, if present, is the verdict."""

    table: str
    name: str
    measure: Callable[..., Values]
    seconds: float = 40.0
    """The time limit."""


class OutOfTime(BaseException):
    """A case exceeds its time limit. A BaseException, because libraries catch Exception."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after some time; only works in the main thread."""

    def end(*_: object) -> None:
        raise OutOfTime(f"more than {seconds:.0f} s")

    before = signal(SIGALRM, end)
    setitimer(ITIMER_REAL, seconds)
    try:
        yield
    finally:
        setitimer(ITIMER_REAL, 0)
        signal(SIGALRM, before)


def attempt(case: Case, setting: Any, seconds: float | None) -> Values:
    """The record of a case: its values or its error. `seconds` is the time limit, None for none."""
    start = time.monotonic()
    try:
        with nullcontext() if seconds is None else time_limit(seconds):
            values = case.measure(setting)
        state = "ok" if values.pop("passes", True) else "DIFFERS"
        record = {"state": state, "values": values}
    except (Exception, OutOfTime) as error:
        record = {"state": "FAILED", "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {**record, "seconds": round(time.monotonic() - start, 2)}


class Report:
    """Records by part, table and case, in `results.jsonl`; from all of them `results.json` and `results.md`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "results.jsonl"

    def add(self, part: str, case: Case | None, record: Mapping[str, Any]) -> None:
        key = {"part": part, "table": case.table if case else "", "case": case.name if case else ""}
        with self.path.open("a") as file:
            file.write(json.dumps({**key, **record}, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())
        records = self.records()
        (self.folder / "results.json").write_text(json.dumps(list(records.values()), indent=1) + "\n")
        (self.folder / "results.md").write_text(markdown(list(records.values())))

    def records(self) -> dict[tuple[str, str, str], Values]:
        """The latest record of each case."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {(r["part"], r["table"], r["case"]): r for r in map(json.loads, lines)}


def line(record: Mapping[str, Any]) -> str:
    """A record as a line for the console."""
    values = "  ".join(f"{key}: {formatted(value)}" for key, value in record.get("values", {}).items())
    state, seconds = record["state"], record.get("seconds", 0)
    return f"[{state}] {record['table']}: {record['case']} ({seconds:.1f} s)  {values or record.get('error', '')}"


def formatted(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {formatted(entry)}" for key, entry in value.items())
    return str(value)


def markdown(records: list[Values]) -> str:
    """All records as tables, followed by the tracebacks."""
    parts = ["# ganforge on a device", summary(records)]
    for title in dict.fromkeys((record["part"], record["table"]) for record in records):
        rows = [record for record in records if (record["part"], record["table"]) == title]
        columns = list(dict.fromkeys(key for row in rows for key in row.get("values", {})))
        lines = [f"## {': '.join(filter(None, title))}", "", _row(["case", "", "s", *columns])]
        lines.append(_row(["---"] * (3 + len(columns))))
        for row in rows:
            values = [formatted(row.get("values", {}).get(column)) for column in columns]
            lines.append(_row([row["case"], row["state"], f"{row.get('seconds', 0):.1f}", *values]))
        parts.append("\n".join(lines))
    for record in records:
        if "traceback" in record:
            parts.append(f"### {record['table']}: {record['case']}\n\n```\n{record['traceback']}```")
    return "\n\n".join(parts) + "\n"


def summary(records: list[Values]) -> str:
    """The number of cases in each state, and a line for each failure."""
    states = [record["state"] for record in records]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    failures = [record for record in records if record["state"] not in ("ok", "not run")]
    lines = [f"- [{r['state']}] {r['table']}: {r['case']} {r.get('error', '')[:200]}" for r in failures]
    return "\n".join([f"{len(records)} cases: {counts}.", *lines])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"
