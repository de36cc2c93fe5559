"""Bad input: status 2, one line that says what to do, and nothing written."""

from __future__ import annotations

import json
import subprocess
import sys

import anndata
import numpy as np
import pytest
import torch

from pages import prediction
from st_gchb.cli import main

TEXTURE = ["--encoder", "texture", "--patch-um", "150", "--views", "1", "--device", "cpu"]


@pytest.mark.parametrize("command", ["train", "evaluate", "demo", "predict"])
def test_data_that_are_not_there(refused, model, tmp_path, command):
    options = ["--model", model] if command == "predict" else TEXTURE
    said = refused(command, "--data", tmp_path / "no.h5ad", *options, "--out", tmp_path / "out")
    assert "no.h5ad" in said
    assert not (tmp_path / "out").exists()


MISSING = [
    ("model no", ["predict", "--model", "no", "--slide", "a.png"]),
    ("slide no", ["predict", "--model", ".", "--slide", "no"]),
    ("roi no", ["predict", "--model", ".", "--slide", "a.png", "--roi", "no"]),
    ("weights no.pt", ["predict", "--model", ".", "--slide", "a.png", "--weights", "no.pt"]),
    ("samples no", ["predict-many", "--model", ".", "--samples", "no"]),
    ("prediction no", ["report", "--prediction", "no"]),
    ("data no", ["train", "--data", "no"]),
    ("data nowhere/no", ["train", "--data", "a.png", "nowhere/no"]),
    ("weights no", ["train", "--data", "a.png", "--weights", "default", "no"]),
]
"""What is told to be missing, and the command that asks for it."""
PROGRAM = """
import json, sys
from st_gchb.cli import main
for command in json.loads(sys.argv[1]):
    assert main(command) == 2
imported = {"torch", "anndata", "scvi", "numpy", "pandas", "scipy"} & set(sys.modules)
assert not imported, imported
"""


def test_what_is_not_there_or_in_the_way_is_told_at_once(tmp_path):
    """Before the libraries are imported that would read it."""
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "model.json").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    no_model = ["predict", "--model", "folder", "--slide", "a.png", "--out", "out"]
    in_the_way = ["train", "--data", "a.png", "--out", "folder"]
    commands = json.dumps([*([*command, "--out", "out"] for _, command in MISSING), no_model, in_the_way])
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, commands], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    *lines, other, last = ran.stderr.splitlines()
    for (what, _), line in zip(MISSING, lines, strict=True):
        assert line.partition(" Pass ")[0] == f"st-gchb: error: --{what}: there is no such file or folder."
    assert other.startswith(
        "st-gchb: error: --model folder has no model.json: it is no st-gchb model. Pass the folder "
    )
    assert last == "st-gchb: error: --out folder is there already. Pass --overwrite to replace it."
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["A1", "P1.2", "S3"])
def test_a_section_that_a_path_names_in_its_folder_is_no_missing_file(refused, tmp_path, name):
    """Also where the name has a dot in it, or files are one folder below, as those of HEST-1k."""
    for folder in ("st", "metadata"):
        (tmp_path / folder).mkdir()
    for file in ("A1.tsv.gz", "ST_P1.2_stdata.tsv", "st/S3.h5ad"):
        (tmp_path / file).write_bytes(b"")
    train = ["train", *TEXTURE, "--out", tmp_path / "out", "--data"]
    assert f"--data {tmp_path / name}x: there is no such file" in refused(*train, tmp_path / f"{name}x")
    said = refused(*train, tmp_path / name)
    assert name in said
    assert "--data" not in said


def text(path):
    (path / "a.txt").write_text("x")
    return path / "a.txt"


def broken(path):
    (path / "a.h5ad").write_bytes(b"\x89HDF\r\n but not really")
    return path / "a.h5ad"


def empty_folder(path):
    (path / "empty").mkdir()
    return path / "empty"


NO_SLIDES = [(text, "expected an .h5ad"), (broken, "neither a section nor an image"), (empty_folder, "holds no her2st")]


@pytest.mark.parametrize(("make", "message"), NO_SLIDES)
@pytest.mark.parametrize("command", ["train", "evaluate", "demo", "predict"])
def test_data_that_are_no_slides(refused, model, tmp_path, command, make, message):
    if make is empty_folder and command in ("train", "evaluate"):
        # These take folders of other formats too.
        message = "found a folder with nothing in it. Expected a Space Ranger output folder"
    options = ["--model", model] if command == "predict" else TEXTURE
    said = refused(command, "--data", make(tmp_path), *options, "--out", tmp_path / "out")
    assert message in said


