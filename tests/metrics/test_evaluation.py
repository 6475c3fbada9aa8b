"""Numbers while training and by evaluate.py: the same on any number of processes, without a trace in the training."""

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY_DCGAN, TINY_POINTS, composed, equal, fitted, recorded, run, run_ranks, save_picture, slow
from torch import Tensor
from torchmetrics import Metric

from ganforge.commands.evaluate import evaluate
from ganforge.data.base import Batch
from ganforge.experiment.build import build
from ganforge.metrics.scores import Scores
from ganforge.metrics.statistics import Collector, Features, Statistics
from ganforge.models.ema import standing_statistics
from ganforge.models.gan import GAN
from ganforge.randomness import chunk_rows, rank_chunks
from ganforge.runtime.errors import UserError

DIGITS = ["model=dcgan", *TINY_DCGAN, "data=mnist", "data.batch_size=16", "data.num_samples=200"]
SMALL = ["metrics.against_real.kid.subset_size=50", "metrics.against_real.kid.subsets=3"]


def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_numbers_while_training(tmp_path: Path, fake_mnist: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    options = [*DIGITS, *SMALL, f"data.root={fake_mnist}", "trainer.max_steps=6", "evaluate_every=2"]
    trainer = fitted(tmp_path, *options, "trainer.log_every_n_steps=1").trainer
    found = numbers(tmp_path)
    expected = ["fid", "kid", "precision", "recall", "density", "coverage", "diversity", "classes", "is"]
    assert list(found) == [f"{name}_digits" for name in expected]
    assert {entry["last"]["step"] for entry in found.values()} == {6}
    fid = found["fid_digits"]
    assert fid["best"]["value"] <= fid["last"]["value"]
    assert not fid["higher_is_better"]
    assert found["is_digits"]["higher_is_better"]
    assert fid["last"]["value"] == trainer.callback_metrics["fid_digits"]
    how = fid["last"]["provenance"]
    assert how["weights"] == "moving average"
    assert (how["real_samples"], how["fake_samples"], how["split"], how["extractor"]) == (256, 200, "train", "digits")
    (best,) = (tmp_path / "checkpoints").glob("best-fid_digits-step-*.ckpt")
    assert best.stem.endswith(f"{fid['best']['step']:08d}")
    assert "step 2: fid_digits" in caplog.text


def test_the_last_weights_are_measured_too(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*DIGITS, "metrics=fid", f"data.root={fake_mnist}", "trainer.max_steps=5", "evaluate_every=3"]
    assert fitted(tmp_path / "five", *options).trainer.global_step == 5
    assert numbers(tmp_path / "five")["fid_digits"]["last"]["step"] == 5
    longer = [*options, "trainer.max_steps=9", "checkpoint_every=1"]
    fitted(tmp_path / "nine", *longer, checkpoint=tmp_path / "five" / "checkpoints" / "last.ckpt")
    fitted(tmp_path / "whole", *longer)
    first, second = (numbers(tmp_path / name)["fid_digits"]["last"] for name in ("nine", "whole"))
    assert first == second


def test_a_best_value_is_of_the_same_protocol() -> None:
    scores = Scores()
    scores.add("fid", False, True, 1, 3.0, {"fake_samples": 10, "versions": {"torch": "1"}})
    scores.add("fid", False, True, 2, 5.0, {"fake_samples": 10, "versions": {"torch": "2"}})
    assert scores["fid"]["best"]["step"] == 1
    scores.add("fid", False, True, 3, 4.0, {"fake_samples": 99})
    assert scores.improved("fid")
    scores.add("fid", False, True, 4, float("nan"), {"fake_samples": 99})
    assert not scores.improved("fid")


def test_a_resumed_run_forgets_what_it_measures_again(tmp_path: Path) -> None:
    now = {"value": 1.0, "step": 3, "provenance": {}}
    trained, evaluated = {"higher_is_better": False, "last": now, "best": now}, {"evaluated": [now]}
    (tmp_path / "metrics.json").write_text(json.dumps({"fid": trained | evaluated, "kid": trained}))
    Scores({"is": trained}).write(tmp_path / "metrics.json")
    assert numbers(tmp_path) == {"fid": evaluated, "is": trained}


def test_points_and_stacked_digits_have_numbers_of_their_own(tmp_path: Path, fake_mnist: Path) -> None:
    quick = ["evaluate_every=2", "data.num_samples=100"]
    fitted(tmp_path / "grid", *TINY_POINTS, "data=grid", *quick)
    assert list(numbers(tmp_path / "grid")) == ["sliced_wasserstein", "diversity", "modes", "high_quality", "classes"]
    fitted(tmp_path / "quadratic", *TINY_POINTS, *quick)
    assert list(numbers(tmp_path / "quadratic")) == ["sliced_wasserstein", "diversity"]
    stacked = ["model=dcgan", *TINY_DCGAN, "data=stacked_mnist", "data.size=300", f"data.root={fake_mnist}"]
    fitted(tmp_path / "stacked", *stacked, *quick)
    found = numbers(tmp_path / "stacked")
    assert list(found) == [f"{name}_stacked_digits" for name in ("fid", "diversity", "modes", "kl", "classes")]
    assert 1 <= found["modes_stacked_digits"]["last"]["value"] <= 100


def test_evaluation_leaves_the_training_as_it_was(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*DIGITS, *SMALL, f"data.root={fake_mnist}", "trainer.max_steps=4"]
    standing = "callbacks.evaluation.standing_statistics=true"
    states = [
        fitted(tmp_path / name, *options, *extra).model.state_dict()
        for name, extra in {
            "never": ["evaluate_every=null"],
            "often": ["evaluate_every=1"],
            "standing": ["evaluate_every=1", standing],
        }.items()
    ]
    assert equal(states[0], states[1])
    assert equal(states[0], states[2])
    often, other = (numbers(tmp_path / name)["fid_digits"] for name in ("often", "standing"))
    assert often["last"]["value"] != other["last"]["value"]
    assert other["last"]["provenance"]["batchnorm"] == "re-estimated"


def test_standing_statistics_are_those_of_the_present_weights(tmp_path: Path) -> None:
    model = build(composed("model=dcgan", *TINY_DCGAN), tmp_path).model
    norm = next(module for module in model.sampling_generator.modules() if isinstance(module, torch.nn.BatchNorm2d))
    kept = norm.running_var.clone()
    with standing_statistics(model):
        assert norm.running_var.mean() < 0.5 * kept.mean()  # small weights, so small activations
    assert torch.equal(norm.running_var, kept)


def test_real_statistics_are_measured_once_for_all_runs(
    tmp_path: Path, fake_mnist: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[int] = []
    update = Collector.update

    def counting(self: Collector, chunk: int, found: Features, labels: Tensor | None = None) -> None:
        counted.append(self.count)
        update(self, chunk, found, labels)

    monkeypatch.setattr(Collector, "update", counting)
    cache = tmp_path / "cache"
    options = [
        *DIGITS,
        *SMALL,
        f"data.root={fake_mnist}",
        "evaluate_every=2",
        "extractor=digits",
        f"callbacks.evaluation.cache_dir={cache}",
    ]
    fitted(tmp_path / "first", *options)
    assert (counted.count(256), counted.count(200)) == (4, 4)  # chunks of 64 reals, and of fakes
    fitted(tmp_path / "second", *options)
    assert (counted.count(256), counted.count(200)) == (4, 8)
    assert numbers(tmp_path / "first") == numbers(tmp_path / "second")
    (kept,) = cache.glob("*.pt")
    kept.write_bytes(kept.read_bytes()[:1000])  # damaged: measured anew
    fitted(tmp_path / "third", *options)
    assert counted.count(256) == 8
    kept = next(cache.glob("*.pt"))
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 255  # torch would load it
    kept.write_bytes(content)
    fitted(tmp_path / "turned", *options)
    assert counted.count(256) == 12
    assert numbers(tmp_path / "first") == numbers(tmp_path / "third")
    fitted(tmp_path / "other", *options, "data.image_size=32")  # other images, other statistics
    assert len(list(cache.glob("*.pt"))) == 2
    (tmp_path / "file").write_text("")
    fitted(tmp_path / "none", *options, f"callbacks.evaluation.cache_dir={tmp_path / 'file'}")
    assert numbers(tmp_path / "first") == numbers(tmp_path / "none")
    assert "Choose another cache_dir" in caplog.text


class Ranks:
    """Ranks that are threads, and gather as processes do: where all of them have come."""

    def __init__(self, world_size: int):
        self.barrier = Barrier(world_size)
        self.gathered: list[Any] = [None] * world_size

    def trainer(self, rank: int) -> Any:
        def all_gather(values: Tensor) -> Tensor:
            self.gathered[rank] = values
            self.barrier.wait()
            together = torch.stack(self.gathered)
            self.barrier.wait()
            return together

        strategy = SimpleNamespace(all_gather=all_gather, root_device=torch.device("cpu"))
        size = len(self.gathered)
        return SimpleNamespace(world_size=size, global_rank=rank, is_global_zero=rank == 0, strategy=strategy)


def collected(features: Tensor, count: int, world_size: int, keeps: bool = True) -> list[Statistics | None]:
    """What each rank has of the first `count` rows, numbered by labels."""
    ranks = Ranks(world_size)

    def collect(rank: int) -> Statistics | None:
        collector = Collector(count, ranks.trainer(rank), keeps)
        for chunk in rank_chunks(count, rank, world_size):
            rows = chunk_rows(chunk, count)
            collector.update(chunk, Features(features[rows], 2 * features[rows]), torch.arange(len(features))[rows])
        return collector.result()

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(collect, range(world_size)))


@pytest.mark.parametrize(("count", "world_size"), [(1000, 1), (1000, 2), (1000, 3), (1000, 5), (70, 4), (64, 3)])
@pytest.mark.parametrize("cap", [10_000, 320])
def test_statistics_do_not_depend_on_who_saw_what(
    monkeypatch: pytest.MonkeyPatch, count: int, world_size: int, cap: int
) -> None:
    """To the bit; also where a rank sees no sample, or none that is kept."""
    monkeypatch.setattr("ganforge.metrics.statistics.MAX_SAMPLES", cap)
    features = torch.randn(count, 3, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, count)[:, None]
    found, *others = collected(features, count, world_size)
    assert others == [None] * (world_size - 1)
    assert found is not None
    [alone] = collected(features, count, 1)
    assert equal(list(found), list(alone or ()))
    [sums_only] = collected(features, count, 1, keeps=False)
    assert sums_only is not None
    assert equal(list(found[:3]), list(sums_only[:3]))
    assert not len(sums_only.features)
    exact = features.double()
    assert found.size == count
    torch.testing.assert_close(found.mean, exact.mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(exact.T))
    assert found.labels is not None
    assert len(found.labels) <= cap
    assert torch.equal(found.features, features[found.labels])
    assert found.labels.unique().tolist() == found.labels.tolist()
    assert len(found.labels) == count if count <= cap else found.labels[-1] >= count - 4 * 64


class Blackness(Metric):
    """Stands for any of torchmetrics'."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("black", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        assert images.dtype == torch.uint8
        self.black += (images.flatten(1) < 128).all(1).sum()
        self.count += len(images)

    def compute(self) -> Tensor:
        return self.count


class MeanDistance(Blackness):
    """Stands for torchmetrics' FID."""

    reset_real_features = True

    def update(self, images: Tensor, real: bool) -> None:
        self.count += len(images) * (1000 if real else 1)

    def reset(self) -> None:
        reals = self.count // 1000 * 1000
        super().reset()
        self.count += reals if not self.reset_real_features else 0


def test_metrics_of_torchmetrics_need_a_line(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*DIGITS, f"data.root={fake_mnist}", "evaluate_every=1", "metrics=none"]
    options += ["+metrics.on_fakes.black={_target_: test_evaluation.Blackness}", "+metrics.monitor=black"]
    options += ["+metrics.against_real.distance={_target_: test_evaluation.MeanDistance}"]
    fitted(tmp_path, *options)
    found = numbers(tmp_path)
    assert found["black"]["last"]["value"] == 200, "rows beyond num_samples do not count"
    assert found["distance"]["last"]["value"] == 256_200
    assert list((tmp_path / "checkpoints").glob("best-black-*.ckpt"))


def test_mistakes_are_found_before_training(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*DIGITS, f"data.root={fake_mnist}", "evaluate_every=1"]
    for mistake, message in {
        "metrics.monitor=fidd": "metrics.monitor=fidd: no such metric. Choose from fid_digits, kid_digits",
        "metrics=pairs": r"metrics.paired.psnr_y does not apply to these data: use metrics=images",
        "metrics=points": r"metrics.against_real.sliced_wasserstein needs points: choose other data=",
        "metrics=stacked": r"metrics.against_real.modes needs extractor=stacked_digits: choose it",
        "+metrics.on_fakes.other={_target_: ganforge.metrics.features.Neighbourhoods}": "two scores are called",
        "+metrics.fakes.black={_target_: test_evaluation.Blackness}": "unknown keys fakes; expected against_real",
    }.items():
        with pytest.raises(Exception, match=message):
            build(composed(*options, mistake), tmp_path)


class Labelled(GAN):
    """Samples with labels, as a conditional GAN has them."""

    def validation_step(self, chunk: int, batch_idx: int) -> Batch:  # type: ignore[override]
        return super().validation_step(chunk, batch_idx)._replace(condition=torch.arange(64) % 10)


def test_conditional_samples_have_numbers_by_class(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*DIGITS, *SMALL, f"data.root={fake_mnist}", "evaluate_every=2", "data.num_samples=300"]
    fitted(tmp_path, *options, "model._target_=test_evaluation.Labelled")
    found = numbers(tmp_path)
    assert {"class_fid_digits", "class_fid_digits/0", "class_fid_digits/9"} <= set(found)
    assert "class_accuracy_digits" not in found, "the classifier does not know what these digits are either"


# evaluate.py -----------------------------------------------------------------------------------------------------


def values(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)  +([-\d.e]+)$", output, re.MULTILINE))


@pytest.mark.parametrize("devices", [3, slow(2)])
def test_several_processes_print_what_one_prints(tmp_path: Path, fake_mnist: Path, devices: int) -> None:
    folder = recorded(tmp_path / "a run=1", *DIGITS, *SMALL, f"data.root={fake_mnist}", "evaluate_every=2")
    # of 100 samples there are two chunks, so a third process has none of its own
    command = [f"run={folder}", "num_samples=100", "trainer=cpu", "checkpoint=last"]
    found = []
    for count in (1, devices):
        cache = tmp_path / f"cache-{count}"  # so that the real statistics are computed by all, too
        result, *others = run_ranks(count, "evaluate.py", *command, f"cache_dir={cache}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert not any(other.stdout for other in others)
        found.append((values(result.stdout), {n: e["evaluated"][-1]["value"] for n, e in numbers(folder).items()}))
    assert len(found[0][0]) == 9
    assert found[1] == found[0], "to the bit"
    assert {path.name for path in tmp_path.iterdir()} == {"a run=1", "made_up", "cache-1", f"cache-{devices}"}


def test_a_run_is_evaluated_as_it_was_while_training(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*DIGITS, *SMALL, f"data.root={fake_mnist}", "evaluate_every=1", "trainer.max_steps=3"]
    folder = recorded(tmp_path / "run", *options)
    before = numbers(folder)
    result = run("evaluate.py", f"run={folder}", "num_samples=200", "data.batch_size=7", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    after = numbers(folder)
    assert before["fid_digits"]["best"]["value"] == after["fid_digits"]["evaluated"][-1]["value"]
    how = after["fid_digits"]["evaluated"][-1]["provenance"]
    assert how["step"] == before["fid_digits"]["best"]["step"]
    assert how["checkpoint"].startswith("best-fid_digits")
    assert {name: after[name][part] for name in before for part in ("last",)} == {n: before[n]["last"] for n in before}
    raw = run("evaluate.py", f"run={folder}", "num_samples=200", "moving_average=false", "metrics=fid", cwd=tmp_path)
    assert "weights: raw" in raw.stdout
    assert list(values(raw.stdout)) == ["fid_digits"]
    assert values(raw.stdout)["fid_digits"] != values(result.stdout)["fid_digits"]


def test_a_run_without_a_best_checkpoint_says_so(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", *TINY_POINTS)
    result = run("evaluate.py", f"run={folder}", "num_samples=100", "output=here.json", cwd=tmp_path)
    assert "checkpoint=best uses the last checkpoint" in result.stderr
    assert list(values(result.stdout)) == ["sliced_wasserstein", "diversity"]
    assert "sliced_wasserstein" in json.loads((tmp_path / "here.json").read_text())
    assert not (folder / "metrics.json").exists()


def test_two_folders_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(30):
        save_picture(tmp_path / "fake" / f"{i}.png", i, (40, 40 + i % 3))
        save_picture(tmp_path / "real" / f"{i}.jpg", 100 + i, (50, 45))
    save_picture(tmp_path / "fake" / "grey.png", 1, (40, 40), "L")
    command = ["folder=fake", "against=real", "extractor=digits", "cache_dir=cache"]
    result = run("evaluate.py", *command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(values(result.stdout)["fid_digits"]) > 0
    assert "too few for 64 features" in result.stderr
    monkeypatch.chdir(tmp_path)
    same = evaluate(composed("folder=real", *command[1:], config="evaluate"))
    assert same["fid_digits"] == pytest.approx(0, abs=1e-6)
    assert same["precision_digits"] == 1
    for name in ("fake/broken.png", "real/broken.jpg"):
        (tmp_path / name).write_text("no image")
        with pytest.raises(UserError, match=f"{Path(name).name} cannot be read"):
            evaluate(composed(*command, config="evaluate"))
        (tmp_path / name).unlink()


@pytest.mark.slow
def test_bicubic_needs_no_training(tmp_path: Path) -> None:
    for i in range(2):
        save_picture(tmp_path / "photographs" / f"{i}.png", i, (48, 64))
    command = ["model=bicubic", "data=pairs", "data.test=[photographs]", "data.cache_dir=cache"]
    command += ["metrics.paired.lpips=null", "trainer=cpu"]
    single = run("evaluate.py", *command, cwd=tmp_path)
    assert single.returncode == 0, single.stderr
    assert list(values(single.stdout)) == ["psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"]
    several, *_ = run_ranks(3, "evaluate.py", *command, cwd=tmp_path)  # more than there are images
    assert values(several.stdout) == values(single.stdout)
    trained = run(
        "train.py", "model=bicubic", "data=pairs", "data.root=photographs", "data.image_size=16", cwd=tmp_path
    )
    assert trained.returncode == 2
    assert "no weights to train" in trained.stderr


@pytest.mark.parametrize("degradation", ["bicubic", "blur_bicubic", "grayscale", "noise"])
def test_whatever_the_degradation(tmp_path: Path, degradation: str) -> None:
    for i in range(2):
        save_picture(tmp_path / f"{i}.png", i, (48, 64))
    overrides = ["model=bicubic", "data=pairs", f"data.test=[{tmp_path}]", f"data.cache_dir={tmp_path}/cache"]
    overrides += [f"degradation={degradation}", "metrics.paired.lpips=null", "trainer=cpu"]
    found = evaluate(composed(*overrides, "trainer.enable_progress_bar=false", config="evaluate"))
    assert found["psnr_rgb"] > 10


def test_ready_partners_tell_the_scale_and_the_border(tmp_path: Path) -> None:
    for i in range(2):
        save_picture(tmp_path / "high" / f"{i}.png", i, (48, 64))
        save_picture(tmp_path / "low" / f"{i}.png", i, (12, 16))
    overrides = ["model=bicubic", "data=pairs", "degradation=none", f"data.low_root={tmp_path}/low", "trainer=cpu"]
    overrides += [f"data.test=[[{tmp_path}/high,{tmp_path}/low]]", "data.image_size=48", "metrics.paired.lpips=null"]
    overrides += [f"data.cache_dir={tmp_path}/cache", "trainer.enable_progress_bar=false"]
    cut = evaluate(composed(*overrides, config="evaluate"))
    whole = evaluate(composed(*overrides, "metrics.paired.psnr_y.border=0", config="evaluate"))
    assert cut["psnr_y"] != whole["psnr_y"]
    assert cut["psnr_rgb"] == whole["psnr_rgb"]


def test_an_untrusted_run_cannot_run_code_or_choose_where_to_write(tmp_path: Path, fake_mnist: Path) -> None:
    folder = recorded(tmp_path / "run", *DIGITS, f"data.root={fake_mnist}", "metrics=fid")
    record = folder / ".hydra" / "config.yaml"
    good = record.read_text()
    (folder / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass Evil: ...\n")
    record.write_text(good.replace("ganforge.metrics.features.FrechetDistance", "run.evil.Evil"))
    result = run("evaluate.py", f"run={folder}", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 2
    assert "This run's config instantiates run.evil.Evil" in result.stderr
    assert not (tmp_path / "ran").exists()
    record.write_text(good + f"output: {tmp_path / 'stolen.json'}\nnum_samples: 1\n")
    result = run("evaluate.py", f"run={folder}", "num_samples=100", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "stolen.json").exists()
    assert numbers(folder)["fid_digits"]["evaluated"][-1]["provenance"]["fake_samples"] == 100


@pytest.mark.slow
def test_a_sweep_of_evaluations(tmp_path: Path, fake_mnist: Path) -> None:
    folder = recorded(tmp_path / "run", *DIGITS, f"data.root={fake_mnist}", "metrics=fid", "evaluate_every=1")
    command = ["-m", f"run={folder}", "num_samples=100,164", "trainer=cpu", "trainer.devices=2"]
    result = run("evaluate.py", *command, "hydra.sweep.dir=swept", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^fid_digits  ", result.stdout, re.MULTILINE)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Say what to measure"),
        ("folder=x", "go together"),
        ("folder=x against=y", "folder=x: there is no such folder or zip"),
        ("model=dcgan data=mnist", "model= is untrained: pass run="),
        ("model=bicubic data=mnist", "This is an image-to-image model: it needs data=pairs"),
        ("model=bicubic data=pairs", "data.test="),
        ("run=nowhere", "is not a run folder"),
        ("model=bicubic data=pairs num_samples=2.5", "num_samples=2.5: must be a whole number from 1"),
        ("model=bicubic data=pairs output=/proc/x/y.json", "output=/proc/x/y.json cannot be written"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        evaluate(composed(*arguments.split(), config="evaluate"))
    assert message in str(error.value)
