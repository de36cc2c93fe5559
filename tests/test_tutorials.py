"""The tutorials run from top to bottom, and show what they say."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND")  # a kernel that inherits agg shows no figures
    notebook = nbformat.read(path, as_version=4)
    kinds = [output.get("data", {}).keys() for cell in notebook.cells for output in cell.get("outputs", [])]
    n_stored = sum("image/png" in kind for kind in kinds)
    assert n_stored >= 3, "a tutorial shows its figures"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == n_stored
