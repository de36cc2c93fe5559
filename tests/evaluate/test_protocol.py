"""What is held out stays out of sight, and what is counted is what the protocol says."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from st_gchb.evaluate import METHODS, evaluate, evaluate_fold, leave_one_out

from .conftest import QUICK, Spy

SHORT = {"default": {"max_epochs": 2}, "bleep": {"max_epochs": 2}}


def log_values(adata):
    counts = adata.X.toarray().astype(np.float64)
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


FOLDS = {"slice": {"S1": ["S1"], "S2": ["S2"], "S3": ["S3"]}, "patient": {"P1": ["S1", "S2"], "P2": ["S3"]}}


@pytest.mark.parametrize("by", FOLDS)
def test_folds(tissue, by):
    # Rows of one slice need not lie together.
    tissue = tissue[np.random.default_rng(0).permutation(tissue.n_obs)].copy()
    folds = {fold.name: fold for fold in leave_one_out(tissue, by)}
    assert folds.keys() == FOLDS[by].keys()
    for name, slices in FOLDS[by].items():
        fold = folds[name]
        assert set(tissue.obs["slice"].iloc[fold.test]) == set(slices)
        assert not set(tissue.obs["slice"].iloc[fold.train]) & set(slices)
        assert sorted([*fold.train, *fold.test]) == list(range(tissue.n_obs))


@pytest.mark.parametrize("by", ["slice", "patient"])
def test_a_method_never_sees_what_it_is_asked_for(tissue, by):
    tissue.layers["log"] = tissue.X.copy()
    tissue.obsm["X_pca"] = np.asarray(tissue.X.toarray()[:, :3])
    tissue.obsp["expression_graph"] = sp.eye(tissue.n_obs).tocsr()
    spy = Spy()
    evaluate(tissue, methods={"spy": spy}, by=by, **(QUICK | {"seeds": [0, 4]}))
    folds = leave_one_out(tissue, by)
    assert len(spy.tasks) == 2 * len(folds)
    for number, task in enumerate(spy.tasks):
        fold = folds[number // 2]
        assert task.seed == [0, 4][number % 2]
        assert task.test.n_vars == 0
        assert task.test.X is None
        assert set(task.test.layers) == set(task.test.obsp) == set()
        # X_patch_made says where the features were made: positions, no expression.
        assert set(task.test.obsm) == {"spatial", "X_patch", "X_patch_made"}
        assert task.test.obs_names.tolist() == tissue.obs_names[fold.test].tolist()
        assert task.train.obs_names.tolist() == tissue.obs_names[fold.train].tolist()
        assert not set(task.train.obs[by]) & {fold.name}
        assert set(task.panel) <= set(tissue.var_names)
        assert len(task.panel) == 20


@pytest.mark.parametrize("name", ["default", "bleep", "ridge", "ridge-neighbors", "knn", "mean"])
def test_poison_in_the_held_out_slice_changes_nothing(tissue, name):
    """Other counts in the held-out slice: the same panel and the same prediction, to the last bit."""
    seen = {}

    def recorded(task):
        prediction = METHODS[name](task, **SHORT.get(name, {}))
        seen.setdefault("panel", []).append(task.panel)
        seen.setdefault("prediction", []).append(prediction)
        return prediction

    scores = []
    poisoned = tissue.copy()
    counts = poisoned.X.toarray()
    rows = np.flatnonzero(poisoned.obs["slice"] == "S2")
    counts[rows] = np.random.default_rng(0).poisson(50, (len(rows), counts.shape[1]))
    poisoned.X = sp.csr_matrix(counts.astype(np.float32))
    for adata in (tissue, poisoned):
        scores.append(evaluate_fold(adata, "S2", methods={name: recorded}, **QUICK).scores)
    assert seen["panel"][0] == seen["panel"][1]
    np.testing.assert_array_equal(*seen["prediction"])
    assert not np.allclose(scores[0]["RMSE"], scores[1]["RMSE"])


def test_poison_elsewhere_does_change_the_prediction(tissue):
    """The check above could fail: counts of a training slice do reach the method."""
    predictions = []

    def recorded(task):
        predictions.append(METHODS["knn"](task))
        return predictions[-1]

    for shift in (0, 5):
        adata = tissue.copy()
        counts = adata.X.toarray()
        counts[np.flatnonzero(adata.obs["slice"] == "S1")] += shift
        adata.X = sp.csr_matrix(counts)
        evaluate_fold(adata, "S2", methods={"knn": recorded}, **QUICK)
    assert not np.allclose(*predictions)


def test_numbers_are_those_of_the_protocol(tissue):
    """AG, HVG, HEG, MG, RMSE and Spearman against their plain definitions."""
    spy = Spy()
    evaluate_fold(tissue, "S3", methods={"spy": spy}, **QUICK)
    panel = spy.tasks[0].panel
    result = evaluate_fold(tissue, "S3", methods={"spy": spy}, markers=panel[3:5], **QUICK)
    row = result.scores.iloc[0]
    held_out = tissue[tissue.obs["slice"] == "S3"]
    truth = log_values(held_out)[:, held_out.var_names.get_indexer(panel)]
    predicted = spy(spy.tasks[0])
    r = np.array([np.corrcoef(truth[:, g], predicted[:, g])[0, 1] for g in range(20)])
    assert row["AG"] == pytest.approx(r.mean(), abs=1e-6)
    assert row["MG"] == pytest.approx(r[3:5].mean(), abs=1e-6)
    assert row["HVG"] == pytest.approx(r.mean(), abs=1e-6)
    assert row["RMSE"] == pytest.approx(np.sqrt(((truth - predicted) ** 2).mean(0)).mean(), abs=1e-6)
    rho = [stats.spearmanr(truth[:, g], predicted[:, g]).statistic for g in range(20)]
    assert row["Spearman"] == pytest.approx(np.mean(rho), abs=1e-6)
    assert row["n>0.3"] == (r > 0.3).sum()
    by_gene = result.genes.set_index("gene")["pearson"]
    np.testing.assert_allclose(by_gene[panel], r, atol=1e-6)
    assert list(by_gene.index) == panel


def test_table_is_mean_over_folds_then_spread_over_seeds(tissue):
    result = evaluate(tissue, methods={"a": Spy(), "b": Spy()}, **(QUICK | {"seeds": [0, 1, 2]}))
    assert len(result.scores) == 2 * 3 * 3
    assert result.scores[["fold", "seed", "method"]].drop_duplicates().shape[0] == 18
    table = result.table()
    assert table.index.tolist() == ["a", "b"]
    for method in ("a", "b"):
        own = result.scores[result.scores["method"] == method]
        by_seed = [own[own["seed"] == seed]["AG"].mean() for seed in (0, 1, 2)]
        assert table.loc[method, ("AG", "mean")] == pytest.approx(np.mean(by_seed))
        assert table.loc[method, ("AG", "sd")] == pytest.approx(np.std(by_seed, ddof=1))
    assert len(result.genes) == 18 * 20
    assert result.settings["folds"] == ["S1", "S2", "S3"]
    assert result.settings["seeds"] == [0, 1, 2]


def test_the_same_seed_gives_the_same_table(tissue):
    short = {"default": partial(METHODS["default"], **SHORT["default"])}
    tables = [evaluate_fold(tissue, "S1", methods=short, **QUICK).scores for _ in range(2)]
    pd.testing.assert_frame_equal(*tables)


def test_nothing_of_the_callers_changes(tissue):
    before = tissue.copy()
    evaluate_fold(tissue, "S1", methods=["bleep", "ridge-neighbors"], **QUICK)
    assert (before.X != tissue.X).nnz == 0
    pd.testing.assert_frame_equal(before.obs, tissue.obs)
    for name in ("obsm", "obsp", "uns", "layers"):
        assert set(getattr(before, name)) == set(getattr(tissue, name)), name
