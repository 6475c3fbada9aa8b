"""`debug=profile`: a trace of PyTorch's profiler."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule

from ganforge.runtime.devices import rank

log = logging.getLogger(__name__)

MAX_STEPS = 100
"""The profiler keeps all recorded steps in memory, and a step of DCGAN takes 300 KB in the trace."""


class Trace(Callback):
    """Skips `skip` steps, records `steps` and writes them to `trace.json` in the run folder, for https://ui.perfetto.dev.

    Lightning's PyTorchProfiler buries the step under a range for each of its hooks, and makes torch print a warning
    at every step that is not recorded.
    """

    def __init__(self, skip: int = 7, steps: int = 5):
        if skip < 1 or not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"skip={skip}, steps={steps}: must be at least 1, and steps at most {MAX_STEPS}")
        self.skip = skip
        self.steps = steps
        self._profiler: profile | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if rank() > 0:
            return
        path = Path(trainer.default_root_dir, "trace.json")

        def write(profiler: profile) -> None:
            profiler.export_chrome_trace(str(path))
            log.info("The trace is in %s: open it at https://ui.perfetto.dev", path)

        self._profiler = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])],
            schedule=schedule(wait=self.skip - 1, warmup=1, active=self.steps, repeat=1),
            on_trace_ready=write,
        )
        self._profiler.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
