"""``st-gchb hest-bench``: the table, the files, and how it goes on."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from hest_folders import write_bench_task
from st_gchb.cli import main

OPTIONS = ["--encoder", "texture", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def bench(tissue, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    genes = list(tissue.var_names[:8])
    for task, held_out in (("IDC", "S1"), ("PAAD", "S3")):
        rest = [name for name in ("S1", "S2", "S3") if name != held_out]
        write_bench_task(folder / task, tissue, [(rest, [held_out])], genes)
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ST_GCHB_CACHE", str(tmp_path / "cache"))


def run(bench, out, *more):
    return main(["hest-bench", "--data", str(bench), "--out", str(out), *OPTIONS, *more])


def test_all_tasks(bench, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(bench, out, "--methods", "ridge-neighbors", "mean") == 0
    said = capsys.readouterr().out
    assert "| method | IDC | PAAD | mean |" in said
    assert "| *published: H-optimus-0* | 0.5982 | 0.4932 | 0.5457 |" in said
    assert f"written to {out}: metrics.json, scores.csv, per_gene.csv, table.md" in said
    assert (out / "table.md").read_text() in said
    scores = pd.read_csv(out / "scores.csv")
    assert set(scores["method"]) == {"hest-ridge (texture)", "ridge-neighbors", "mean"}
    assert len(scores) == 6
    assert json.loads((out / "metrics.json").read_text())["runs"] == {"made": 6, "taken": 0}
    assert run(bench, out, "--methods", "ridge-neighbors", "mean", "ridge", "--tasks", "PAAD") == 0
    assert json.loads((out / "metrics.json").read_text())["runs"] == {"made": 1, "taken": 3}


@pytest.mark.usefixtures("short_trainings")
def test_the_default_methods(bench, tmp_path, capsys):
    assert run(bench, tmp_path / "out", "--tasks", "IDC", "--seeds", "2", "--seed", "3") == 0
    scores = pd.read_csv(tmp_path / "out/scores.csv")
    methods = ["hest-ridge (texture)", "default", "kernel-ridge-texture", "ridge-neighbors"]
    assert scores["method"].unique().tolist() == methods
    assert set(scores["seed"]) == {3, 4}
    assert scores.groupby("method")["pearson"].mean().min() > 0.1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "SKCM"], r"tasks ['SKCM'] are not there; found ['IDC', 'PAAD']"),
        (["--methods", "magic"], "Unknown methods ['magic']"),
        (["--patch-um", "300"], "expected no more than the 112 µm"),
        (["--data", "nowhere"], "nowhere: there is no such file or folder"),
        (["--seeds", "0"], "0 seeds"),
    ],
)
def test_bad_input(bench, refused, tmp_path, arguments, said):
    data = [] if "--data" in arguments else ["--data", bench]
    assert said in refused("hest-bench", *data, *arguments, *OPTIONS, "--out", tmp_path / "out")
    assert not (tmp_path / "out/metrics.json").exists()
