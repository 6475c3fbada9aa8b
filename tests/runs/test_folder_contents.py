"""What a run folder may hold, and what a record may set and instantiate, as pure functions."""

import os
import re
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, TINY_POINTS, composed, fitted
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from ganforge.experiment.trust import validate_untrusted
from ganforge.runs.folder_contents import FILES, check_caches, check_config, check_folder, read_yaml
from ganforge.runs.plain_overrides import is_plain
from ganforge.runs.record import add_resumed, read_record
from ganforge.runtime.devices import check_fits
from ganforge.runtime.errors import Damaged, UserError
from ganforge.runtime.files import is_intact, make_cache, remove_parts, write_atomic
from ganforge.runtime.text import printable
from ganforge.sweeps.resume import check_trials, with_record

PLAIN = [
    "model=gan,dcgan",
    "loss=choice(hinge,minimax)",
    "optimizer@model.generator_optimizer=sgd",
    "experiment=quickstart",
    "regularizer=[r1,r2]",
    "model=glob(*)",
    "schedule=none",
    "trainer=cpu",
    "~callbacks.pruning",
    "~logger.tensorboard",
    "seed=0,1",
    "data.size=range(1,3)",
    "model.generator_optimizer.lr=interval(1e-5,1e-2)",
    "name=mine",
    "trainer.devices=1",
    "data.root='/a b/c,d'",
    "model.generator.hidden=[16,8],[8,8]",
    "+data.extra=1,2",
    "trainer.devices=auto",
    "model.discriminator_optimizer.betas=[0.0,0.9]",
    'model.generator.width="${model.discriminator.width}"',
]
NOT_PLAIN = [
    "+callbacks@hydra.callbacks=default",
    "loss@_global_=hinge",
    "+loss@hydra.x=hinge",
    "hydra.run.dir=x",
    "hydra/launcher=x",
    "--config-dir=/tmp",
    "-m",
    "experiment=../../x",
    "loss=/etc/passwd",
    "resume=/x",
    "sweep=/x",
    "loss@model.x=nonsense",
    "model._target_=os.system",
    "checkpoint_every={_target_:torch.utils.collect_env.run,command:'id'}",
    "seed=choice({'_target_':os.system},1)",
    "seed=[1,{a:{_target_:x}}]",
    'seed=sort({a:{"_target_":x}})',
    "trainer.devices=4000",
    "trainer.devices=1,4000",
    "trainer.devices='4000'",
    f"trainer.devices=[{','.join(['0'] * 300)}]",
    "trainer.devices=${seed}",
    "trainer.devices=' 4000'",
    "trainer.devices=range(1,4000)",
    "trainer.devices=inf",
    "~trainer.devices",
    "trainer.num_nodes=4000",
    "seed=${oc.env:HOME}",
    "seed='\\${oc.env:HOME}'",
    "seed=${${name}:HOME}",
    "seed=${oc.${name}:x}",
    'data.root="a\nb"',
    "data.root=\x1b[31m",
    "data.cache_dir=/somewhere",
    "not an override",
]


@pytest.mark.parametrize("override", PLAIN)
def test_plain_choices_and_values_of_a_sweep_are_taken(override: str) -> None:
    assert is_plain(override, ROOT / "conf")


@pytest.mark.parametrize("override", NOT_PLAIN)
def test_others_are_not(override: str) -> None:
    assert not is_plain(override, ROOT / "conf")


# Files -----------------------------------------------------------------------------------------------------------

PLACES = ["train.log", "metrics.json", "samples/training.gif", "samples", "checkpoints", ".hydra/config.yaml"]
PLACES += ["0-seed=1", "export/README.md", "events.out.tfevents.1.x", "comparison.html", "lightning_logs/version_0"]


@pytest.mark.parametrize("place", PLACES)
def test_links_are_refused(tmp_path: Path, place: str) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / place).parent.mkdir(parents=True)
    outside.mkdir()
    check_folder(run)
    (run / place).symlink_to(outside)
    with pytest.raises(UserError, match="is a link, which may lead out of the run folder"):
        check_folder(run)


def test_every_file_of_a_run_is_listed(tmp_path: Path) -> None:
    fitted(tmp_path, *TINY_POINTS, "logger=[tensorboard,csv]")
    varying = re.compile(r"events\.out\.tfevents\..*|best-.*\.ckpt|step-\d+\.png|training\.gif")
    names = {path.name for path in tmp_path.rglob("*") if path.is_file() and not varying.fullmatch(path.name)}
    assert names
    assert names <= set(FILES)
    check_folder(tmp_path)


