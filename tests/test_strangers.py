"""An untrusted run folder or file cannot run code, whatever reads it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_POINTS, composed, recorded, run, slow
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import load_file, save_file

import ganforge
from ganforge.cli.resolvers import register_resolvers
from ganforge.commands.compare import compare
from ganforge.commands.export import export
from ganforge.commands.train import train
from ganforge.commands.train_messages import finish_message
from ganforge.experiment.load import load_data, load_run
from ganforge.experiment.trust import trust_prefix, validate_untrusted
from ganforge.runs.record import read_record
from ganforge.runtime.errors import UserError

CALL = "{_target_: torch.utils.collect_env.run, command: touch planted}"
PAYLOADS: dict[str, Any] = {
    "os.system": {"_target_": "os.system", "command": "touch planted"},
    "subprocess.Popen": {"_target_": "subprocess.Popen", "args": ["touch", "planted"]},
    "torch.utils.collect_env.run": OmegaConf.to_container(OmegaConf.create(CALL)),
    "torch.hub.load": {"_target_": "torch.hub.load", "repo_or_dir": "somebody/planted", "model": "planted"},
    "ganforge.runs.folder.subprocess.Popen": {
        "_target_": "ganforge.runs.folder.subprocess.Popen",
        "args": ["touch", "planted"],
    },
    "computed only later": "\\${oc.create:" + CALL + "}",
    "computed only later twice": "\\\\\\${oc.create:" + CALL + "}",
    "of the surroundings": "${oc.create:${oc.select:planted," + CALL + "}}",
}
PLACES = ("model.generator.hidden", "model.latent.size", "model.loss", "data.batch_size")

READERS: dict[str, Callable[[Path], Any]] = {
    "load_run": load_run,
    "load_data": lambda folder: load_data(read_record(folder)),
    "load_generator": ganforge.load_generator,
    "compare": lambda folder: compare(composed(f"runs={folder}", config="compare")),
    "export": lambda folder: export(composed(f"run={folder}", "format=safetensors", config="export")),
    "train": lambda folder: train(OmegaConf.merge(OmegaConf.load(record_of(folder)), {"resume": str(folder)}), folder),  # type: ignore[arg-type]
}
COMMANDS = {"train.py": "resume", "sample.py": "run", "evaluate.py": "run", "export.py": "run", "compare.py": "runs"}


def record_of(folder: Path) -> Path:
    return folder / ".hydra" / "config.yaml"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("strange") / "good", *TINY_POINTS)


@pytest.fixture
def folder(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and a working directory in which nothing may appear."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Path(shutil.copytree(good, tmp_path / "run"))


def spoil(folder: Path, place: str, payload: Any) -> None:
    record = OmegaConf.load(record_of(folder))
    OmegaConf.update(record, place, payload, merge=False)
    OmegaConf.save(record, record_of(folder))


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("place", PLACES)
def test_hostile_records_are_refused(folder: Path, place: str, name: str) -> None:
    spoil(folder, place, PAYLOADS[name])
    with pytest.raises(UserError, match=message_of(name)):
        validate_untrusted(read_record(folder))


@pytest.mark.parametrize("pack", ["10000000", "${packed:${a},${a}}"])
@pytest.mark.parametrize("channels", ["xyz", "${names}", "${a}", "-5"])
def test_records_cannot_multiply_what_fills_the_memory(channels: str, pack: str) -> None:
    values = {"names": ["x" * 100], "a": 10**4000, "width": f"${{packed:{channels},{pack}}}"}
    register_resolvers()
    with pytest.raises(OmegaConfBaseException, match="must be a whole number from 1 to"):
        validate_untrusted(OmegaConf.create(values))


@pytest.mark.parametrize(
    "text", ["${linear:${a}${b},0}", "${cosine:0,${a}${b}}", "${linear:0,1,${c}}", "${packed:${c},2}"]
)
def test_records_cannot_compose_interpolations(tmp_path: Path, text: str) -> None:
    pieces = {"a": "$", "b": f"{{new_folder:{tmp_path}/planted}}", "c": [1, "${a}${b}"], "width": text}
    register_resolvers()
    with pytest.raises(OmegaConfBaseException, match="must be a"):
        validate_untrusted(OmegaConf.create(pieces))
    assert not (tmp_path / "planted").exists()


READ_ALWAYS = ("torch.utils.collect_env.run", "computed only later")
"""A payload that is made and one that is resolved: what every reader is tried with on every change."""


@pytest.mark.parametrize("name", [name if name in READ_ALWAYS else slow(name) for name in PAYLOADS])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_them(folder: Path, good: Path, name: str, reader: str) -> None:
    for place in PLACES:
        if reader in ("load_run", "load_generator") and place.startswith("data"):
            continue  # of which they make nothing
        if reader == "load_data" and not place.startswith("data"):
            continue
        shutil.copy(record_of(good), record_of(folder))
        spoil(folder, place, PAYLOADS[name])
        with pytest.raises(UserError, match=message_of(name)):
            READERS[reader](folder)
    assert not list(Path.cwd().iterdir())


def message_of(name: str) -> str:
    return name if "." in name else "This run"


@pytest.mark.parametrize("script", COMMANDS)
def test_every_entry_point_refuses_them(folder: Path, script: str) -> None:
    spoil(folder, "model.generator.hidden", PAYLOADS["computed only later"])
    refused(script, folder, "This run")


def test_what_a_record_means_is_what_it_means_in_evaluate_py(folder: Path) -> None:
    spoil(folder, "planted", [8])  # which is not taken over
    spoil(folder, "model.generator.hidden", PAYLOADS["of the surroundings"])
    refused("evaluate.py", folder, "This run holds ${oc.create:")


class Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch planted",)


@pytest.mark.parametrize("script", ["train.py", *(slow(script) for script in COMMANDS if script != "train.py")])
def test_pickled_checkpoints_are_refused(folder: Path, script: str) -> None:
    pickle_checkpoints(folder)
    refused(script, folder, "may run code, so it is refused")


@pytest.mark.parametrize("reader", [reader for reader in READERS if reader != "load_data"])  # which reads none
def test_every_reader_refuses_pickled_checkpoints(folder: Path, reader: str) -> None:
    pickle_checkpoints(folder)
    with pytest.raises(UserError, match="may run code, so it is refused"):
        READERS[reader](folder)
    assert not list(Path.cwd().iterdir())


def pickle_checkpoints(folder: Path) -> None:
    for path in (folder / "checkpoints").iterdir():
        torch.save({"global_step": 4, "state_dict": Touch()}, path)


def refused(script: str, folder: Path, message: str) -> None:
    result = run(script, f"{COMMANDS[script]}={folder}", cwd=Path.cwd())
    assert result.returncode == 2, result.stdout
    assert message in result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    assert not list(Path.cwd().iterdir())


def test_exported_files_are_refused(folder: Path) -> None:
    export(composed(f"run={folder}", "format=safetensors", f"output={folder}", config="export"))
    path = folder / "generator.safetensors"
    interface = ganforge.load_generator(path).interface
    for payload in PAYLOADS.values():
        generator = {**interface.generator, "hidden": payload}
        for key, value in (("generator", generator), ("latents", {"latent": payload})):
            text = json.dumps({**json.loads(interface.text()), key: value})
            save_file(load_file(path), folder / "hostile.safetensors", {"ganforge": text})
            with pytest.raises(UserError):
                ganforge.load_generator(folder / "hostile.safetensors")
    assert not list(Path.cwd().iterdir())


def test_a_failed_job_that_does_not_resolve_is_no_way_in(folder: Path) -> None:
    spoil(folder, "data.batch_size", PAYLOADS["os.system"])
    spoil(folder, "nothing", "${nowhere}")
    (folder / "error.txt").write_text("failed\n")
    compare(composed(f"runs={folder}", f"output={folder}/page.html", config="compare"))
    assert "This run&#39;s config instantiates os.system" in (folder / "page.html").read_text()
    assert not list(Path.cwd().iterdir())


def test_a_file_beside_the_record_does_not_steer_hydra(folder: Path) -> None:
    planted = folder / ".hydra" / "hydra" / "job_logging" / "ganforge.yaml"
    planted.parent.mkdir(parents=True)
    handler = "{class: logging.FileHandler, filename: planted, level: 0}"
    planted.write_text(f"version: 1\nhandlers: {{planted: {handler}}}\nroot: {{level: INFO, handlers: [planted]}}\n")
    assert run("train.py", f"resume={folder}", "trainer.max_steps=3", cwd=Path.cwd()).returncode == 0
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("key", ["hydra", "defaults"])
def test_records_that_steer_hydra_are_refused(folder: Path, key: str) -> None:
    record = record_of(folder)
    load_run(folder)
    record.write_text(record.read_text() + f"\n{key}: {{callbacks: {{x: {{_target_: os.system}}}}}}\n")
    with pytest.raises(UserError, match="refused"):
        load_run(folder)
    assert run("train.py", f"resume={folder}", cwd=Path.cwd()).returncode == 2


@pytest.mark.parametrize("content", ["model: [", "- 1", "\0", "model: {_target_: }\n  x"])
def test_records_that_are_none_are_refused(folder: Path, content: str) -> None:
    record_of(folder).write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_run(folder)


# What is admitted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "builtins.eval",
        "torch.load",
        "torch.nn.functional.relu",
        "torch.nn.init.normal_",
        "ganforge.runs.folder._git",
        "ganforge.runtime.errors.UserError",
        "ganforge.metrics.extractors.torch.distributed.nn.RemoteModule",
        "ganforge.no_such_thing",
        "torch.nnx.Linear",
    ],
)
def test_only_classes_of_known_kinds_are_made(target: str) -> None:
    with pytest.raises(UserError, match=target.replace(".", r"\.")):
        validate_untrusted(OmegaConf.create({"model": {"deep": [{"_target_": target}]}}))


def test_every_config_of_ours_passes() -> None:
    config = composed("regularizer=[r1,r2,gradient_penalty]", "schedule=cosine")
    assert validate_untrusted(config) == OmegaConf.create(OmegaConf.to_container(config, resolve=True))


def test_own_packages_are_admitted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.create({"model": {"_target_": "my_lab.networks.Generator"}})
    with pytest.raises(UserError, match="GANFORGE_TRUST=my_lab"):
        validate_untrusted(config)
    with pytest.raises(UserError, match=r"os\.system") as error:
        validate_untrusted(OmegaConf.create({"model": {"_target_": "os.system"}}))
    assert "GANFORGE_TRUST" not in str(error.value), "nobody should follow that"
    needed = "GANFORGE_TRUST=my_lab,ganforge.metrics.extractors.File "
    assert (
        trust_prefix(OmegaConf.merge(config, {"extractor": {"_target_": "ganforge.metrics.extractors.File"}})) == needed
    )
    assert needed in finish_message("Finished.", Path("run"), 1, from_images=False, trust=needed)
    assert trust_prefix(composed("model=gan", "data=ring")) == ""
    monkeypatch.setenv("GANFORGE_TRUST", "my_lab")
    validate_untrusted(config)
