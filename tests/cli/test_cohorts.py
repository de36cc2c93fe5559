"""Several samples at once: by a sample sheet or by their paths, in training, evaluation and prediction."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hest_folders import write_sample
from st_gchb.cli import main
from st_gchb.io import read_cohort
from st_gchb.model import STGCHB

TEXTURE = ["--encoder", "texture", "--patch-um", "150", "--views", "1", "--device", "cpu"]
SHORT = ["--n-top-genes", "20", "--max-epochs", "1"]


@pytest.fixture(scope="module")
def folder(tissue, tmp_path_factory):
    """Two files, a sample of HEST-1k, and a sheet of the three: two of one patient."""
    path = tmp_path_factory.mktemp("samples")
    for name in ("S1", "S2"):
        part = tissue[tissue.obs["slice"] == name].copy()
        part.uns["spatial"] = {name: part.uns["spatial"][name]}
        part.write_h5ad(path / f"{name}.h5ad")
    write_sample(path / "hest", tissue, "S3", "TENX9")
    rows = [("one", "S1.h5ad", "P1"), ("two", "S2.h5ad", "P1"), ("TENX9", "hest", "P2")]
    pd.DataFrame(rows, columns=["sample", "path", "patient"]).to_csv(path / "samples.csv", index=False)
    return path


def run(command, *arguments):
    return main([command, *[str(argument) for argument in arguments]])


def slices_of(folder):
    return list(STGCHB.load(folder, accelerator="cpu").bank_.origin["slice"].unique())


def test_training_on_a_sheet(folder, tmp_path, capsys):
    out = tmp_path / "model"
    assert run("train", "--samples", folder / "samples.csv", *TEXTURE, *SHORT, "--out", out) == 0
    said = capsys.readouterr()
    assert "written to" in said.out
    assert "sample 'TENX9': 48 spots; all 40 genes" in said.err
    assert "(3 of 3)" in said.err
    model = STGCHB.load(out, accelerator="cpu")
    assert model.bank_.origin.groupby("slice")["patient"].first().to_dict() == {"one": "P1", "two": "P1", "TENX9": "P2"}


def test_training_on_paths(folder, tmp_path, capsys):
    paths = [folder / "S1.h5ad", folder / "hest/TENX9", folder / "S2.h5ad"]
    out = tmp_path / "model"
    assert run("train", "--data", *paths, "--slices", "S2", "TENX9", *TEXTURE, *SHORT, "--quiet", "--out", out) == 0
    assert capsys.readouterr().err == ""
    assert slices_of(out) == ["TENX9", "S2"]
    one = tmp_path / "one"
    assert run("train", "--data", folder / "hest", *TEXTURE, *SHORT, "--quiet", "--out", one) == 0
    assert slices_of(one) == ["TENX9"]


@pytest.mark.usefixtures("sketched_figures")
def test_patients_are_left_out(folder, tmp_path, capsys):
    command = ["--samples", folder / "samples.csv", *TEXTURE, "--methods", "mean", "ridge", "--n-top-genes", 20]
    assert run("evaluate", *command, "--by", "patient", "--seeds", 1, "--quiet", "--out", tmp_path) == 0
    assert "| ridge |" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["settings"]["folds"] == ["P1", "P2"]


def test_predicting_a_sheet(model, tissue, folder, tmp_path, capsys):
    Image.fromarray(tissue.uns["spatial"]["S2"]["images"]["hires"]).save(tmp_path / "bare.png")
    rows = [("one", folder / "S1.h5ad", "", "P1"), ("TENX9", folder / "hest", "", ""), ("", "bare.png", "1", "")]
    pd.DataFrame(rows, columns=["sample", "path", "um_per_px", "patient"]).to_csv(tmp_path / "samples.csv", index=False)
    out = tmp_path / "out"
    command = ["--samples", tmp_path / "samples.csv", "--model", model, "--quiet", "--out", out]
    assert run("predict-many", *command) == 0
    assert "3 slides: 3 done" in capsys.readouterr().out
    assert pd.read_csv(out / "report.csv")["name"].tolist() == ["one", "TENX9", "bare"]
    expected = read_cohort([folder / "S1.h5ad"])
    found = anndata.read_h5ad(out / "one.h5ad")
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    assert run("predict-many", *command) == 0
    assert "3 slides: 3 kept" in capsys.readouterr().out


def test_bad_input(refused, model, folder, tmp_path):
    out = ["--out", tmp_path / "out"]
    sheet = tmp_path / "samples.csv"
    sheet.write_text(f"sample,path\nA,{folder}/S1.h5ad\nB,gone.h5ad\n")
    for command in (["train", *TEXTURE], ["evaluate", *TEXTURE], ["predict-many", "--model", model]):
        said = refused(*command, "--samples", sheet, *out)
        assert said.startswith("samples.csv, row 3 (sample 'B'): ")
        assert "gone.h5ad is missing" in said
    train = ["train", *TEXTURE, *out]
    assert "not allowed with argument" in refused(*train, "--samples", sheet, "--data", folder / "S1.h5ad")
    assert "--samples" in refused(*train, "--samples", folder / "S1.h5ad")
    assert "no sample 'S9'; expected some of" in refused(*train, "--samples", folder / "samples.csv", "--slices", "S9")
    assert "--slice-key" in refused(*train, "--samples", folder / "samples.csv", "--slice-key", "section")
    many = ["predict-many", "--model", model, *out]
    assert "Pass one of them" in refused(*many, folder / "S1.h5ad", "--samples", sheet)
    assert "no slide was given" in refused(*many)
    assert not (tmp_path / "out").exists()


def test_spots_that_are_too_far_apart_for_one_graph(refused, tissue, folder, tmp_path, monkeypatch):
    """It is refused before patches are embedded."""
    from st_gchb import pp

    monkeypatch.setattr(pp, "embed_patches", lambda *_, **__: pytest.fail("patches were embedded"))
    part = anndata.read_h5ad(folder / "S2.h5ad")
    part = part[(part.obs["array_row"] % 3 == 0) & (part.obs["array_col"] % 6 == 0)].copy()
    assert part.n_obs > 1
    part.write_h5ad(tmp_path / "far.h5ad")
    said = refused("train", "--data", folder / "S1.h5ad", tmp_path / "far.h5ad", *TEXTURE, "--out", tmp_path / "out")
    assert "No spot of slice 'far' has a neighbor" in said
