"""That benchmarks/gpu.py runs to its end where there is no GPU, and what it makes of what it finds."""

import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, slow

from ganforge import __version__
from ganforge.runs.folder import PACKAGES, versions

sys.path.append(str(ROOT / "benchmarks"))

import gpu
from gpu_report import Case, OutOfTime, Report, attempt, markdown, time_limit
from gpu_right import compare_traces, difference, unequal_parts
from gpu_trace import busy, per_step


@pytest.mark.parametrize(
    ("part", "cases"),
    [
        ("right", "32-true: gan"),
        slow("right", "bit for bit: gan"),
        slow("right", "TF32 off: digits"),
        slow("fast", "gan (MLP)"),
        slow("evaluation", "samples per second: dcgan, 28"),
    ],
)
def test_every_part_runs_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, cases: str) -> None:
    monkeypatch.setattr(gpu, "redirect_caches", lambda _: None)  # the tests' own fixture does
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # is undone afterwards
    options = gpu.parse_arguments(["--output", str(tmp_path), "--device", "cpu", "--cases", cases])
    (tmp_path / "work").mkdir()
    assert gpu.work(options, part, tmp_path / "work", is_guarded=False) == 0
    records = Report(tmp_path).records()
    assert records
    assert {record["state"] for record in records.values()} == {"ok"}, markdown(list(records.values()))
    assert cases.rpartition(": ")[2] in (tmp_path / "results.md").read_text()
    gpu.work(options, part, tmp_path / "work", is_guarded=False)
    assert Report(tmp_path).records() == records, "what was measured is not measured again"


def test_failures_are_results(tmp_path: Path) -> None:
    def fails(_: object) -> dict:
        raise RuntimeError("CUDA error: device-side assert triggered")

    case = Case("a table", "a case", fails)
    record = attempt(case, None, None)
    report = Report(tmp_path)
    report.add("right", case, {"state": "FAILED", "error": "it was begun"})
    report.add("right", case, record)
    assert gpu.is_broken(record["error"])
    text = (tmp_path / "results.md").read_text()
    assert "1 cases: 1 FAILED." in text
    assert "raise RuntimeError" in text
    differs = attempt(case._replace(measure=lambda _: {"passes": False, "difference": 0.5}), None, None)
    assert (differs["state"], differs["values"]) == ("DIFFERS", {"difference": 0.5})


def test_a_case_is_given_up_in_time() -> None:
    with pytest.raises(OutOfTime), time_limit(0.01):
        time.sleep(5)


def test_traces_are_compared_by_the_size_of_a_value() -> None:
    assert difference([1.0, -2.2], [1.0, -2.0]) == pytest.approx(0.1)
    assert difference([float("nan")], [1.0]) == float("inf")
    found = compare_traces({"d": [1.0, 2.0], "g": [4.0, 4.4]}, {"d": [1.0, 2.0], "g": [4.0, 4.0]}, 0.01)
    assert (found["passes"], found["of"], found["at the first step"]) == (False, "g", 0.0)
    assert found["difference"] == pytest.approx(0.1)


def test_unequal_checkpoints_are_noticed() -> None:
    one, other = (
        {"state_dict": {"w": torch.ones(2)}, "optimizer_states": [{"m": torch.full((2,), v)}]} for v in (0, 1)
    )
    assert unequal_parts(one, one) == {}
    assert unequal_parts(one, other) == {"optimizer_states": "1 of 1"}


def test_the_profile_of_a_step() -> None:
    assert busy([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 4.0
    kernel = {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 0, "dur": 3000}
    copy = {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 4000, "dur": 1000, "args": {"bytes": 64}}
    wait = {"ph": "X", "cat": "cuda_runtime", "name": "cudaStreamSynchronize", "ts": 0, "dur": 9000}
    found = per_step([kernel, copy, wait, {"ph": "M"}], 2)
    assert found == {"busy ms": 2.0, "kernels": 0.5, "sent bytes": 32.0, "copies to it": 0.5, "waits": 0.5}


def test_versions_without_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions()["ganforge"] == __version__
    assert torch.__version__.startswith(versions()["torch"] or "nothing")
    monkeypatch.setattr("ganforge.runs.folder.PACKAGES", (*PACKAGES, "not-installed"))
    assert versions()["not-installed"] is None
