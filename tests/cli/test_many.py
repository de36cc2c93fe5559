"""``st-gchb predict-many``: status, report, what is printed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anndata
import dask
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from st_gchb import cohort
from st_gchb.cli import main
from st_gchb.io import read_geojson
from st_gchb.model import STGCHB


@pytest.fixture(scope="module")
def folder(tissue, tmp_path_factory):
    """Two slides and a table of them."""
    path = tmp_path_factory.mktemp("many")
    for name in ("S1", "S2"):
        Image.fromarray(tissue.uns["spatial"][name]["images"]["hires"]).save(path / f"{name}.png")
    pd.DataFrame({"path": ["S1.png", "S2.png"], "name": ["one", "two"]}).to_csv(path / "slides.csv", index=False)
    return path


def run(*arguments):
    return main(["predict-many", *map(str, arguments), "--um-per-px", "1", "--spacing", "100um", "--quiet"])


def test_a_table(model, folder, tmp_path, capsys):
    arguments = [folder / "slides.csv", "--model", model, "--out", tmp_path]
    assert run(*arguments) == 0
    assert "2 slides: 2 done" in capsys.readouterr().out
    report = pd.read_csv(tmp_path / "report.csv")
    assert report["name"].tolist() == ["one", "two"]
    assert (tmp_path / "one.h5ad").is_file()
    assert run(*arguments) == 0
    assert "2 slides: 2 kept" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("programs")  # so that the process of which workers are forked runs
def test_workers_of_its_own(model, folder, tmp_path, capsys, monkeypatch):
    """Forked worker processes, which stay the cluster's however long one that was killed takes to be back."""
    pytest.importorskip("distributed")  # brings dask's defaults
    limit, given_up_after, parents = "distributed.deploy.lost-worker-timeout", [], []
    send = cohort.predict_slides

    def seen(*arguments, client, **options):
        given_up_after.append(dask.config.get(limit))
        if sys.platform == "linux":
            parents.extend(client.run(lambda: Path(f"/proc/{os.getppid()}/cmdline").read_text()).values())
        return send(*arguments, client=client, **options)

    monkeypatch.setattr(cohort, "predict_slides", seen)
    before = dask.config.get(limit)
    assert run(folder / "slides.csv", "--model", model, "--out", tmp_path, "--workers", 1) == 0
    assert "2 slides: 2 done" in capsys.readouterr().out
    assert not pd.read_csv(tmp_path / "report.csv")["worker"][0].endswith(f":{os.getpid()}")
    assert (given_up_after, dask.config.get(limit)) == (["1 hour"], before)
    assert all("multiprocessing.forkserver" in parent for parent in parents)


def test_files_for_viewers(model, folder, tmp_path, refused):
    gene = STGCHB.load(model, accelerator="cpu").rules_.expression.genes[-1]
    arguments = [folder / "slides.csv", "--model", model, "--out", tmp_path]
    assert run(*arguments, "--geojson", "--genes", gene) == 0
    assert {path.name for path in tmp_path.glob("*.geojson")} == {"one.geojson", "two.geojson"}
    spots = read_geojson(tmp_path / "two.geojson")
    assert len(spots) == anndata.read_h5ad(tmp_path / "two.h5ad").n_obs
    assert gene in spots.measurements[0]
    assert "'none'" in refused("predict-many", *arguments, "--geojson", "--genes", "none")
    assert "--geojson" in refused("predict-many", *arguments, "--genes", gene)


def test_some_fail(model, folder, tmp_path, capsys):
    Image.fromarray(np.full((500, 500, 3), 242, np.uint8)).save(tmp_path / "glass.png")
    assert run(folder / "S1.png", tmp_path / "glass.png", "--model", model, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("glass: TissueError: ")
    assert said[1].startswith("2 slides: 1 done, 1 failed; ")


def test_bad_input(model, folder, tmp_path, refused):
    def said(*arguments):
        return refused("predict-many", *arguments, "--model", model, "--out", tmp_path / "out")

    table, slide = folder / "slides.csv", folder / "S1.png"
    assert "Pass the table alone" in said(table, slide)
    assert "no such table" in said(folder / "none.csv")
    assert "two slides would write the same result" in said(slide, slide)
    assert "--workers 0" in said(slide, "--workers", 0)
    assert "not allowed with argument" in said(slide, "--workers", 2, "--scheduler", "tcp://host:1")
    assert "there is no such file" in said(slide, "--scheduler", tmp_path / "none.json")
    assert "--k" in (words := said(slide, "--k", 0))
    assert "whole number of 1 or more" in words
    assert not (tmp_path / "out").exists()
