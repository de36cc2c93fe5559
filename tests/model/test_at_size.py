"""Features that are too large for memory: the same numbers as in memory, and never more than a stretch read at once."""

from __future__ import annotations

import dask.array
import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings, strategies as st
from scipy import sparse

from st_gchb.model import (
    STGCHB,
    BlockedContext,
    Context,
    NeighborhoodAggregator,
    _features as _context,
    _inference as _embedding,
    context_of,
    fit_map,
    without_loops,
)
from st_gchb.pp.expression import _expression
from st_gchb.pp.patches import FeatureRows, _feature_array as _rows

QUIET = {"enable_progress_bar": False, "accelerator": "cpu", "calibrate": False}


@pytest.fixture
def small_limits(monkeypatch):
    """Everything counts as too large to be held, and is read 20 rows at a time."""
    monkeypatch.setattr(_context, "PLAIN_BYTES", 0)
    monkeypatch.setattr(_rows, "BLOCK_ROWS", 20)
    monkeypatch.setattr(_context, "_COLUMNS", 7)
    monkeypatch.setattr(_embedding, "_BLOCK_SPOTS", 25)


def stored(values, kind, folder):
    """The same numbers in another kind of array; on disk in chunks of some rows and some columns."""
    chunks = (30, max(4, values.shape[1] // 3))
    if kind == "memmap":
        made = np.memmap(folder / "x.bin", dtype=values.dtype, mode="w+", shape=values.shape)
        made[:] = values
        return made
    if kind == "zarr":
        made = zarr.create_array(folder / "x.zarr", shape=values.shape, chunks=chunks, dtype=values.dtype)
        made[:] = values
        return made
    if kind == "h5":
        return h5py.File(folder / "x.h5", "w").create_dataset("x", data=values, chunks=chunks)
    return dask.array.from_array(values, chunks=chunks) if kind == "dask" else values


# ---- Rows ----


@pytest.mark.parametrize("kind", ["memory", "memmap", "zarr", "h5", "dask"])
def test_rows_of_any_kind_of_array(kind, tmp_path, small_limits):
    values = np.random.default_rng(0).normal(size=(83, 5)).astype(np.float16)
    rows = FeatureRows(stored(values, kind, tmp_path))
    expected = values.astype(np.float32)
    assert rows.shape == (83, 5)
    for index in ([3, 80, 3, 41, 0], [], [7]):
        found = rows[np.array(index, dtype=int)]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[index])
    np.testing.assert_array_equal(np.concatenate([block for _, block in rows.blocks()]), expected)
    assert max(len(block) for _, block in rows.blocks()) == 20
    part = rows.subset(np.arange(1, 83, 2)).subset(np.array([0, 5, 40]))
    np.testing.assert_array_equal(part.whole(), expected[[1, 11, 81]])
    np.testing.assert_array_equal(part[np.array([2, 0])], expected[[81, 1]])
    np.testing.assert_array_equal(np.concatenate([block for _, block in part.blocks()]), expected[[1, 11, 81]])


def test_what_was_written_to_a_private_copy_of_a_file_stays(tmp_path):
    """Pages that were read are given back to the system; those of a private copy are nowhere else."""
    np.zeros((50, 40), np.float32).tofile(tmp_path / "x.bin")
    for mode in ("c", "r+"):
        values = np.memmap(tmp_path / "x.bin", dtype=np.float32, mode=mode, shape=(50, 40))
        values[7] = 3.0
        rows = FeatureRows(values)
        assert sum(block.sum() for _, block in rows.blocks()) == 120.0
        assert (rows[np.array([7])] == 3.0).all()
        assert (values[7] == 3.0).all()


# ---- Context ----


def slices_of(n, seed, n_slices=3):
    rng = np.random.default_rng(seed)
    names = np.sort(rng.integers(0, n_slices, n)).astype(str)
    upper = sparse.triu(sparse.random(n, n, 0.1, random_state=seed), 1).tocoo()
    same = names[upper.row] == names[upper.col]
    graph = sparse.csr_matrix((np.ones(same.sum(), np.float32), (upper.row[same], upper.col[same])), shape=(n, n))
    return (graph + graph.T).tocsr(), names


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(30, 70),
    seed=st.integers(0, 1000),
    n_rings=st.integers(0, 3),
    surroundings=st.sampled_from([0, 4, 9]),
    center=st.booleans(),
)
def test_made_block_by_block_the_context_is_the_same(n, seed, n_rings, surroundings, center):
    """Also where a spot has no neighbor at all, which then stands for its own surroundings."""
    graph, names = slices_of(n, seed)
    features = np.random.default_rng(seed).normal(3.0, 2.0, size=(n, 6)).astype(np.float32)
    rule = NeighborhoodAggregator(n_rings, features.mean(0) if center else None, surroundings)
    plain = rule(features, graph, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "BLOCK_ROWS", 17)
        patch.setattr(_context, "_COLUMNS", 2)
        blocked = BlockedContext(FeatureRows(features), graph, names, rule)
        assert blocked.shape == plain.shape
        index = np.random.default_rng(seed).permutation(n)[:9]
        np.testing.assert_allclose(blocked.rows(index), plain[index], atol=1e-5)
        for fixed in (fit_map(plain, 5, whitening=0.5, seed=0), fit_map(plain, None, whitening=0.0, seed=0)):
            np.testing.assert_allclose(blocked.through(fixed), fixed(plain), atol=1e-5)
        chosen, seen = blocked.sample(seed)
        np.testing.assert_array_equal(chosen, np.arange(n))
        np.testing.assert_allclose(seen, plain, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(30, 70), seed=st.integers(0, 1000), n_drawn=st.integers(2, 40))
