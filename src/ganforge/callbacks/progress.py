"""One progress bar for the whole run."""

import logging
import sys
import time
from typing import Any, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from ganforge.runtime.trainers import total_steps

log = logging.getLogger(__name__)


class Progress(ProgressBar):
    """Shows the steps of the whole run, the losses of D and G, images per second and the time left.

    Lightning's bars count the batches of an epoch instead. Redraws every `refresh` seconds on a terminal, and logs a
    line every `line_every` seconds elsewhere.
    """

    def __init__(self, refresh: float = 0.5, line_every: float = 30):
        super().__init__()
        self.refresh = refresh
        self.line_every = line_every
        self._bar: RichProgress | None = None
        self._enabled = True
        self._next = self._next_line = 0.0

    def disable(self) -> None:  # Lightning calls this on ranks other than 0
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._bar = RichProgress(
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # takes the space that the numbers leave
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[values]}", table_column=Column(no_wrap=True)),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            expand=True,
            auto_refresh=False,  # a drawing thread slows training down
            speed_estimate_period=120,
        )
        stderr = sys.stderr
        self._bar.start()
        self._redirect_log(stderr, sys.stderr)  # rich has replaced it by a stream that writes above the bar
        self._task = self._bar.add_task("", total=total_steps(trainer), completed=trainer.global_step, values="")
        self._next = time.monotonic() + self.refresh
        self._next_line = time.monotonic() + self.line_every

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._bar is None or (now := time.monotonic()) < self._next:
            return
        values = describe(pl_module)
        self._bar.update(self._task, completed=trainer.global_step, values=values)
        self._next = now + self.refresh
        if self._bar.console.is_terminal:
            self._bar.refresh()
        elif now >= self._next_line:
            left = clock(self._bar.tasks[self._task].time_remaining)
            log.info("  ".join(filter(None, (f"step {trainer.global_step} of {total_steps(trainer)}", values, left))))
            self._next_line = now + self.line_every

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._bar is None or not self._bar.console.is_terminal or time.monotonic() < self._next:
            return
        self._bar.update(
            self._task,
            completed=trainer.global_step,
            values=f"measuring {batch_idx / max(1, sum(trainer.num_val_batches)):.0%}",
        )
        self._bar.refresh()
        self._next = time.monotonic() + self.refresh

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            values = describe(pl_module)
            self._bar.update(self._task, completed=trainer.global_step, values=values)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            stream = sys.stderr
            self._bar.stop()
            self._redirect_log(stream, sys.stderr)
            self._bar = None

    @staticmethod
    def _redirect_log(old: TextIO, new: TextIO) -> None:
        """Redirect the log lines of a terminal to another stream."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is old and old.isatty():
                handler.setStream(new)


def describe(pl_module: Any) -> str:
    """The latest losses, with several games side by side (`D 1.302/0.982  G 0.912/1.044`), and images per second."""
    logged = pl_module.step_log.values if hasattr(pl_module, "step_log") else {}
    parts = []
    for short, name in {"D": "loss_d/total", "G": "loss_g/total"}.items():
        values = [f"{value:.3f}" for tag, value in logged.items() if tag.endswith(name)]
        parts += [f"{short} {'/'.join(values)}"] if values else []
    if rate := logged.get("time/images_per_second"):
        parts.append(f"{rate:,.0f} images/s")
    return "  ".join(parts)


def clock(seconds: float | None) -> str:
    """The time left, such as `1:02:03 left`; empty if it is unknown."""
    if seconds is None:
        return ""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d} left" if hours else f"{minutes}:{seconds:02d} left"
