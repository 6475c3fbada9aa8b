"""A progress bar for long work outside training: packing, measuring."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress_bar(description: str, total: int, completed: int = 0) -> Progress:
    """A progress bar on stderr with the time remaining, for one task."""
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True))
    bar.add_task("", total=total, completed=completed)
    return bar