def test_fifos_and_folders_in_place_of_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(Damaged, match="is a folder"):
        check_folder(tmp_path)
    (tmp_path / "metrics.json").rmdir()
    (tmp_path / "samples").touch()
    with pytest.raises(Damaged, match="is a file"):
        check_folder(tmp_path)
    (tmp_path / "samples").unlink()
    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        check_folder(tmp_path)


def test_links_of_wandb_have_to_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "run-1").mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("run-1")
    check_folder(tmp_path)
    (tmp_path / "wandb" / "debug.log").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="is a link"):
        check_folder(tmp_path)


def test_files_are_written_whole_and_not_through_links(tmp_path: Path) -> None:
    outside, path = tmp_path / "outside", tmp_path / "run" / "file"
    path.parent.mkdir()
    for name in ("file", "file.part", ".file.part"):
        (path.parent / name).symlink_to(outside)
    write_atomic(path, b"content")
    assert path.read_bytes() == b"content"
    assert not path.is_symlink()
    assert not outside.exists()
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask(), "as any other file"
    left = path.parent / ".last.ckpt.0123456789abcdef.part"
    left.touch()
    remove_parts(tmp_path)
    assert not left.exists()


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_second_names_of_files_that_are_appended_to_are_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "healthy.ckpt").hardlink_to(tmp_path / "outside")  # which is replaced, not written to
    check_folder(tmp_path / "run")
    (tmp_path / "run" / "train.log").hardlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="hard link"):
        check_folder(tmp_path / "run")


def test_compressed_checkpoints_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for kind, intact in ((zipfile.ZIP_DEFLATED, False), (zipfile.ZIP_STORED, True)):
        with zipfile.ZipFile(path, "w", kind) as file:
            file.writestr("data.pkl", bytes(1000))
        assert is_intact(path) == intact


# A sweep ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["seed=range(0,1000000000)", "data.size=range(0,1,1e-9)"])
def test_sweeps_without_end_are_refused(tmp_path: Path, task: str) -> None:
    OmegaConf.save({"task": [task], "hydra": []}, tmp_path / "sweep.yaml")
    with pytest.raises(UserError, match="more than 10,000 jobs"):
        with_record([f"sweep={tmp_path}"], tmp_path, ROOT / "conf")
    assert task in with_record([f"sweep={tmp_path}", task], tmp_path, ROOT / "conf")


def test_trials_set_plain_values_of_what_is_searched() -> None:
    def trial(**params: Any) -> SimpleNamespace:
        return SimpleNamespace(params=params, system_attrs={})

    conf, keys = ROOT / "conf", {"loss", "model.generator_optimizer.lr"}
    check_trials([trial(loss="hinge", **{"model.generator_optimizer.lr": 1e-3})], keys, conf)
    for params in ({"loss": "../../evil"}, {"seed": 1}, {"model.generator_optimizer.lr": "{_target_: os.system}"}):
        with pytest.raises(UserError, match="A trial of this search sets"):
            check_trials([trial(**params)], keys, conf)
    with pytest.raises(UserError, match="A trial of this search sets"):
        check_trials([SimpleNamespace(params={}, system_attrs={"fixed_params": {"+loss": "../x"}})], keys, conf)


def test_a_journal_that_names_another_file_is_refused(tmp_path: Path) -> None:
    OmegaConf.save({"task": ["seed=0"], "hydra": []}, tmp_path / "sweep.yaml")
    journal = tmp_path / "search.db-journal"
    journal.write_bytes(bytes(600))
    with_record([f"sweep={tmp_path}"], tmp_path, ROOT / "conf")
    journal.write_bytes(bytes(600) + bytes.fromhex("d9d505f920a163d7"))
    with pytest.raises(UserError, match="opening it would delete"):
        with_record([f"sweep={tmp_path}"], tmp_path, ROOT / "conf")


# Configs ---------------------------------------------------------------------------------------------------------


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


YAMLS = {
    "a: &a [1]\nb: *a": "aliases",
    "&a [*a]": "aliases",
    "a: !!python/object/apply:pathlib.Path [x]": "tags",
    nested(5000): "deep nesting",
    "a: [": "cannot be read",
    "a: 1\na: 2": "cannot be read",
    "a: " + "x" * 300_000: "larger than the config of any run",
}