def test_islands_are_drawn_where_surroundings_are_wide(n, seed, n_drawn):
    """Each spot once, as many as asked for, with the context that they have among all spots."""
    graph, names = slices_of(n, seed)
    features = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)
    rule = NeighborhoodAggregator(1, surroundings=7)
    n_drawn = min(n, n_drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_context, "_SAMPLE_BYTES", 4 * n_drawn * 6 * 3)
        patch.setattr(_context, "_ISLAND_STEPS", 1)
        chosen, seen = BlockedContext(FeatureRows(features), graph, names, rule).sample(seed)
    assert len(chosen) == n_drawn
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_allclose(seen, rule(features, graph, names)[chosen], atol=1e-5)


def test_the_limit_decides(small_limits, monkeypatch):
    graph, names = slices_of(40, 0)
    features = FeatureRows(np.ones((40, 6), np.float32))
    monkeypatch.setattr(_context, "PLAIN_BYTES", 40 * 6 * 3 * 4)
    assert type(context_of(NeighborhoodAggregator(2), features, graph, names)) is Context
    monkeypatch.setattr(_context, "PLAIN_BYTES", 40 * 6 * 3 * 4 - 1)
    assert type(context_of(NeighborhoodAggregator(2), features, graph, names)) is BlockedContext


def test_a_sample_is_drawn_with_the_seed_and_said(small_limits, monkeypatch, caplog):
    graph, names = slices_of(60, 0)
    features = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    monkeypatch.setattr(_context, "_SAMPLE_BYTES", 20 * 12 * 4)
    blocked = BlockedContext(FeatureRows(features), graph, names, NeighborhoodAggregator(1))
    with caplog.at_level("INFO", logger="st_gchb"):
        chosen, seen = blocked.sample(3)
    assert "fitted on 20 of 60 spots" in caplog.text
    assert len(seen) == len(set(chosen)) == 20
    np.testing.assert_array_equal(chosen, blocked.sample(3)[0])
    assert not np.array_equal(chosen, blocked.sample(4)[0])
    np.testing.assert_allclose(seen, NeighborhoodAggregator(1)(features, graph, names)[chosen], atol=1e-5)


