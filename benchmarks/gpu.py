"""Correctness and speed on a GPU, in one command of less than eight minutes.

    python benchmarks/gpu.py --output DIR [--device cuda] [--parts right,fast,evaluation] [--mnist ROOT] [--faces ROOT]
                             [--cases TEXT ...]

`--device cpu` only checks that everything runs, with tiny sizes. Each part is a process with a time limit, and restarts
after a case that broke the device. `results.md` and `results.json` in DIR are written after every case. The data are
synthetic unless a folder is given.
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
from gpu_setup import Roots, Setting, redirect_caches

PARTS: dict[str, tuple[ModuleType, float]] = {
    "right": (gpu_right, 180),
    "fast": (gpu_fast, 205),
    "evaluation": (gpu_evaluation, 45),
}
"""The parts and their time limits in seconds."""

GRACE = 8
"""Seconds after its limit until a part is killed."""

BROKEN = 75
"""Exit status of a part whose process can no longer use the device."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part:
        return work(options, options.part, Path(options.folder), is_guarded=True)
    report = Report(options.output)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for part in options.parts:
            run_part(part, PARTS[part][1] * slowdown(options), options, folder)
    print(summary([record for record in report.records().values() if record["part"] != "machine"]), flush=True)
    print(f"Full results: {options.output / 'results.md'}", flush=True)
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--mnist", help="root of MNIST, as data.root")
    parser.add_argument("--faces", help="root of CelebA, as data.root of data=celeba")
    parser.add_argument(
        "--cases", nargs="+", default=[""], help="run only cases whose table or name contains one of these texts"
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # set in the process of a part
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"--parts: must be among {', '.join(PARTS)}, not {', '.join(unknown)}")
    return options


def slowdown(options: argparse.Namespace) -> float:
    """The factor of all time limits: a CPU may be busy, and its speed does not matter."""
    return 1.0 if options.device == "cuda" else 5.0


def machine(device: str) -> dict[str, str]:
    """The device and the versions that the results depend on."""
    has_gpu = torch.cuda.is_available() and device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if has_gpu else f"CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "cuDNN": str(torch.backends.cudnn.version()) if has_gpu else "",
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def run_part(part: str, limit: float, options: argparse.Namespace, folder: str) -> None:
    """Run a part in a process, restarting it after a broken device, until it is complete or its time is up."""
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
        reason = "reached its time limit" if status == -1 else f"ended with status {status}"
        record = {"state": "FAILED", "error": f"{part} {reason}"}
        Report(options.output).add(part, None, record)


def forwarded(options: argparse.Namespace) -> list[str]:
    """The options for the process of a part."""
    given = {"output": options.output, "device": options.device, "mnist": options.mnist, "faces": options.faces}
    return [*(f"--{name}={value}" for name, value in given.items() if value), "--cases", *options.cases]


def work(options: argparse.Namespace, part: str, folder: Path, is_guarded: bool) -> int:
    """Run the cases of a part that have not started yet; `is_guarded` enforces their time limits."""
    redirect_caches(folder)
    roots = Roots(folder, options.mnist, options.faces)
    setting = Setting(options.device, folder, options.output, roots, is_small=options.device == "cpu")
    report, end = Report(options.output), time.monotonic() + float(os.environ.get("GPU_BENCHMARK_SECONDS", "inf"))
    module = PARTS[part][0]
    report.add("machine", None, {"state": "ok", "values": machine(options.device)})
    getattr(module, "prepare", lambda: None)()
    for case in module.cases(setting):
        is_wanted = any(text in f"{case.table}: {case.name}" for text in options.cases)
        if not is_wanted or (part, case.table, case.name) in report.records():
            continue
        left = end - time.monotonic()
        if left < 1:
            report.add(part, case, {"state": "not run", "error": "the part had no time left"})
            continue
        report.add(part, case, {"state": "FAILED", "error": "it started, and its process died"})
        record = attempt(case, setting, min(case.seconds * slowdown(options), left) if is_guarded else None)
        report.add(part, case, record)
        print(line({**record, "table": case.table, "case": case.name}), flush=True)
        if is_broken(record.get("error", "")):
            return BROKEN
        clean(setting)
    return 0


def is_broken(error: str) -> bool:
    """Whether a process cannot use its device after this error."""
    return "CUDA error" in error or "CUBLAS_STATUS" in error or "CUDNN_STATUS_EXECUTION" in error


def clean(setting: Setting) -> None:
    """Free memory between cases."""
    gc.collect()
    if setting.is_gpu:
        torch.cuda.empty_cache()
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch.compiler.reset()


if __name__ == "__main__":
    sys.exit(main())
