"""That the benchmarks run, compare loops that compute the same, and what benchmarks/gpu.py makes of what it finds."""

import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY_DCGAN, TINY_MLP, TINY_R3GAN, composed, slow
from lightning.pytorch import Callback

from ganforge import __version__
from ganforge.augment import ADA
from ganforge.experiment.build import build
from ganforge.runs.folder import PACKAGES, versions

sys.path.append(str(ROOT / "benchmarks"))

import gpu
import step_time
from gpu_report import Case, OutOfTime, Report, attempt, markdown, time_limit
from gpu_right import compare_traces, difference, unequal_parts
from gpu_trace import busy, per_step
from loops import BareLoop

TINY_CASES = {"mlp": TINY_MLP, "r3gan": TINY_R3GAN}
FEW_STEPS = ["data.batch_size=8", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]


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


class Recorder(Callback):
    """Records what the steps of a training start from, and their losses."""

    def __init__(self) -> None:
        self.inputs: list[tuple] = []
        self.losses: list[list[float]] = []

    def on_train_start(self, trainer, model) -> None:
        draw = model.draw_latent

        def recorded(game, count):
            self.latent = draw(game, count)
            return self.latent

        model.draw_latent = recorded

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx) -> None:
        self.inputs.append((batch.real.detach().clone(), self.latent.clone()))
        self.losses.append([model.step_log.terms[f"loss_{player}/total"].item() for player in "dg"])


@pytest.mark.parametrize("case", ["dcgan", "mlp", "r1", "r3gan"])
def test_the_bare_loop_computes_the_losses_of_a_step(tmp_path: Path, fake_mnist: Path, case: str) -> None:
    options = [*step_time.CASES[case].options, *TINY_CASES.get(case, TINY_DCGAN), *FEW_STEPS, f"data.root={fake_mnist}"]
    data, model, trainer, _ = build(
        composed(*options, "trainer.max_steps=3", "trainer.precision=64-true", "~callbacks.samples"), tmp_path / "run"
    )
    data.prepare_data()
    data.setup()
    bare = BareLoop(model.double(), data)
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.fit(model, datamodule=data)
    losses = [[loss.item() for loss in bare.step(real, latent, None)] for real, latent in recorder.inputs]
    torch.testing.assert_close(losses, recorder.losses, rtol=1e-9, atol=0)


@pytest.mark.parametrize("case", ["dcgan", "ada"])
def test_the_time_of_a_step_is_measured_in_alternating_windows(
    monkeypatch: pytest.MonkeyPatch, fake_mnist: Path, case: str
) -> None:
    monkeypatch.setitem(step_time.CASES, case, step_time.CASES[case]._replace(length=2, windows=4))
    probabilities = []
    monkeypatch.setattr(ADA, "observe", lambda ada, *_: probabilities.append(ada.probability.item()))
    times = step_time.measure(case, 0, [*TINY_DCGAN, *FEW_STEPS, f"data.root={fake_mnist}"])
    assert {loop: len(windows) for loop, windows in times.items()} == {
        "dcgan": {"fit": 4, "bare": 4, "tutorial": 4},
        "ada": {"fit": 2, "plain": 2},
    }[case]
    if case == "ada":
        assert probabilities == [0.5] * 8, "augmented: the window before the first that is timed, and every other one"
