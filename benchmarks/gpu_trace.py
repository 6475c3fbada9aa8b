"""Profiles of a device by torch's profiler: busy time, kernels, copies and waits of the host."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class DeviceProfile:
    """Profiles everything between `start` and `stop`, on the device only, which slows the host least."""

    def __init__(self, folder: Path):
        self.path = folder / "trace.json"
        self.profiler: Any = None

    def start(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.allocated = torch.cuda.memory_allocated()
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.profiler.start()

    def stop(self, steps: int) -> dict[str, float]:
        """The values of `per_step`, and memory in MiB."""
        torch.cuda.synchronize()
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.path))
        events = json.loads(self.path.read_text())["traceEvents"]
        self.path.unlink()
        peak = torch.cuda.max_memory_allocated()
        memory = {"peak MiB": peak / 2**20, "of that in the step": (peak - self.allocated) / 2**20}
        return {**per_step(events, steps), **memory}


def per_step(events: Iterable[Mapping[str, Any]], steps: int) -> dict[str, float]:
    """Per step of a Chrome trace: busy milliseconds, kernels, copies from the host and their bytes, waits."""
    complete = [event for event in events if event.get("ph") == "X"]
    on_device = [event for event in complete if event.get("cat") in ON_DEVICE]
    sent = [event for event in on_device if "HtoD" in event["name"]]
    waits = [event for event in complete if event.get("cat") == "cuda_runtime" and event["name"] in WAITS]
    return {
        "busy ms": busy((event["ts"], event["ts"] + event["dur"]) for event in on_device) / 1000 / steps,
        "kernels": sum(event["cat"] == "kernel" for event in on_device) / steps,
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
