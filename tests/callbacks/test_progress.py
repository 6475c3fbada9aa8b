"""What is told while a run trains."""

import logging
import re
from pathlib import Path

import pytest
from conftest import TINY_POINTS, fitted, scalars

LINE = re.compile(r"step (\d+) of (\d+)  D (\S+)  G (\S+)(?:  ([\d,]+) images/s)?(?:  (\d:\d\d) left)?")


def test_progress_tells_the_truth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    options = [*TINY_POINTS, "trainer.enable_progress_bar=true", "trainer.log_every_n_steps=1"]
    options += ["callbacks.progress.refresh=0", "callbacks.progress.line_every=0", "metrics=none"]
    fitted(tmp_path, *options, "trainer.max_steps=4")
    fitted(tmp_path, *options, "trainer.max_steps=6", checkpoint=tmp_path / "checkpoints" / "last.ckpt")
    lines = [match.groups() for message in caplog.messages if (match := LINE.fullmatch(message))]
    assert [line[:2] for line in lines] == [*[(str(i + 1), "4") for i in range(4)], ("5", "6"), ("6", "6")]
    for name, column in (("loss_d/total", 2), ("loss_g/total", 3)):
        assert [line[column] for line in lines] == [f"{value:.3f}" for _, value in scalars(tmp_path)[name]]
    left = [line[5] for line in lines]
    assert left[0] == left[4] is None  # nothing is known yet
    assert left[3] == left[5] == "0:00"
