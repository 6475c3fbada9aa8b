"""Damaged files of a run folder: what is said of them, by whom, and what is not lost."""

import json
import logging
import os
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_POINTS, fitted
from torch import nn

from ganforge.callbacks.checkpoints import read_checkpoint
from ganforge.metrics.scores import Scores, check_writable, write_evaluated, write_health
from ganforge.pictures import animate, picture, save_picture
from ganforge.runs.schemas import ANY, CHECKPOINT, METRICS, NUMBER, VERSION, WEIGHTS, fault, read_table
from ganforge.runtime import files
from ganforge.runtime.errors import Damaged, UserError
from ganforge.runtime.files import is_intact, read_json, read_text
from ganforge.sweeps.job import objective

LINEAR = [*TINY_POINTS, "schedule=linear", "evaluate_every=1", "trainer.log_every_n_steps=1"]
NOW = {"value": 1.0, "step": 3, "provenance": {"seed": 0}}
FID = {"higher_is_better": False, "monitored": True, "last": NOW, "best": NOW}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("good")
    fitted(folder, *LINEAR)
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    ("value", "schema", "said"),
    [
        (1, int, ""),
        (1, NUMBER, ""),
        (None, (*NUMBER, None), ""),
        (True, int, "it is a boolean, not a whole number"),
        ("1", NUMBER, "it is a string, not a number"),
        ([1, "2"], [int], "[1] is a string, not a whole number"),
        ({"a": {}}, {"a": {"b": int}}, "a.b is missing"),
        ({"a": {}}, {"a": {"b?": int}}, ""),
        ({"a": {}, "more": 1}, {"a": dict}, ""),
        ({"x": 1, "y": None}, {ANY: int}, "y is null, not a whole number"),
        ({1: 1}, {ANY: int}, "1 is not a valid key"),
        ({"\x1b[31m": "x"}, {ANY: int}, r"'\x1b[31m' is a string, not a whole number"),
        ("2.6.1.post0", VERSION, ""),
        ("2.6\x1b[0m", VERSION, r"it is '2.6\x1b[0m'"),
    ],
)
def test_one_sentence_says_what_is_wrong(value: Any, schema: Any, said: str) -> None:
    assert fault(value, schema) == said


# Checkpoints -----------------------------------------------------------------------------------------------------


