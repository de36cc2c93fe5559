"""The ridge head against scikit-learn's ridge regression."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge

from st_gchb.retrieval import RidgeHead, _ridge as linear_module

RNG = np.random.default_rng(0)
INPUTS = (RNG.normal(size=(60, 7)) * [5, 3, 2, 1, 1, 1, 0.1] + 4).astype(np.float32)
TARGET = np.maximum(INPUTS @ RNG.normal(size=(7, 5)) + RNG.normal(size=(60, 5)), 0)
QUERY = (RNG.normal(size=(11, 7)) * 3 + 4).astype(np.float32)


def ridge(penalty):
    """Penalty as documented: a share of the inputs' total variance, per spot."""
    x = INPUTS.astype(float)
    alpha = penalty * len(x) * x.var(0).sum()
    return Ridge(alpha=alpha, fit_intercept=True).fit(x, TARGET).predict(QUERY)


@pytest.mark.parametrize("penalty", [1e-6, 0.012, 1.0])
def test_it_is_ridge_with_an_intercept(penalty):
    found = RidgeHead(INPUTS, penalty).fit(TARGET).predict(QUERY)
    np.testing.assert_allclose(found, ridge(penalty), rtol=1e-4, atol=1e-4)


def test_a_huge_penalty_leaves_the_mean():
    found = RidgeHead(INPUTS, 1e9).fit(TARGET).predict(QUERY)
    np.testing.assert_allclose(found, np.broadcast_to(TARGET.mean(0), found.shape), rtol=1e-4)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_a_sparse_table_gives_what_the_dense_one_gives(kind):
    head = RidgeHead(INPUTS, 0.012)
    table = kind(TARGET.astype(np.float32))
    np.testing.assert_allclose(head.fit(table).predict(QUERY), head.fit(TARGET).predict(QUERY), rtol=1e-4, atol=1e-5)


def test_inputs_that_never_change_say_the_mean():
    found = RidgeHead(np.ones((60, 3), np.float32), 0.012).fit(TARGET).predict(np.ones((2, 3)))
    np.testing.assert_allclose(found, np.broadcast_to(TARGET.mean(0), found.shape), rtol=1e-5)


def test_the_order_of_the_reference_does_not_matter_and_nothing_is_changed():
    order, before = np.random.default_rng(1).permutation(60), INPUTS.copy()
    one = RidgeHead(INPUTS, 0.012).fit(TARGET).predict(QUERY)
    np.testing.assert_allclose(RidgeHead(INPUTS[order], 0.012).fit(TARGET[order]).predict(QUERY), one, rtol=1e-4)
    np.testing.assert_array_equal(INPUTS, before)


def test_held_out_correlation_is_that_of_ridge_heads_fitted_without_each_part():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(90, 7)).astype(np.float32)
    y = (x[:, :3] @ rng.normal(size=(3, 5)) + rng.normal(size=(90, 5))).astype(np.float32)
    y[:, 4] = 1.0
    folds = [np.arange(0, 90, 3), np.arange(1, 90, 3), np.arange(2, 90, 3)]
    parts = []
    for rows in folds:
        rest = np.setdiff1d(np.arange(90), rows)
        predicted = RidgeHead(x[rest], 0.01).fit(y[rest]).predict(x[rows])
        parts.append((predicted - predicted.mean(0), y[rows] - y[rows].mean(0)))
    predicted, measured = (np.concatenate(half) for half in zip(*parts, strict=True))
    norm = np.sqrt((predicted**2).sum(0) * (measured**2).sum(0))
    expected = np.where(norm > 1e-6, (predicted * measured).sum(0) / np.maximum(norm, 1e-6), 0.0)
    found = RidgeHead(x, 0.01).held_out_correlation(sparse.csr_matrix(y), folds)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found[0] > 0.3
    assert abs(found[4]) < 1e-3


def test_held_out_correlation_does_not_depend_on_how_much_is_looked_at_at_once(monkeypatch):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(40, 5)), sparse.csr_matrix(rng.random((40, 50)).astype(np.float32))
    folds = [np.arange(20), np.arange(20, 40)]
    whole, fitted = RidgeHead(x, 0.1).held_out_correlation(y, folds), RidgeHead(x, 0.1).fit(y).predict(x)
    monkeypatch.setattr(linear_module, "_BLOCK_VALUES", 1)  # 16 columns at once
    monkeypatch.setattr(linear_module, "_BLOCK_ROWS", 7)
    np.testing.assert_allclose(RidgeHead(x, 0.1).held_out_correlation(y, folds), whole)
    np.testing.assert_allclose(RidgeHead(x, 0.1).fit(y).predict(x), fitted, rtol=1e-5)
