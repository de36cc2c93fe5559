"""Baselines against the formulas they stand for, written out."""

from __future__ import annotations

import numpy as np
import pytest

from st_gchb.evaluate import METHODS, evaluate_fold


@pytest.fixture
def run(tissue):
    """Prediction of a method for S3, with log-normalized training panel and features of both sides."""

    def call(name):
        kept = {}

        def record(task):
            kept["task"], kept["prediction"] = task, METHODS[name](task)
            return kept["prediction"]

        evaluate_fold(tissue, "S3", methods={name: record}, n_top_genes=15, device="cpu")
        task = kept["task"]
        train, test = tissue[tissue.obs["slice"] != "S3"], tissue[tissue.obs["slice"] == "S3"]
        counts = train.X.toarray().astype(np.float64)
        panel = train.var_names.get_indexer(task.panel)
        y = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)[:, panel]
        return kept["prediction"], y, train, test

    return call


def standardized(train, test):
    mean, sd = train.mean(0), train.std(0)
    sd[sd == 0] = 1
    return (train - mean) / sd, (test - mean) / sd


def features(adata):
    return np.asarray(adata.obsm["X_patch"], dtype=np.float64)


def neighbors_mean(adata, radius):
    """Mean features of the spots of the same slice within the radius, by a loop."""
    at, x = adata.obsm["spatial"], features(adata)
    slices = adata.obs["slice"].to_numpy()
    means = []
    for i in range(adata.n_obs):
        near = (np.linalg.norm(at - at[i], axis=1) < radius) & (slices == slices[i])
        near[i] = False
        means.append(x[near].mean(0) if near.any() else x[i])
    return np.hstack([x, np.array(means)])


def ridge(x, query, y):
    x, query = standardized(x, query)
    penalty = 0.012 * (x**2).sum()
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean(0)))
    return query @ weights + y.mean(0)


def test_mean(run):
    prediction, y, _, test = run("mean")
    np.testing.assert_allclose(prediction, np.tile(y.mean(0), (test.n_obs, 1)), rtol=1e-5)


def test_nearest_neighbors(run):
    prediction, y, train, test = run("knn")
    x, query = standardized(features(train), features(test))
    cosine = (query / np.linalg.norm(query, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    expected = np.array([y[np.argsort(-row)[:50]].mean(0) for row in cosine])
    np.testing.assert_allclose(prediction, expected, rtol=1e-4)


def test_ridge(run):
    prediction, y, train, test = run("ridge")
    np.testing.assert_allclose(prediction, ridge(features(train), features(test), y), atol=1e-3)


def test_ridge_with_neighbors(run):
    prediction, y, train, test = run("ridge-neighbors")
    # The array's pitch is 100 px (µm): the six around a spot lie within 1.6 of it.
    expected = ridge(neighbors_mean(train, 160.0), neighbors_mean(test, 160.0), y)
    np.testing.assert_allclose(prediction, expected, atol=1e-3)
    assert np.abs(prediction - ridge(features(train), features(test), y)).max() > 0.05


def test_bleep_and_ablations_are_presets():
    assert METHODS["bleep"].keywords == {"preset": "bleep"}
    ablations = {name: METHODS[f"paper-{name}"].keywords for name in "ABCD"}
    assert ablations == {
        "A": {"preset": "paper", "bottleneck": 0.0},
        "B": {"preset": "paper", "n_expression_components": None},
        "C": {"preset": "paper", "dgi_image": 0.0},
        "D": {"preset": "paper", "dgi_expression": 0.0},
    }
