"""What a run's loggers show, and how their histories continue when it is resumed."""

import csv
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, ROOT, TINY_POINTS, composed, scalars
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from torch import nn

from ganforge.cli.arguments import _resuming
from ganforge.commands.train import _record_overrides, _typed_loggers, train
from ganforge.experiment.trust import validate_untrusted
from ganforge.models.gan import Game
from ganforge.runs.folder_contents import check_folder
from ganforge.runs.loggers import log_image, log_text, resume_logs
from ganforge.runs.logs import continue_csv, truncate_logs
from ganforge.runtime.errors import UserError

OFTEN = [*QUICK, *TINY_POINTS, "checkpoint_every=2", "sample_every=2", "trainer.log_every_n_steps=1"]
OFTEN += ["trainer.max_steps=4", "data.num_samples=64", "evaluate_every=2"]


def events(folder: Path) -> list[tuple[str, int]]:
    """Tag and step of everything in TensorBoard's files, in their order."""
    return [
        (value.tag, event.step)
        for path in sorted(folder.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def resumed_from_step_2(folder: Path, *overrides: str) -> None:
    """Train four steps, and once more the last two, as if the run had been killed before its last checkpoint."""
    config = composed(*OFTEN, *overrides)
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    train(config, folder)
    (folder / "checkpoints" / "last.ckpt").unlink()
    train(OmegaConf.merge(config, {"resume": str(folder)}), folder)  # type: ignore[arg-type]


class Gallery(CSVLogger):
    """A logger with pictures and texts, in Lightning's signature."""

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.shown: list[tuple[Any, ...]] = []

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.shown.append((key, [image.size for image in images], step))

    def log_text(self, key: str, columns: list[str], data: list[list[str]], step: int) -> None:
        self.shown.append((key, columns, data, step))


def test_pictures_and_texts_reach_every_logger_that_has_them(tmp_path: Path) -> None:
    gallery, board = Gallery(tmp_path), TensorBoardLogger(str(tmp_path), name="", version="")
    loggers = [board, CSVLogger(str(tmp_path)), gallery]
    log_image(loggers, "samples", Image.new("RGB", (6, 4)), 3)
    log_text(loggers, "health", "a sign", 5)
    board.save()
    assert gallery.shown == [("samples", [(6, 4)], 3), ("health", ["text"], [["a sign"]], 5)]
    assert events(tmp_path) == [("samples", 3), ("health/text_summary", 5)]


@pytest.mark.filterwarnings("ignore:.*Experiment logs directory")
def test_a_csv_continues_where_it_was_killed(tmp_path: Path) -> None:
    def logger() -> CSVLogger:
        return CSVLogger(str(tmp_path), name="", version="", flush_logs_every_n_steps=1)

    first = logger()
    for step in range(4):
        first.log_metrics({"loss": step / 2}, step)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "9")  # half a line
    second = logger()
    continue_csv(second, 2)
    second.log_metrics({"loss": 7.0, "new": 1.0}, 3)
    assert path.read_text().split() == ["loss,new,step", "0.0,,0", "0.5,,1", "1.0,,2", "7.0,1.0,3"]
    assert [each.name for each in tmp_path.iterdir()] == ["metrics.csv"]
    continue_csv(CSVLogger(str(tmp_path / "empty"), name="", version=""), 2)


def test_histories_have_no_gap_and_no_step_twice(tmp_path: Path) -> None:
    resumed_from_step_2(tmp_path, "logger=[tensorboard,csv]")
    assert [step for step, _ in scalars(tmp_path)["loss_d/total"]] == [1, 2, 3, 4]
    found = events(tmp_path)
    assert [step for tag, step in found if tag == "samples"] == [0, 2, 4]
    for described in ("config/text_summary", "custom_scalars__config__", "_hparams_/session_start_info"):
        assert found.count((described, 0)) == 1, described
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["loss_d/total"]] == [1, 2, 3, 4]
    truncate_logs(tmp_path, -1)
    assert not events(tmp_path)
    assert not list((tmp_path / "samples").glob("step-*"))


# Another logger for a run that is resumed -------------------------------------------------------------------------


def composed_anew(folder: Path, scratch: Path, *given: str) -> DictConfig:
    """What train.py composes of `resume=<folder>` and what else is given."""
    scratch.mkdir()
    arguments = _resuming([f"resume={folder}", *given], folder, ROOT / "conf", scratch)
    with initialize_config_dir(str(scratch), version_base="1.3"):
        return compose("record", [each for each in arguments if not each.startswith("--")])