@pytest.mark.parametrize("text", YAMLS, ids=YAMLS.values())
def test_yamls_that_no_run_writes_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(UserError, match=YAMLS[text]):
        read_yaml(path)
    assert time.process_time() - begun < 5


def bomb(lead: str) -> dict[str, Any]:
    """Doubles at each of 40 steps."""
    return {"a0": "x" * 10, **{f"a{i}": [f"${{{lead}a{i - 1}}}"] * 2 for i in range(1, 41)}}


def levels(reference: str) -> dict[str, Any]:
    """Ten times as much at each of twelve levels, each behind a reference to the one before."""
    found: dict[str, Any] = {"l0": {"v": [1, 2, 3]}, "p0": "${l0}"}
    for i in range(12):
        found |= {f"l{i + 1}": {"v": [reference.replace("0", str(i))] * 10}, f"p{i + 1}": f"${{l{i + 1}}}"}
    return found


CONFIGS: dict[str, dict[Any, Any]] = {
    "of lists": bomb(""),
    "of texts": {"a0": "x" * 10, **{f"a{i}": f"${{a{i - 1}}}${{a{i - 1}}}" for i in range(1, 41)}},
    "by oc.select": {"a0": "x" * 10, **{f"a{i}": [f"${{oc.select:a{i - 1},1}}"] * 2 for i in range(1, 41)}},
    "by references on the way": levels("${p0.v}"),
    "by oc.select on the way": levels("${oc.select:p0.v}"),
    "of relative ones": {"a": levels("${..p0.v}")} | levels("${p0.v}"),
    "of itself": {"a": "${b}", "b": ["${a}"]},
    "of itself on the way": {"a": "${b}", "b": "${a.c}"},
    "of a long chain": {"a0": 1, **{f"a{i}": f"${{a{i - 1}}}" for i in range(1, 5000)}},
    "a number": {"a": 16**5000},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_grow_beyond_all_measure_are_refused(name: str) -> None:
    begun = time.process_time()
    with pytest.raises(UserError, match="refers to itself, or is huge"):
        check_config(CONFIGS[name])
    assert time.process_time() - begun < 5


SECRETS = [
    "${oc.env:HOME}",
    "\\${oc.env:HOME}",
    "${env:HOME}",
    "${oc.decode:x}",
    "${oc.create:{a:1}}",
    "${now:%Y}",
    "${${a}:HOME}",
    "${oc.${a}:HOME}",
    "${first:${oc.env:HOME}}",
    "${oc.select:${oc.env:HOME}}",
    "${hydra:job.name}",
    "${new_folder:/tmp/x}",
    "${record_in:/tmp}",
    "${first:${a}}",
    "${oc.select:'a.b'}",
    "${oc.select: a.b}",
    "${ a }",
    "${slurm:HOME/x}",
    "x${oc.env:HOME}",
    "${ oc.env : HOME }",
    '${first:"${oc.env:HOME}"}',
    "${oc.dict.keys:model}",
    "${[oc.env]}",
]


@pytest.mark.parametrize("text", SECRETS)
def test_interpolations_that_look_at_more_than_the_config_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="may run code or read secrets"):
        check_config({"model": {"deep": [text]}})
    with pytest.raises(UserError, match="may run code or read secrets"):
        check_config({text: 1})


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31m", "\x00", "\u202e", "\u2028", "\r", "\t"])
def test_control_characters_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="control characters"):
        check_config({"data": {"root": text}})
    assert printable(text).isprintable()


def test_what_conf_composes_passes() -> None:
    for model, data in (["cgan", "mnist"], ["pix2pix", "pairs"], ["lapgan_conditional", "celeba"]):
        check_config(OmegaConf.to_container(composed(f"model={model}", f"data={data}", "metrics=levels")))
    check_config(OmegaConf.to_container(composed("trainer=slurm", "logger=[tensorboard,csv]")))
    check_config({"data": {"root": "Bilder/é ü\u00a0#1 (neu), 'a' & b"}})


def test_caches_of_a_record_are_there_or_typed(tmp_path: Path) -> None:
    values = {"data": {"cache_dir": str(tmp_path / "cache")}, "callbacks": {"evaluation": {"cache_dir": None}}}
    with pytest.raises(UserError, match="is not a ganforge cache on this machine"):
        check_caches(values, ["data.root=x"])
    check_caches(values, ["data.cache_dir=elsewhere"])
    make_cache(tmp_path / "cache")
    check_caches(values, [])


# What a record makes ---------------------------------------------------------------------------------------------

