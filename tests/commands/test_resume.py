"""A killed run goes on bit for bit."""

import csv
import shutil
import time
import zipfile
from collections.abc import Iterable, Sequence
from math import cos, pi
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import (
    QUICK,
    TINY_DCGAN,
    TINY_POINTS,
    composed,
    equal,
    fitted,
    recorded,
    run,
    run_ranks,
    scalars,
    slow,
    start_ranks,
    tiny,
)
from filelock import FileLock
from forking import Command
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from ganforge.callbacks.checkpoints import latest_checkpoint
from ganforge.commands.train import train
from ganforge.data.base import TensorData
from ganforge.experiment.validate import warn_of_stretching
from ganforge.metrics.features import FeatureMetric
from ganforge.metrics.statistics import Statistics
from ganforge.runs.folder import settings
from ganforge.runs.record import read_resumed
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import is_intact

# 5 steps an epoch, a validation every 3, a checkpoint at every step: all the coincidences there are
DENSE = [
    "checkpoint_every=1",
    "evaluate_every=3",
    "data.num_samples=8",
    "trainer.log_every_n_steps=1",
    "sample_every=7",
]
DENSE += [
    "trainer.max_steps=12",
    "+metrics.on_fakes.quality={_target_: test_resume.Quality}",
    "metrics.monitor=quality",
    "model.moving_average_every=2",
    "regularizer=gradient_penalty",
]


class Quality(FeatureMetric):
    scores: ClassVar = {"quality": False}

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        return {"quality": fake.features.double().sin().sum().item()}  # goes up and down


