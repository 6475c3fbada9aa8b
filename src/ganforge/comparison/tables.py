"""Tables for the console and for pages: what a cell shows, and what it is sorted by."""

from datetime import timedelta
from itertools import groupby
from math import isfinite
from typing import Any, NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPED = 160
"""Characters in a line of a file or pipe."""
UNLIMITED = 10_000


class Cell(NamedTuple):
    text: str
    order: Any = None
    """What it is sorted by: numbers, or texts; None comes last."""


NOTHING = Cell("-")


class Column(NamedTuple):
    title: str
    hint: str
    cells: list[Cell]
    is_key: bool = False
    """Whether it tells which row this is."""
    group: str = ""
    """Those of one group stay together."""

    @property
    def is_number(self) -> bool:
        return any(isinstance(cell.order, int | float) for cell in self.cells)


def number(value: float | None, style: str = ".4g") -> Cell:
    """Whole numbers in full, others in a format's style; a dash for none."""
    if value is None:
        return NOTHING
    if not isfinite(value):
        return Cell("not finite")
    return Cell(format(value, "," if isinstance(value, int) else style), value)


def duration(seconds: float) -> Cell:
    """As 1:23:45; a dash for none."""
    return Cell(str(timedelta(seconds=round(seconds))), seconds) if seconds else NOTHING


def setting(value: Any) -> Cell:
    """A value of a config, as it is typed."""
    if value is None:
        return NOTHING
    text = plain(str(value).lower() if isinstance(value, bool) else str(value))
    return Cell(text, value if isinstance(value, int | float) else text)


def plain(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in text)


def parts(columns: list[Column]) -> list[list[Column]]:
    """Each group, and what lies between groups, after the keys: tables that stand side by side where there is room."""
    keys = [column for column in columns if column.is_key]
    rest = [column for column in columns if not column.is_key]
    return [[*keys, *group] for _, group in groupby(rest, key=lambda column: column.group)]


def print_table(title: str, columns: list[Column]) -> None:
    """On the console; in parts, one below the other, where it is wider than that."""
    console = Console(width=None if Console().is_terminal else PIPED)
    keys = [column for column in columns if column.is_key]
    rest = [column for column in columns if not column.is_key]
    while rest:
        groups = [column.group for column in rest]
        ends = [k for k in range(1, len(rest) + 1) if groups[k:] == [] or not groups[k] or groups[k] != groups[k - 1]]
        drawn = {k: _drawn(title, keys + rest[:k], console.width) for k in ends}
        fitting = [k for k in ends if Console(width=UNLIMITED).measure(drawn[k]).maximum <= console.width]
        count = max(fitting, default=ends[0])
        console.print(drawn[count])
        title, rest = "", rest[count:]


def _drawn(title: str, columns: list[Column], width: int) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE)
    for column in columns:
        justify: Any = "right" if column.is_number else "left"
        table.add_column(Text(column.title), justify=justify, overflow="fold", max_width=width // 2)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell.text) for cell in row))
    return table