def test_expression_too_large_to_be_dense_has_the_same_mean(monkeypatch):
    values = sparse.random(200, 12, 0.4, random_state=0, format="csr", dtype=np.float32)
    dense, mean = _expression._to_fit_on(values, 0)
    monkeypatch.setattr(_expression, "DENSE_BYTES", 16 * 12 * 50)
    part, again = _expression._to_fit_on(values, 0)
    assert (len(dense), len(part)) == (200, 50)
    np.testing.assert_allclose(again, mean, atol=1e-7)


def test_edges_of_a_spot_to_itself_are_dropped():
    graph, _ = slices_of(30, 0)
    with_loops = (graph + sparse.eye(30, format="csr")).tocsr()
    assert (without_loops(with_loops) != graph).nnz == 0
    assert without_loops(graph) is graph


# ---- The whole path ----


class Watched:
    """Features that note how many rows are asked for at once, and cannot be read as a whole."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.ndim, self.most = values, values.shape, values.dtype, 2, 0

    def __getitem__(self, where):
        found = self.values[where]
        self.most = max(self.most, len(found))
        return found


def trained(reference, features=None, preset="default", **options):
    adata = reference.copy()
    if features is not None:
        adata.obsm["X_patch"] = features
    STGCHB.setup_anndata(adata, slice_key="slice")
    model = STGCHB(adata, preset, n_top_genes=20, k=40, **options)
    model.train(**QUIET)
    return model


PAPER = {"preset": "paper", "pretrain_epochs": 1, "max_epochs": 1, "n_image_adapter": 16, "n_hidden": 32}
WITH_GRAPH = {"image_graph": "sage", "expression_graph": "gcn", "max_epochs": 2}


@pytest.mark.parametrize("options", [{"max_epochs": 2}, WITH_GRAPH, PAPER], ids=["default", "graph", "paper"])
def test_a_model_on_features_on_disk_is_that_in_memory(reference, held_out, tmp_path, monkeypatch, options):
    expected = trained(reference, **options)
    plain = expected.predict(held_out)
    for name, value in (("PLAIN_BYTES", 0), ("_COLUMNS", 7)):
        monkeypatch.setattr(_context, name, value)
    monkeypatch.setattr(_rows, "BLOCK_ROWS", 20)
    monkeypatch.setattr(_embedding, "_BLOCK_SPOTS", 25)
    found = trained(reference, stored(reference.obsm["X_patch"], "memmap", tmp_path), **options)
    assert isinstance(found._fitted.context, BlockedContext)
    # Sums in another order differ in the last bit, and training carries that further in single numbers. The keys of a
    # spot that was given another neighbor would alone be a hundredth of all.
    for name in ("keys", "image_keys", "linear", "appearance"):
        one, other = getattr(found.bank_, name), getattr(expected.bank_, name)
        assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other), name
    answer = found.predict(held_out)
    one, other = answer.layers["st_gchb"], plain.layers["st_gchb"]
    assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other)


@pytest.mark.parametrize("kind", ["zarr", "dask"])
def test_other_arrays_on_disk_train_and_calibrate(reference, held_out, tmp_path, small_limits, kind):
    adata = reference.copy()
    adata.obsm["X_patch"] = stored(reference.obsm["X_patch"].astype(np.float16), kind, tmp_path)
    STGCHB.setup_anndata(adata, slice_key="slice")
    model = STGCHB(adata, n_top_genes=20, k=30)
    model.train(**(QUIET | {"calibrate": kind == "zarr"}), max_epochs=1)
    assert np.isfinite(model.predict(held_out).layers["st_gchb"]).all()


def test_no_more_than_a_stretch_is_read_at_once(small_limits):
    graph, names = slices_of(70, 0)
    watched = Watched(np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32))
    context = context_of(NeighborhoodAggregator(2, watched.values.mean(0)), FeatureRows(watched), graph, names)
    context.through(fit_map(context.sample(0)[1], 4, whitening=0.5, seed=0))
    assert 0 < watched.most <= 20
