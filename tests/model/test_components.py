"""Principal components of few spots with many features, beside scikit-learn's."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, strategies as st
from scipy import sparse
from sklearn.decomposition import PCA

from st_gchb.model import fit_appearance, fit_map
from st_gchb.pp.expression import fit_expression


def standardized(x):
    return (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)


def table(seed, n_spots, n_features, decay=0.0):
    """Features of which each has a standard deviation near 1, and components one that decays by rank."""
    rng = np.random.default_rng(seed)
    n = min(n_spots, n_features)
    weights = np.arange(1, n + 1) ** -decay
    return ((rng.normal(size=(n_spots, n)) * weights) @ rng.normal(size=(n, n_features))).astype(np.float32)


@pytest.mark.parametrize(
    ("n_spots", "n_features", "width"),
    [
        (100, 700, 9),
        (100, 700, 30),
        (60, 61, 20),
        (90, 91, 5),
        (100, 101, 45),
        (15, 80, 6),
        (40, 700, 30),
        (30, 31, 25),
    ],
)
@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_few_spots_have_the_components_of_scikit_learn(n_spots, n_features, width, decay):
    x = table(1, n_spots, n_features, decay)
    solver = "randomized" if width < n_spots // 2 else "full"
    theirs = PCA(width, svd_solver=solver, random_state=3).fit(standardized(x))
    ours = fit_map(x, width, whitening=0.0, seed=3)
    np.testing.assert_allclose(ours.matrix * x.std(0, dtype=np.float64)[:, None], theirs.components_.T, atol=2e-6)
    whitened = fit_map(x, width, whitening=1.0, seed=3)(x)
    np.testing.assert_allclose(whitened.var(0, ddof=1), 1.0, rtol=1e-4)


def test_the_seed_is_that_of_the_estimate():
    x = table(0, 100, 700)
    one, same, other = (fit_map(x, 30, whitening=0.0, seed=seed).matrix for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01


@given(
    seed=st.integers(0, 99), n_spots=st.integers(30, 80), more=st.integers(1, 60), rank=st.integers(1, 8),
    width=st.integers(1, 25), whitening=st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_directions_beyond_the_rank_are_zero_and_the_others_exact(seed, n_spots, more, rank, width, whitening):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n_spots, rank)) @ rng.normal(size=(rank, n_spots + more))).astype(np.float32)
    # Features that hardly vary are switched off.
    assume(x.std(0).min() > 0.01 * np.median(x.std(0)))
    found = fit_map(x, width, whitening=whitening, seed=seed)(x)
    assert np.isfinite(found).all()
    singular = np.linalg.svd(standardized(x), compute_uv=False)
    real = np.count_nonzero(singular[:width] > 1e-4 * singular[0])
    # Rounding to float32 is all that varies in the others.
    variance = found.var(0) * (n_spots / singular[0] ** 2 if whitening == 0.0 else 1.0)
    assert (variance[min(rank, width) :] < 1e-6).all()
    assert (variance[:real] > 1e-9).all()
    if whitening == 0.0:
        np.testing.assert_allclose(found.var(0)[:real] * n_spots, singular[:real] ** 2, rtol=1e-2)


def test_spots_that_are_all_alike_have_no_components():
    alike = np.tile(table(0, 1, 200), (50, 1))
    assert not fit_map(alike, 5, whitening=0.5, seed=0).matrix.any()
    assert np.isfinite(fit_appearance(alike, seed=0)(alike)).all()


def test_a_panel_of_genes_that_are_all_constant_has_no_components():
    values = sparse.csr_matrix(np.tile(np.arange(1.0, 101.0), (60, 1)))
    genes = [f"g{i}" for i in range(100)]
    options = {"n_top_genes": 100, "n_components": 5, "log_normalized": True, "seed": 0, "panel": genes}
    rule = fit_expression(values, pd.Index(genes), np.repeat("A", 60), **options)
    assert (rule.matrix == 0).all()


@pytest.mark.parametrize(("n_spots", "n_features"), [(160, 600), (160, 400), (40, 600)])
def test_the_range_of_few_spots_is_that_of_scikit_learn(n_spots, n_features):
    x = table(2, n_spots, n_features)
    space = fit_appearance(x, seed=4)
    standard = ((x - space.offset) * space.inverse).astype(np.float64)
    theirs = PCA(min(32, n_spots // 4), random_state=4).fit(standard)
    np.testing.assert_allclose(space.components, theirs.components_.T, atol=1e-5)


def test_the_features_stay_as_they_were():
    x = table(0, 100, 700)
    before = x.copy()
    fit_map(x, 9, whitening=0.5, seed=0)
    fit_appearance(x, seed=0)
    np.testing.assert_array_equal(x, before)
