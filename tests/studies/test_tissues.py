"""The study of several tissues: data sets and their splits, ranks, differences with their intervals, files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

import st_gchb
from st_gchb.errors import InputError
from st_gchb.evaluate import METHODS, Evaluation, Reliability, evaluate, leave_blocks_out, leave_one_out, split_folds
from st_gchb.metrics import pearson
from studies import tissues as study
from studies._comparison import Compared, difference, overall, overall_markdown, weighted_correlations
from studies._figure import tissues as tissues_figure
from studies._tissues import TISSUES, Tissue, embedded

QUICK = {"n_top_genes": 20, "seeds": [0], "device": "cpu"}


# ---- Data sets ----


@pytest.fixture
def no_encoder(monkeypatch):
    """Features without a look at the images."""

    def features(section, **options):
        table = st_gchb.pp.resolve(section).adata
        table.obsm["X_patch"] = np.random.default_rng(0).normal(size=(table.n_obs, 3)).astype(np.float32)
        slices = list(table.obs["slice"].unique())
        table.uns["X_patch"] = {"slices": slices, "um_per_px": [4.0] * len(slices)}
        return table

    monkeypatch.setattr(st_gchb.pp, "embed_patches", features)


FOLDS = {
    "her2st": ["C2", "C3", "C4", "C5"],
    "her2st_a": [f"A1, {side} {where}" for side in ("top", "bottom") for where in ("left", "right")],
    "her2st_patients": ["C", "A"],
    "mob_st": [f"MOB1, {side} {where}" for side in ("top", "bottom") for where in ("left", "right")],
    "mob_st2k": ["MOB1", "MOB2", "MOB3"],
    "visium_mousebrain": ["V10F24-078_A1", "V10F24-078_B1"],
    "visium_lung": ["V10F24-110_C1", "V10F24-110_D1"],
    "visium_colon": [f"d0, {side} {where}" for side in ("top", "bottom") for where in ("left", "right")],
}


@pytest.mark.tissue
@pytest.mark.slow
@pytest.mark.parametrize("name", TISSUES)
def test_every_data_set_is_read_and_split(her2st_path, no_encoder, name):
    adata = embedded(TISSUES[name], her2st_path.parent, "default")
    result = evaluate(adata, methods=["mean"], n_top_genes=100, seeds=[0], device="cpu", **TISSUES[name].folds)
    assert list(result.scores["fold"]) == FOLDS[name]
    assert set(adata.uns["spatial"]) == set(adata.obs["slice"])
    assert (result.scores["n_genes"] == 100).all()
    assert adata.obs_names.is_unique
    # Methods on pixels and figures find the images, also of sections that were read as SpatialData.
    assert [slide.name for slide in st_gchb.pp.slices_of(adata, "slice")] == list(adata.obs["slice"].unique())


def test_a_folder_that_is_not_there_is_told(tmp_path, capsys):
    assert study.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path), "--quiet"]) == 2
    assert "none: there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tissues", "moon"], "['moon']: unknown; known are her2st"),
        (["--methods", "default", "lasso"], "['lasso']: unknown"),
        (["--methods", "default", "bleep"], "at least one baseline"),
        (["--methods", "ridge"], "expected default"),
        (["--seeds", "0"], "at least one seed"),
        (["--draws", "0"], "at least one seed and draw"),
    ],
)
def test_options_are_checked_before_anything_is_read(tmp_path, capsys, options, told):
    assert study.main(["--data", str(tmp_path), "--quiet", *options]) == 2
    assert told in capsys.readouterr().err


# ---- Comparison ----


def test_weighted_correlations_are_those_of_the_drawn_spots():
    rng = np.random.default_rng(0)
    truth, prediction = rng.normal(size=(2, 30, 6)) + 5
    truth[:, 4] = 2
    prediction[1:, 5] = 3  # constant unless the first spot is drawn
    draws = rng.multinomial(30, np.full(30, 1 / 30), size=20)
    draws[0, 0], draws[1, 0] = 0, 2
    found = weighted_correlations(truth, prediction, draws)
    for weights, row in zip(draws, found, strict=True):
        spots = np.repeat(np.arange(30), weights)
        np.testing.assert_allclose(row, pearson(truth[spots], prediction[spots]), atol=1e-10)
    assert found[0, 5] == 0
    assert found[1, 5] != 0


def truth_with_noise(task, scale=1.0):
    """A prediction that is near the measured values, which the test hands over."""
    rng = np.random.default_rng([task.seed, int(10 * scale)])
    genes = TRUTH[0].var_names.get_indexer(task.panel)
    log_values = np.log1p(np.asarray(TRUTH[0][task.test.obs_names].X.todense()) * 1.0)[:, genes]
    return log_values + rng.normal(size=log_values.shape) * scale


TRUTH: list[anndata.AnnData] = []


def better(task):
    return truth_with_noise(task, 0.5)


def worse(task):
    return truth_with_noise(task, 1.0)


@pytest.fixture
def result(tissue):
    TRUTH[:] = [tissue]
    methods = {"default": better, "bleep": better, "worse": worse, "mean": METHODS["mean"]}
    return evaluate(tissue, methods=methods, keep_predictions=True, **QUICK)


def test_difference_to_the_strongest_baseline(tissue, result):
    rows = difference(result, tissue, leave_one_out(tissue), n_draws=300).set_index("measure")
    means = result.table().xs("mean", axis=1, level=1)
    assert set(rows["baseline"]) == {"worse"}
    for measure, row in rows.iterrows():
        assert row["value"] == pytest.approx(means.loc["default", measure], abs=1e-6)
        assert row["baseline_value"] == pytest.approx(means.loc["worse", measure], abs=1e-6)
        assert row["difference"] == pytest.approx(row["value"] - row["baseline_value"])
        assert 0 < row["low"] < row["difference"] < row["high"] < 0.6


def test_spots_and_slices_widen_the_interval(tissue, result):
    folds = leave_one_out(tissue)
    rows = difference(result, tissue, folds, n_draws=300).set_index("measure")
    one = difference(result, tissue, folds[:1], n_draws=300).set_index("measure")
    assert ((one["high"] - one["low"]) > (rows["high"] - rows["low"])).all()
    again = difference(result, tissue, folds, n_draws=300).set_index("measure")
    pd.testing.assert_frame_equal(rows, again)


def test_the_same_method_differs_by_nothing(tissue):
    methods = {"default": METHODS["ridge"], "same": METHODS["ridge"]}
    result = evaluate(tissue, methods=methods, keep_predictions=True, **QUICK)
    rows = difference(result, tissue, leave_one_out(tissue), n_draws=50)
    assert (rows[["difference", "low", "high"]] == 0).all(axis=None)


def results_of(values):
    rows = [{"fold": "A", "seed": 0, "method": name, "AG": v, "HVG": v, "HEG": v} for name, v in values.items()]
    return Compared(Evaluation(pd.DataFrame(rows), pd.DataFrame(), {}), pd.DataFrame())


def test_ranks_over_data_sets():
    compared = {
        "one": results_of({"default": 0.3, "ridge": 0.2, "mean": 0.0, "paper": 0.1}),
        "two": results_of({"default": 0.3, "ridge": 0.4, "mean": 0.0}),
    }
    table = overall(compared)
    assert table["mean rank"].to_dict() == {"default": 1.5, "ridge": 1.5, "mean": 3.0}
    text = overall_markdown(table, {"one": "first tissue", "two": "second tissue"}).splitlines()
    assert text[0] == "| tissue | default | ridge | mean |"
    assert text[2].startswith("| first tissue | **0.300** **0.300** **0.300** | 0.200 0.200 0.200 |")
    assert text[3].endswith("| **0.400** **0.400** **0.400** | 0.000 0.000 0.000 |")
    assert text[4] == "| mean rank | 1.5 | 1.5 | 3.0 |"


def test_the_figure_has_a_row_for_each_data_set_and_a_mark_for_each_method():
    frame = pd.DataFrame({"AG": [0.1, 0.2], "HVG": [0.3, 0.4], "HEG": [0.5, 0.6]}, index=["default", "ridge"])
    axes = tissues_figure({"first": frame, "second": frame.iloc[:1]})
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["first", "second"]
    marks = {mark.get_label(): np.ma.filled(mark.get_offsets(), np.nan) for mark in axes[1].collections}
    np.testing.assert_array_equal(marks["default"][:, 0], [0.3, 0.3])
    np.testing.assert_array_equal(marks["ridge"][:, 0], [0.4, np.nan])
    with pytest.raises(InputError, match="no data sets"):
        tissues_figure({})


# ---- The command ----


def test_the_example_of_the_help_is_taken():
    line = study.build_parser().format_help().rstrip().split("\nexample:\n")[1]
    taken = study.build_parser().parse_args(shlex.split(line)[3:])
    assert taken.weights.endswith(".safetensors")
    assert taken.tissues == list(TISSUES)
    assert not taken.paper


@pytest.mark.usefixtures("short_trainings", "sketched_figures")
def test_the_command_writes_all_tables_and_goes_on(tmp_path, monkeypatch, capsys):
    drawn = st_gchb.datasets.synthetic_tissue(2, n_rows=10, n_cols=10, n_genes=40, seed=1)
    drawn.obs["patient"] = ""

    def sections(data: Path):
        return [drawn[drawn.obs["slice"] == name].copy() for name in ("S1", "S2")]

    def features(section, **options):
        assert options.pop("encoder") == ("mobilenet_v2", "texture")
        assert options.pop("patch_um") == (80.0, 150.0, 300.0)
        assert options.pop("weights") == ("some.safetensors", "default")
        assert options.pop("n_views") == 4
        made = embed(section, encoder="texture", patch_um=150, n_views=1, **options)
        name = made.obs["slice"].iloc[0]
        made.uns["spatial"] = {name: made.uns["spatial"][name]}
        return made

    embed = st_gchb.pp.embed_patches
    monkeypatch.setattr(st_gchb.pp, "embed_patches", features)
    monkeypatch.setitem(METHODS, "default", METHODS["knn"])
    cut = {
        "two": Tissue("two drawn sections", "slice", sections, "Drawn."),
        "cut": Tissue("in blocks", "blocks", lambda data: sections(data)[1:]),
    }
    for name, tissue in cut.items():
        monkeypatch.setitem(TISSUES, name, tissue)
    call = ["--data", tmp_path, "--weights", "some.safetensors", "--tissues", *cut, "--n-top-genes", 20, "--seeds", 1]
    call += ["--methods", "default", "ridge", "kernel-ridge-texture", "--draws", 20, "--device", "cpu", "--quiet"]
    call += ["--runs", tmp_path / "runs", "--out", tmp_path / "out"]
    # k=50 of nearest neighbors is more than is left beside a block's gap.
    assert study.main(list(map(str, call))) == 2
    assert "k=50" in capsys.readouterr().err
    monkeypatch.setitem(METHODS, "default", METHODS["ridge-neighbors"])
    monkeypatch.setattr(study, "reliability", made_up_reliability)
    for _ in range(2):
        assert study.main(list(map(str, call))) == 0
    out = tmp_path / "out"
    tables = {f"{name}.{kind}" for name in (*cut, "overall", "differences", "confidence") for kind in ("csv", "md")}
    pictures = {"overall.png", *(f"{name}_confidence.png" for name in cut)}
    assert {path.name for path in out.iterdir()} == tables | pictures | {"settings.json"}
    assert len(list((tmp_path / "runs/cut").glob("*.json"))) == 4 * 3
    scores = pd.read_csv(out / "cut.csv")
    assert list(scores["fold"].unique()) == [fold.name for fold in leave_blocks_out(sections(Path())[1])]
    assert (
        (out / "two.md")
        .read_text(encoding="utf-8")
        .startswith("two drawn sections: sections left out (S1; S2), up to 20 genes, 1 seed. Drawn.\n\n| method | AG |")
    )
    record = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert record["tissues"]["cut"]["split"] == "blocks"
    assert list(pd.read_csv(out / "differences.csv")["tissue"]) == ["two"] * 3 + ["cut"] * 3
    confidence = pd.read_csv(out / "confidence.csv")
    assert list(confidence["tissue"]) == ["two"] * 2 + ["cut"] * 4
    assert list(confidence["fold"][:3]) == ["S1", "S2", "S2, top left"]
    assert (
        "| two drawn sections | S1 | 4 | 25.0% | 0.700 | 0.400 | 1.00 | -1.00 |" in (out / "confidence.md").read_text()
    )


def made_up_reliability(adata, *, seeds, n_top_genes, device, **folds):
    """Four spots and two genes of each fold: the surer, the smaller the error; genes the other way round."""
    names = [fold.name for fold in split_folds(adata, folds.get("split", "section"), folds.get("by", "slice"))]
    one = {"seed": seeds[0]}
    spots = {"spot": list("abcd"), "confidence": [0.1, 0.4, 0.6, 0.9], "rmse": [0.7, 0.6, 0.5, 0.4]}
    spots["outlier"] = [True, False, False, False]
    genes = {"gene": ["A", "B"], "expected": [0.1, 0.2], "pearson": [0.4, 0.3]}
    parts = [[pd.DataFrame(values | one | {"fold": name}) for name in names] for values in (spots, genes)]
    return Reliability(*(pd.concat(part, ignore_index=True) for part in parts))
