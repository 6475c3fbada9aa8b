"""A run folder of a stranger cannot run code."""

from pathlib import Path

import pytest
from conftest import TINY_POINTS, composed, fitted, run
from omegaconf import OmegaConf

from ganforge.errors import UserError
from ganforge.experiment import load_run
from ganforge.targets import check_targets


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.hub.load",
        "torch.load",
        "torch.nn.functional.relu",
        "torch.nn.init.normal_",
        "ganforge.run_folder.subprocess.Popen",
        "ganforge.run_folder._git",
        "ganforge.errors.UserError",
        "ganforge.no_such_thing",
        "torch.nnx.Linear",
    ],
)
def test_only_classes_of_known_kinds_are_made(target: str) -> None:
    with pytest.raises(UserError, match=target.replace(".", r"\.")):
        check_targets(OmegaConf.create({"model": {"deep": [{"_target_": target}]}}))


def test_every_config_of_ours_passes() -> None:
    check_targets(composed("regularizer=[r1,r2,gradient_penalty]", "schedule=cosine"))


def test_own_packages_are_admitted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.create({"model": {"_target_": "my_lab.networks.Generator"}})
    with pytest.raises(UserError, match="GANFORGE_TRUST=my_lab"):
        check_targets(config)
    monkeypatch.setenv("GANFORGE_TRUST", "my_lab")
    check_targets(config)


def test_a_file_beside_the_record_does_not_steer_hydra(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fitted(folder, *TINY_POINTS)
    planted = folder / ".hydra" / "hydra" / "job_logging" / "ganforge.yaml"
    planted.parent.mkdir(parents=True)
    OmegaConf.save(composed(*TINY_POINTS), folder / ".hydra" / "config.yaml")
    handler = f"{{class: logging.FileHandler, filename: {tmp_path}/planted, level: 0}}"
    planted.write_text(f"version: 1\nhandlers: {{planted: {handler}}}\nroot: {{level: INFO, handlers: [planted]}}\n")
    assert run("train.py", f"resume={folder}", "trainer.max_steps=3", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("key", ["hydra", "defaults"])
def test_records_that_steer_hydra_are_refused(tmp_path: Path, key: str) -> None:
    fitted(tmp_path, *TINY_POINTS)
    (tmp_path / ".hydra").mkdir()
    record = tmp_path / ".hydra" / "config.yaml"
    config = composed(*TINY_POINTS)
    OmegaConf.save(config, record)
    load_run(tmp_path)
    record.write_text(record.read_text() + f"\n{key}: {{callbacks: {{x: {{_target_: os.system}}}}}}\n")
    with pytest.raises(UserError, match="refused"):
        load_run(tmp_path)
    assert run("train.py", f"resume={tmp_path}", cwd=tmp_path).returncode == 2
