"""Tables of cells with a sort key, for the console and the report."""

from datetime import timedelta
from itertools import groupby
from math import isfinite
from typing import Any, NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ganforge.runtime.text import printable

PIPE_WIDTH = 160
"""Characters in a line when the output goes to a file or pipe."""
UNLIMITED_WIDTH = 10_000


class Cell(NamedTuple):
    """A text, and the number or text that it is sorted by; None comes last."""

    text: str
    order: Any = None


EMPTY = Cell("-")


class Column(NamedTuple):
    """`is_key` marks a column that identifies the row. Columns of one `group` stay together when a table is split."""

    title: str
    hint: str
    cells: list[Cell]
    is_key: bool = False
    group: str = ""

    @property
    def is_number(self) -> bool:
        return any(isinstance(cell.order, int | float) for cell in self.cells)


def number(value: float | None, style: str = ".4g") -> Cell:
    """Integers with all digits, floats in a format's `style`; a dash for None."""
    if value is None:
        return EMPTY
    if not isfinite(value):
        return Cell("not finite")
    return Cell(format(value, "," if isinstance(value, int) else style), value)


def duration(seconds: float) -> Cell:
    """As 1:23:45; a dash for 0."""
    return Cell(str(timedelta(seconds=round(seconds))), seconds) if seconds else EMPTY


def setting(value: Any) -> Cell:
    """A value of a config as typed on the command line."""
    if value is None:
        return EMPTY
    text = printable(str(value).lower() if isinstance(value, bool) else str(value))
    return Cell(text, value if isinstance(value, int | float) else text)


def split_by_group(columns: list[Column]) -> list[list[Column]]:
    """A table for each group and for the columns between groups, each with the key columns in front."""
    keys = [column for column in columns if column.is_key]
    rest = [column for column in columns if not column.is_key]
    return [[*keys, *group] for _, group in groupby(rest, key=lambda column: column.group)]


def print_table(title: str, columns: list[Column]) -> None:
    """Print a table; if it is wider than the console, in several tables, split between groups."""
    console = Console(width=None if Console().is_terminal else PIPE_WIDTH)
    keys = [column for column in columns if column.is_key]
    rest = [column for column in columns if not column.is_key]
    while rest:
        groups = [column.group for column in rest]
        ends = [k for k in range(1, len(rest) + 1) if groups[k:] == [] or not groups[k] or groups[k] != groups[k - 1]]
        rendered = {k: _render(title, keys + rest[:k], console.width) for k in ends}
        fitting = [k for k in ends if Console(width=UNLIMITED_WIDTH).measure(rendered[k]).maximum <= console.width]
        count = max(fitting, default=ends[0])
        console.print(rendered[count])
        title, rest = "", rest[count:]


def _render(title: str, columns: list[Column], width: int) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE)
    for column in columns:
        justify: Any = "right" if column.is_number else "left"
        table.add_column(Text(column.title), justify=justify, overflow="fold", max_width=width // 2)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(Text(cell.text) for cell in row))
    return table
