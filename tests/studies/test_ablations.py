"""The command of the ablation study: the tables that it was asked for, and no others."""

from __future__ import annotations

import pandas as pd
import pytest

import st_gchb
from studies._variants import STUDY, Variant
from studies.ablations import main

QUICK = ["--encoder", "texture", "--views", "1", "--device", "cpu", "--n-top-genes", "20", "--seeds", "1", "--quiet"]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slices with counts and images."""
    path = tmp_path_factory.mktemp("slides") / "slides.h5ad"
    st_gchb.datasets.synthetic_tissue(2, n_rows=8, n_cols=8, n_genes=40, seed=4).write_h5ad(path)
    return path


@pytest.mark.usefixtures("short_trainings", "sketched_figures")
def test_a_question_and_confidence(slides, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ST_GCHB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(STUDY, "ridge-head", [STUDY["ridge-head"][0], Variant("nearest", {"k": 5}, preset="knn")])
    out = tmp_path / "study"
    arguments = ["--data", str(slides), "--questions", "ridge-head", "confidence", "--out", str(out), *QUICK]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    written = {path.name for path in out.iterdir()}
    tables = {"study.csv", "study.json", "ridge-head.md"}
    tables |= {"confidence.md", "confidence_spots.csv", "confidence_genes.csv"}
    assert written == tables | {"ridge-head.png", "confidence.png", "runs"}
    assert (out / "ridge-head.md").read_text() in said
    assert set(pd.read_csv(out / "study.csv")["question"]) == {"ridge-head"}
    first = (out / "ridge-head.md").read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    assert main(arguments) == 0
    assert (out / "ridge-head.md").read_bytes() == first
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}


def refused(capsys, *arguments):
    assert main([*map(str, arguments), *QUICK]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("ablations: error: ")
    return said.err


def test_an_unknown_question_is_told_before_anything_is_read(capsys, tmp_path):
    said = refused(capsys, "--data", tmp_path, "--questions", "color", "--out", tmp_path / "out")
    assert "--questions ['color']: unknown; known are together, alone" in said
    assert not (tmp_path / "out").exists()


def test_data_that_are_not_there(capsys, tmp_path):
    said = refused(capsys, "--data", tmp_path / "no.h5ad", "--questions", "graph", "--out", tmp_path / "out")
    assert "no.h5ad: there is no such file or folder" in said
