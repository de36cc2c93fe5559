"""Ceilings and noise-free Moran's I belong to the fold: computed once, and added to runs that were kept before."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest

from st_gchb._artifacts import with_digest
from st_gchb.evaluate import evaluate, evaluate_fold, write_report
from st_gchb.metrics import morans_i, noise_ceiling, noise_free_agreement, noise_free_morans_i, share_of_ceiling
from st_gchb.pp import spatial_graph

from .conftest import QUICK, Spy

NEW = ["Moran_difference", "Moran_rank", "n_Moran"]
SHARES = [f"{name}_{what}" for what in ("ceiling", "share") for name in ("AG", "HVG", "HEG")]


def noise(task):
    return np.random.default_rng([task.seed, task.test.n_obs]).random((task.test.n_obs, len(task.panel)))


def test_columns_are_those_of_the_held_out_counts(tissue):
    spy = Spy()
    result = evaluate_fold(tissue, "S3", methods={"spy": spy}, **QUICK)
    panel, prediction = spy.tasks[0].panel, spy(spy.tasks[0])
    held_out = tissue[tissue.obs["slice"] == "S3"].copy()
    counts = held_out.X.toarray()
    options = {"totals": counts.sum(1)}
    counts = counts[:, held_out.var_names.get_indexer(panel)]
    spatial_graph(held_out, slice_key="slice")
    graph = held_out.obsp["spatial_connectivities"]
    ceiling = noise_ceiling(counts, panel, **options)
    moran = noise_free_morans_i(counts, graph, panel, **options)
    row, genes = result.scores.iloc[0], result.genes.set_index("gene")
    expected = share_of_ceiling(genes, ceiling)
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["HVG_share"] == pytest.approx(row["HVG"] / row["HVG_ceiling"])
    agreement = noise_free_agreement(moran, morans_i(prediction, graph))
    assert row[NEW].tolist() == pytest.approx([agreement[key] for key in list(agreement)[:3]])
    np.testing.assert_allclose(genes["morans_i"], morans_i(prediction, graph))
    np.testing.assert_allclose(genes["noise_free_morans_i"], moran["morans_i"])
    np.testing.assert_allclose(genes["ceiling"], ceiling["ceiling"])
    assert genes["uncertain"].tolist() == ceiling["uncertain"].tolist()
    assert "Moran" not in row


def test_the_ceiling_is_one_for_all_methods_of_a_fold(tissue, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "st_gchb.evaluate._noise.noise_ceiling",
        lambda *given, **options: calls.append(1) or noise_ceiling(*given, **options),
    )
    result = evaluate(tissue, methods={"a": Spy(), "b": Spy()}, **(QUICK | {"seeds": [0, 1]}))
    assert len(calls) == 3
    assert (result.scores.groupby("fold")[SHARES[:3]].nunique() == 1).all(axis=None)


def test_runs_of_earlier_versions_are_taken(tissue, tmp_path, caplog, sketched_figures):
    """They hold no Moran's I of the prediction: what it is needed for is missing and told, all else is there."""
    before = evaluate(tissue, methods={"noise": noise}, runs_dir=tmp_path, **QUICK)
    for path in tmp_path.glob("*.json"):
        record = json.loads(path.read_text())
        del record["genes"]["morans_i"]
        record["row"]["Moran"] = 0.5
        path.write_text(json.dumps(with_digest({key: value for key, value in record.items() if key != "sha256"})))
    with caplog.at_level(logging.WARNING, logger="st_gchb"):
        after = evaluate(tissue, methods={"noise": noise}, runs_dir=tmp_path, **QUICK)
    assert after.runs == {"made": 0, "taken": 3}
    assert "3 of 3 runs were stored by an earlier version" in caplog.text
    pd.testing.assert_frame_equal(after.scores.drop(columns=NEW), before.scores.drop(columns=NEW))
    assert after.scores[NEW].isna().all(axis=None)
    assert after.genes["morans_i"].isna().all()
    paths = write_report(after, tmp_path / "report")
    assert json.loads(paths["metrics"].read_text())["methods"]["noise"]["Moran_rank"] == {"mean": None, "sd": None}
    assert paths["table"].read_text().splitlines()[-1].endswith("| – | – |")


def test_a_gene_without_counts_in_the_held_out_slice_counts_as_nothing(tissue):
    adata = tissue.copy()
    spy = Spy()
    evaluate_fold(adata, "S3", methods={"spy": spy}, **QUICK)
    gene = spy.tasks[0].panel[0]
    counts = adata.X.tolil()
    counts[np.flatnonzero(adata.obs["slice"] == "S3"), adata.var_names.get_loc(gene)] = 0
    adata.X = counts.tocsr()
    result = evaluate_fold(adata, "S3", methods={"spy": spy}, **QUICK)
    row = result.genes.set_index("gene").loc[gene]
    assert row["constant"]
    assert row["uncertain"]
    assert row["ceiling"] == 0
    assert np.isnan(row["noise_free_morans_i"])
    assert result.scores[[*SHARES, *NEW]].notna().all(axis=None)
