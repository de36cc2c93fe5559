"""The tutorials run from top to bottom, and show what they say."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
REAL = {
    "from_space_ranger_to_maps": ("visium_lung_path", "V10F24-110_D1"),
    "from_slide_to_report": ("her2st_path", "C2, C3, C4"),
    "own_parts": ("her2st_path", "n_obs × n_vars = 551"),
}
"""Where the real sections of a tutorial lie, and what its output then says."""
# Models are trained for one epoch, on synthetic sections of 6 x 6 spots, and figures have few pixels: every cell runs,
# and how good its figures look is a matter of the stored ones.
KERNEL = f"""
import sys

import pytest
from ipykernel.kernelapp import launch_new_instance
from matplotlib.backends.backend_agg import FigureCanvasAgg

sys.path.insert(0, {str(Path(__file__).parent)!r})
from pictures import draw_coarsely
from trainings import shorten_trainings, shrink_sections

shorten_trainings(pytest.MonkeyPatch())
shrink_sections(pytest.MonkeyPatch())
draw_coarsely(pytest.MonkeyPatch(), dpi=36)
# Figures are drawn when they are shown; matplotlib would draw each once before, in full resolution.
FigureCanvasAgg.draw_idle = lambda canvas: None
launch_new_instance()
"""


class RunningKernel(AsyncKernelManager):
    """A kernel that somebody else starts and ends."""

    has_kernel = True


@pytest.fixture
def kernel(programs, tmp_path):
    """A kernel of Jupyter that finds the libraries imported, and so matplotlib with the backend of the tests."""
    manager = RunningKernel(owns_kernel=False, connection_file=str(tmp_path / "kernel.json"))
    manager.write_connection_file()
    program = programs.start(KERNEL, "-f", manager.connection_file, "--matplotlib=inline", cwd=tmp_path)
    yield manager
    os.kill(program.pid, signal.SIGKILL)
    programs.wait(program)


@pytest.fixture
def synthetic(monkeypatch):
    """No sections of the user's own."""
    monkeypatch.delenv("ST_GCHB_DATA", raising=False)


@pytest.fixture
def real(request, monkeypatch):
    """Path of a tutorial for whose real sections the variable is set, and what its output then says."""
    fixture, said = REAL[request.param]
    monkeypatch.setenv("ST_GCHB_DATA", str(request.getfixturevalue(fixture)))
    return TUTORIALS[0].with_stem(request.param), said


def figures_of(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs_of(notebook))


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, synthetic, kernel):
    notebook = nbformat.read(path, as_version=4)
    n_stored = figures_of(notebook)
    assert n_stored >= 3, "a tutorial shows its figures"
    NotebookClient(notebook, timeout=300, startup_timeout=300, km=kernel).execute()
    assert figures_of(notebook) == n_stored


@pytest.mark.slow
@pytest.mark.parametrize("real", REAL, indirect=True)
def test_a_tutorial_runs_on_real_sections(real, kernel):
    path, said = real
    notebook = nbformat.read(path, as_version=4)
    n_stored = figures_of(notebook)
    NotebookClient(notebook, timeout=600, startup_timeout=300, km=kernel).execute()
    assert figures_of(notebook) == n_stored
    shown = [output.get("data", {}).get("text/plain", "") for output in outputs_of(notebook)]
    assert said in "".join(shown)


def test_a_tutorial_says_where_real_sections_are_looked_for():
    assert {path.stem for path in TUTORIALS} == {"from_he_to_expression", *REAL}
    for name in REAL:
        notebook = nbformat.read(TUTORIALS[0].with_stem(name), as_version=4)
        told = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        assert "synthetic" in told
        assert "`ST_GCHB_DATA`" in told