@pytest.mark.parametrize("command", ["train", "evaluate", "demo", "predict"])
def test_a_fault_of_the_data_is_told_before_the_libraries_of_training_are_imported(
    refused, model, monkeypatch, tmp_path, command
):
    for room in ("model", "evaluate"):
        monkeypatch.setitem(sys.modules, f"st_gchb.{room}", None)
    options = ["--model", model] if command == "predict" else TEXTURE
    said = refused(command, "--data", broken(tmp_path), *options, "--out", tmp_path / "out")
    assert "neither a section nor an image" in said


def test_a_store_that_is_none(refused, model, tmp_path):
    (tmp_path / "a.zarr").mkdir()
    said = refused("predict", "--data", tmp_path / "a.zarr", "--model", model, "--out", tmp_path / "out")
    assert "a.zarr" in said


USAGE = {
    "no command": ([], "evaluate"),
    "unknown command": (["infer"], "infer"),
    "no data": (["train", "--out", "m"], "--data"),
    "unknown option": (["train", "--data", "x", "--out", "m", "--epochs", "3"], "--epochs"),
    "a word for a number": (["train", "--data", "x", "--out", "m", "--seed", "one"], "--seed"),
    "unknown preset": (["train", "--data", "x", "--out", "m", "--preset", "papre"], "papre"),
    "unknown device": (["train", "--data", "x", "--out", "m", "--device", "abacus"], "abacus"),
}


@pytest.mark.parametrize("name", USAGE)
def test_arguments_that_are_none(refused, name):
    arguments, message = USAGE[name]
    assert message in refused(*arguments)


def test_training(refused, slides, model, tmp_path):
    train = ["train", "--data", slides, "--out", tmp_path / "out", "--device", "cpu"]
    assert "'S9'" in refused(*train, "--slices", "S1", "S9")
    assert "textur" in refused(*train, "--encoder", "textur")
    assert "no.safetensors" in refused(*train, "--encoder", "resnet18", "--weights", tmp_path / "no.safetensors")
    assert "section" in refused(*train, *TEXTURE, "--slice-key", "section", "--slices", "S1")
    assert "--patch-um" in refused(*train, *TEXTURE, "--patch-um", -3)
    assert "--n-top-genes" in refused(*train, *TEXTURE, "--quiet", "--n-top-genes", 0)
    assert not (tmp_path / "out").exists()
    before = sorted(path.stat().st_mtime_ns for path in model.iterdir())
    assert "--overwrite" in refused("train", "--data", slides, *TEXTURE, "--out", model)
    assert sorted(path.stat().st_mtime_ns for path in model.iterdir()) == before


def test_counts_that_are_none(refused, slides, tmp_path):
    adata = anndata.read_h5ad(slides)
    adata.X = np.log1p(adata.X.toarray())
    adata.write_h5ad(tmp_path / "logs.h5ad")
    data = ["--data", tmp_path / "logs.h5ad", *TEXTURE, "--quiet", "--out", tmp_path / "out"]
    for command in ("train", "evaluate", "demo"):
        assert "whole numbers" in refused(command, *data), command
    assert not (tmp_path / "out").exists()


def test_prediction(refused, slides, model, tmp_path):
    predict = ["predict", "--data", slides, "--out", tmp_path / "out", "--quiet"]
    assert "nowhere" in refused(*predict, "--model", tmp_path / "nowhere")
    assert "model.json" in refused(*predict, "--model", tmp_path)
    predict += ["--model", model]
    assert "'S9'" in refused(*predict, "--slices", "S9")
    assert "ERBB2" in refused(*predict, "--slices", "S3", "--genes", "ERBB2")
    assert "k=0" in refused(*predict, "--slices", "S3", "--k", 0)
    assert "nothing" in refused(*predict, "--slices", "S3", "--layer", "nothing")
    assert "no.tif" in refused(*predict, "--slices", "S3", "--image", tmp_path / "no.tif")
    assert not (tmp_path / "out").exists()


def test_evaluation(refused, slides, tmp_path):
    evaluate = ["evaluate", "--data", slides, *TEXTURE, "--quiet", "--n-top-genes", 20, "--out", tmp_path / "out"]
    assert "lasso" in refused(*evaluate, "--methods", "lasso")
    assert "at least 2" in refused(*evaluate, "--slices", "S1")
    assert "Gene99" in refused(*evaluate, "--methods", "mean", "--markers", "Gene99")
    assert "nothing to run" in refused(*evaluate, "--methods", "mean", "--seeds", 0)
    assert "ERBB2" in refused(*evaluate, "--methods", "mean", "--seeds", 1, "--genes", "ERBB2")
    assert "'S9'" in refused(*evaluate, "--methods", "mean", "--held-out", "S9")
    assert "--by patient" in refused(*evaluate, "--methods", "mean", "--held-out", "S1", "--by", "patient")
    assert "k=50" in refused(*evaluate, "--methods", "knn", "--slices", "S1", "S2")
    assert not (tmp_path / "out").exists()


