"""What the image branch sees: rings of neighbors, centered slices, components."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import sparse

import st_gchb
from st_gchb._errors import InputError
from st_gchb.model import STGCHB, NeighborhoodAggregator, centered, fit_map, neighbor_mean

CHAIN = sparse.csr_matrix(np.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float32))
FEATURES = np.array([[1.0, 0.0], [2.0, 4.0], [9.0, 2.0], [5.0, 5.0]], dtype=np.float32)
ONE = np.full(4, "A")


def test_rings_by_hand():
    """A chain of three spots, and one without neighbors, which stands for its own surroundings."""
    first = [[2, 4], [5, 1], [2, 4], [5, 5]]
    second = [[5, 1], [2, 4], [5, 1], [5, 5]]
    found = NeighborhoodAggregator(n_rings=2)(FEATURES, CHAIN, ONE)
    np.testing.assert_allclose(found, np.hstack([FEATURES, first, second]))
    np.testing.assert_array_equal(NeighborhoodAggregator(n_rings=0)(FEATURES, CHAIN, ONE), FEATURES)


def test_surroundings_are_the_mean_over_neighbors_taken_many_times():
    """Against powers of the matrix; of a chain whose ends see one neighbor alone."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(12, 3)).astype(np.float32)
    chain = sparse.csr_matrix(np.eye(12, k=1) + np.eye(12, k=-1), dtype=np.float32)
    mean = chain.toarray() / chain.toarray().sum(1, keepdims=True)
    found = NeighborhoodAggregator(n_rings=1, surroundings=9)(features, chain, np.full(12, "a"))
    expected = [np.linalg.matrix_power(mean, steps) @ features for steps in (0, 1, 9)]
    np.testing.assert_allclose(found, np.hstack(expected), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_surroundings_within_the_rings_are_refused(reference, steps):
    STGCHB.setup_anndata(reference, slice_key="slice")
    with pytest.raises(InputError, match=f"context_surroundings={steps} with context_rings=2.*a larger number"):
        STGCHB(reference, context_surroundings=steps)


def test_a_large_slice_is_centered_on_itself_a_small_one_on_the_reference():
    rng = np.random.default_rng(0)
    center = np.array([3.0, -1.0])
    large, small = rng.normal(10, 1, (2000, 2)), rng.normal(10, 1, (1, 2))
    features = np.vstack([large, small]).astype(np.float32)
    found = centered(features, np.array(["L"] * 2000 + ["S"]), center)
    assert np.abs(found[:2000].mean(0)).max() < 0.15
    np.testing.assert_allclose(found[2000], features[2000] - (features[2000] + 20 * center) / 21, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-5, 5))
