"""The notebooks run from top to bottom, with few steps, and are stored without outputs."""

import json
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, save_picture, slow
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(
    "path",
    [slow(path) if "comparing" in path.stem else path for path in NOTEBOOKS],  # which trains more than the others
    ids=lambda path: path.stem,
)
def test_notebook_runs(path: Path, fake_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANFORGE_NOTEBOOK_STEPS", "200" if "two_dimensions" in path.stem else "2")
    monkeypatch.setenv("GANFORGE_NOTEBOOK_SEEDS", "0,1")
    monkeypatch.setenv("GANFORGE_NOTEBOOK_MNIST", str(fake_mnist))
    monkeypatch.setenv("GANFORGE_NOTEBOOK_PHOTOGRAPHS", str(tmp_path / "photographs"))
    for i in range(20):
        save_picture(tmp_path / "photographs" / f"{i}.png", i, (96, 80))
    NotebookClient(
        nbformat.read(path, as_version=4), timeout=240, resources={"metadata": {"path": path.parent}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
