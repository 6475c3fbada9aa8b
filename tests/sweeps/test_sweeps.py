"""Sweeps: launchers, jobs that fail, signals, and resuming."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import QUICK, ROOT, TINY_POINTS, composed, recorded, run
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from ganforge.callbacks.checkpoints import read_checkpoint
from ganforge.cli.arguments import resolve_arguments
from ganforge.commands.train import train
from ganforge.runtime.errors import UserError
from ganforge.sweeps.resume import resume_job_config, with_record
from ganforge.sweeps.sweep import job_name, remember_swept_keys

TINY = [*TINY_POINTS, "trainer.max_steps=2", "trainer.accelerator=cpu", "evaluate_every=2", "data.num_samples=64"]


def the_sweep(folder: Path, name: str = "sweep") -> Path:
    (sweep,) = (folder / "logs" / "sweeps" / name).iterdir()
    return sweep


def jobs_of(sweep: Path) -> list[str]:
    return sorted(path.name for path in sweep.iterdir() if path.is_dir() and not path.name.startswith("."))


def last(job: Path) -> Path:
    return job / "checkpoints" / "last.ckpt"


def test_a_job_that_fails_does_not_stop_the_others_and_can_be_done_later(tmp_path: Path) -> None:
    swept = "data.batch_size=0,20,10"
    result = run("train.py", "-m", *TINY, swept, "hydra.launcher.n_jobs=2", cwd=tmp_path)
    assert result.returncode == 1
    assert "batch_size=0: must be at least 1" in result.stderr
    assert "Traceback" not in result.stderr
    sweep = the_sweep(tmp_path)
    failed, *others = names = ["0-batch_size=0", "1-batch_size=20", "2-batch_size=10"]
    assert jobs_of(sweep) == names
    assert [last(sweep / name).exists() for name in names] == [False, True, True]
    assert "batch_size=0: must be at least 1" in (sweep / failed / "error.txt").read_text()
    assert f"{failed} failed: data: batch_size=0" in result.stderr
    assert f"python train.py sweep={sweep.relative_to(tmp_path)} hydra.launcher.n_jobs=2" in result.stderr

    finished = last(sweep / others[0]).stat().st_mtime_ns
    records = [sweep / "sweep.yaml", *(sweep / name / ".hydra" / "config.yaml" for name in others)]
    before = [path.read_text() for path in records]
    last(sweep / others[1]).unlink()
    again = run("train.py", f"sweep={sweep}", swept, "callbacks.samples.count=9", cwd=tmp_path)
    assert jobs_of(sweep) == names
    assert [path.read_text() for path in records] == before, "of what was trained, not of what is given now"
    assert "callbacks.samples.count=9" in again.stderr.splitlines()[-1], "to be given again"
    assert "This run is finished" in again.stderr
    assert last(sweep / others[0]).stat().st_mtime_ns == finished
    assert last(sweep / others[1]).exists(), "what is missing is done"
    arguments = [f"sweep={sweep}", "data.batch_size=20,5"]
    for given, message in (
        (arguments, "the sweep already has other values"),
        ([arguments[0], "schedule=cosine"], "cannot change a group"),
    ):
        with pytest.raises(UserError, match=message):
            with_record(given, sweep, ROOT / "conf")


def test_a_started_job_resumes_from_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = recorded(tmp_path / "job", *TINY, "loss=hinge", "model.generator_optimizer.lr=0.5")
    OmegaConf.save([*TINY, "loss=hinge"], job / ".hydra" / "overrides.yaml")
    task = [*TINY, "loss=hinge", f"sweep='{tmp_path}'", "trainer.max_steps=9"]
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(overrides=SimpleNamespace(task=task)))
    config = resume_job_config(job, OmegaConf.create())
    assert (config.trainer.max_steps, config.sweep) == (9, str(tmp_path))
    assert config.model.generator_optimizer.lr == 0.5, "as it started, though the command does not say so"
    assert config.loss._target_.endswith("Hinge")
    task.append("logger=none")  # such as in place of a logger that the record may not start
    assert resume_job_config(job, OmegaConf.create({"logger": {}})).logger == {}
    shutil.rmtree(job / "checkpoints")
    (job / "checkpoints").mkdir()  # killed before its first checkpoint
    assert train(composed(*QUICK, *TINY, f"sweep='{tmp_path}'"), job) == 0


@pytest.mark.slow
def test_a_job_on_two_devices(tmp_path: Path) -> None:
    result = run("train.py", "-m", *TINY, "trainer.devices=2", "name=pair", "seed=range(1,2)", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    sweep = the_sweep(tmp_path, "pair")
    assert jobs_of(sweep) == ["0-seed=1"]
    assert last(sweep / "0-seed=1").exists()
    assert json.loads((sweep / "0-seed=1" / "environment.json").read_text())["devices"] == 2
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["sweeps"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_other_launchers(tmp_path: Path, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    result = run("train.py", "-m", f"hydra/launcher={launcher}", *TINY, "seed=0,1", cwd=tmp_path, forked=False)
    assert result.returncode == 0, result.stderr
    sweep = the_sweep(tmp_path)
    assert jobs_of(sweep) == ["0-seed=0", "1-seed=1"]
    for name in jobs_of(sweep):
        assert last(sweep / name).exists()
        assert "sliced_wasserstein" in json.loads((sweep / name / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.generator_optimizer.lr=interval(1e-5,1e-2)"], "only a search takes an interval: add hydra/sweeper=op"),
        (["hydra/sweeper=optuna", "hydra/sweeper/sampler=tpee"], r"hydra/sweeper/sampler=tpee: .*=tpe\?"),
    ],
)
def test_words_of_searches(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_arguments(["-m", *arguments], ROOT / "conf", "train", tmp_path)


def test_refused_sweeps_leave_no_folder(tmp_path: Path) -> None:
    for mistake in ("hydra.launcher.n_jobs=0", "hydra.sweeper.direction=max"):
        searched = ["hydra/sweeper=optuna", "seed=choice(0,1)"] if "sweeper" in mistake else ["seed=0,1"]
        result = run("train.py", "-m", *TINY, *searched, mistake, cwd=tmp_path)
        assert result.returncode == 1
        assert f"{mistake}: must be" in result.stderr
        assert "Error in call to target" not in result.stderr
        assert not (tmp_path / "logs/sweeps/sweep").exists() or not [*(tmp_path / "logs/sweeps/sweep").iterdir()]


@pytest.mark.parametrize("launcher", ["joblib", "basic"])
def test_former_launchers_are_answered(tmp_path: Path, launcher: str) -> None:
    with pytest.raises(UserError, match=r"leave it out\. hydra\.launcher\.n_jobs=2 runs two jobs at a time"):
        resolve_arguments(["-m", "seed=0,1", f"hydra/launcher={launcher}"], ROOT / "conf", "train", tmp_path)


@contextmanager
def endless(folder: Path, *options: str) -> Iterator[subprocess.Popen]:
    """A sweep whose jobs do not end by themselves, in a session of its own."""
    given = [*TINY, "trainer.max_steps=1000000", "evaluate_every=null", "checkpoint_every=5"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *given, *options],
        cwd=folder,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        for one in processes_in(folder):
            os.kill(one, signal.SIGKILL)


def processes_in(folder: Path) -> list[int]:
    """All processes whose working directory this is, the oldest first (process ids wrap around)."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if place.resolve() == folder.resolve():
                state, *fields = (place.parent / "stat").read_text().rpartition(")")[2].split()
                if state != "Z":
                    found.append((int(fields[18]), int(place.parent.name)))  # field 22: when it started
    return [pid for _, pid in sorted(found)]