LOGGERS = [
    {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "/tmp"},
    {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "..", "version": "x"},
    {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "/tmp"},
    {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "sub_dir": "a/../../b"},
    {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "name": "$HOME"},
    {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "name": "~"},
    {"_target_": "lightning.pytorch.loggers.csv_logs.CSVLogger", "version": ["a"]},
    {"_target_": "lightning.pytorch.loggers.MLFlowLogger", "tracking_uri": "http://example.org"},
    {"_target_": "lightning.pytorch.loggers.WandbLogger"},
    {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", "dirpath": "/tmp"},
    {"_target_": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "dirpath": "/tmp"},
    {"_target_": "lightning.pytorch.demos.mnist_datamodule.MNISTDataModule", "data_dir": "/tmp"},
]


@pytest.mark.parametrize("logger", LOGGERS, ids=lambda logger: f"{logger['_target_'].rpartition('.')[2]}")
def test_what_may_write_elsewhere_is_refused(logger: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.create({"logger": {"evil": {**logger, "_partial_": True}}})
    with pytest.raises(UserError, match="GANFORGE_TRUST=lightning"):
        validate_untrusted(config)
    monkeypatch.setenv("GANFORGE_TRUST", logger["_target_"])
    validate_untrusted(config)


def test_loggers_of_our_own_pass() -> None:
    config = composed("logger=[tensorboard,csv]", "+logger.csv.prefix=a")
    assert set(validate_untrusted(config).logger) == {"tensorboard", "csv"}
    assert CSVLogger.__name__ in str(config.logger.csv._target_)


def test_processes_of_a_record_fit_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def trainer(**values: Any) -> DictConfig:
        return OmegaConf.create({"accelerator": "cpu", "devices": 1, "num_nodes": 1, **values})

    monkeypatch.setattr("ganforge.runtime.devices.cpu_count", lambda: 2)
    for fits in ({}, {"devices": 2}, {"devices": "auto"}, {"devices": "0,1"}):
        check_fits(trainer(**fits), [])
    for option, value in (("devices", 40), ("devices", "40"), ("devices", " 40"), ("num_nodes", 2)):
        with pytest.raises(UserError, match=f"asks for trainer.{option}={str(value).strip()}, but"):
            check_fits(trainer(**{option: value}), ["trainer.max_steps=3"])
        check_fits(trainer(**{option: value}), [f"trainer.{option}={value}"])


def test_what_a_run_was_resumed_with_is_taken_where_it_is_plain(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(composed("model=gan", "data=ring"), tmp_path / ".hydra" / "config.yaml")
    add_resumed(tmp_path, 5, ["model.generator_optimizer.lr=0.1", "trainer.max_steps=9", "~callbacks.pruning"])
    add_resumed(tmp_path, 7, ["model.generator_optimizer.lr=0.2", "+trainer.detect_anomaly=true"])
    record = read_record(tmp_path)
    assert record.model.generator_optimizer.lr == 0.2
    assert (record.trainer.max_steps, record.trainer.detect_anomaly) == (9, True)
    assert "pruning" not in record.callbacks
    assert read_record(tmp_path, ["trainer.max_steps=10"]).trainer.max_steps == 12000, "which is given anew"
    for section in ("model=../../evil", "+model=x", "data=null"):
        add_resumed(tmp_path, 8, [section])
        with pytest.raises(UserError, match="cannot replace a whole section"):
            read_record(tmp_path)
        (tmp_path / "environment.json").unlink()
    for hostile in (
        "model.loss={_target_: os.system}",
        "data.cache_dir=/somewhere",
        "hydra.run.dir=x",
        "model._target_=x",
    ):
        add_resumed(tmp_path, 8, [hostile])
        with pytest.raises(UserError, match="which could run code"):
            read_record(tmp_path)
        read_record(tmp_path, [hostile])
        (tmp_path / "environment.json").unlink()


@pytest.mark.parametrize("section", ["model: 3", "data: [1]", "trainer: null"])
def test_a_record_has_all_sections(tmp_path: Path, section: str) -> None:
    path = tmp_path / ".hydra" / "config.yaml"
    path.parent.mkdir()
    record = OmegaConf.to_container(composed("model=gan", "data=ring"))
    assert isinstance(record, dict)
    OmegaConf.save(OmegaConf.create({**record, **OmegaConf.create(section)}), path)
    with pytest.raises(Damaged, match=f"{section.partition(':')[0]} is not a section"):
        read_record(tmp_path)
