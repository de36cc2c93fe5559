"""The study of published methods: one row per method, times that are kept, markers that all panels hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from st_gchb._artifacts import read_json, write_json
from st_gchb.evaluate import METHODS
from studies import published as study


@pytest.fixture
def tissue(tissue, monkeypatch, sketched_figures):
    adata = tissue[tissue.obs["slice"] != "S3"].copy()
    genes = tuple(adata.var_names[:8])
    two = study.Experiment("two drawn sections", lambda given: adata, ("ridge", "bleep"), 2, ("none", *genes))
    monkeypatch.setitem(study.EXPERIMENTS, "two", two)
    monkeypatch.setitem(METHODS, "bleep", METHODS["ridge-neighbors"])
    return adata


def call(out: Path, *more: object) -> int:
    given = ["--data", out, "--sets", "two", "--n-top-genes", 20, "--device", "cpu", "--quiet", "--runs", out / "runs"]
    return study.main([*map(str, given), "--out", str(out / "out"), *map(str, more)])


def test_the_command_writes_tables_and_goes_on(tissue, tmp_path, capsys):
    assert call(tmp_path) == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"two.csv", "two.json", "two_1.md", "two_2.md", "two.png"}
    second = (out / "two_2.md").read_text(encoding="utf-8")
    assert second.startswith("two drawn sections; held out: S1, S2; at most 20 genes. MG: ")
    assert "| method | MG | HVG | HEG | Cor>0.3 | AG | seeds | CPU min a run |" in second
    assert "\n| bleep | " in second
    scores = pd.read_csv(out / "two.csv")
    assert len(scores) == 2 * 2 * 2
    mean = scores[scores["method"] == "bleep"].groupby("seed")["HVG"].mean()
    assert f"{mean.mean():.3f} ± {mean.std():.3f}" in (out / "two_1.md").read_text(encoding="utf-8")
    times = pd.read_csv(tmp_path / "runs/two/times.csv")
    assert list(times["method"]) == ["ridge", "bleep"]
    assert (times["runs"] == 4).all()
    capsys.readouterr()
    before = (tmp_path / "runs/two/times.csv").read_bytes()
    assert call(tmp_path) == 0
    assert (tmp_path / "runs/two/times.csv").read_bytes() == before, "nothing was made a second time"
    assert "bleep, 2 of 2, at most 1 CPU min remain" in capsys.readouterr().out


def test_without_time_only_what_is_kept_is_in_the_tables(tissue, tmp_path, capsys):
    assert call(tmp_path, "--hours", 0) == 2
    assert "--hours 0: no run of two is kept in" in capsys.readouterr().err
    assert call(tmp_path, "--methods", "bleep", "--seeds", 1) == 0
    assert call(tmp_path, "--hours", 0) == 0
    lines = (tmp_path / "out/two_1.md").read_text(encoding="utf-8").splitlines()
    assert set(pd.read_csv(tmp_path / "out/two.csv")["method"]) == {"bleep"}
    assert [line.split(" | ")[-2:] for line in lines if "bleep" in line] == [["1", "0.0 |"]]
    # Of ST-Net nothing is known: in the tables of a method that was never run, no time is made up.
    assert call(tmp_path, "--hours", 0, "--methods", "bleep", "st-net") == 0
    assert "\n| st-net | not run | | | |  |" in (tmp_path / "out/two_1.md").read_text(encoding="utf-8")


def test_the_time_of_a_run_that_went_on_from_a_checkpoint_is_told_as_a_part(tissue, tmp_path):
    def told(folder):
        lines = (tmp_path / folder / "two_1.md").read_text(encoding="utf-8").splitlines()
        return lines[-1].split(" | ")[-1], read_json(tmp_path / folder / "two.json")["in_part"]

    assert call(tmp_path) == 0
    # A folder without a checkpoint is left by a run that was stopped before its first one.
    for method, file in (("bleep", "network.checkpoint"), ("ridge", "none.txt")):
        run = next((tmp_path / "runs/two").glob(f"*-{method}-*.json"))
        run.unlink()
        run.with_suffix(".checkpoints").mkdir()
        (run.with_suffix(".checkpoints") / file).touch()
    assert call(tmp_path) == 0
    time, in_part = told("out")
    assert time.startswith("over 0.")
    assert in_part == ["bleep"]
    where = {"runs": "others", "earlier": "out", "out": "taken"}
    assert call(tmp_path, *(word for name, path in where.items() for word in (f"--{name}", tmp_path / path))) == 0
    assert told("taken") == (time, in_part)


def test_rows_of_an_earlier_call_are_taken(tissue, tmp_path, capsys):
    assert call(tmp_path, "--methods", "bleep", "--seeds", 1) == 0
    before = pd.read_csv(tmp_path / "out/two.csv")
    picture = (tmp_path / "out/two.png").read_bytes()
    more = ["--earlier", tmp_path / "out", "--runs", tmp_path / "elsewhere", "--out", tmp_path / "then"]
    assert call(tmp_path, *more) == 0
    scores = pd.read_csv(tmp_path / "then/two.csv").set_index(["method", "fold", "seed"])
    assert len(scores) == 2 * 2 * 2
    pd.testing.assert_frame_equal(scores.loc[["bleep"], :, [0]], before.set_index(["method", "fold", "seed"]))
    kept = sorted(path.name for path in (tmp_path / "elsewhere/two").glob("*bleep*"))
    assert kept
    assert all("seed1" in name for name in kept), "seed 0 is not made anew"
    record = read_json(tmp_path / "then/two.json")
    assert record["settings"]["seeds"] == [0, 1]
    assert record["rows_taken_from"]["versions"] == record["versions"]
    assert set(record["cpu_seconds"]) == {"bleep", "ridge"}
    assert (tmp_path / "then/two.png").read_bytes() == picture
    # With all rows there, nothing is run.
    capsys.readouterr()
    assert call(tmp_path, "--earlier", tmp_path / "then", "--runs", tmp_path / "none", "--hours", 0) == 0
    assert (tmp_path / "out/two.csv").read_text() == (tmp_path / "then/two.csv").read_text()
    assert "1 of 2" not in capsys.readouterr().out


def test_rows_made_with_other_settings_are_refused(tissue, tmp_path, capsys):
    assert call(tmp_path, "--methods", "bleep", "--seeds", 1) == 0
    again = ["--earlier", tmp_path / "out", "--n-top-genes", 15]
    assert call(tmp_path, *again) == 2
    assert "tables of two were made with other settings (" in (said := capsys.readouterr().err)
    assert "n_top_genes" in said
    # Where the weights lie does not matter.
    record = read_json(tmp_path / "out/two.json")
    record["settings"]["features"]["weights"] = "/elsewhere"
    write_json(tmp_path / "out/two.json", record)
    assert call(tmp_path, "--earlier", tmp_path / "out", "--methods", "bleep", "--seeds", 1) == 0


def test_a_time_is_extrapolated_from_the_largest_data_set(tmp_path):
    study.note_time(tmp_path / "her2st", "bleep", 60.0, 4, study.Size(500, 167))
    study.note_time(tmp_path / "visium_lung", "bleep", 300.0, 2, study.Size(3000, 1500))
    assert study.extrapolated(tmp_path, "bleep", study.Size(18_000, 6000)) == pytest.approx(1800)
    # For every mini-batch of its spots, a slice is encoded, which has four times the spots here.
    study.note_time(tmp_path / "visium_lung", "paper-A", 300.0, 2, study.Size(3000, 1500))
    assert study.extrapolated(tmp_path, "paper-A", study.Size(18_000, 6000)) == pytest.approx(7200)
    assert np.isnan(study.extrapolated(tmp_path, "paper", study.Size(18_000, 6000)))
    # Files of earlier calls, which had no column for it.
    times = pd.read_csv(tmp_path / "visium_lung/times.csv").drop(columns="slice_spots")
    times.to_csv(tmp_path / "visium_lung/times.csv", index=False)
    assert study.extrapolated(tmp_path, "paper-A", study.Size(18_000, 6000)) == pytest.approx(3600)


def test_the_time_that_remains_is_told_where_it_is_known(tmp_path):
    size = study.Size(500, 167)
    study.note_time(tmp_path / "her2st", "paper", 60.0, 4, size)
    assert study.remaining(tmp_path / "her2st", ["paper"]) == ", at most 4 CPU min remain"
    study.note_time(tmp_path / "her2st", "bleep", 6.0, 0, size)
    assert study.remaining(tmp_path / "her2st", ["paper", "bleep"]) == ""
    study.note_time(tmp_path / "her2st", "paper", 90.0, 1, size)
    assert study.kept_runs(tmp_path / "her2st", "paper") == 4


def test_variants_are_published_methods_with_other_inputs(tmp_path):
    trunk = study.variant(study.PRETRAINED, tmp_path / "weights.safetensors").keywords
    assert (trunk["name"], trunk["trunk"], trunk["weights"]) == (
        "st-net",
        "mobilenet_v2",
        f"{tmp_path}/weights.safetensors",
    )
    for name in study.FROM_FEATURES:
        keywords = study.variant(name, tmp_path).keywords
        assert (keywords["name"], keywords["from_features"]) == (name.split(",")[0], True)


def test_markers_are_those_that_all_panels_hold():
    panels = pd.DataFrame({"fold": ["S1", "S1", "S1", "S2", "S2"], "gene": ["a", "b", "c", "b", "a"]})
    two = study.Experiment("two", lambda given: None, (), 1, ("c", "b", "a"))
    assert study.common_markers(two, panels, None) == ["b", "a"]


def test_simulated_tissue_says_so_in_every_row():
    scores = pd.DataFrame({"method": ["ridge", "bleep"], "seed": 0, "MG": np.nan, "HVG": 0.25, "HEG": 0.5})
    drawn = study.Experiment("drawn", lambda given: None, (), 1, (), simulated=True)
    methods = ["ridge", "bleep", "paper"]
    lines = study.table(scores, methods, ("MG", "HVG", "HEG"), {"ridge": "1.5"}, {"paper": 2400.0}, drawn).splitlines()
    assert lines[0] == "| simulated | MG | HVG | HEG | seeds | CPU min a run |"
    assert lines[2:] == [
        "| simulated: ridge |  | 0.250 | 0.500 | 1 | 1.5 |",
        "| simulated: bleep |  | 0.250 | 0.500 | 1 |  |",
        "| simulated: paper | not run | | | | about 40 |",
    ]


@pytest.mark.parametrize("name", study.EXPERIMENTS)
def test_every_method_that_is_named_exists(name):
    one = study.EXPERIMENTS[name]
    assert set(one.methods) <= {*METHODS, *study.VARIANTS}
    assert len(set(one.methods)) == len(one.methods)


@pytest.mark.parametrize("more", [["--sets", "colon"], ["--methods", "st-not"]])
def test_unknown_names_end_it(tissue, tmp_path, more, capsys):
    with pytest.raises(SystemExit) as ended:
        call(tmp_path, *more)
    assert ended.value.code == 2
    assert more[1] in capsys.readouterr().err