def changed(state: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with another value at a place, or without it where that is `...`."""
    state = deepcopy(state)
    node: Any = state
    *path, last = (int(key) if key.isdecimal() else key for key in place.split(":"))
    for key in path:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return state


@pytest.mark.parametrize("key", CHECKPOINT)
def test_checkpoints_that_lack_something_are_refused(good: dict[str, Any], tmp_path: Path, key: str) -> None:
    for value in (..., "text", ["text"]):
        torch.save(changed(good, key, value), tmp_path / "last.ckpt")
        with pytest.raises(Damaged, match=f"last.ckpt is not a ganforge checkpoint: {key}"):
            read_checkpoint(tmp_path / "last.ckpt")
        if key not in WEIGHTS:
            read_checkpoint(tmp_path / "last.ckpt", WEIGHTS)


@pytest.mark.parametrize(
    "place",
    [
        "state_dict:generator.layers.0.bias",
        "loops:fit_loop",
        "loops:fit_loop:epoch_progress:total",
        "loops:fit_loop:epoch_progress:current:ready",
        "loops:fit_loop:epoch_loop.batch_progress:is_last_batch",
        "callbacks:Health",
        "callbacks:Health:norms:weight_norm/g",
        "callbacks:Health:watched:game",
        "callbacks:Health:watched:game:values:slope",
        "callbacks:Evaluation:sliced_wasserstein",
        "callbacks:Evaluation:sliced_wasserstein:best:value",
        "callbacks:Pruning:ended",
        "optimizer_states:0",
        "optimizer_states:0:state:0:exp_avg",
        "optimizer_states:0:param_groups:0:params",
        "optimizer_states:0:param_groups:0:lr",
    ],
)
def test_texts_in_checkpoints_are_found(good: dict[str, Any], place: str) -> None:
    assert not fault(good, CHECKPOINT)
    assert "a string, not" in fault(changed(good, place, "text"), CHECKPOINT)


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(1, 1), torch.zeros(1, 1)), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save([1], path),
        lambda path: torch.save(torch.zeros(2), path),
        lambda path: torch.save({}, path, _use_new_zipfile_serialization=False),
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b""),
        script,
    ],
)
def test_files_of_others_are_no_checkpoints(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    write(tmp_path / "last.ckpt")
    with pytest.raises(Damaged, match=r"last\.ckpt (is not a ganforge checkpoint|cannot be read): "):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_checkpoint_of_another_lightning_names_both_versions(good: dict[str, Any], tmp_path: Path) -> None:
    old = changed(changed(good, "pytorch-lightning_version", "1.9.0"), "loops", ...)
    torch.save(old, tmp_path / "last.ckpt")
    with pytest.raises(Damaged, match=r"loops is missing \(written by Lightning 1\.9\.0; this is \d"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_no_optimizer_begins_anew_unnoticed(good: dict[str, Any], tmp_path: Path) -> None:
    torch.save(changed(good, "optimizer_states", []), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="state of 0 optimizers, but this model has 2"):
        fitted(tmp_path, *LINEAR, "trainer.max_steps=3", checkpoint=tmp_path / "last.ckpt")


# metrics.json ----------------------------------------------------------------------------------------------------

DAMAGED = {
    "[1]": "it is a list, not a table",
    '{"fid": 3}': "fid is a whole number, not a table",
    '{"fid": "good"}': "fid is a string, not a table",
    '{"health": [1]}': "health is a list, not a table",
    '{"health": {"signs": [{"sign": "x"}]}}': "health.signs[0].since is missing",
    json.dumps({"fid": {**FID, "best": {**NOW, "value": "low"}}}): "fid.best.value is a string, not a number",
    json.dumps({"fid": {**FID, "evaluated": [{"value": 1}]}}): "fid.evaluated[0].provenance is missing",
    '{"fid": ': "is not JSON",
    "[" * 100_000: "is not JSON",
}


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_metrics_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    path = tmp_path / "metrics.json"
    for read in (check_writable, lambda path: write_evaluated(path, {}, {}), lambda path: read_table(path, METRICS)):
        path.write_text(content)
        with pytest.raises(UserError, match=re.escape(DAMAGED[content])):
            read(path)
        assert path.read_text() == content
    for write in (lambda: Scores(fid=FID).write(path), lambda: write_health(path, {"signs": [], "rewinds": []})):
        path.write_text(content)
        write()  # a training goes on
    assert [(tmp_path / f"metrics.damaged-{i}.json").read_text() for i in (1, 2)] == [content] * 2
    assert "It is renamed to metrics.damaged-2.json" in caplog.text


def test_an_ideal_value_is_approached_from_both_sides(tmp_path: Path) -> None:
    scores = Scores()
    for step, value in enumerate((0.7, 1.114, 0.95, 1.06)):
        scores.add("diversity", 1.0, True, step, value, {})
        assert scores.improved("diversity") == (value != 1.06)
    scores.write(tmp_path / "metrics.json")
    assert read_table(tmp_path / "metrics.json", METRICS)["diversity"]["ideal"] == 1.0
    assert objective(tmp_path) == pytest.approx(0.05)


def test_records_from_before_there_were_ideals_go_on() -> None:
    old = {"value": 1.4, "step": 1, "provenance": {}}
    scores = Scores(diversity={"higher_is_better": True, "monitored": False, "last": old, "best": old})
    scores.add("diversity", 1.0, False, 2, 0.9, {})
    assert scores["diversity"]["best"]["value"] == 0.9
    assert "higher_is_better" not in scores["diversity"]


# Files -----------------------------------------------------------------------------------------------------------


def test_only_texts_in_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text('{"a": 1}')
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    irregular = "not a regular file"
    for name, said in (("link", "a link"), ("pipe", irregular), ("", irregular), ("bytes", "not a UTF-8 text")):
        with pytest.raises(UserError, match=said):
            read_text(tmp_path / name)
        assert read_json(tmp_path / name) == {}
    assert read_text(tmp_path / "secret") == '{"a": 1}'
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 7)
    with pytest.raises(UserError, match="larger than"):
        read_text(tmp_path / "secret")
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "nothing")
    assert not is_intact(tmp_path / "pipe")


def test_an_animation_leaves_out_what_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    paths = [tmp_path / f"step-{i}.png" for i in range(3)]
    for path in paths:
        save_picture(picture(torch.zeros(4, 1, 8, 8)), path)
    paths[1].write_bytes(b"no picture")
    animate(paths, tmp_path / "training.gif")
    assert (tmp_path / "training.gif").exists()
    assert f"{paths[1]} cannot be read" in caplog.text
    animate(paths[1:2], tmp_path / "none.gif")
    assert not (tmp_path / "none.gif").exists()
