"""Inputs of the kernel head: components of each part of the features, in context and of the patch alone."""

import numpy as np
import pytest
from scipy import sparse

from st_gchb.model import BlockedContext, Context, NeighborhoodAggregator, fit_kernel_map
from st_gchb.pp.patches import FeatureRows

N, WIDTH = 60, 5
PARTS = [slice(0, 8), slice(8, 20)]
SLICES = np.repeat(["A", "B"], N // 2)
GRAPH = sparse.csr_matrix(sparse.block_diag([np.eye(N // 2, k=1) + np.eye(N // 2, k=-1)] * 2).astype(np.float32))


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(N, 20)) * rng.uniform(0.5, 3, 20) + rng.normal(size=20)).astype(np.float32)


def context(features, rule):
    return Context(rule(features, GRAPH, SLICES))


def transcribed(x, n_components):
    """Standardize, project to principal components, and divide them by the root of their standard deviations.

    Then divide by a common scale, so that the mean variance of the components is 1.
    """
    standard = (x - x.mean(0)) / x.std(0)
    _, s, v = np.linalg.svd(standard, full_matrices=False)
    components = standard @ v[:n_components].T / np.sqrt(s[:n_components])
    return components / np.sqrt(components.var(0, ddof=1).mean())


@pytest.mark.parametrize("rule", [NeighborhoodAggregator(2), NeighborhoodAggregator(1, surroundings=4)])
def test_inputs_are_those_of_the_equations(features, rule):
    seen = context(features, rule)
    n_blocks = len(rule.steps)
    found = fit_kernel_map(seen.values, n_blocks, WIDTH, seed=0, parts=PARTS)(seen)
    blocks = seen.values.astype(float).reshape(N, n_blocks, -1)
    expected = [transcribed(blocks[:, :, part].reshape(N, -1), WIDTH) for part in PARTS]
    expected += [transcribed(blocks[:, 0, part], WIDTH) for part in PARTS]
    # The sign of a component is arbitrary, and the solver is a randomized one.
    np.testing.assert_allclose(np.abs(found), np.abs(np.hstack(expected)), atol=5e-3)


def test_the_second_kernel_does_not_see_the_neighbors(features):
    rule = NeighborhoodAggregator(2)
    seen = context(features, rule)
    fitted = fit_kernel_map(seen.values, 3, WIDTH, seed=0, parts=PARTS)
    others = features[::-1].copy()
    others[7] = features[7]
    before, after = fitted(seen)[7], fitted(context(others, rule))[7]
    half = 2 * WIDTH
    np.testing.assert_allclose(after[half:], before[half:], atol=1e-5)
    assert not np.allclose(after[:half], before[:half], atol=0.1)


@pytest.mark.parametrize("center", [False, True])
def test_a_context_that_is_not_held_gives_the_same(features, center):
    rule = NeighborhoodAggregator(2, features.mean(0) if center else None, surroundings=5)
    seen = context(features, rule)
    fitted = fit_kernel_map(seen.values, 4, WIDTH, seed=0, parts=PARTS)
    blocked = BlockedContext(FeatureRows(features), GRAPH, SLICES, rule)
    np.testing.assert_allclose(fitted(blocked), fitted(seen), atol=1e-4)


def test_a_context_of_the_patch_alone_has_one_kernel(features):
    fitted = fit_kernel_map(features, 1, WIDTH, seed=0, parts=PARTS)
    assert fitted.patch is None
    assert fitted.n_kernels == 1
    assert fitted(Context(features)).shape == (N, 2 * WIDTH)


def test_a_part_with_few_features_is_filled_with_zeros(features):
    """In context, two features and two rings have six components; the patch alone has two."""
    few = features[:, :2]
    seen = context(few, NeighborhoodAggregator(2))
    found = fit_kernel_map(seen.values, 3, 64, seed=0, parts=[slice(0, 2)])(seen)
    assert found.shape == (N, 12)
    assert (found[:, :8].std(0) > 0.01).all()
    assert (found[:, 8:] == 0).all()