def trains(job: Path) -> bool:
    """Whether a job is past its first checkpoints."""
    return (job / "checkpoints" / "previous.ckpt").exists()


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux_only
def test_a_killed_job_and_an_interrupted_sweep(tmp_path: Path) -> None:
    with endless(tmp_path, "seed=0,1,2", "hydra.launcher.n_jobs=2") as process:
        wait_for(lambda: len(list(tmp_path.glob("logs/sweeps/*/*/*/checkpoints/previous.ckpt"))) == 2)
        sweep = the_sweep(tmp_path)
        launcher, killed, _ = processes_in(tmp_path)
        assert launcher == process.pid
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: trains(sweep / "2-seed=2"))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
        _, errors = process.communicate(timeout=60)
        assert not processes_in(tmp_path)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors
    assert "failed: its process was stopped by SIGKILL" in errors
    assert f"To run the missing jobs:\n  python train.py sweep={sweep.relative_to(tmp_path)}" in errors
    stopped = [name for name in jobs_of(sweep) if not (sweep / name / "error.txt").exists()]
    assert len(stopped) == 2
    for name in stopped:
        step = read_checkpoint(last(sweep / name))["global_step"]
        assert f"Stopped after step {step}." in (sweep / name / "train.log").read_text()


@linux_only
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("options", [["trainer.devices=2"], ["hydra.launcher.n_jobs=2"]])
def test_an_interrupted_sweep_leaves_no_process(tmp_path: Path, options: list[str], number: int) -> None:
    begun = ["0-seed=0"] if "trainer.devices=2" in options else ["0-seed=0", "1-seed=1"]
    with endless(tmp_path, "seed=0,1,2", *options) as process:
        wait_for(lambda: len(list(tmp_path.glob("logs/sweeps/*/*/*/checkpoints/previous.ckpt"))) == len(begun))
        assert len(processes_in(tmp_path)) == 3
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        wait_for(lambda: not processes_in(tmp_path))
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), errors
    assert "Traceback" not in errors
    sweep = the_sweep(tmp_path)
    assert [name for name in jobs_of(sweep) if (sweep / name / "checkpoints").exists()] == begun
    for name in begun:
        step = read_checkpoint(last(sweep / name))["global_step"]
        assert f"Stopped after step {step}." in (sweep / name / "train.log").read_text()


