"""The commands, as a user types them: what they leave behind, and what they say to mistakes."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_DCGAN, TINY_POINTS, composed, recorded, run, slow, start, start_ranks
from forking import Command
from hydra import compose, initialize_config_dir
from PIL import Image

from ganforge.callbacks.shutdown import GracefulShutdown
from ganforge.commands.sample import sample
from ganforge.commands.train import train
from ganforge.commands.train_messages import stop_message
from ganforge.losses import Loss
from ganforge.runtime.errors import UserError, explanation

TINY = [*TINY_POINTS, "trainer.max_steps=3", "sample_every=1"]


def test_train_and_sample(tmp_path: Path) -> None:
    moving = ["model.moving_average_decay=null", "model.generator_optimizer.lr=0.1"]  # or equal frames become one
    in_sight = [option.replace("quadratic", "ring") for option in TINY]  # where an untrained generator starts
    trained = run("train.py", *in_sight, *moving, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    (folder,) = (tmp_path / "logs" / "runs" / "gan-ring").iterdir()
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {".hydra/config.yaml", ".hydra/overrides.yaml", "environment.json", "train.log"}
    expected |= {"checkpoints/last.ckpt", "checkpoints/previous.ckpt", "samples/training.gif"}
    expected |= {f"samples/step-{step:08d}.png" for step in range(4)}
    assert expected <= files
    assert {f for f in files - expected if "tfevents" not in f} <= {".hydra/hydra.yaml", "hparams.yaml"}
    assert json.loads((folder / "environment.json").read_text())["seed"] == 0
    relative = folder.relative_to(tmp_path)
    assert f"run folder   {relative}" in trained.stderr
    picture = next(line.split()[1] for line in trained.stderr.splitlines() if line.strip().startswith("samples "))
    assert (tmp_path / picture).is_file()
    assert sum("python sample.py" in line or "tensorboard" in line for line in trained.stderr.splitlines()) == 3
    with Image.open(folder / "samples" / "training.gif") as movie:
        assert movie.n_frames == 4
    assert [path.name for path in tmp_path.iterdir()] == ["logs"], "nothing else is left behind"

    before = set(tmp_path.rglob("*"))
    first = run("sample.py", f"run={relative}", "num_samples=5", "seed=1", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert set(tmp_path.rglob("*")) - before == {tmp_path / first.stdout.strip()}
    for count in (5, 70):
        options = ["separate=true", "format=npz", f"num_samples={count}", f"output={tmp_path}/out{count}"]
        sample(composed(f"run={folder}", *options, config="sample"))
    five, seventy = (np.load(next((tmp_path / f"out{n}").glob("*.npz")))["samples"] for n in (5, 70))
    assert seventy.shape == (70, 2)
    assert np.array_equal(five, seventy[:5])


def test_sample_images(tmp_path: Path, fake_mnist: Path, capsys: pytest.CaptureFixture) -> None:
    small = [*TINY_DCGAN, f"data.root={fake_mnist}", "data.batch_size=8"]
    folder = recorded(tmp_path / "run", *small)

    def drawn(*options: str) -> Path:
        sample(composed(f"run={folder}", *options, f"output={tmp_path}", config="sample"))
        return Path(capsys.readouterr().out.strip())

    pictures = sorted(drawn("num_samples=3", "separate=true").iterdir())
    assert [Image.open(path).size for path in pictures] == [(28, 28)] * 3
    assert Image.open(drawn("interpolate=true", "num_samples=16")).size == (8 * 30 + 2, 2 * 30 + 2)


COMMANDS = {
    "model=nonsense": (2, "^model=nonsense: there is no such option. Choose from bicubic, "),
    "model.nonsense=1": (2, r"^model\.nonsense: there is no such option"),
    "+model.nonsense=1": (2, "model: .*nonsense"),
    "data.batch_size=0": (2, "batch_size=0: must be at least 1"),
    "logger=null": (2, "logger=null: choose one of csv, none, tensorboard, wandb"),
    "loss=null": (2, "loss=null: choose one of hinge, least_squares"),
    "data.size=3": (2, r"data\.batch_size=20 is more than the 3 samples"),
    "resume=nowhere": (2, "is not a run folder"),
    "+data.flip=true": (2, "flip=true: points cannot be mirrored"),
    "sweep=": (2, "sweep= has no value"),
    "regularizer=[]": (2, r"regularizer=\[\]: choose one of dragan, gradient_penalty"),
    "name=../elsewhere": (2, "name=../elsewhere: must not lead out of logs/"),
    f"hydra.run.dir={Path(__file__) / 'run'}": (2, f"^{Path(__file__)} is not a folder, so .* cannot be created"),
}


@pytest.mark.parametrize("mistake", COMMANDS)
def test_mistakes_get_one_message(tmp_path: Path, mistake: str) -> None:
    status, message = COMMANDS[mistake]
    result = run("train.py", *TINY, *mistake.split(), cwd=tmp_path)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) <= (25 if status == 1 else 6)


MISTAKES = {
    "data.batch_size=many": r"data\.batch_size=many: must be a whole number",
    "data.batch_size=2.5": r"data\.batch_size=2\.5: must be a whole number",
    "trainer.max_steps=1.5": r"trainer\.max_steps=1\.5: must be a whole number",
    "schedule=step schedule.gamma=abc": r"schedule\.gamma=abc: must be a number",
    "model.generator_optimizer.betas=[0.5]": r"model\.\*_optimizer: ",
    "model.generator.hidden=[0]": r"model\.generator: hidden=\[0\]: layers must have at least 1 unit",
    "model.gradient_clip=nan": "gradient_clip=nan: must be a positive norm",
    "trainer.num_nodes=0": r"trainer\.num_nodes=0: must be a whole number of at least 1",
    "+trainer.limit_train_batches=3": r"trainer\.limit_train_batches is not supported: .*max_steps",
    "trainer.devices=abc": "trainer: .*devices",
    "data=ring data.std=-1": "std=-1: must not be negative",
    "data=grid data.spacing=nan": "data=grid: these options give points that are not finite",
    "trainer.max_steps=null": r"trainer\.max_steps=None: must be a whole number",
    "loss.average_halves=maybe": r"loss\.average_halves=maybe: must be true or false",
    "model.gradient_clip=much": r"model\.gradient_clip=much: must be a number or null",
    "model.generator_optimizer.lr=abc": r"generator_optimizer\.lr=abc: must be a number",
    "seed=99999999999": "seed=99999999999",
    "schedule=cosine trainer.max_epochs=2 trainer.max_steps=-1": r"A schedule without steps spans trainer\.max_steps",
    "+schedule={_target_:torch.optim.lr_scheduler.LinearLR,_partial_:true}": "schedule is a .*: it needs a class",
    "regularizer=r1 regularizer.r1.weight=auto": "weight=auto: must be a number, or for images auto",
    "regularizer=r1 regularizer.r1.weight=abc": "weight=abc: must be a number",
    "regularizer=r1 regularizer.r1.weight=${linear:1,-1}": "weight=1 to -1: must be non-negative",
    "model.generator_optimizer.lr=${linear:1e-3,-1}": r"model\.\*_optimizer: Invalid learning rate: -1",
    "model.pack=3": r"data\.batch_size=20: the 20 samples of each device are not divisible by model\.pack=3",
    "model=dcgan": r"data\.image_size",
    "checkpoint_every=0": "checkpoint_every=0",
    "sample_every=0": "sample_every",
    "trainer.devices=3": "is not divisible by 3",
    "model.moving_average_decay=2": "decay",
    "model.discriminator_steps=0": "discriminator_steps",
    "model.generator_optimizer.lr=-1": "Invalid learning rate",
    "seed=abc": "seed=abc",
    "trainer.precision=16-mixed": "bf16-mixed",
    "metrics.monitor=fidd trainer.max_steps=5 evaluate_every=5": "metrics.monitor=fidd: no such metric",
    "evaluate_every=abc": "evaluate_every=abc: must be a whole number of at least 1",
    "evaluate_every=-1": "evaluate_every=-1",
    "metrics=images extractor=digits trainer.max_steps=5 evaluate_every=5": "extractor=digits does not work",
    "data.num_samples=0": r"data\.num_samples=0: must be a whole number from 1",
    "callbacks.pruning.startup_trials=-1": "startup_trials=-1: must be at least 0",
    "trainer=gpu": "gpu",
}
if torch.cuda.is_available():
    del MISTAKES["trainer=gpu"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(tmp_path: Path, mistake: str) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011
        train(composed(*TINY, "trainer.enable_progress_bar=false", *mistake.split()), tmp_path)
    assert re.search(MISTAKES[mistake], explanation(error.value) or "")


@pytest.mark.slow
def test_folders_with_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / "a b=c,d [x] $y é"
    assert run("train.py", *TINY, "hydra.run.dir='" + str(folder) + "'", cwd=tmp_path).returncode == 0
    sampled = run("sample.py", f"run={folder}", f"output={folder}/out=put", cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    assert list((folder / "out=put").glob("*.png"))
    resumed = run("train.py", f"+resume={folder}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "finished" in resumed.stderr
    plain = run("train.py", *TINY, "hydra.run.dir=plain=name", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert (tmp_path / "plain=name" / "checkpoints").is_dir()


def test_mistakes_on_resuming(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run("train.py", *TINY, f"hydra.run.dir={folder}", cwd=tmp_path).returncode == 0
    for override, message in (
        ("loss=hinge", "loss= cannot change when resuming"),
        ("model.generator.hidden=[32]", "resume with the networks it was trained with"),
    ):
        resumed = run("train.py", f"resume={folder}", override, "trainer.max_steps=9", cwd=tmp_path)
        assert resumed.returncode == 2, resumed.stderr
        assert message in resumed.stderr
        assert "Traceback" not in resumed.stderr


def test_image_mistakes(tmp_path: Path, fake_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    for options, message in (
        ([f"data.root={fake_mnist}", "data.image_size=30"], "image_size=30: must be patch_size=4 times 4, 5, 6"),
        (["data.root=/proc/nowhere"], "data.root=/proc/nowhere"),
        (["data.root=no/such/folder"], "data.root=no/such/folder: there is no folder"),
        (["data=folder"], "data.root is missing"),
    ):
        with pytest.raises(Exception) as error:  # noqa: PT011
            train(composed(*TINY_DCGAN, "trainer.max_steps=1", *options), tmp_path)
        assert message in (explanation(error.value) or "")


def test_full_errors_are_shown_on_demand(tmp_path: Path) -> None:
    for mistake in ("data.batch_size=0", "resume=nowhere"):  # found in Hydra's job, and before Hydra
        full_error = run("train.py", *TINY, mistake, cwd=tmp_path, HYDRA_FULL_ERROR="1")
        assert "Traceback" in full_error.stderr


class Unfinished(Loss):
    def __init__(self, **options: object) -> None:
        self.nonsense  # type: ignore[attr-defined] # noqa: B018


def test_errors_of_somebodys_own_code_say_how_to_find_them(tmp_path: Path) -> None:
    with pytest.raises(Exception) as error:  # noqa: PT011
        train(composed(*TINY, "loss._target_=test_entry_points.Unfinished"), tmp_path)
    assert re.match(r"model\.loss: AttributeError: .*nonsense.* \(HYDRA_FULL_ERROR=1 ", explanation(error.value) or "")


def test_refused_commands_leave_no_folder_of_their_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for place in ([], [f"hydra.run.dir={mine}"]):
        assert run("train.py", *TINY, "data.batch_size=0", *place, cwd=tmp_path).returncode == 2
    assert not list((tmp_path / "logs").rglob("*.yaml"))
    assert run("train.py", f"resume={mine}", cwd=tmp_path).returncode == 2
    assert (mine / ".hydra").is_dir(), "a folder that was named may be somebody's"


def test_runs_need_a_place(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    assert "is not a folder" in run("train.py", *TINY, cwd=tmp_path).stderr


def test_a_used_run_folder_is_refused(tmp_path: Path) -> None:
    train(composed(*TINY), tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        train(composed(*TINY), tmp_path)


ENDLESS = [*TINY_POINTS, "trainer.max_steps=1000000", "checkpoint_every=1000000", "trainer.accelerator=cpu"]


@contextmanager
def training(commands: list[Command], folder: Path) -> Iterator[list[Command]]:
    """An endless training that has written its first checkpoint and made some steps; it does not outlive its test."""
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("events.out.tfevents.*")) or not (folder / "checkpoints" / "last.ckpt").exists():
            assert time.monotonic() < deadline
            assert commands[0].is_running()
            time.sleep(0.05)
        time.sleep(0.5)
        yield commands
    finally:
        for command in commands:
            command.kill()


@pytest.mark.parametrize(("devices", "number"), [(1, signal.SIGINT), slow(2, signal.SIGTERM)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, devices: int, number: signal.Signals) -> None:
    folder = tmp_path / "run"
    commands = start_ranks(devices, "train.py", *ENDLESS, f"hydra.run.dir={folder}", cwd=tmp_path)
    with training(commands, folder):
        commands[0].signal(number)  # a scheduler may know of the first process only
        stopped, *others = [command.wait(60) for command in commands]
    assert not any(other.returncode for other in others), "or Lightning would kill the first"
    step = saved_step(stopped, number, folder)
    resumed = run("train.py", f"resume={folder}", f"trainer.max_steps={step + 2}", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"Finished {step + 2} steps" in resumed.stderr


@pytest.mark.slow
def test_ctrl_c_stops_the_processes_that_lightning_starts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = start("train.py", *ENDLESS, "trainer.devices=2", f"hydra.run.dir={folder}", cwd=tmp_path)
    with training([command], folder):
        command.signal(signal.SIGINT)
        saved_step(command.wait(60), signal.SIGINT, folder)


def saved_step(stopped: subprocess.CompletedProcess[str], number: signal.Signals, folder: Path) -> int:
    """The step of the checkpoint of a stopped command, which says so."""
    assert stopped.returncode == 128 + number, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert "python train.py resume=run" in stopped.stderr
    step: int = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert f"Stopped after step {step}" in stopped.stderr
    return step


def test_a_signal_that_comes_while_the_ranks_agree_counts_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping = GracefulShutdown()
    loop = SimpleNamespace(max_steps=100)
    trainer: Any = SimpleNamespace(world_size=2, is_global_zero=False, global_step=7)
    trainer.fit_loop = SimpleNamespace(epoch_loop=loop)
    module = SimpleNamespace(device=torch.device("cpu"), step_log=SimpleNamespace(terms={}))
    before = signal.getsignal(signal.SIGINT)

    def all_reduce(*_: object) -> None:
        if trainer.global_step == 7:  # the others have not been told
            stopping._interrupt(trainer, signal.SIGINT)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    stopping.on_train_batch_end(trainer, module)
    assert loop.max_steps == 100
    trainer.global_step = 8
    stopping.on_train_batch_end(trainer, module)
    assert (loop.max_steps, stopping.interrupted) == (8, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_a_signal_in_the_middle_of_a_line_stops_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    before, stopping = signal.getsignal(signal.SIGINT), GracefulShutdown()

    def warning(*_: Any) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    monkeypatch.setattr("ganforge.callbacks.shutdown.log.warning", warning)
    stopping._interrupt(SimpleNamespace(is_global_zero=True), signal.SIGTERM)
    assert stopping.interrupted == signal.SIGTERM
    signal.signal(signal.SIGINT, before)


def test_going_on_takes_the_folder_alone(tmp_path: Path) -> None:
    message = stop_message(tmp_path / "a run", 7)
    assert message.endswith(f"python train.py resume='{tmp_path}/a run'")
    assert message.startswith("Stopped after step 7.")


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    # one step draws all of the rows a million times over, so only the second signal can end it in time
    options = [*ENDLESS, "data.batch_size=100", "model.discriminator_steps=20000"]
    command = start("train.py", *options, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    with training([command], tmp_path / "run"):
        command.signal(signal.SIGINT)
        time.sleep(1)
        assert command.is_running()
        command.signal(signal.SIGINT)
        stopped = command.wait(10)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr


LIMITED = f"""
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (40_960, 40_960))
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def test_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: both end in an OSError while writing."""
    (tmp_path / "limited.py").write_text(LIMITED)
    result = run(str(tmp_path / "limited.py"), "model=gan", "data=ring", "trainer.max_steps=2", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "make room" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("last.ckpt"))


WORDS = {
    "train.py": "resume=",
    "evaluate.py": "folder=<images>",
    "sample.py": "interpolate=true",
    "export.py": "format=safetensors",
    "compare.py": "runs=logs/sweeps",
}


@pytest.mark.parametrize("script", ["export.py", *map(slow, WORDS)])  # which takes Hydra some seconds
def test_help(tmp_path: Path, script: str) -> None:
    (tmp_path / "logs").touch()  # for it needs no place
    result = run(script, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert WORDS[script] in result.stdout


@pytest.mark.parametrize("script", WORDS)
def test_help_begins_with_examples(script: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(Path(script).stem, return_hydra_config=True)
    assert WORDS[script] in config.hydra.help.header
