"""The files of an evaluation: read by machines, looked at by people."""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest

import st_gchb
from pictures import n_colors, pixels_of
from st_gchb._errors import MissingKeyError
from st_gchb.evaluate import evaluate, write_report


@pytest.fixture(scope="module")
def result(_tissue):
    return evaluate(_tissue, methods=["ridge", "mean"], n_top_genes=20, seeds=[0, 1], device="cpu")


def strictly(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.usefixtures("sketched_figures")
def test_files(result, tmp_path):
    paths = write_report(result, tmp_path / "deep" / "report")
    assert set(paths) == {"metrics", "scores", "per_gene", "table", "tissue", "bars"}
    assert {path.name for path in (tmp_path / "deep" / "report").iterdir()} == {path.name for path in paths.values()}

    record = strictly(paths["metrics"].read_text())
    assert record["settings"]["folds"] == ["S1", "S2", "S3"]
    assert record["settings"]["features"]["encoder"] == "texture"
    assert set(record["methods"]) == {"ridge", "mean"}
    table = result.table()
    assert record["methods"]["ridge"]["AG"]["mean"] == pytest.approx(table.loc["ridge", ("AG", "mean")])
    assert record["methods"]["mean"]["AG"] == {"mean": 0.0, "sd": 0.0}
    assert len(record["by_fold"]) == 2 * 3 * 2
    assert {"torch", "scvi-tools", "st-gchb", "python"} <= set(record["versions"])

    scores = pd.read_csv(paths["scores"])
    pd.testing.assert_frame_equal(scores, result.scores, check_dtype=False)
    with paths["per_gene"].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2 * 20
    assert {"gene", "pearson", "spearman", "rmse", "constant", "fold", "seed", "method"} <= set(rows[0])
    assert {row["method"] for row in rows} == {"ridge", "mean"}

    lines = paths["table"].read_text().splitlines()
    assert lines[0].startswith("| method | AG | HVG | HEG |")
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| ridge", "| mean"]
    assert f"{table.loc['ridge', ('AG', 'mean')]:.3f} ± " in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def test_figures(result, tmp_path):
    paths = write_report(result, tmp_path)
    for name in ("tissue", "bars"):
        pixels = pixels_of(paths[name])
        assert min(pixels.shape[:2]) > 200
        assert n_colors(pixels) > (500 if name == "tissue" else 5)
    before = paths["tissue"].read_bytes()
    write_report(result, tmp_path, genes=[result.pictured.var_names[0]])
    assert paths["tissue"].read_bytes() != before


def test_an_unknown_gene_to_draw(result, tmp_path):
    with pytest.raises(MissingKeyError, match="ERBB2"):
        write_report(result, tmp_path / "report", genes=["ERBB2"])
    assert not (tmp_path / "report").exists()


@pytest.mark.usefixtures("sketched_figures")
def test_one_seed_has_no_spread(tissue, tmp_path):
    # A slide of unknown scale: not a number is no JSON either.
    tissue.uns["X_patch"] = tissue.uns["X_patch"] | {"patch_px": 150.0, "um_per_px": np.full(3, np.nan)}
    del tissue.uns["X_patch"]["patch_um"]
    result = evaluate(tissue, methods=["mean"], n_top_genes=20, seeds=[3], device="cpu")
    paths = write_report(result, tmp_path)
    record = strictly(paths["metrics"].read_text())
    assert record["methods"]["mean"]["AG"] == {"mean": 0.0, "sd": None}
    assert record["settings"]["features"]["um_per_px"] == [None, None, None]
    assert "±" not in paths["table"].read_text()


@pytest.mark.usefixtures("sketched_figures")
def test_the_record_says_all_parts_of_the_features(tissue, tmp_path):
    st_gchb.pp.embed_patches(tissue, encoder="texture", patch_um=(80, 150), n_views=1, cache=False)
    result = evaluate(tissue, methods=["mean"], n_top_genes=20, seeds=[3], device="cpu")
    record = strictly(write_report(result, tmp_path)["metrics"].read_text())
    assert record["settings"]["features"]["encoder"] == ["texture", "texture"]
    assert record["settings"]["features"]["patch_um"] == [80.0, 150.0]


def test_the_first_method_is_the_colored_one(result, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(st_gchb.pl, "save", lambda axes, path: drawn.update({path.name: axes}))
    write_report(result, tmp_path)
    bars = {bar.get_label(): bar.patches[0].get_facecolor()[:3] for bar in drawn["methods.png"].containers}
    assert [name for name, color in bars.items() if max(color) - min(color) > 0.1] == ["ridge"]


def test_the_figure_shows_the_first_method_on_the_last_slice(tissue, result):
    pictured = result.pictured
    assert set(pictured.obs["slice"]) == {"S3"}
    held_out = tissue[tissue.obs["slice"] == "S3"]
    counts = held_out.X.toarray().astype(np.float64)
    truth = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    columns = held_out.var_names.get_indexer(pictured.var_names)
    np.testing.assert_allclose(pictured.layers["measured"], truth[:, columns], rtol=1e-5)
    assert pictured.layers["st_gchb"].std(0).min() > 0
