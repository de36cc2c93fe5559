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
KERNEL = "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"


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


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    kinds = [output.get("data", {}).keys() for cell in notebook.cells for output in cell.get("outputs", [])]
    n_stored = sum("image/png" in kind for kind in kinds)
    assert n_stored >= 3, "a tutorial shows its figures"
    NotebookClient(notebook, timeout=300, km=kernel).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == n_stored
