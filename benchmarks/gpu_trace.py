"""What torch's profiler saw of a device: how long it was busy, what it was sent, and how often the host waited."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Profiled:
    """Profiles what happens between `begin` and `end`, on the device only, which slows the host least."""

    def __init__(self, folder: Path):
        self.path = folder / "trace.json"
        self.profiler: Any = None

    def begin(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.held = torch.cuda.memory_allocated()
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.profiler.start()

    def end(self, steps: int) -> dict[str, float]:
        """What a step of these took."""
        torch.cuda.synchronize()
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.path))
        events = json.loads(self.path.read_text())["traceEvents"]
        self.path.unlink()
        peak = torch.cuda.max_memory_allocated()
        memory = {"peak MiB": peak / 2**20, "of that in the step": (peak - self.held) / 2**20}
        return {**per_step(events, steps), **memory}


def per_step(events: Iterable[Mapping[str, Any]], steps: int) -> dict[str, float]:
    """Of a chrome trace: milliseconds that the device was busy, its kernels, bytes from the host, and waits for it."""
    complete = [event for event in events if event.get("ph") == "X"]
    there = [event for event in complete if event.get("cat") in ON_DEVICE]
    sent = [event for event in there if "HtoD" in event["name"]]
    waits = [event for event in complete if event.get("cat") == "cuda_runtime" and event["name"] in WAITS]
    return {
        "busy ms": busy((event["ts"], event["ts"] + event["dur"]) for event in there) / 1000 / steps,
        "kernels": sum(event["cat"] == "kernel" for event in there) / steps,
        "sent bytes": sum(event.get("args", {}).get("bytes", 0) for event in sent) / steps,
        "copies to it": len(sent) / steps,
        "waits": len(waits) / steps,
    }


def busy(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
