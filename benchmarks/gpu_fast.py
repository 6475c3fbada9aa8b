"""Time of a training step on a device, in `Trainer.fit` and in a bare loop: part `fast` of benchmarks/gpu.py."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from gpu_report import Case
from gpu_setup import WIDTHS, Setting, fit, precision, ready
from gpu_trace import DeviceProfile
from lightning.pytorch import Callback, LightningModule, Trainer
from loops import BareLoop, Windows

LENGTH, WINDOWS, PROFILED = 32, 6, 16
"""Steps per window (a multiple of log_every_n_steps, so that all windows log equally often), the number of windows that
count, and the number of profiled steps after them."""

WIDE = ["model.generator.width=64", "model.discriminator.width=64"]


class Mode(NamedTuple):
    """Precision and optimizations of a training run."""

    precision: str = "32-true"
    is_compiled: bool = False
    autotunes: bool = False
    """Whether cuDNN searches for its fastest algorithms, as with trainer.benchmark."""


COMPILED = "TF32, compile=true"
MODES = {
    "TF32": Mode(),
    "bf16-mixed": Mode("bf16-mixed"),
    COMPILED: Mode(is_compiled=True),
    "TF32, cuDNN benchmark": Mode(autotunes=True),
    "bf16-mixed, cuDNN benchmark": Mode("bf16-mixed", autotunes=True),
}


def trainings(setting: Setting) -> dict[str, list[str]]:
    """The overrides of each training run, by its name in the table."""
    faces = [setting.roots.face_data, "data.image_size=64", "data.batch_size=128"]
    return {
        "dcgan, MNIST, batch 64": ["model=dcgan", "data.batch_size=64"],
        "dcgan, MNIST, batch 512": ["model=dcgan", "data.batch_size=512"],
        "dcgan of width 64, faces of 64 pixels, batch 128": ["model=dcgan", *faces, *WIDE],
        "gan (MLP), MNIST, batch 64": ["model=gan", "data.batch_size=64"],
        "srgan adversarial, crops of 96 pixels, batch 16": [
            *("model=srgan", "model.stage=adversarial", "content=pixels", "data=pairs", "data.batch_size=16")
        ],
        "compact, MNIST, batch 64": ["model=compact", "data.batch_size=64"],
        "r3gan, MNIST, batch 64": ["model=r3gan", "data.batch_size=64"],
        "stylegan2, MNIST, batch 32": ["model=stylegan2", "data.batch_size=32"],
    }


def cases(setting: Setting) -> Iterator[Case]:
    runs = trainings(setting)
    table = "milliseconds per step"
    for name, overrides in runs.items():
        for mode in ("TF32", "bf16-mixed"):
            yield Case(table, f"{name}, {mode}", partial(_steps, overrides, MODES[mode]))
    dcgan, large, faces, *_ = runs
    for name in (dcgan, faces):
        yield Case("where a step waits for the device", name, partial(_waits, runs[name]))
    if setting.is_small:
        return
    further = [(faces, "TF32, cuDNN benchmark"), (faces, "bf16-mixed, cuDNN benchmark"), (dcgan, COMPILED)]
    further += [(faces, COMPILED), (large, "TF32, cuDNN benchmark")]
    for name, mode in further:
        yield Case(table, f"{name}, {mode}", partial(_steps, runs[name], MODES[mode]), 60)


def with_mode(setting: Setting, overrides: Sequence[str], mode: Mode) -> list[str]:
    """The overrides with a mode and the progress bar; with tiny networks if the setting is small."""
    options = [f"trainer.precision={mode.precision}", "trainer.enable_progress_bar=true"]
    options.append(f"model.compile={mode.is_compiled}".lower())
    if not setting.is_small:
        return [*overrides, *options]
    if "model=gan" not in overrides:
        options += WIDTHS
    if "model=srgan" in overrides:
        options += ["model.generator.blocks=1", "data.image_size=32"]
    return [*overrides, *options, "data.batch_size=4", "trainer.log_every_n_steps=2"]


class Inspection(Callback):
    """Profiles PROFILED steps of training after step `after`, and then as many steps of the bare loop."""

    def __init__(self, after: int, bare: Callable[[], None], folder: Path):
        self.after, self.bare = after, bare
        self.profile = DeviceProfile(folder)
        self.results: dict[str, dict[str, float]] = {}
        self.error = ""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.error or trainer.global_step not in (self.after, self.after + PROFILED):
            return
        try:
            self._begin() if trainer.global_step == self.after else self._end()
        except Exception as error:  # keep the times even if the driver forbids profiling
            self.error = f"{type(error).__name__}: {error}"

    def _begin(self) -> None:
        self.profile.start()

    def _end(self) -> None:
        self.results["fit"] = self.profile.stop(PROFILED)
        self.profile.start()
        for _ in range(PROFILED):
            self.bare()
        self.results["bare"] = self.profile.stop(PROFILED)


def _steps(overrides: list[str], mode: Mode, setting: Setting) -> dict[str, Any]:
    length, count = (2, 1) if setting.is_small else (LENGTH, WINDOWS)
    last = length * (count + 2)
    torch.backends.cudnn.benchmark = mode.autotunes
    folder, has_logger = setting.new_folder("fast"), find_spec("tensorboard") is not None
    try:
        with precision("high", True):
            steps = last + PROFILED + 1 if setting.is_gpu else last
            options = with_mode(setting, overrides, mode)
            experiment = ready(setting, options, steps, folder, logs=has_logger)
            bare = BareLoop(experiment.model, experiment.data, setting.device, mode.precision, mode.is_compiled)
            windows = Windows(length, {"bare": bare}, setting.finish)
            inspection = Inspection(last, bare, folder)
            fit(experiment, [windows, inspection] if setting.is_gpu else [windows])
    finally:
        torch.backends.cudnn.benchmark = False
    times = {name: [1000 * seconds for seconds in values[-count:]] for name, values in windows.times.items()}
    return table_row(times, experiment.data.batch_size, inspection.results, inspection.error)


def table_row(
    times: dict[str, list[float]], batch_size: int, profile: dict[str, dict[str, float]], error: str
) -> dict[str, Any]:
    """Milliseconds per step, profile, and the fraction of an unprofiled step in which the device is idle.

    "fit / bare" is the median over the ratios of neighbouring windows.
    """
    medians = {name: median(values) for name, values in times.items()}
    row: dict[str, Any] = {
        "fit ms": medians["fit"],
        "bare ms": medians["bare"],
        "fit / bare": median(map(truediv, times["fit"], times["bare"])),
        "fit / bare, by window": [round(f / b, 3) for f, b in zip(times["fit"], times["bare"], strict=True)],
        "images/s": batch_size / medians["fit"] * 1000,
    }
    for loop, values in profile.items():
        row[f"{loop}: idle"] = 1 - values["busy ms"] / medians[loop]
        row |= {f"{loop}: {name}": value for name, value in values.items()}
    return row | ({"profiler": error} if error else {})


# Synchronization -------------------------------------------------------------------------------------------------


class SyncWarnings(Callback):
    """Makes torch warn of every synchronization with the device in steps `first` to `last`, which do not log."""

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step in (self.first - 1, self.last):
            torch.cuda.set_sync_debug_mode("warn" if trainer.global_step < self.first else "default")


def _waits(overrides: list[str], setting: Setting) -> dict[str, Any]:
    if not setting.is_gpu:
        return {"waits": "only on a GPU"}
    first, last = 17, 31  # steps 16 and 32 log
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(ready(setting, overrides, last + 1, setting.new_folder("waits")), [SyncWarnings(first, last)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )
    count = last - first + 1
    return {"waits per step": places.total() / count, "steps": count, "at": dict(places.most_common())}
