"""What reaches a terminal or a log, and where a run's files go."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, run

from ganforge.cli.console import Formatter
from ganforge.cli.resolvers import _new_folder


def test_log_lines_have_no_control_characters_of_a_config() -> None:
    hostile = "data\ncurl evil | sh\x1b[2J\r"
    record = logging.LogRecord("name", logging.INFO, "", 0, "Packing %s\n  of %d.", (hostile, 3), None)
    line = Formatter("%(message)s").format(record)
    assert line == "Packing data\\ncurl evil | sh\\x1b[2J\\r\n  of 3."
    assert record.args == (hostile, 3), "other handlers get it as it is"
    direct = logging.LogRecord("name", logging.INFO, "", 0, f"a {hostile}", None, None)
    assert "\x1b" not in Formatter("%(message)s").format(direct)


def test_messages_to_the_person_have_none_either(tmp_path: Path) -> None:
    result = run("train.py", "resume=no\x1b[31mwhere", cwd=tmp_path)
    assert result.returncode == 2
    assert "no\\x1b[31mwhere is not a run folder" in result.stderr


def test_the_version_is_ours(tmp_path: Path) -> None:
    assert run("train.py", "--version", cwd=tmp_path).stdout == "ganforge 0.1.0\n"


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    name = str(tmp_path / "model-data" / "12-00-00")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(_new_folder.__wrapped__, [name] * 8))
    assert sorted(folders) == sorted([name, *(f"{name}-{number}" for number in range(2, 9))])
    assert all(Path(folder).is_dir() for folder in folders)
    assert _new_folder(name) == _new_folder(name), "a command has one"
    assert _new_folder(name, given="/a/sweep") == "/a/sweep"


def test_other_ranks_make_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ganforge.cli.resolvers.rank", lambda: 1)
    assert _new_folder.__wrapped__(str(tmp_path / "run")) == str(tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_both_kinds_of_folders_are_claimed(kind: str) -> None:
    text = (ROOT / "conf" / "train.yaml").read_text()
    assert f'dir: ${{new_folder:"logs/{kind}s/' in text