@linux_only
@pytest.mark.slow
def test_a_killed_job_leaves_no_rank(tmp_path: Path) -> None:
    with endless(tmp_path, "seed=0,1", "trainer.devices=2") as process:
        wait_for(lambda: len(list(tmp_path.glob("logs/sweeps/*/*/0-seed=0/checkpoints/previous.ckpt"))) == 1)
        _, killed, rank = processes_in(tmp_path)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: trains(the_sweep(tmp_path) / "1-seed=1"))
        assert not {killed, rank} & set(processes_in(tmp_path))
        process.terminate()
        process.communicate(timeout=60)
        assert not processes_in(tmp_path)
    again = run("train.py", f"sweep={the_sweep(tmp_path)}", "trainer.max_steps=2", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("This run is finished") == 2
    assert not list(the_sweep(tmp_path).glob("*/error.txt"))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_names_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANFORGE_SWEPT", "loss,model.generator.hidden,data.root")
    given = ["loss=hinge", "model.generator.hidden=[16,8]", "trainer=cpu", "+data.root='/a b/c,d'"]
    assert job_name(given) == "loss=hinge,hidden=16,8,root=-a-b-c,d"
    monkeypatch.setenv("GANFORGE_SWEPT", "")
    assert job_name(["seed=1", "sweep='logs'"]) == job_name(["seed=1"]) == "job"
    remember_swept_keys(["optimizer@model.generator_optimizer=adam,sgd", "+data.extra=1,2", "trainer=cpu"])
    given = ["optimizer@model.generator_optimizer=adam", "+data.extra=1", "trainer=cpu"]
    assert job_name(given) == "generator_optimizer=adam,extra=1"
    monkeypatch.delenv("GANFORGE_SWEPT")
    assert job_name(["seed=1", "name=x"]) == "seed=1,name=x"


@pytest.mark.parametrize(
    ("task", "hydra", "message"),
    [
        ("hydra/launcher=submitit_local", "", "may run code, or start more processes"),
        ("+hydra.callbacks.x={_target_: os.getcwd}", "", "may run code, or start more processes"),
        ("--config-dir=/tmp", "", "may run code, or start more processes"),
        ("experiment=../../../tmp/evil", "", "may run code, or start more processes"),
        ("seed=0", "hydra.sweeper.storage=redis://somewhere", "pass it again"),
        ("seed=0", "hydra/sweeper/sampler=cmaes", "pass it again"),
    ],
)
def test_records_that_steer_hydra_are_refused(tmp_path: Path, task: str, hydra: str, message: str) -> None:
    OmegaConf.save({"task": [task], "hydra": [hydra] if hydra else []}, tmp_path / "sweep.yaml")
    with pytest.raises(UserError, match=message):
        with_record([f"sweep={tmp_path}"], tmp_path, ROOT / "conf")


@pytest.mark.parametrize("option", ["hydra/sweeper/sampler=cmaes", "hydra/launcher=submitit_local"])
def test_options_of_hydra_are_given_again(tmp_path: Path, option: str) -> None:
    OmegaConf.save({"task": ["seed=0,1"], "hydra": [option]}, tmp_path / "sweep.yaml")
    given = [f"sweep={tmp_path}", option]
    assert with_record(given, tmp_path, ROOT / "conf") == ["-m", "seed=0,1", *given]


def test_a_broken_record_of_a_sweep_is_named(tmp_path: Path) -> None:
    for content in ("a: [b", "[1, 2]", ""):
        (tmp_path / "sweep.yaml").write_text(content)
        with pytest.raises(UserError, match=r"sweep\.yaml"):
            with_record([f"sweep={tmp_path}"], tmp_path, ROOT / "conf")


def test_a_hostile_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "task: [model._target_=os.system, seed=0]\n"
        "hydra: [hydra/launcher=submitit_local, 'hydra.launcher.setup=[touch x]', 'hydra.searchpath=[/tmp]',"
        " 'hydra.sweeper.params._target_=os.system']\n"
    )
    result = run("train.py", f"sweep={tmp_path}", cwd=tmp_path)
    assert result.returncode == 2
    assert "sweep.yaml has model._target_=os.system, which may run code" in result.stderr
    assert not list(tmp_path.glob("*/"))
    assert "is not a sweep" in run("train.py", "sweep=/nowhere", cwd=tmp_path).stderr
