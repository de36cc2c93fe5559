"""The search index against the exact search: its recall is what it says, and it is its arrays."""

import builtins
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

from st_gchb._errors import InputError, MissingExtraError
from st_gchb.retrieval import (
    ReferenceBank,
    SearchIndex,
    _choice,
    _faiss as _index,
    check_search,
    find_neighbors,
    index_for,
    nearest,
    overlap,
)

pytest.importorskip("faiss", reason="the extra faiss is not installed")


def near(n, seed, width=24):
    """Unit vectors around few centers, in few directions, as embeddings are."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(12, 6))
    x = (centers[rng.integers(0, 12, n)] + 0.5 * rng.normal(size=(n, 6))) @ np.random.default_rng(98).normal(
        size=(6, width)
    )
    x += 0.05 * rng.normal(size=x.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


KEYS, QUERIES = near(6000, 0), near(1000, 1)


@pytest.fixture(scope="module")
def index():
    return SearchIndex.build(KEYS, QUERIES, k=20)


def bank(n=6000, index=None):
    origin = pd.DataFrame({"slice": ["a"] * n})
    return ReferenceBank(KEYS[:n], QUERIES, KEYS[:n], KEYS[:n], origin, index=index)


def test_it_finds_what_it_says_it_finds(index):
    fresh = near(500, 2)
    exact, _ = nearest(fresh, KEYS, 20)
    ids, similarity = index.search(fresh, 20)
    assert index.recall > 0.95
    assert overlap(ids, exact) == pytest.approx(index.recall, abs=0.02)
    assert 1 <= index.n_probe < len(index.centers) == 128
    np.testing.assert_allclose(similarity, np.take_along_axis(fresh @ KEYS.T, ids, 1), atol=1e-6)
    assert (np.diff(similarity, axis=1) <= 0).all()
    assert all(len(set(row)) == 20 for row in ids)


def test_recall_is_measured_on_other_queries_than_the_lists_are_chosen_on(monkeypatch):
    compared = []

    def watched(found, exact):
        compared.append(exact.tobytes())
        return overlap(found, exact)

    monkeypatch.setattr(_index, "overlap", watched)
    SearchIndex.build(KEYS, QUERIES, k=5)
    chosen, measured = set(compared[:-1]), compared[-1]
    assert len(chosen) == 1
    assert measured not in chosen


def test_the_arrays_are_all_there_is_to_it(index, monkeypatch):
    parts = {field.name: getattr(index, field.name) for field in fields(index)}
    again = SearchIndex(**parts)
    monkeypatch.setattr(SearchIndex, "build", None)
    for one, other in zip(index.search(QUERIES[:50], 20), again.search(QUERIES[:50], 20), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_same_keys_give_the_same_index(index):
    again = SearchIndex.build(KEYS, QUERIES, k=20)
    assert (again.n_probe, again.recall) == (index.n_probe, index.recall)
    np.testing.assert_array_equal(again.codes, index.codes)


def test_a_query_whose_lists_hold_too_few_is_searched_exactly(index):
    few = SearchIndex(index.keys, index.centers, index.codebook, index.codes, 1, 20, 0.0)
    ids, similarity = few.search(QUERIES[:5], 1500)
    exact = nearest(QUERIES[:5], KEYS, 1500)
    np.testing.assert_array_equal(np.sort(ids), np.sort(exact[0]))
    np.testing.assert_allclose(similarity, exact[1], atol=1e-6)
    assert few.search(QUERIES[:2], len(KEYS))[0].shape == (2, 6000)


def test_neighbors_by_the_index_are_weighted_as_any(index):
    found = find_neighbors(QUERIES, KEYS, k=20, index=index)
    exact = find_neighbors(QUERIES, KEYS, k=20)
    assert overlap(found.ids, exact.ids) > 0.95
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-5)


# ---- Which search ----


def test_small_references_are_searched_exactly():
    reference = bank()
    assert index_for(reference, 5) is None
    assert index_for(reference, 5, "exact") is None
    assert reference.index is None


def test_large_ones_by_an_index_that_is_made_once(monkeypatch, caplog):
    monkeypatch.setattr(_choice, "INDEX_FROM", 6000)
    reference = bank()
    with caplog.at_level("INFO", logger="st_gchb"):
        first = index_for(reference, 20)
    assert first is not None
    assert "recall 0.9" in caplog.text
    assert index_for(reference, 20) is index_for(reference, 7) is first is reference.index
    assert index_for(reference, 20, "exact") is None


def test_more_neighbors_than_it_was_tuned_for_are_tuned_for(monkeypatch):
    reference = bank()
    few = index_for(reference, 2, "index")
    many = index_for(reference, 300, "index")
    assert (few.k, many.k) == (2, 300)
    assert many.codes is few.codes
    exact = nearest(near(200, 3), KEYS, 300)[0]
    assert overlap(many.search(near(200, 3), 300)[0], exact) == pytest.approx(many.recall, abs=0.03)


def test_an_index_that_finds_too_little_is_not_used_unasked(index, monkeypatch, caplog):
    reference = bank(index=replace(index, recall=0.94))
    monkeypatch.setattr(_choice, "INDEX_FROM", 100)
    with caplog.at_level("INFO", logger="st_gchb"):
        assert index_for(reference, 20) is None
    assert "finds 94 % of the nearest spots: the search is exact" in caplog.text
    assert index_for(reference, 20, "index") is reference.index


def test_directions_that_are_all_alike_are_looked_for_in_more_lists(index):
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(3400, 24)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    found = SearchIndex.build(keys[400:], keys[:400], k=20)
    assert found.n_probe / len(found.centers) > 2 * index.n_probe / len(index.centers)
    assert found.recall > 0.93


def without_faiss(monkeypatch):
    monkeypatch.setattr(_index.importlib.util, "find_spec", lambda name: None)


def test_without_faiss_it_is_said_once_what_would_help(monkeypatch, caplog):
    without_faiss(monkeypatch)
    monkeypatch.setattr(_choice, "INDEX_FROM", 100)
    with caplog.at_level("INFO", logger="st_gchb"):
        assert index_for(bank(), 5) is None
    assert "pip install 'st-gchb[faiss]'" in caplog.text


def test_without_faiss_an_index_cannot_be_asked_for(monkeypatch):
    without_faiss(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"st-gchb\[faiss\].*search='exact'"):
        check_search(10, 1, "mean", "index")
    with pytest.raises(MissingExtraError):
        index_for(bank(), 5, "index")


def test_faiss_is_not_imported_for_an_exact_search(monkeypatch):
    load = builtins.__import__

    def watched(name, *arguments, **options):
        assert not name.startswith("faiss")
        return load(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", watched)
    find_neighbors(QUERIES, KEYS, k=3)


def test_an_unknown_way_to_search():
    with pytest.raises(InputError, match="search='fast'; expected"):
        check_search(10, 1, "mean", "fast")
