"""Kernel ridge regression to components of expression, against a transcription of its equations."""

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist, pdist

from st_gchb.retrieval import RIDGES, expression_scores, fit_kernel_head

N, PARTS, WIDTH, GENES = 90, 2, 5, 30
SLICES = np.repeat(["A", "B", "C"], N // 3)
FOLDS = [np.flatnonzero(SLICES == name) for name in "ABC"]


@pytest.fixture
def inputs():
    return np.random.default_rng(0).normal(size=(N, PARTS * WIDTH)).astype(np.float32)


@pytest.fixture
def panel(inputs):
    rng = np.random.default_rng(1)
    signal = np.tanh(inputs[:, :3]) @ rng.normal(size=(3, GENES))
    shift = rng.normal(size=(3, GENES))[np.unique(SLICES, return_inverse=True)[1]]
    return sparse.csr_matrix(np.maximum(signal + shift + 0.5 * rng.normal(size=(N, GENES)), 0))


def transcribed(inputs, scores, query, folds, parts, points=None):
    """Solve (K + ridge I) a = z for each part; a component's ridge is that of the least error of the parts' mean.

    A part's kernel K is the mean of the Gaussian kernels of its columns. The error is the variance within the folds: a
    fold's mean counts for nothing. With points, ridges are chosen with Nyström's approximation of K from these spots.
    """
    points = np.arange(len(inputs)) if points is None else points
    kernels = []
    for part in parts:
        own = []
        for columns in part:
            x, q = inputs[:, columns].astype(float), query[:, columns].astype(float)
            scale = 1 / np.median(pdist(x)) ** 2
            own.append((np.exp(-scale * cdist(x, x) ** 2), np.exp(-scale * cdist(q, x) ** 2)))
        kernels.append(tuple(np.mean(one, axis=0) for one in zip(*own, strict=True)))
    found = np.zeros((len(query), scores.shape[1]))
    for c in range(scores.shape[1]):
        errors = []
        for ridge in RIDGES:
            error = 0.0
            for out in folds:
                stay = np.setdiff1d(np.arange(len(inputs)), out)
                predicted = np.zeros(len(out))
                for whole, _ in kernels:
                    k = whole[:, points] @ np.linalg.solve(whole[np.ix_(points, points)], whole[points])
                    a = np.linalg.solve(k[np.ix_(stay, stay)] + ridge * np.eye(len(stay)), scores[stay, c])
                    predicted += k[np.ix_(out, stay)] @ a / len(parts)
                rest = predicted - scores[out, c]
                error += ((rest - rest.mean()) ** 2).sum()
            errors.append(error)
        ridge = RIDGES[int(np.argmin(errors))]
        for k, kq in kernels:
            found[:, c] += kq @ np.linalg.solve(k + ridge * np.eye(len(k)), scores[:, c]) / len(parts)
    return found


def test_components_are_those_of_the_equations(inputs, panel):
    scores = expression_scores(panel, SLICES, 4)
    query = np.random.default_rng(2).normal(size=(7, PARTS * WIDTH)).astype(np.float32)
    head = fit_kernel_head(inputs, PARTS, scores, FOLDS, seed=0)
    # The jitter on the points' kernel matrix is all that differs.
    first, second = slice(0, WIDTH), slice(WIDTH, 2 * WIDTH)
    expected = transcribed(inputs, scores, query, FOLDS, [[first], [second]])
    np.testing.assert_allclose(head.components(query), expected, rtol=0, atol=1e-4)


def test_a_part_may_have_two_kernels(inputs, panel):
    scores = expression_scores(panel, SLICES, 4)
    rng = np.random.default_rng(4)
    wide = np.hstack([inputs, rng.normal(size=(N, PARTS * WIDTH)).astype(np.float32)])
    query = rng.normal(size=(7, wide.shape[1])).astype(np.float32)
    head = fit_kernel_head(wide, PARTS, scores, FOLDS, seed=0, n_kernels=2)
    assert head.scales.shape == (2 * PARTS,)
    assert head.coefficients.shape == (PARTS, N, 4)
    a, b, c, d = (slice(start, start + WIDTH) for start in range(0, 4 * WIDTH, WIDTH))
    expected = transcribed(wide, scores, query, FOLDS, [[a, c], [b, d]])
    np.testing.assert_allclose(head.components(query), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_points", [40, 59, 61, 75])
def test_ridges_are_the_same_from_features_and_from_spots(inputs, panel, monkeypatch, n_points):
    """60 spots are left of a fold; the smaller matrix is that of the features, or of the spots."""
    monkeypatch.setattr("st_gchb.retrieval._kernel._CHOICE_POINTS", n_points)
    scores = expression_scores(panel, SLICES, 20)
    points = np.sort(np.random.default_rng(5).permutation(N)[:n_points])
    query = np.random.default_rng(2).normal(size=(7, PARTS * WIDTH)).astype(np.float32)
    head = fit_kernel_head(inputs, PARTS, scores, FOLDS, seed=5)
    first, second = slice(0, WIDTH), slice(WIDTH, 2 * WIDTH)
    expected = transcribed(inputs, scores, query, FOLDS, [[first], [second]], points)
    np.testing.assert_allclose(head.components(query), expected, rtol=0, atol=1e-4)


def test_scores_are_principal_components_of_expression_centered_on_its_slice(panel):
    dense = panel.toarray()
    centered = dense - np.stack([dense[SLICES == name].mean(0) for name in SLICES])
    scores = expression_scores(panel, SLICES, 5)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs(scores), np.abs(u[:, :5] * s[:5]), atol=1e-6)
    for name in "ABC":
        np.testing.assert_allclose(scores[SLICES == name].mean(0), 0, atol=1e-9)


def test_scores_are_the_same_from_spots_and_from_genes(panel):
    """The panel has 90 spots and 30 genes; with each gene five times, it has more genes than spots."""
    few = expression_scores(panel, SLICES, 5)
    many = expression_scores(sparse.hstack([panel] * 5).tocsr(), SLICES, 5)
    np.testing.assert_allclose(np.abs(many), np.sqrt(5) * np.abs(few), atol=1e-6)


def test_components_without_variance_are_zero(panel):
    few = expression_scores(panel[:6], np.repeat(["A", "B"], 3), 20)
    assert few.shape == (6, 20)
    assert (few[:, 4:] == 0).all()  # six spots less two means
    assert (np.abs(few[:, :4]).max(0) > 0).all()


def test_loadings_of_the_panel_are_its_directions_and_those_of_any_table_a_regression(inputs, panel):
    scores = expression_scores(panel, SLICES, 5)
    head = fit_kernel_head(inputs, PARTS, scores, FOLDS, seed=0)
    loadings = head.loadings(panel)
    np.testing.assert_allclose(loadings @ loadings.T, np.eye(5), atol=1e-5)
    table = np.random.default_rng(3).poisson(2, (N, 6)).astype(float)
    expected = np.linalg.lstsq(scores, table, rcond=None)[0]
    np.testing.assert_allclose(head.loadings(sparse.csr_matrix(table)), expected, atol=1e-5)


def test_points_that_are_a_part_of_the_reference_approximate_all_of_them(inputs, panel, monkeypatch):
    scores = expression_scores(panel, SLICES, 3)
    whole = fit_kernel_head(inputs, PARTS, scores, FOLDS, seed=0).components(inputs)
    monkeypatch.setattr("st_gchb.retrieval._kernel.N_POINTS", 60)
    head = fit_kernel_head(inputs, PARTS, scores, FOLDS, seed=0)
    assert head.points.shape == (60, PARTS * WIDTH)
    assert np.corrcoef(head.components(inputs).ravel(), whole.ravel())[0, 1] > 0.95


def test_ridges_are_chosen_on_a_part_of_a_large_reference(inputs, panel, monkeypatch):
    scores = expression_scores(panel, SLICES, 3)
    whole = fit_kernel_head(inputs, PARTS, scores, FOLDS, seed=0).components(inputs)
    monkeypatch.setattr("st_gchb.retrieval._kernel._CHOICE_SPOTS", 70)
    monkeypatch.setattr("st_gchb.retrieval._kernel._CHOICE_POINTS", 50)
    head, again = (fit_kernel_head(inputs, PARTS, scores, FOLDS, seed=0) for _ in range(2))
    assert head.points.shape == (N, PARTS * WIDTH)
    np.testing.assert_array_equal(head.coefficients, again.coefficients)
    assert np.corrcoef(head.components(inputs).ravel(), whole.ravel())[0, 1] > 0.95


def test_blocks_of_spots_change_nothing(inputs, panel, monkeypatch):
    scores = expression_scores(panel, SLICES, 3)
    whole = fit_kernel_head(inputs, PARTS, scores, FOLDS, seed=0)
    monkeypatch.setattr("st_gchb.retrieval._kernel._BLOCK_ROWS", 7)
    parts = fit_kernel_head(inputs, PARTS, scores, FOLDS, seed=0)
    np.testing.assert_allclose(parts.coefficients, whole.coefficients, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(parts.components(inputs), whole.components(inputs), atol=1e-6)


def test_spots_that_all_look_the_same_are_predicted_by_the_mean(panel):
    scores = expression_scores(panel, SLICES, 3)
    same = np.ones((N, PARTS * WIDTH), np.float32)
    head = fit_kernel_head(same, PARTS, scores, FOLDS, seed=0)
    np.testing.assert_allclose(head.components(same[:5]), 0, atol=1e-6)


def test_more_components_than_genes_are_as_many_as_genes(panel):
    assert expression_scores(panel[:, :4], SLICES, 20).shape == (N, 4)


def test_a_constant_column_of_a_table_has_no_loadings(inputs, panel):
    head = fit_kernel_head(inputs, PARTS, expression_scores(panel, SLICES, 3), FOLDS, seed=0)
    np.testing.assert_allclose(head.loadings(sparse.csr_matrix(np.full((N, 2), 3.0))), 0, atol=1e-9)
