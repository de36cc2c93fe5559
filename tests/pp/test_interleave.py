"""Grids finer than the reference's pitch: every position has the neighbors that a spot of the reference has."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings, strategies as st

from st_gchb.pp import GraphSpec, spatial_graph
from st_gchb.pp.graph import interleave, side_by_side, spacing_of

RADIUS, NEAREST = GraphSpec("radius", 160.0, "px", pitch=100.0), GraphSpec("knn", unit="px", n_neighbors=4, pitch=100.0)


def grid(kind, spacing, side=1200.0):
    """Positions that fill a square, with their rows and columns as tile_tissue names them."""
    pitch = spacing * np.sqrt(0.75) if kind == "hex" else spacing
    row, col = (part.ravel() for part in np.mgrid[: int(side / pitch), : int(side / spacing)])
    odd = row % 2 if kind == "hex" else np.zeros_like(row)
    xy = np.column_stack([(col + 0.5 * odd) * spacing, row * pitch])
    obs = pd.DataFrame({"array_row": row, "array_col": 2 * col + odd if kind == "hex" else col})
    obs.index = [f"s{i}" for i in obs.index]
    return AnnData(obs=obs, obsm={"spatial": xy})


def graph_of(adata, rule):
    spatial_graph(adata, rule=rule)
    return adata.obsp["spatial_connectivities"].tocsr(), adata.obsp["spatial_distances"].tocsr()


def inner(adata, margin=330.0):
    xy = adata.obsm["spatial"]
    return np.flatnonzero(((xy > margin) & (xy < xy.max() - margin)).all(1))


@pytest.mark.parametrize("finer", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("kind", "degree"), [("hex", 6), ("square", 8)])
def test_a_dense_grid_has_the_neighbors_of_the_reference(kind, degree, finer):
    dense = grid(kind, 100.0 / finer)
    connected, distances = graph_of(dense, RADIUS)
    assert (connected != connected.T).nnz == 0
    for row in inner(dense)[:: 7 * finer]:
        assert connected[row].nnz == degree
        nearest = np.sort(distances[row].data)
        np.testing.assert_allclose(nearest[: 6 if kind == "hex" else 4], 100.0)


@pytest.mark.parametrize("rule", [RADIUS, NEAREST])
def test_spots_among_positions_keep_their_graph(rule):
    dense, spots = grid("square", 25.0), grid("square", 100.0)
    fine, _ = graph_of(dense, rule)
    coarse, _ = graph_of(spots, rule)
    at = dict(zip(map(tuple, dense.obsm["spatial"]), range(dense.n_obs), strict=True))
    rows = [at[tuple(xy)] for xy in spots.obsm["spatial"]]
    # At the rim several spots are equally near.
    within = inner(spots)
    assert (fine[rows][:, rows][within] != coarse[within]).nnz == 0
    assert fine[rows][within].nnz == coarse[within].nnz > 0


@settings(max_examples=30, deadline=None)
@given(
    stride=st.integers(2, 6),
    kind=st.sampled_from(["hex", "square"]),
    named=st.booleans(),
    spacing=st.floats(0.01, 50.0),
    data=st.data(),
)
def test_parts_have_the_pitch_that_was_asked_for(stride, kind, named, spacing, data):
    adata = grid(kind, spacing, side=spacing * 6 * stride)
    keep = data.draw(st.permutations(range(adata.n_obs)))
    adata = adata[list(keep)].copy()
    obs = adata.obs if named else adata.obs[[]]
    parts = interleave(adata.obsm["spatial"], obs, stride)
    assert len(np.unique(parts)) == stride**2
    assert np.ptp(np.bincount(parts, minlength=stride**2)) <= adata.n_obs / stride**2
    apart = side_by_side(adata.obsm["spatial"], parts, 5 * stride * spacing)
    # By position, rows of a hexagonal grid fall into the steps unevenly.
    tolerance = 1e-6 if named or kind == "square" else 0.3
    assert spacing_of(apart) == pytest.approx(stride * spacing, rel=tolerance)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda obs: obs.assign(array_row=0, array_col=0),
        lambda obs: obs.assign(array_row=np.random.default_rng(0).permutation(obs["array_row"])),
        lambda obs: obs.assign(array_row=obs["array_row"] + 0.5),
        lambda obs: obs.assign(array_row=np.nan),
        lambda obs: obs.assign(array_row=obs["array_row"].astype(str)),
    ],
)
def test_rows_and_columns_that_describe_something_else_are_not_believed(spoil):
    adata = grid("square", 50.0)
    by_position = interleave(adata.obsm["spatial"], adata.obs[[]], 2)
    np.testing.assert_array_equal(interleave(adata.obsm["spatial"], spoil(adata.obs), 2), by_position)


def test_cells_see_as_far_as_spots():
    """Positions without any order, 20 times as many: each still has a handful of neighbors, at the spots' distance."""
    obs = pd.DataFrame(index=[f"c{i}" for i in range(2000)])
    cells = AnnData(obs=obs, obsm={"spatial": np.random.default_rng(0).random((2000, 2)) * 1000})
    plain, _ = graph_of(cells.copy(), GraphSpec("radius", 160.0, "px", pitch=0.0))
    connected, distances = graph_of(cells, RADIUS)
    assert plain.sum(1).mean() > 100
    assert 3 < connected.sum(1).mean() < 10
    assert 85 < distances.data.mean() < 120


def test_training_slices_are_taken_as_they_lie():
    """The rule is made on them; that they differ in pitch takes none of them apart."""
    coarse, fine = grid("square", 100.0), grid("square", 50.0, side=500.0)
    two = AnnData(obsm={"spatial": np.vstack([coarse.obsm["spatial"], fine.obsm["spatial"]])})
    two.obs["slice"] = ["a"] * coarse.n_obs + ["b"] * fine.n_obs
    rule = spatial_graph(two, slice_key="slice")
    assert (rule.radius, rule.pitch) == (160.0, 50.0)
    assert two.obsp["spatial_connectivities"][coarse.n_obs :].sum(1).max() == 36
    again = two.copy()
    spatial_graph(again, rule=rule, slice_key="slice")
    assert (again.obsp["spatial_connectivities"] != two.obsp["spatial_connectivities"]).nnz == 0


def test_nearest_neighbors_ask_for_no_um():
    dense = grid("square", 25.0)
    connected, _ = graph_of(dense, GraphSpec("knn", n_neighbors=4, pitch=100.0))
    plain, _ = graph_of(grid("square", 25.0), GraphSpec("knn", unit="px", n_neighbors=4, pitch=25.0))
    assert (connected != plain).nnz == 0
