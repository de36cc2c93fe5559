"""The study of the read-out looks at training slices alone, and one training answers with every read-out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from st_gchb.evaluate import Task, fit_predict, split_folds
from st_gchb.model import PRESETS
from studies import read_out as study
from studies._tissues import TISSUES, Tissue


def test_one_training_answers_as_a_training_for_each_read_out_does(tissue, short_trainings):
    train, test = (tissue[rows].copy() for rows in (tissue.obs["slice"] != "S3", tissue.obs["slice"] == "S3"))
    task = Task(train, test, list(tissue.var_names[:20]), "X_patch", "slice", 0, "cpu")
    shared = study.SharedModel()
    for settings in ({"kernel_weight": 0.0, "sharpening": 0.0}, {"kernel_weight": 0.7, "sharpening": 0.5}):
        expected = fit_predict(task, **settings).layers["st_gchb"]
        np.testing.assert_allclose(shared.predict(task, **settings), expected, rtol=1e-5, atol=1e-6)


def test_the_default_is_among_the_read_outs():
    default = PRESETS["default"]
    offered = study.read_outs()[f"sharpened by {default.sharpening}"]
    assert offered == {"kernel_weight": default.kernel_weight, "sharpening": default.sharpening}
    assert default.ridge_weight == 0
    assert default.context_surroundings in study.SURROUNDINGS


def test_the_held_out_slice_has_no_part_in_its_choice(tissue, monkeypatch, short_trainings):
    monkeypatch.setattr(study, "read_outs", lambda: {"half": {"kernel_weight": 0.5, "sharpening": 0.0}})
    monkeypatch.setattr(study, "SURROUNDINGS", (0,))
    # Of the slices that are not changed, one is enough.
    monkeypatch.setattr(study, "split_folds", lambda *given, **options: split_folds(*given, **options)[:2])
    plain = Tissue("drawn", "slice", lambda data: [])
    before = study.inner_scores(tissue, plain, n_top_genes=20, seeds=[0], device="cpu")
    changed = tissue.copy()
    rows = np.flatnonzero(changed.obs["slice"] == "S1")
    counts = changed.X.tolil()
    counts[rows] = counts[rows[::-1]]
    changed.X = counts.tocsr()
    after = study.inner_scores(changed, plain, n_top_genes=20, seeds=[0], device="cpu")
    same = (before == after).all(axis=1)
    assert list(before["read_out"]) == ["half", "surroundings of 0 steps"] * 2
    of_fold = same.groupby(before["fold"]).agg(["all", "any"])
    assert of_fold["all"].to_dict() == of_fold["any"].to_dict() == {"S1": True, "S2": False}


def test_the_command_writes_a_table(tissue, tmp_path, monkeypatch):
    def made_up(adata, tissue, **options):
        assert options == {"n_top_genes": 20, "seeds": [3], "device": "cpu"}
        rows = [("half", 0.1, 0.2, 0.3, 0.4, "S1"), ("half", 0.3, 0.4, 0.5, 0.6, "S2"), ("none", 0, 0, 0, 0.1, "S1")]
        return pd.DataFrame(rows, columns=["read_out", *study.MEASURES, "fold"])

    monkeypatch.setattr(study, "inner_scores", made_up)
    monkeypatch.setattr(study, "embedded", lambda *given: tissue)
    call = ["--data", str(tmp_path), "--tissues", "her2st", "--n-top-genes", "20", "--seed", "3", "--device", "cpu"]
    assert study.main([*call, "--quiet", "--out", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out/read_out.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"| read-out | {TISSUES['her2st'].title} |"
    assert lines[2:] == ["| half | 0.200 0.300 0.400 0.500 |", "| none | 0.000 0.000 0.000 0.100 |"]
    assert len(pd.read_csv(tmp_path / "out/read_out.csv")) == 3