class Recorder(Callback):
    """Keeps every checkpoint, the losses of every step, and the steps of the validations."""

    def __init__(self, keep: Path | None = None):
        self.keep = keep
        self.losses: dict[int, dict[str, float]] = {}
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._copy(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.losses[trainer.global_step] = {
            n: v for n, v in pl_module.step_log.values.items() if not n.startswith("time/")
        }

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._copy(trainer)

    def _copy(self, trainer: Any) -> None:
        if self.keep:
            self.keep.mkdir(exist_ok=True)
            last = Path(trainer.default_root_dir, "checkpoints", "last.ckpt")
            shutil.copy(last, self.keep / f"{trainer.global_step}.ckpt")


@pytest.mark.parametrize("steps", [[0, 5, 10], slow(range(12))], ids=["some", "all"])
def test_resuming_from_every_step_changes_nothing(tmp_path: Path, steps: Sequence[int]) -> None:
    full = Recorder(tmp_path / "kept")
    fitted(tmp_path / "full", *TINY_POINTS, *DENSE, callbacks=[full])
    assert full.validated == [3, 6, 9, 12]
    final = torch.load(tmp_path / "full" / "checkpoints" / "last.ckpt", weights_only=True)
    assert final["global_step"] == 12
    (best,) = (tmp_path / "full" / "checkpoints").glob("best-quality-*.ckpt")
    for step in steps:
        resumed = Recorder()
        folder = tmp_path / f"from-{step}"
        fitted(folder, *TINY_POINTS, *DENSE, callbacks=[resumed], checkpoint=tmp_path / "kept" / f"{step}.ckpt")
        assert resumed.validated == [v for v in full.validated if v > step], step
        assert resumed.losses == {s: values for s, values in full.losses.items() if s > step}, step
        ended = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for part in ("state_dict", "optimizer_states", "global_step", "callbacks"):
            assert equal(ended[part], final[part]), (step, part)
        if any(validation > step for validation in full.validated[: best_at(best) // 3]):
            (again,) = (folder / "checkpoints").glob("best-quality-*.ckpt")
            assert again.name == best.name
            first, second = (torch.load(path, weights_only=True)["state_dict"] for path in (best, again))
            assert equal(first, second)


@pytest.mark.parametrize("data", ["folder", "pairs", "stacked_mnist"])
def test_resuming_in_the_middle_of_an_epoch_of_images(
    tmp_path: Path, pictures: Path, fake_mnist: Path, data: str
) -> None:
    """Crops, mirrored images and turns come from the step as well."""
    root = fake_mnist if data == "stacked_mnist" else pictures
    options = ["model=dcgan", *TINY_DCGAN, f"data={data}", f"data.root={root}", "data.image_size=28"]
    options += ["data.batch_size=8", "trainer.max_steps=5", "trainer.log_every_n_steps=1", "checkpoint_every=1"]
    full, resumed = Recorder(tmp_path / "kept"), Recorder()
    fitted(tmp_path / "full", *options, callbacks=[full])
    fitted(tmp_path / "resumed", *options, callbacks=[resumed], checkpoint=tmp_path / "kept" / "2.ckpt")
    assert resumed.losses == {step: values for step, values in full.losses.items() if step > 2}


LIKE_CGAN = ["cgan_conv", "cgan_projection"]
"""Which differ from it in their networks only."""


ALWAYS = ["lapgan_conditional", "stylegan2"]


@pytest.mark.parametrize("model", [*ALWAYS, *map(slow, ("cgan", *LIKE_CGAN, "srgan", "pix2pix", "sngan_conditional"))])
def test_every_variant_resumes(tmp_path: Path, pictures: Path, fake_mnist: Path, model: str) -> None:
    options = tiny(model, "data.batch_size=8", "trainer.max_steps=5", "trainer.log_every_n_steps=1")
    options += ["checkpoint_every=1", "schedule=linear", "model.moving_average_every=2"]
    if model in ("srgan", "pix2pix"):  # U-Net has dropout
        options += ["data=pairs", f"data.root={pictures}", "data.image_size=28", "degradation=noise"]
    else:
        options += [f"data.root={fake_mnist}", "evaluate_every=2", "data.num_samples=64"]
    if model == "srgan":
        options += ["degradation=bicubic", "model.adversarial_weight=${linear:0,1e-3,4}"]
    if model == "stylegan2":  # with noise, mixing and means
        options += ["model.path_length_weight=2", "model.path_length_every=2"]
    full, resumed = Recorder(tmp_path / "kept"), Recorder()
    fitted(tmp_path / "full", *options, callbacks=[full])
    fitted(tmp_path / "resumed", *options, callbacks=[resumed], checkpoint=tmp_path / "kept" / "2.ckpt")
    assert resumed.losses == {step: values for step, values in full.losses.items() if step > 2}
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("full", "resumed")
    ]
    assert equal(states[0]["state_dict"], states[1]["state_dict"])
    assert equal(states[0]["optimizer_states"], states[1]["optimizer_states"])


def test_epochs_are_counted_however_often_a_run_goes_on(tmp_path: Path) -> None:
    options = [
        *TINY_POINTS,
        "trainer.max_steps=-1",
        "trainer.max_epochs=4",
        "checkpoint_every=1",
        "evaluate_every=null",
    ]
    fitted(tmp_path / "full", *options, callbacks=[Recorder(tmp_path / "kept0")])
    for i, step in enumerate((5, 10, 12)):  # an epoch has five
        again = tmp_path / f"again{i}"
        (again / "checkpoints").mkdir(parents=True)
        shutil.copy(tmp_path / f"kept{i}" / f"{step}.ckpt", again / "checkpoints" / "last.ckpt")
        recorder = Recorder(tmp_path / f"kept{i + 1}")
        fitted(again, *options, callbacks=[recorder], checkpoint=again / "checkpoints" / "last.ckpt")
        whole, ended = (
            torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("full", again)
        )
        assert ended.keys() == whole.keys()
        assert not [part for part in whole if not equal(ended[part], whole[part])]


def test_a_run_that_was_killed_before_it_had_a_checkpoint_begins_anew(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run("train.py", *TINY_POINTS, *QUICK, f"hydra.run.dir={whole}", cwd=tmp_path)
    killed = Path(shutil.copytree(whole, tmp_path / "killed"))
    shutil.rmtree(killed / "checkpoints")
    before = scalars(killed)
    result = run("train.py", f"resume={killed}", cwd=tmp_path)
    assert "has no checkpoints" in result.stderr
    assert scalars(killed) == before, "steps were made: their checkpoints may be elsewhere"
    for path in (killed / "samples").glob("*2.png"):  # as if they had not been
        path.unlink()
    result = run("train.py", f"resume={tmp_path / 'killed'}", cwd=tmp_path)
    assert "starts from scratch" in result.stderr
    assert scalars(tmp_path / "killed") == scalars(tmp_path / "whole")
    assert len(list((tmp_path / "killed").glob("events*"))) == 1
    states = [torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("killed", "whole")]
    assert equal(states[0]["state_dict"], states[1]["state_dict"])


def test_pictures_are_drawn_once(tmp_path: Path) -> None:
    """Also of the step that a run goes on from."""
    recorded(tmp_path / "run", *TINY_POINTS, "sample_every=500")
    shutil.copy(tmp_path / "run" / "checkpoints" / "previous.ckpt", tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert "Resuming after step 0" in run("train.py", f"resume={tmp_path / 'run'}", cwd=tmp_path).stderr
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("samples")] == [0, 2]


SCHEDULED = [
    "schedule=linear",
    "model.generator_optimizer.betas=[0.0,'${cosine:0.9,0.99}']",
    "model.discriminator_optimizer.lr='${linear:1e-3,1e-4,4}'",
    "regularizer=r1",
    "regularizer.r1.weight='${cosine:2.0,0.2}'",
    "loss.label_smoothing='${linear:0.1,0,3}'",
    "model.moving_average_half_life='${linear:0,1000}'",
    "model.moving_average_every=1",
]


COSINE = [(1 + cos(pi * step / 6)) / 2 for step in range(6)]
SCHEDULED_VALUES = {
    "model.generator_optimizer.lr": [5e-4 * (1 - step / 6) for step in range(6)],
    "model.generator_optimizer.betas.0": [0.0] * 6,
    "model.generator_optimizer.betas.1": [0.99 - 0.09 * part for part in COSINE],
    "model.discriminator_optimizer.lr": [(1e-3 - 9e-4 * min(step / 4, 1)) * (1 - step / 6) for step in range(6)],
    "regularizer.r1.weight": [0.2 + 1.8 * part for part in COSINE],
    "loss.label_smoothing": [max(0.0, 0.1 * (1 - step / 3)) for step in range(6)],
    "model.moving_average_half_life": [1000 * step / 6 for step in range(6)],
}


def test_schedules_resume_exactly(tmp_path: Path) -> None:
    options = [*TINY_POINTS, "trainer.max_steps=6", "trainer.log_every_n_steps=1", "checkpoint_every=1", *SCHEDULED]
    full, resumed = Recorder(tmp_path / "kept"), Recorder()
    model = fitted(tmp_path / "full", *options, callbacks=[full]).model
    fitted(tmp_path / "resumed", *options, callbacks=[resumed], checkpoint=tmp_path / "kept" / "3.ckpt")
    assert resumed.losses == {step: values for step, values in full.losses.items() if step > 3}
    logged = scalars(tmp_path / "full")
    numbers = {name: [value for _, value in logged[f"schedule/{name}"]] for name in SCHEDULED_VALUES}
    assert numbers == {name: pytest.approx(values) for name, values in SCHEDULED_VALUES.items()}
    assert {name for name in logged if name.startswith("schedule/")} == {f"schedule/{name}" for name in numbers}
    d, g = (optimizer.param_groups[0] for optimizer in model.trainer.optimizers)
    assert d["lr"] == pytest.approx(1e-4 / 6)
    assert g["betas"][1] == pytest.approx(SCHEDULED_VALUES["model.generator_optimizer.betas.1"][-1])


def test_a_schedule_that_is_stretched_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".hydra").mkdir()
    for options, is_told in (["schedule=linear"], True), (["schedule=linear", "schedule.steps=9"], False):
        caplog.clear()
        OmegaConf.save(composed(*TINY_POINTS, *options), tmp_path / ".hydra" / "config.yaml")
        warn_of_stretching(composed(*TINY_POINTS, *options, "evaluate_every=7"), tmp_path)
        assert not caplog.text
        warn_of_stretching(composed(*TINY_POINTS, *options, "trainer.max_steps=9"), tmp_path)
        assert ("now span 9 steps instead of 15000" in caplog.text) == is_told


ADA = ["augment=[ada,instance_noise]", "augment.ada.every=2", "augment.ada.ramp_images=100", "augment.ada.target=-1"]


def test_the_probability_of_ada_survives_a_kill(tmp_path: Path, fake_mnist: Path) -> None:
    options = tiny("dcgan", f"data.root={fake_mnist}", "data.batch_size=8", "trainer.max_steps=6", "checkpoint_every=1")
    options += [*ADA, "augment.instance_noise.std='${linear:0.1,0,4}'", "trainer.log_every_n_steps=1"]
    full, resumed = Recorder(tmp_path / "kept"), Recorder()
    fitted(tmp_path / "full", *options, callbacks=[full])
    model = fitted(tmp_path / "resumed", *options, callbacks=[resumed], checkpoint=tmp_path / "kept" / "3.ckpt").model
    assert resumed.losses == {step: values for step, values in full.losses.items() if step > 3}
    logged = [value for _, value in scalars(tmp_path / "full")["augment/ada.probability"]]
    assert logged == pytest.approx([0, 0, 0.16, 0.16, 0.32, 0.32])
    assert model.augmentations["ada"].probability == pytest.approx(0.48)
    without = fitted(tmp_path / "none", *options[:4], checkpoint=tmp_path / "kept" / "3.ckpt").model
    assert not without.augmentations, "augment= may be changed on resuming"


class NoDecayOfBiases(torch.optim.AdamW):
    def __init__(self, params: Iterable[nn.Parameter], **options: Any):
        groups = {True: [], False: []}  # type: ignore[var-annotated]
        for parameter in params:
            groups[parameter.ndim > 1].append(parameter)
        super().__init__([{"params": groups[True]}, {"params": groups[False], "weight_decay": 0.0}], **options)


def test_options_of_the_config_hold_for_each_group_of_parameters(tmp_path: Path) -> None:
    own = "{_target_: test_resume.NoDecayOfBiases, _partial_: true, lr: 0.01, weight_decay: 0.1}"
    options = [*TINY_POINTS, f"++model.generator_optimizer={own}", "checkpoint_every=1"]
    fitted(tmp_path, *options)
    last = tmp_path / "checkpoints" / "last.ckpt"
    changed = ["model.generator_optimizer.lr=0.02", "trainer.max_steps=3"]
    groups = fitted(tmp_path, *options, *changed, checkpoint=last).trainer.optimizers[1].param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.02, 0.1), (0.02, 0.0)]


