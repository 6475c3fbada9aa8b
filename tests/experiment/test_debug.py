"""debug=fast, overfit and profile do what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_DCGAN, TINY_POINTS, composed, equal, fitted
from lightning.pytorch import Callback, LightningModule, Trainer

from ganforge.data.base import Batch
from ganforge.experiment.build import build
from ganforge.runtime.errors import UserError


def debugged(folder: Path, *overrides: str, callback: Callback | None = None) -> Any:
    """Train as the options of debug= say, on the CPU."""
    experiment = build(composed(*overrides, "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"), folder)
    experiment.trainer.callbacks += [callback] if callback else []  # type: ignore[attr-defined]
    experiment.trainer.fit(experiment.model, datamodule=experiment.data, weights_only=True)
    return experiment


def test_fast_tries_every_callback(tmp_path: Path) -> None:
    experiment = debugged(tmp_path, *TINY_POINTS, "debug=fast")
    assert experiment.trainer.global_step == 20
    assert {"last.ckpt", "previous.ckpt"} < {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert [path.stem[-2:] for path in sorted((tmp_path / "samples").glob("step-*.png"))] == ["00", "10", "20"]
    scores = json.loads((tmp_path / "metrics.json").read_text())
    last = next(score["last"] for name, score in scores.items() if name != "health")
    assert last["step"] == 20
    assert last["provenance"]["fake_samples"] == 256


class Batches(Callback):
    """Keeps what training gets."""

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append(Batch(*(None if part is None else part.clone() for part in batch)))


PAIRS = ["model=pix2pix", "data=pairs", "degradation=noise", "content=pixels", *TINY_DCGAN]
PAIRS += ["model.generator.depth=2", "model.discriminator.layers=1"]
IMAGES = ["model=dcgan", "data=folder", "data.flip=true", "extractor=digits", *TINY_DCGAN]


@pytest.mark.parametrize(
    ("options", "count"), [(PAIRS, 1), (IMAGES, 1), (TINY_POINTS, 2)], ids=["pairs", "folder", "points"]
)
def test_overfit_repeats_its_batches(tmp_path: Path, pictures: Path, options: list[str], count: int) -> None:
    root = [] if options is TINY_POINTS else [f"data.root={pictures}", "data.image_size=28", "data.batch_size=8"]
    limits = ["debug=overfit", "trainer.max_steps=4", "sample_every=10", f"data.overfit_batches={count}"]
    batches = Batches()
    experiment = debugged(tmp_path / "run", *options, *root, *limits, callback=batches)
    first, second = batches.seen[:2]
    assert equal(first, second) == (count == 1), "in its crops, flips and noise as well"
    assert equal(batches.seen[:count], batches.seen[2 : 2 + count])
    assert not experiment.trainer.num_val_batches
    if options is PAIRS:
        shown = experiment.data.examples(3)
        assert equal(shown.real, first.real[:3]), "what is shown is what is learnt by heart"
        assert equal(shown.condition, first.condition[:3])


def test_overfitting_needs_a_batch(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"overfit_batches=0: must be at least 1"):
        build(composed(*TINY_POINTS, "debug=overfit", "data.overfit_batches=0"), tmp_path)


def test_profile_writes_a_trace_of_a_few_steps(tmp_path: Path) -> None:
    debugged(tmp_path, *TINY_POINTS, "debug=profile")
    trace = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    steps = [event for event in trace if event["name"].startswith("ProfilerStep#")]
    operations = [event for event in trace if event.get("cat") == "cpu_op"]
    assert len(steps) == 5
    assert {"aten::linear", "aten::addmm"} & {event["name"] for event in operations}
    assert all(0 <= event["dur"] < 1e7 for event in operations), "microseconds"


def test_a_profiler_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.profiler=fast: must be null, simple, advanced, pytorch"):
        fitted(tmp_path, *TINY_POINTS, "trainer.profiler=fast")