@pytest.fixture
def wandb_run(tmp_path: Path) -> Path:
    """A run folder whose record logs to Weights & Biases."""
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    config = composed(*OFTEN, "logger=[csv,wandb]")
    OmegaConf.save(config, tmp_path / "run" / ".hydra" / "config.yaml")
    return tmp_path / "run"


def test_a_record_starts_no_logger_that_talks_to_a_network(wandb_run: Path, tmp_path: Path) -> None:
    config = composed_anew(wandb_run, tmp_path / "a")
    with pytest.raises(UserError, match=r"runs\.wandb_logger\.WandB, which may send .*resume with logger=none"):
        train(config, wandb_run)
    assert not (wandb_run / "wandb").exists()
    validate_untrusted(config, exempt=["logger"])  # which compare.py makes none of


@pytest.mark.parametrize(
    ("given", "names"), [("none", set()), ("csv", {"csv"}), ("[tensorboard,csv]", {"tensorboard", "csv"})]
)
def test_resuming_takes_another_logger(wandb_run: Path, tmp_path: Path, given: str, names: set[str]) -> None:
    config = composed_anew(wandb_run, tmp_path / "a", f"logger={given}")
    assert set(config.logger) == names
    assert config.trainer.max_steps == 4
    validate_untrusted(config)


def test_options_of_another_logger_apply_to_one_command(
    wandb_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["logger=wandb", "logger.wandb.offline=true", "+logger.wandb.tags=[a]", "trainer.max_steps=9"]
    config = composed_anew(wandb_run, tmp_path / "a", *given)
    assert (config.logger.wandb.offline, config.logger.wandb.tags) == (True, ["a"])
    (wandb_run / "environment.json").write_text("{}")
    monkeypatch.setattr(
        "ganforge.commands.train._overrides", lambda: [f"resume={wandb_run}", f"+{given[0]}", *given[1:]]
    )
    assert _record_overrides(wandb_run, 4) == ["trainer.max_steps=9"]
    assert _typed_loggers() == given[:3], "repeated when the run stops"
    monkeypatch.setattr("ganforge.commands.train._overrides", lambda: ["sweep=x", *given[:3], "seed=3"])
    assert _record_overrides(wandb_run, 4) == ["seed=3"], "in a job of a sweep as well"


def test_a_misspelt_logger_is_answered(wandb_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logger=wandbs: there is no such option\. Did you mean logger=wandb"):
        composed_anew(wandb_run, tmp_path / "a", "logger=wandbs")


def test_tensorboard_is_described_where_it_is_new(tmp_path: Path) -> None:
    games = [Game(nn.Identity(), nn.Identity(), None, name) for name in ("coarse", "fine")]
    for expected in (1, 0):
        board = TensorBoardLogger(str(tmp_path), name="", version="")
        before = len(events(tmp_path))
        resume_logs([board], composed(*TINY_POINTS), tmp_path, games, step=2)
        board.save()
        assert [tag for tag, _ in events(tmp_path)[before:]].count("custom_scalars__config__") == expected


# Weights & Biases -------------------------------------------------------------------------------------------------


def records(path: Path) -> Iterator[bytes]:
    """The records of a W&B run's file: a header of 7 bytes, then LevelDB's log format."""
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := -place % BLOCK) and left < 7:  # no room for a header
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            yield record
            record = b""


BLOCK, FULL, LAST = 2**15, 1, 4


def history(folder: Path) -> list[dict[str, str]]:
    """The rows that a W&B run logged into a folder."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = [Record.FromString(data).history.item for data in records(next(folder.glob("*.wandb")))]
    return [{item.key or ".".join(item.nested_key): item.value_json for item in items} for items in found if items]


@pytest.mark.slow
def test_wandb_continues_the_same_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason='needs wandb: pip install -e ".[wandb]"')
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("GANFORGE_TRUST", "ganforge.runs.wandb_logger.WandB")
    resumed_from_step_2(tmp_path, "logger=wandb", "logger.wandb.offline=true")
    first, second = sorted(path for path in (tmp_path / "wandb").glob("offline-run-*"))
    name = (tmp_path / "wandb_id").read_text().strip()
    assert first.name.endswith(name)
    assert second.name.endswith(name)
    step = "trainer/global_step"
    assert [row[step] for row in history(first) if "loss_d/total" in row] == ["1", "2", "3", "4"]
    again = history(second)
    assert (again[0]["resumed_from"], again[0][step]) == ("2", "2")
    assert [row[step] for row in again if "loss_d/total" in row] == ["3", "4"]
    pictures = (tmp_path / "wandb").glob("offline-run-*/files/media/images/samples_*.png")
    assert len(list(pictures)) == 4, "of steps 0, 2 and 4, and of 4 again"
    check_folder(tmp_path)
