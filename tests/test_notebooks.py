"""The notebooks run from top to bottom, with few steps, and are stored without outputs."""

import json
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, run, save_picture, slow
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TYPING = [path for path in NOTEBOOKS if "comparing" in path.stem]
"""Those that type commands, which only Jupyter understands."""


@pytest.fixture
def _few_steps(fake_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANFORGE_NOTEBOOK_STEPS", "100")
    monkeypatch.setenv("GANFORGE_NOTEBOOK_SEEDS", "0,1")
    monkeypatch.setenv("GANFORGE_NOTEBOOK_MNIST", str(fake_mnist))
    monkeypatch.setenv("GANFORGE_NOTEBOOK_PHOTOGRAPHS", str(tmp_path / "photographs"))
    for i in range(20):
        save_picture(tmp_path / "photographs" / f"{i}.png", i, (96, 80))


CELLS = """
import sys
from pathlib import Path

import nbformat

path, space = Path(sys.argv[1]), {"__name__": "__main__"}
for cell in nbformat.read(path, as_version=4).cells:
    if cell.cell_type == "code":
        exec(compile(cell.source, path, "exec"), space)
"""


@pytest.mark.parametrize(
    "path",
    [path if path == NOTEBOOKS[0] else slow(path) for path in NOTEBOOKS if path not in TYPING],
    ids=lambda path: path.stem,
)
@pytest.mark.usefixtures("_few_steps")
def test_cells_run(path: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text(CELLS)
    steps = "100" if "two_dimensions" in path.stem else "2"
    result = run(
        str(tmp_path / "cells.py"), str(path), cwd=path.parent, MPLBACKEND="agg", GANFORGE_NOTEBOOK_STEPS=steps
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", [slow(path) for path in NOTEBOOKS], ids=lambda path: path.stem)
@pytest.mark.usefixtures("_few_steps")
def test_notebook_runs_in_jupyter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANFORGE_NOTEBOOK_STEPS", "200" if "two_dimensions" in path.stem else "2")
    NotebookClient(
        nbformat.read(path, as_version=4), timeout=240, resources={"metadata": {"path": path.parent}}
    ).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