def best_at(path: Path) -> int:
    """The step of a best checkpoint, as its name says."""
    return int(path.stem.rpartition("-")[2])


KILLED = [
    *TINY_POINTS,
    "checkpoint_every=10",
    "trainer.max_steps=100",
    "trainer.log_every_n_steps=1",
    "sample_every=50",
]


def kill_after_checkpoint(folder: Path, commands: list[Command]) -> None:
    """Kill all processes of a training some steps after its second checkpoint."""
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "previous.ckpt").exists():
        assert time.monotonic() < deadline
        assert commands[0].is_running()
        time.sleep(0.01)
    time.sleep(0.1)
    for command in commands:
        command.kill()


@pytest.mark.parametrize("devices", [1, slow(2)])
def test_resume_after_sigkill(tmp_path: Path, devices: int) -> None:
    arguments = [*KILLED, "trainer.accelerator=cpu"]
    whole, *_ = run_ranks(devices, "train.py", *arguments, f"hydra.run.dir={tmp_path}/whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    kill_after_checkpoint(folder, start_ranks(devices, "train.py", *arguments, f"hydra.run.dir={folder}", cwd=tmp_path))
    assert not (folder / "samples" / "step-00000100.png").exists()
    record = (folder / ".hydra" / "config.yaml").read_bytes()
    resumed, *_ = run_ranks(devices, "train.py", f"resume={folder}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert (folder / ".hydra" / "config.yaml").read_bytes() == record
    first, second = (
        torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
        for run_folder in (tmp_path / "whole", folder)
    )
    assert equal(first["state_dict"], second["state_dict"])
    assert equal(first["optimizer_states"], second["optimizer_states"])
    logged = scalars(folder)
    assert logged == scalars(tmp_path / "whole")
    assert [step for step, _ in logged["loss_d/total"]] == list(range(1, 101))
    EventAccumulator(str(folder)).Reload()


def test_damaged_checkpoint_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(tmp_path, *TINY_POINTS, "checkpoint_every=1")
    last = tmp_path / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    with zipfile.ZipFile(last) as file:
        largest = max(file.infolist(), key=lambda entry: entry.file_size)
    header = content[largest.header_offset :][:30]
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    middle = largest.header_offset + 30 + lengths + largest.file_size // 2  # in a tensor, not in padding
    for damaged in (
        content[:middle],
        content[:-1],
        b"",
        content[:middle] + bytes(16) + content[middle + 16 :],
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    ):
        last.write_bytes(damaged)
        assert not is_intact(last)
        caplog.clear()
        assert latest_checkpoint(tmp_path).name == "previous.ckpt"
        assert "damaged" in caplog.text
    last.write_bytes(content)
    assert latest_checkpoint(tmp_path) == last


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", *TINY_POINTS, "trainer.max_steps=3")
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    resumed = run("train.py", f"resume={folder}", "trainer.max_steps=5", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "last.ckpt is damaged" in resumed.stderr
    assert is_intact(last)
    assert is_intact(last.with_name("previous.ckpt"))


def test_options_given_on_resuming_hold(tmp_path: Path) -> None:
    fitted(tmp_path / "first", *TINY_POINTS)
    last = tmp_path / "first" / "checkpoints" / "last.ckpt"
    options = ["trainer.max_steps=3", "model.generator_optimizer.lr=0.125"]
    optimizers = fitted(tmp_path / "second", *TINY_POINTS, *options, checkpoint=last).trainer.optimizers
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [5e-4, 0.125]


def test_what_is_given_on_resuming_belongs_to_the_run(tmp_path: Path) -> None:
    folder, quick = tmp_path / "run", [*QUICK, "trainer.log_every_n_steps=1", "logger=[tensorboard,csv]"]
    profiled = ["trainer.profiler=simple"]

    def rates() -> list[float]:
        checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        return [state["param_groups"][0]["lr"] for state in checkpoint["optimizer_states"]]

    first = run("train.py", *TINY_POINTS, *quick, *profiled, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert "FIT Profiler Report" in first.stderr, first.stderr
    assert "training_step" in (folder / "fit-profile.txt").read_text()
    record = (folder / ".hydra" / "config.yaml").read_text()
    given = ["trainer.max_steps=4", "model.generator_optimizer.lr=0.125", "trainer.profiler=null"]
    second = run("train.py", f"resume={folder}", *given, cwd=tmp_path)
    assert f"Resuming after step 2 with {' '.join(given)}." in second.stderr
    assert rates() == [5e-4, 0.125]
    third = run("train.py", f"resume={folder}", "trainer.max_steps=6", cwd=tmp_path)
    assert "Resuming after step 4 with trainer.max_steps=6." in third.stderr
    assert rates() == [5e-4, 0.125], "kept, though it was not given again"
    assert read_resumed(folder) == [(2, given), (4, ["trainer.max_steps=6"])]
    assert (folder / ".hydra" / "config.yaml").read_text() == record
    chosen = settings(folder)
    assert chosen["model.generator_optimizer.lr"] == "0.0005, from step 2 0.125"
    assert chosen["trainer.max_steps"] == 6
    with (folder / "metrics.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4, 5, 6]


def test_one_process_trains_a_run_at_a_time(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", *TINY_POINTS)
    config = composed(*QUICK, *TINY_POINTS, f"resume={folder}", "trainer.max_steps=3")
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="another process is training this run"):
        train(config, folder)
    assert train(config, folder) == 0
    assert not (folder / ".lock").exists()


def test_resuming_a_finished_run(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", *TINY_POINTS, "trainer.max_steps=5")
    finished = run("train.py", f"resume={folder}", cwd=tmp_path)
    assert finished.returncode == 0
    assert "finished" in finished.stderr
    longer = run("train.py", f"resume={folder}", "trainer.max_steps=8", cwd=tmp_path)
    assert longer.returncode == 0, longer.stderr
    fitted(tmp_path / "whole", *TINY_POINTS, "trainer.max_steps=8")
    first, second = (
        torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (folder, tmp_path / "whole")
    )
    assert first["global_step"] == 8
    assert equal(first["state_dict"], second["state_dict"])
    assert equal(first["optimizer_states"], second["optimizer_states"])
