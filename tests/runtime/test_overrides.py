"""Overrides are read as they were typed."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ganforge.runs.record import read_overrides
from ganforge.runtime.overrides import as_typed
from ganforge.sweeps.sweep import job_name, remember_swept_keys

SCHEDULED = ["regularizer=r1", "regularizer.r1.weight=${cosine:2.0,0.2}"]


def test_schedules_stay_as_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_typed(OmegaConf.create({"task": SCHEDULED}).task) == SCHEDULED
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(SCHEDULED, tmp_path / ".hydra" / "overrides.yaml")
    assert read_overrides(tmp_path) == SCHEDULED
    monkeypatch.delenv("GANFORGE_SWEPT", raising=False)
    remember_swept_keys(["regularizer.r1.weight=2,${cosine:2.0,0.2}"])
    assert job_name(OmegaConf.create(SCHEDULED)) == "weight=cosine-2.0,0.2"
