"""The profilers of `trainer.profiler=`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)

from ganforge.runtime.errors import UserError

KINDS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


class NullProfiler(PassThroughProfiler):
    """No profiler. Lightning's enters a generator in each of a step's hundred hooks, which takes 0.7 ms."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


def make_profiler(kind: str | None, folder: Path) -> Profiler:
    """The profiler of trainer.profiler, which writes `fit-profile.txt` into a folder when training ends."""
    if kind is None:
        return NullProfiler()
    if kind not in KINDS:
        raise UserError(f"trainer.profiler={kind}: must be null, {', '.join(KINDS)}")
    return KINDS[kind](dirpath=folder, filename="profile")