def test_a_stain_that_shifts_all_features_of_a_slide_shifts_little(seed, shift):
    """Of a shift, 20 / (n + 20) is left: what the slice's own mean is not trusted with."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(180, 3)).astype(np.float32)
    slices = np.full(180, "A")
    moved = centered(features + np.float32(shift), slices, np.zeros(3)) - centered(features, slices, np.zeros(3))
    np.testing.assert_allclose(moved, shift * 20 / 200, atol=1e-4)


def test_slices_are_centered_one_by_one_whatever_their_order():
    slices = np.array(["A", "B", "A", "B"])
    found = centered(FEATURES, slices, np.zeros(2))
    order = [3, 0, 2, 1]
    np.testing.assert_allclose(centered(FEATURES[order], slices[order], np.zeros(2)), found[order])
    np.testing.assert_allclose(found[0], FEATURES[0] - FEATURES[[0, 2]].mean(0) * 2 / 22)


def test_the_callers_features_stay_as_they_were():
    before = FEATURES.copy()
    NeighborhoodAggregator(1, np.zeros(2))(FEATURES, CHAIN, ONE)
    np.testing.assert_array_equal(FEATURES, before)


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_whitening_is_a_power_of_the_variance(whitening):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    variance = fit_map(x, 4, whitening=0.0, seed=0)(x).var(0)
    found = fit_map(x, 4, whitening=whitening, seed=0)(x).var(0)
    np.testing.assert_allclose(found / found[0], (variance / variance[0]) ** (1 - whitening), rtol=1e-3)
    if whitening:
        assert found.mean() == pytest.approx(1.0, rel=0.01)


def test_neighbors_of_another_slice_do_not_count():
    two = sparse.block_diag([CHAIN[:3, :3], CHAIN[:3, :3]]).tocsr()
    features = np.vstack([FEATURES[:3], FEATURES[:3] + 100])
    np.testing.assert_allclose(neighbor_mean(features, two)[:3], neighbor_mean(FEATURES[:3], CHAIN[:3, :3]))


@pytest.fixture(scope="module")
def reference():
    adata = st_gchb.datasets.synthetic_tissue(2, n_rows=7, n_cols=7, n_genes=40)
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    return adata


def test_a_slide_in_another_stain_is_predicted_alike(reference):
    """With centered slices a shift of all features costs little; without, the answers drift."""
    STGCHB.setup_anndata(reference, slice_key="slice")
    query = reference[reference.obs["slice"] == "S2"].copy()
    stained = query.copy()
    stained.obsm["X_patch"] = query.obsm["X_patch"] + 2 * reference.obsm["X_patch"].std(0)
    drift = {}
    ridge_head = {"ridge_weight": 0.4, "kernel_weight": 0.0, "sharpening": 0.0, "context_surroundings": 0}
    for center in (True, False):
        for name, read_out in (("ridge head", ridge_head), ("default", {})):
            model = STGCHB(reference, n_top_genes=20, center_slices=center, **read_out)
            model.train(max_epochs=3, calibrate=False, enable_progress_bar=False, accelerator="cpu")
            answers = [model.predict(one).layers["st_gchb"] for one in (query, stained)]
            drift[name, center] = np.abs(answers[0] - answers[1]).mean()
    assert drift["ridge head", True] < 0.6 * drift["ridge head", False]
    # A kernel fades for features that are far from all: without centering, it drifts to the mean and no further.
    assert drift["default", True] < drift["default", False]


def test_settings_out_of_range(reference):
    STGCHB.setup_anndata(reference, slice_key="slice")
    with pytest.raises(InputError, match="context_rings=-1; expected 0"):
        STGCHB(reference, context_rings=-1)
    with pytest.raises(InputError, match="image_whitening=1.5; expected a share"):
        STGCHB(reference, image_whitening=1.5)


def test_a_k_beyond_the_reference_is_told_before_training(reference):
    STGCHB.setup_anndata(reference, slice_key="slice")
    n = reference.n_obs
    with pytest.raises(InputError, match=f"k={n + 1}, but the reference has {n} spots"):
        STGCHB(reference, k=n + 1)
    small = reference[:30].copy()
    STGCHB.setup_anndata(small, slice_key="slice")
    with pytest.raises(InputError, match="k=50, but the reference has 30 spots"):
        STGCHB(small, "bleep")
    STGCHB(small)  # the default's k is an upper limit


def test_a_gene_gets_as_much_of_the_ridge_head_as_held_out_slices_say(reference):
    """Of one column that follows the patches and 20 of noise, only the first has a share of the ridge head."""
    adata = reference.copy()
    seen = adata.obsm["X_patch"][:, 0]
    noise = np.random.default_rng(0).random((adata.n_obs, 20))
    adata.obsm["types"] = np.column_stack([seen - seen.min(), noise]).astype(np.float32)
    STGCHB.setup_anndata(adata, slice_key="slice")
    answers = {}
    for weight, full_at in ((0.0, 0.3), (0.4, 0.3), (0.4, 0.0)):
        model = STGCHB(adata, n_top_genes=20, ridge_weight=weight, ridge_full_at=full_at)
        model.train(max_epochs=1, calibrate=False, enable_progress_bar=False, accelerator="cpu")
        answers[weight, full_at] = model.predict(adata, layer="types").layers["st_gchb"]
    by_gene, every, retrieved = answers[0.4, 0.3], answers[0.4, 0.0], answers[0.0, 0.3]
    np.testing.assert_allclose(by_gene[:, 0], every[:, 0], rtol=1e-4)
    shift = [np.abs(answer - retrieved)[:, 1:].mean() for answer in (by_gene, every)]
    assert shift[0] < 0.5 * shift[1]
