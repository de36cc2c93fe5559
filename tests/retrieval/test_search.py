"""Search of the nearest reference spots against a naive loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import sparse
from scipy.spatial.distance import cdist

from st_gchb._errors import InputError
from st_gchb.retrieval import find_neighbors, nearest, nearest_distances, weighted_mean


def unit(n, d, seed):
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def naive(query, keys, k):
    """Algorithm 1, lines 5 and 6: for each query spot the k keys of the largest inner product."""
    ids = []
    for row in query:
        ranked = sorted(
            range(len(keys)),
            key=lambda i: -sum(float(a) * float(b) for a, b in zip(row, keys[i], strict=True)),
        )
        ids.append(ranked[:k])
    return np.array(ids)


@settings(max_examples=30, deadline=None)
@given(
    n_query=st.integers(1, 6),
    n_keys=st.integers(1, 25),
    data=st.data(),
    seed=st.integers(0, 10_000),
)
def test_top_k_is_that_of_a_naive_loop(n_query, n_keys, data, seed):
    query, keys = unit(n_query, 5, seed), unit(n_keys, 5, seed + 1)
    k = data.draw(st.integers(1, n_keys))
    found = find_neighbors(query, keys, k=k)
    np.testing.assert_array_equal(found.ids, naive(query, keys, k))
    expected = np.take_along_axis(query @ keys.T, found.ids, 1)
    np.testing.assert_allclose(found.similarity, expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    n_query=st.integers(1, 9),
    n_keys=st.integers(1, 60),
    queries=st.integers(1, 9),
    keys_at_once=st.integers(1, 70),
    group=st.integers(1, 9),
    share=st.floats(0, 1),
    ties=st.booleans(),
)
def test_blocks_change_nothing(n_query, n_keys, queries, keys_at_once, group, share, ties):
    query, keys = unit(n_query, 6, 0), unit(n_keys, 6, 1)
    if ties:
        keys[n_keys // 2 :] = keys[: n_keys - n_keys // 2]
    k = 1 + int(share * (n_keys - 1))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_QUERIES", queries), ("_KEYS", keys_at_once), ("_GROUP", group)):
            patch.setattr(f"st_gchb.retrieval._exact.{name}", value)
        ids, similarity = nearest(query, keys, k)
    best = -np.sort(-(query @ keys.T), axis=1)[:, :k]
    np.testing.assert_allclose(similarity, best, atol=1e-6)
    np.testing.assert_allclose(similarity, np.take_along_axis(query @ keys.T, ids, 1), atol=1e-6)
    assert all(len(set(row)) == k for row in ids)


@settings(max_examples=60, deadline=None)
@given(
    n_keys=st.integers(1, 80),
    share=st.floats(0, 1),
    grid=st.sampled_from([0.0, 0.1, 0.5]),
    holes=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_order_is_torchs_where_similarities_are_equal_or_no_numbers(n_keys, share, grid, holes, seed):
    """On a CPU, numpy selects; which of equal keys come first is what torch makes of the row, selected and merged."""
    query, keys = unit(5, 3, seed), unit(n_keys, 3, seed + 1)
    if grid:
        query, keys = np.round(query / grid) * np.float32(grid), np.round(keys / grid) * np.float32(grid)
    keys[:holes] = np.nan
    k = 1 + int(share * (n_keys - 1))
    found = nearest(query, keys, k)
    top = (torch.from_numpy(query) @ torch.from_numpy(keys).T).topk(k, dim=1)
    merged = torch.cat([torch.full((5, k), -torch.inf), top.values], dim=1).topk(k, dim=1)
    columns = torch.cat([torch.zeros(5, k, dtype=torch.int64), top.indices], dim=1).gather(1, merged.indices)
    np.testing.assert_array_equal(found[0], columns)
    np.testing.assert_array_equal(found[1], merged.values)


@settings(max_examples=60, deadline=None)
@given(
    n_query=st.integers(1, 9),
    n_keys=st.integers(1, 60),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    share=st.floats(0, 1),
    far=st.sampled_from([0.0, 1e3]),
    twins=st.booleans(),
)
def test_distances_are_those_of_all_pairs(n_query, n_keys, sizes, share, far, twins):
    query, keys = unit(n_query, 6, 0) + np.float32(far), unit(n_keys, 6, 1) + np.float32(far)
    if twins:
        # No distance, of which the difference of squares may fall below 0, and equal ones.
        keys[:] = query[0]
    k = 1 + int(share * (n_keys - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("st_gchb.retrieval._exact._IN_CACHE", sizes)
        found = nearest_distances(query, keys, k)
    assert found.shape == (n_query, k)
    expected = np.sort(cdist(query.astype(float), keys.astype(float)), axis=1)[:, :k]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4 if far else 1e-7)


def test_similarities_held_at_once_are_bounded(monkeypatch):
    sizes = []
    product = torch.Tensor.__matmul__

    def watched(one, other):
        found = product(one, other)
        sizes.append(tuple(found.shape))
        return found

    monkeypatch.setattr("st_gchb.retrieval._exact._QUERIES", 10)
    monkeypatch.setattr("st_gchb.retrieval._exact._KEYS", 16)
    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    find_neighbors(unit(23, 6, 0), unit(40, 6, 1), k=7)
    assert sizes == [(rows, columns) for rows in (10, 10, 3) for columns in (16, 16, 8)]


def test_a_key_is_its_own_nearest():
    keys = unit(30, 6, 1)
    own = find_neighbors(keys, keys, k=1)
    assert own.ids[:, 0].tolist() == list(range(30))


@pytest.mark.parametrize("weighting", ["softmax", "mean"])
@pytest.mark.parametrize("temperature", [1e-3, 0.2, 10.0])
def test_weights_are_shares(weighting, temperature):
    found = find_neighbors(unit(9, 6, 0), unit(40, 6, 1), k=15, weighting=weighting, temperature=temperature)
    assert found.weights.shape == (9, 15)
    assert (found.weights >= 0).all()
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)


def test_softmax_weights_are_the_formula():
    query, keys = unit(4, 6, 0), unit(20, 6, 1)
    found = find_neighbors(query, keys, k=8, weighting="softmax", temperature=0.3)
    scores = np.exp(found.similarity.astype(float) / 0.3)
    np.testing.assert_allclose(found.weights, scores / scores.sum(1, keepdims=True), rtol=1e-5)
    assert (np.diff(found.weights, axis=1) <= 0).all()


def test_a_cold_softmax_is_the_nearest_spot_alone_and_a_hot_one_the_mean():
    query, keys = unit(4, 6, 0), unit(20, 6, 1)
    cold = find_neighbors(query, keys, k=8, temperature=1e-4).weights
    hot = find_neighbors(query, keys, k=8, temperature=1e4).weights
    np.testing.assert_allclose(cold[:, 0], 1, atol=1e-3)
    np.testing.assert_allclose(hot, 1 / 8, rtol=1e-3)


def test_mean_is_the_plain_mean_of_the_retrieved_expression():
    """Algorithm 1, line 7."""
    query, keys = unit(5, 6, 0), unit(30, 6, 1)
    expression = np.random.default_rng(2).poisson(2.0, (30, 4)).astype(float)
    found = find_neighbors(query, keys, k=12, weighting="mean")
    prediction = weighted_mean(found, sparse.csr_matrix(expression))
    expected = [expression[ids].mean(0) for ids in naive(query, keys, 12)]
    np.testing.assert_allclose(prediction, expected, rtol=1e-5)


def test_no_query_gives_no_neighbors():
    found = find_neighbors(np.empty((0, 6), np.float32), unit(30, 6, 1), k=3)
    assert found.ids.shape == found.similarity.shape == found.weights.shape == (0, 3)


@pytest.mark.parametrize("k", [0, -1, 31])
def test_a_k_that_the_reference_cannot_give(k):
    with pytest.raises(
        InputError,
        match=rf"k={k}(; expected a whole number of 1|, but the reference has 30 spots\. Pass a k between 1 and 30)",
    ):
        find_neighbors(unit(2, 6, 0), unit(30, 6, 1), k=k)


def test_an_unknown_weighting():
    with pytest.raises(InputError, match=r"weighting='median'.*softmax.*mean"):
        find_neighbors(unit(2, 6, 0), unit(30, 6, 1), k=3, weighting="median")