def test_a_slice_without_a_patient(refused, slides, tmp_path, monkeypatch):
    """Told before patches are embedded, which may take long."""
    monkeypatch.setattr("st_gchb.cli._evaluate.embed", lambda *_: pytest.fail("patches were embedded"))
    adata = anndata.read_h5ad(slides)
    adata.obs["patient"] = adata.obs["patient"].astype(object).where(adata.obs["slice"] != "S2", np.nan)
    adata.write_h5ad(tmp_path / "slides.h5ad")
    evaluate = ["evaluate", "--data", tmp_path / "slides.h5ad", *TEXTURE, "--quiet", "--out", tmp_path / "out"]
    assert "['S2'] have spots without a patient" in refused(*evaluate, "--by", "patient")
    assert "lasso" in refused(*evaluate, "--methods", "lasso")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(refused, slides, model, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = ["--out", tmp_path / "file" / "out", "--quiet"]
    evaluate = ["evaluate", "--data", slides, *TEXTURE, "--methods", "mean", "--seeds", 1, "--n-top-genes", 20]
    train = ["train", "--data", slides, "--slices", "S1", *TEXTURE, "--max-epochs", 1, "--n-top-genes", 10]
    predict = ["predict", "--model", model, "--data", slides, "--slices", "S3"]
    for command in (evaluate, train, predict, ["demo"]):
        assert "no folder" in refused(*command, *out)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_full(refused, slides, model, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(anndata.AnnData, "write_h5ad", full)
    predict = ["predict", "--model", model, "--data", slides, "--slices", "S3", "--quiet", "--out", tmp_path / "out"]
    assert "No space left" in refused(*predict)
    assert list((tmp_path / "out").iterdir()) == []


def test_our_own_faults_are_not_hidden(slides, tmp_path, monkeypatch):
    """An error that is not about the input is a bug, and shows where."""
    monkeypatch.setattr("st_gchb.evaluate.write_report", lambda *_, **__: 1 / 0)
    command = ["evaluate", "--data", slides, *TEXTURE, "--methods", "mean", "--seeds", 1, "--n-top-genes", 20]
    with pytest.raises(ZeroDivisionError):
        main([str(argument) for argument in [*command, "--quiet", "--out", tmp_path]])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", ["train", "evaluate", "demo", "predict"])
def test_a_gpu_that_is_not_there(refused, slides, model, tmp_path, command):
    options = ["--model", model] if command == "predict" else ["--encoder", "texture"]
    said = refused(command, "--data", slides, *options, "--device", "gpu", "--out", tmp_path / "out")
    assert "cpu" in said
    assert not (tmp_path / "out").exists()


REPORTS = {
    "no file": (["--prediction", "no.h5ad"], "no.h5ad: there is no such file"),
    "no prediction": (["--prediction", "notes.txt"], "expected an .h5ad file or a .zarr store"),
    "too many genes": (
        ["--prediction", "wide.h5ad"],
        "6,000 genes; a page holds at most 5,000, each in a file of its "
        "own. Pass --n-genes 2000 for as many of the most predictable ones.",
    ),
    "a lost slide": (["--prediction", "lost.h5ad"], "Pass --image with its path now, or --image-key fullres"),
    "several slices": (["--prediction", "several.h5ad"], "2 slices, and a file is of one image. Pass --slice with one"),
    "two ways to choose": (["--prediction", "lost.h5ad", "--genes", "CD74", "--n-genes", "2"], "not allowed with"),
}


@pytest.mark.parametrize("what", REPORTS)
def test_pages_that_cannot_be_made(refused, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("spots")
    pred = prediction()
    pred.uns["spatial"]["S1"]["metadata"]["source_image_path"] = "gone.tif"
    pred.write_h5ad("lost.h5ad")
    wide = anndata.AnnData(np.zeros((pred.n_obs, 6000), np.float32), obsm=dict(pred.obsm), uns=dict(pred.uns))
    wide.write_h5ad("wide.h5ad")
    pred.obs["slice"] = ["S1", "S2"] * (pred.n_obs // 2)
    pred.uns["spatial"] = {"S1": pred.uns["spatial"]["S1"], "S2": pred.uns["spatial"]["S1"]}
    pred.write_h5ad("several.h5ad")
    arguments, message = REPORTS[what]
    assert message in refused("report", *arguments, "--out", tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_a_folder_without_tasks_is_told_before_the_libraries_of_training_are_imported(refused, monkeypatch, tmp_path):
    monkeypatch.setattr("st_gchb.evaluate.hest_bench", None)
    (tmp_path / "empty").mkdir()
    said = refused("hest-bench", "--data", tmp_path / "empty", "--out", tmp_path / "out")
    assert "found nothing in it; expected the tasks of HEST-Bench" in said
