"""Whether ganforge is right and fast on a GPU, in one command of less than eight minutes.

    python benchmarks/gpu.py --output DIR [--device cuda] [--parts right,fast,evaluation] [--mnist ROOT] [--faces ROOT]

`--device cpu` shows that all of it runs, with tiny sizes. Each part is a process of its own with a time limit, which is
begun again after a case that broke the device. DIR gets `results.md` and `results.json`, written after every case.
Data are made up where no folder is named: MNIST, or faces in CelebA's layout.
"""

import argparse
import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import gpu_evaluation
import gpu_fast
import gpu_right
import torch
from gpu_report import Report, attempt, line, summary
from gpu_setup import Roots, Setting, keep_out_of_home

PARTS: dict[str, tuple[ModuleType, float]] = {
    "right": (gpu_right, 180),
    "fast": (gpu_fast, 165),
    "evaluation": (gpu_evaluation, 45),
}
"""With their limits in seconds."""

GRACE = 8
"""Seconds that a part may go on after its limit, until it is killed."""

BROKEN = 75
"""The status of a part that can do nothing more with the device in this process."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part:
        return work(options, options.part, Path(options.folder), is_guarded=True)
    report = Report(options.output)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for part in options.parts:
            conduct(part, PARTS[part][1] * patience(options), options, folder)
    print(summary([record for record in report.records().values() if record["part"] != "machine"]), flush=True)
    print(f"All of it: {options.output / 'results.md'}", flush=True)
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--mnist", help="root of MNIST, as data.root")
    parser.add_argument("--faces", help="root of CelebA, as data.root of data=celeba")
    parser.add_argument("--cases", default="", help="only those with this in the name of table or case")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # for the process of a part
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: there are {', '.join(PARTS)}, not {', '.join(unknown)}")
    return options


def patience(options: argparse.Namespace) -> float:
    """A CPU may be busy with something else, and there speed is not asked for."""
    return 1.0 if options.device == "cuda" else 5.0


def machine(device: str) -> dict[str, str]:
    """What the numbers are of."""
    there = torch.cuda.is_available() and device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if there else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "cuDNN": str(torch.backends.cudnn.version()) if there else "",
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def conduct(part: str, limit: float, options: argparse.Namespace, folder: str) -> None:
    """Run a part in processes of its own, one after the other, until it is through or its time is up."""
    command = [sys.executable, str(Path(__file__).resolve()), *forwarded(options), "--part", part, "--folder", folder]
    end = time.monotonic() + limit
    for _ in range(20):
        environment = {**os.environ, "GPU_BENCHMARK_SECONDS": str(end - time.monotonic())}
        try:
            status = subprocess.run(command, env=environment, timeout=max(1, end + GRACE - time.monotonic())).returncode
        except subprocess.TimeoutExpired:
            status = -1
        if status == 0 or time.monotonic() > end:
            break
    if status:
        record = {"state": "FAILED", "error": f"{part} ended with status {status}, at the limit if that is -1"}
        Report(options.output).add(part, None, record)


def forwarded(options: argparse.Namespace) -> list[str]:
    given = {"output": options.output, "device": options.device, "cases": options.cases}
    given |= {"mnist": options.mnist, "faces": options.faces}
    return [f"--{name}={value}" for name, value in given.items() if value]


def work(options: argparse.Namespace, part: str, folder: Path, is_guarded: bool) -> int:
    """Do the cases of a part that were not begun yet. `is_guarded`: whether a case is given up after its time."""
    keep_out_of_home(folder)
    roots = Roots(folder, options.mnist, options.faces)
    setting = Setting(options.device, folder, options.output, roots, is_small=options.device == "cpu")
    report, end = Report(options.output), time.monotonic() + float(os.environ.get("GPU_BENCHMARK_SECONDS", "inf"))
    module = PARTS[part][0]
    report.add("machine", None, {"state": "ok", "values": machine(options.device)})
    getattr(module, "prepare", lambda: None)()
    for case in module.cases(setting):
        is_wanted = options.cases in f"{case.table}: {case.name}"
        if not is_wanted or (part, case.table, case.name) in report.records():
            continue
        left = end - time.monotonic()
        if left < 1:
            report.add(part, case, {"state": "not run", "error": "the part had no time left"})
            continue
        report.add(part, case, {"state": "FAILED", "error": "it was begun, and ended its process"})
        record = attempt(case, setting, min(case.seconds * patience(options), left) if is_guarded else None)
        report.add(part, case, record)
        print(line({**record, "table": case.table, "case": case.name}), flush=True)
        if is_broken(record.get("error", "")):
            return BROKEN
        clean(setting)
    return 0


def is_broken(error: str) -> bool:
    """Whether an error leaves a process without its device."""
    return "CUDA error" in error or "CUBLAS_STATUS" in error or "CUDNN_STATUS_EXECUTION" in error


def clean(setting: Setting) -> None:
    gc.collect()
    if setting.is_gpu:
        torch.cuda.empty_cache()
    if "torch._dynamo" in sys.modules:  # else it would be imported, which takes seconds
        torch.compiler.reset()


if __name__ == "__main__":
    sys.exit(main())
