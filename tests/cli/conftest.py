"""Tiny slides in a file, a model trained on two of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from anndata import AnnData

import st_gchb
from st_gchb.cli import main


@pytest.fixture(scope="session")
def tissue() -> AnnData:
    return st_gchb.datasets.synthetic_tissue(3, n_rows=7, n_cols=7, n_genes=40, seed=4)


@pytest.fixture(scope="session")
def slides(tissue: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slices with counts and images."""
    path = tmp_path_factory.mktemp("slides") / "slides.h5ad"
    tissue.write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def model(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on S1 and S2 by the command line."""
    folder = tmp_path_factory.mktemp("model") / "model"
    arguments = [
        "train",
        "--data",
        str(slides),
        "--slices",
        "S1",
        "S2",
        "--encoder",
        "texture",
        "--patch-um",
        "150",
        "--views",
        "1",
    ]
    arguments += ["--n-top-genes", "20", "--max-epochs", "1", "--device", "cpu", "--quiet", "--out", str(folder)]
    # Its features are not to land in the user's cache, which a fixture for single tests cannot see to here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ST_GCHB_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main(arguments) == 0
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that has to fail; gives what follows the name of the error."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        said = capsys.readouterr()
        assert status == 2, said.err
        assert said.out == ""
        # What is told on the way there is no part of the error.
        lines = [line for line in said.err.splitlines() if not line.startswith(("WARNING ", "INFO "))]
        assert len(lines) == 1, said.err
        start = "st-gchb: error: "
        assert lines[0].startswith(start)
        return lines[0].removeprefix(start)

    return run


@pytest.fixture(autouse=True)
def _coarse(coarse_figures: None) -> None:
    """Every command and report draws; tests/pl look at the pixels."""
