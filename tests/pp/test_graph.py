"""The spot graph, its rule, and graphs that come from elsewhere."""

import json
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from anndata import AnnData
from hypothesis import given, settings, strategies as st
from scipy import sparse
from squidpy.gr.neighbors import DelaunayBuilder, GridBuilder, KNNBuilder, RadiusBuilder

from st_gchb._errors import CoordinateError, GraphError, InputError, SliceError
from st_gchb.pp import GraphSpec, spatial_graph
from st_gchb.pp.graph import graph_of, rule_of

CONNECTIVITIES, DISTANCES = "spatial_connectivities", "spatial_distances"


def hexagonal(n_rows=6, n_columns=7, pitch=100.0):
    return np.array(
        [((j + 0.5 * (i % 2)) * pitch, i * pitch * np.sqrt(3) / 2) for i in range(n_rows) for j in range(n_columns)]
    )


def square(n_rows=6, n_columns=7, pitch=100.0):
    y, x = np.mgrid[:n_rows, :n_columns]
    return np.column_stack([x.ravel(), y.ravel()]) * pitch


def spots(*slices, um_per_px=None):
    """Slices a, b, ... at the positions given, all in one table."""
    names = np.repeat(list("abcdefgh"[: len(slices)]), [len(xy) for xy in slices])
    obs = pd.DataFrame({"slice": pd.Categorical(names)}, index=[f"s{i}" for i in range(len(names))])
    adata = AnnData(obs=obs, obsm={"spatial": np.concatenate(slices)})
    if um_per_px is not None:
        sizes = dict(zip("abcdefgh", um_per_px, strict=False))
        adata.uns["spatial"] = {s: {"scalefactors": {"microns_per_pixel": size}} for s, size in sizes.items()}
    return adata


def inside(xy, margin=150.0):
    return ((xy > xy.min(0) + margin) & (xy < xy.max(0) - margin)).all(1)


def degrees(adata):
    return np.asarray(adata.obsp[CONNECTIVITIES].sum(1)).ravel()


def same_graph(first, second):
    return (first.obsp[CONNECTIVITIES] != second.obsp[CONNECTIVITIES]).nnz == 0


# ---- What every graph is ----

RULES = [GraphSpec("radius", 40.0, "px"), GraphSpec("knn", n_neighbors=3), GraphSpec("knn", n_neighbors=50)]


@settings(max_examples=40, deadline=None)
@given(
    points=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=4, max_size=25),
    data=st.data(),
    rule=st.sampled_from(RULES),
)
def test_a_graph_is_symmetric_without_loops_and_within_slices(points, data, rule):
    xy = np.array(points, dtype=float)
    labels = np.array(data.draw(st.lists(st.sampled_from("ab"), min_size=len(xy), max_size=len(xy))))
    labels[:2], labels[2:4] = "a", "b"
    adata = AnnData(obs=pd.DataFrame({"slice": labels}, index=[str(i) for i in range(len(xy))]))
    adata.obsm["spatial"] = xy
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    own = (labels[:, None] == labels[None]) & ~np.eye(len(xy), dtype=bool)
    near = own & (apart <= 40)
    if rule.mode == "radius" and not all(near[labels == name].any() for name in "ab"):
        with pytest.raises(GraphError, match="has a neighbor"):
            spatial_graph(adata, rule=rule, slice_key="slice")
        return
    spatial_graph(adata, rule=rule, slice_key="slice")
    graph, distances = adata.obsp[CONNECTIVITIES].toarray(), adata.obsp[DISTANCES]
    assert (graph == graph.T).all()
    assert not graph.diagonal().any()
    assert set(np.unique(graph)) <= {0.0, 1.0}
    assert not graph[~own].any()
    coo = distances.tocoo()
    assert distances.nnz == graph.sum()
    np.testing.assert_allclose(coo.data, apart[coo.row, coo.col])
    assert graph[coo.row, coo.col].all()
    if rule.mode == "radius":
        np.testing.assert_array_equal(graph > 0, near)
    else:
        k = np.minimum(rule.n_neighbors, [(labels == name).sum() - 1 for name in labels])
        assert (graph.sum(1) >= k).all()


def test_knn_takes_the_nearest():
    xy = np.random.default_rng(0).random((30, 2)) * 1000
    adata = spots(xy)
    spatial_graph(adata, rule=GraphSpec("knn", n_neighbors=4))
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    nearest = apart <= np.sort(apart, 1)[:, [3]]
    np.testing.assert_array_equal(adata.obsp[CONNECTIVITIES].toarray() > 0, nearest | nearest.T)


@pytest.mark.parametrize(("array", "expected"), [(hexagonal, 6), (square, 8)])
@pytest.mark.parametrize("pitch", [1.0, 137.3, 4000.0])
def test_a_spot_inside_an_array_has_all_its_neighbors(array, expected, pitch):
    xy = array(7, 8, pitch)
    jitter = np.random.default_rng(0).uniform(-0.03, 0.03, xy.shape) * pitch
    adata = spots(np.abs(xy + jitter))
    spatial_graph(adata)
    assert set(degrees(adata)[inside(xy, 1.5 * pitch)]) == {expected}
    assert degrees(adata).max() == expected


def test_slices_at_the_same_coordinates_are_not_joined():
    adata = spots(square(), square())
    spatial_graph(adata, slice_key="slice")
    alone = spots(square())
    spatial_graph(alone)
    expected = sparse.block_diag([alone.obsp[CONNECTIVITIES]] * 2).toarray()
    np.testing.assert_array_equal(adata.obsp[CONNECTIVITIES].toarray(), expected)


def test_the_order_of_spots_does_not_matter():
    adata = spots(square(), hexagonal())
    order = np.random.default_rng(0).permutation(adata.n_obs)
    shuffled = adata[order].copy()
    spatial_graph(adata, slice_key="slice")
    spatial_graph(shuffled, slice_key="slice")
    expected = adata.obsp[CONNECTIVITIES][order][:, order]
    assert (shuffled.obsp[CONNECTIVITIES] != expected).nnz == 0


def test_nothing_but_the_three_keys_is_written():
    adata = spots(square())
    spatial_graph(adata, key_added="near")
    assert set(adata.obsp) == {"near_connectivities", "near_distances"}
    assert set(adata.uns) == {"near_neighbors"}
    assert adata.uns["near_neighbors"]["connectivities_key"] == "near_connectivities"


def interpreted(monkeypatch, module, name):
    """Let Python run a function of squidpy, which numba would compile for seconds; other versions may have no such."""
    compiled = getattr(sys.modules.get(module), name, None)
    if hasattr(compiled, "py_func"):
        monkeypatch.setattr(f"{module}.{name}", compiled.py_func)


def test_squidpy_reads_the_graph(monkeypatch):
    interpreted(monkeypatch, "squidpy.gr._nhood", "_interaction_matrix")
    adata = spots(square())
    spatial_graph(adata)
    adata.obs["half"] = pd.Categorical(np.where(adata.obsm["spatial"][:, 0] > 300, "left", "right"))
    sq.gr.interaction_matrix(adata, cluster_key="half")
    found = adata.uns["half_interactions"]
    # From each of six rows to its own and to the rows beside it, across one border.
    assert found[0, 1] == found[1, 0] == 16
    assert found.sum() == adata.obsp[CONNECTIVITIES].nnz


# ---- Units ----


def test_um_and_px_agree():
    in_px, in_um, given_um = spots(hexagonal()), spots(hexagonal(), um_per_px=[0.5]), spots(hexagonal())
    assert spatial_graph(in_px) == GraphSpec("radius", 160.0, "px", pitch=100.0)
    rule = spatial_graph(in_um, slice_key="slice")
    assert (rule.unit, rule.radius) == ("um", pytest.approx(80.0))
    assert spatial_graph(given_um, um_per_px=0.5) == rule
    assert same_graph(in_px, in_um)
    assert same_graph(in_px, given_um)
    # Distances are in px whatever the rule's unit is.
    assert adata_pitch(in_px) == adata_pitch(in_um) == pytest.approx(100.0)


def adata_pitch(adata):
    return adata.obsp[DISTANCES].data.min()


def test_slices_of_different_scale_get_the_same_neighbors_in_um():
    adata = spots(square(pitch=100), square(pitch=250), um_per_px=[1.0, 0.4])
    rule = spatial_graph(adata, slice_key="slice")
    assert rule.radius == pytest.approx(160.0)
    for name, pitch in (("a", 100), ("b", 250)):
        part = adata[adata.obs["slice"] == name]
        assert set(degrees(part)[inside(part.obsm["spatial"], 1.5 * pitch)]) == {8}
    by_argument = spots(square(pitch=100), square(pitch=250))
    spatial_graph(by_argument, slice_key="slice", um_per_px={"a": 1.0, "b": 0.4})
    assert same_graph(adata, by_argument)


def test_a_rule_in_um_needs_the_size_of_a_pixel():
    with pytest.raises(GraphError, match=r"size of a pixel is unknown for slice 'b'.*um_per_px="):
        spatial_graph(
            spots(square(), square()), rule=GraphSpec("radius", 160.0), slice_key="slice", um_per_px={"a": 1.0}
        )


def test_a_pitch_without_a_radius_needs_it_too():
    with pytest.raises(GraphError, match=r"pitch is 100 µm, but the size of a pixel is unknown"):
        spatial_graph(spots(square()), rule=GraphSpec(pitch=100.0))


def test_a_pitch_alone_leaves_the_radius_to_the_slices():
    adata, plain = spots(square()), spots(square())
    rule = spatial_graph(adata, rule=GraphSpec(pitch=50.0, unit="px"))
    assert rule.radius == spatial_graph(plain).radius
    assert rule.pitch == 50.0
    assert same_graph(adata, plain)


# ---- What is refused ----


def test_a_slice_of_one_spot():
    adata = spots(square(), square(1, 1))
    with pytest.raises(SliceError, match=r"Slice 'b' has 1 spot.*at least 2.*Drop"):
        spatial_graph(adata, slice_key="slice")
    assert not adata.obsp
    assert "spatial_neighbors" not in adata.uns


def test_no_neighbors_at_all():
    adata = spots(square(), square(pitch=5000))
    with pytest.raises(GraphError, match=r"No spot of slice 'b' has a neighbor within 160 px.*GraphSpec"):
        spatial_graph(adata, rule=GraphSpec("radius", 160.0, "px"), slice_key="slice")
    assert not adata.obsp


def test_a_spot_far_from_all_others_is_kept():
    adata = spots(np.vstack([square(), [[5000.0, 5000.0]]]))
    spatial_graph(adata)
    assert degrees(adata)[-1] == 0
    assert degrees(adata).max() == 8


def test_an_unknown_mode():
    with pytest.raises(InputError, match="'voronoi'.*'radius', 'knn', 'delaunay' or 'grid'"):
        spatial_graph(spots(square()), rule=GraphSpec("voronoi", 1.0, "px"))


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda a: a.obsm.pop("spatial"), CoordinateError, "absent"),
        (lambda a: a.obsm["spatial"].__setitem__((3, 0), np.nan), CoordinateError, "NaN.*'s3'"),
        (lambda a: a.obs.pop("slice"), SliceError, "no column 'slice'"),
        (lambda a: a.obs.__setitem__("slice", [None] + ["a"] * 41), SliceError, "is empty for 1 of 42 spots"),
    ],
)
def test_bad_coordinates_and_slices(spoil, error, match):
    adata = spots(square())
    spoil(adata)
    with pytest.raises(error, match=match):
        spatial_graph(adata, slice_key="slice")
    assert not adata.obsp


@pytest.mark.parametrize("rule", [None, GraphSpec("knn", n_neighbors=3), GraphSpec("radius", 110.0, "px")])
def test_spots_at_one_position_are_neighbors_and_no_loops(rule):
    xy = square()
    adata = spots(np.vstack([xy, xy[:3]]))
    spatial_graph(adata, rule=rule)
    graph = adata.obsp[CONNECTIVITIES]
    assert not graph.diagonal().any()
    assert (graph != graph.T).nnz == 0
    for twin in range(3):
        assert graph[twin, 42 + twin] == 1
        assert adata.obsp[DISTANCES][twin, 42 + twin] == 0
    assert adata.obsp[DISTANCES].nnz == graph.nnz


def test_a_pitch_of_zero_is_refused():
    with pytest.raises(GraphError, match="share their position.*Drop duplicates"):
        spatial_graph(spots(np.repeat(square(2, 2), 2, axis=0)))


# ---- The rule behind a graph ----


@pytest.mark.parametrize(
    "rule",
    [None, GraphSpec("radius", 250.0, "px"), GraphSpec("radius", 125.0, "um"), GraphSpec("knn", n_neighbors=4)],
)
def test_the_rule_of_an_own_graph_survives_a_file_and_gives_the_graph_again(rule, tmp_path):
    adata = spots(hexagonal(), square(), um_per_px=[0.5, 0.5])
    used = spatial_graph(adata, rule=rule, slice_key="slice")
    adata.write_h5ad(tmp_path / "spots.h5ad")
    read = anndata.read_h5ad(tmp_path / "spots.h5ad")
    for table in (adata, read):
        found = rule_of(table, CONNECTIVITIES, "slice", None)
        assert found == used
        assert GraphSpec(**json.loads(json.dumps(found.to_dict()))) == used
        again = spots(hexagonal(), square(), um_per_px=[0.5, 0.5])
        spatial_graph(again, rule=found, slice_key="slice")
        assert same_graph(again, adata)


def by_squidpy(adata, make, **options):
    make(adata, library_key="slice" if adata.obs["slice"].nunique() > 1 else None, **options)
    return adata


SQUIDPYS = {
    "radius": (sq.gr.spatial_neighbors_radius, {"radius": 160.0}),
    "grid": (sq.gr.spatial_neighbors_grid, {"n_neighs": 6}),
    "two rings": (sq.gr.spatial_neighbors_grid, {"n_neighs": 6, "n_rings": 2}),
}


@pytest.mark.parametrize("um_per_px", [None, 0.5, {"a": 0.5, "b": 0.5}])
@pytest.mark.parametrize("name", SQUIDPYS)
def test_the_rule_of_squidpys_graph_gives_it_again(name, um_per_px):
    make, options = SQUIDPYS[name]
    adata = by_squidpy(spots(hexagonal(), hexagonal(5, 5)), make, **options)
    rule = rule_of(adata, CONNECTIVITIES, "slice", um_per_px)
    assert rule.unit == ("px" if um_per_px is None else "um")
    again = spots(hexagonal(), hexagonal(5, 5))
    spatial_graph(again, rule=rule, slice_key="slice", um_per_px=um_per_px)
    assert ((again.obsp[CONNECTIVITIES] > 0) != (adata.obsp[CONNECTIVITIES] > 0)).nnz == 0
    assert set(adata.uns) == {"spatial_neighbors"}


@pytest.mark.parametrize("name", ["radius", "grid"])
@pytest.mark.parametrize("pitch", [95.0, 105.0, 120.0])
def test_the_rule_of_squidpys_graph_holds_for_a_slice_of_slightly_other_pitch(name, pitch):
    """A radius that just holds the longest edge would leave every spot of the wider slice alone."""
    make, options = SQUIDPYS[name]
    rule = rule_of(by_squidpy(spots(hexagonal()), make, **options), CONNECTIVITIES, None, None)
    query = spots(hexagonal(pitch=pitch))
    spatial_graph(query, rule=rule)
    assert set(degrees(query)[inside(query.obsm["spatial"], 1.5 * pitch)]) == {6}


def test_the_rule_of_a_graph_over_slices_of_different_scale():
    one, two = hexagonal(), hexagonal(pitch=250.0)
    adata = spots(one, two)
    spatial_graph(adata, slice_key="slice", um_per_px={"a": 1.0, "b": 0.4})
    adata.uns.clear()
    rule = rule_of(adata, CONNECTIVITIES, "slice", {"a": 1.0, "b": 0.4})
    assert rule.unit == "um"
    assert 100 < rule.radius < 173
    with pytest.raises(GraphError, match="no radius graph"):
        rule_of(adata, CONNECTIVITIES, "slice", None)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a.obsp.__setitem__(CONNECTIVITIES, sparse.csr_matrix((a.n_obs, a.n_obs))),
        lambda a: a.obsp.__setitem__(CONNECTIVITIES, sparse.csr_matrix(np.eye(a.n_obs)[::-1])),
    ],
    ids=["empty", "arbitrary"],
)
def test_a_graph_that_no_rule_gives(make):
    adata = spots(np.random.default_rng(0).random((30, 2)) * 1000)
    make(adata)
    with pytest.raises(GraphError, match=r"no radius graph.*query.*Drop it \(del adata.obsp"):
        rule_of(adata, CONNECTIVITIES, None, None)


def test_a_graph_that_lacks_one_edge_is_no_radius_graph():
    adata = spots(square())
    spatial_graph(adata)
    adata.uns.clear()
    assert rule_of(adata, CONNECTIVITIES, None, None).mode == "radius"
    graph = adata.obsp[CONNECTIVITIES].tolil()
    graph[0, 1] = graph[1, 0] = 0
    adata.obsp[CONNECTIVITIES] = graph.tocsr()
    with pytest.raises(GraphError):
        rule_of(adata, CONNECTIVITIES, None, None)


# ---- squidpy's builders and records ----


def scattered(n=60, seed=0):
    return np.random.default_rng(seed).random((n, 2)) * 1000


def pattern(adata):
    """Edges between different spots, in both directions."""
    graph = (adata.obsp[CONNECTIVITIES] > 0).astype(int)
    graph = graph.maximum(graph.T).tolil()
    graph.setdiag(0)
    return graph.tocsr()


BUILDERS = {
    "knn": (KNNBuilder(n_neighs=4), GraphSpec("knn", n_neighbors=4)),
    "radius": (RadiusBuilder(radius=180.0), GraphSpec("radius", 180.0, "px")),
    "radius from 0": (RadiusBuilder(radius=(0.0, 180.0)), GraphSpec("radius", 180.0, "px")),
    "delaunay": (DelaunayBuilder(), GraphSpec("delaunay")),
    "short delaunay": (DelaunayBuilder(radius=150.0), GraphSpec("delaunay", 150.0, "px")),
    "grid": (GridBuilder(n_neighs=6), GraphSpec("grid")),
    "two rings": (GridBuilder(n_neighs=4, n_rings=2), GraphSpec("grid", n_neighbors=4, n_rings=2)),
    "rings of a delaunay": (GridBuilder(delaunay=True, n_rings=2), GraphSpec("delaunay", n_rings=2)),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_gives_squidpys_graph_slice_by_slice(name):
    builder, spec = BUILDERS[name]
    adata, expected = spots(scattered(), scattered(40, 1)), spots(scattered(), scattered(40, 1))
    used = spatial_graph(adata, builder=builder, slice_key="slice")
    sq.gr.spatial_neighbors_from_builder(expected, builder, library_key="slice")
    assert (pattern(adata) != pattern(expected)).nnz == 0
    graph = adata.obsp[CONNECTIVITIES]
    assert (graph != graph.T).nnz == 0
    assert not graph.diagonal().any()
    assert set(graph.data) == {1}
    assert (used.mode, used.radius, used.n_rings) == (spec.mode, spec.radius, spec.n_rings)
    again = spots(scattered(), scattered(40, 1))
    assert spatial_graph(again, rule=used, slice_key="slice") == used
    assert same_graph(again, adata)


@pytest.mark.parametrize("size", [0.3, 0.5, 0.7265])
def test_a_builders_length_is_held_in_um_and_loses_no_edge(size):
    adata = spots(square(), square(), um_per_px=[size, size])
    used = spatial_graph(adata, builder=RadiusBuilder(radius=100.0), slice_key="slice")
    assert used.unit == "um"
    assert used.radius == pytest.approx(100.0 * size)
    assert degrees(adata).max() == 4
    finer = spots(square(pitch=50.0), um_per_px=[2 * size])
    spatial_graph(finer, rule=used)
    assert degrees(finer).max() == 4


class Mine(KNNBuilder):
    pass


@pytest.mark.parametrize(
    ("builder", "match"),
    [
        (Mine(), "builder is a Mine, which a saved model cannot hold.*KNNBuilder"),
        (KNNBuilder(transform="spectral"), "transform='spectral'.*GraphSpec"),
        (RadiusBuilder(radius=150.0, percentile=95.0), "percentile=95.0.*radius"),
        (DelaunayBuilder(set_diag=True), "set_diag=True"),
        (RadiusBuilder(radius=(50.0, 150.0)), r"radius=\(50.0, 150.0\).*no shortest edge"),
        (DelaunayBuilder(radius=(50.0, 150.0)), r"radius=\(50.0, 150.0\).*no shortest edge"),
    ],
)
def test_builders_that_a_query_could_not_follow(builder, match):
    adata = spots(square())
    with pytest.raises(GraphError, match=match):
        spatial_graph(adata, builder=builder)
    assert not adata.obsp


def test_a_rule_and_a_builder_at_once():
    with pytest.raises(GraphError, match="rule= and builder= were both given"):
        spatial_graph(spots(square()), rule=GraphSpec(), builder=KNNBuilder())
    with pytest.raises(InputError, match="builder='knn'; expected a GraphBuilder or None"):
        spatial_graph(spots(square()), builder="knn")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"mode": "radius", "n_rings": 2}, "n_rings=2 goes with mode 'delaunay' or 'grid'; found 'radius'"),
        ({"mode": "knn", "n_rings": 1}, "n_rings=1 goes with"),
        ({"mode": "grid", "radius": 10.0}, "radius=10 does not go with mode 'grid'"),
        (
            {"mode": "delaunay", "radius": 10.0, "n_rings": 2},
            "radius=10 does not go with.*and n_rings=2",
        ),
        ({"mode": "grid", "n_rings": 0}, "n_rings=0; expected a whole number from 1 to 50"),
    ],
)
def test_specifications_that_contradict_themselves(options, match):
    with pytest.raises(InputError, match=match):
        GraphSpec(**options)


@pytest.mark.parametrize("xy", [np.column_stack([np.arange(5.0), np.zeros(5)]), scattered(2)], ids=["a line", "two"])
def test_what_cannot_be_triangulated(xy):
    adata = spots(square(), xy)
    with pytest.raises(GraphError, match=rf"The {len(xy)} positions of slice 'b' cannot be triangulated.*'knn'"):
        spatial_graph(adata, builder=DelaunayBuilder(), slice_key="slice")
    assert not adata.obsp


@pytest.mark.parametrize(
    "spec", [GraphSpec("delaunay", 160.0, "px", pitch=100.0), GraphSpec("grid", pitch=100.0, unit="px")]
)
def test_finer_positions_are_meshed_in_grids_of_the_references_pitch(spec):
    fine = spots(square(12, 14, pitch=50.0))
    spatial_graph(fine, rule=spec)
    lengths = fine.obsp[DISTANCES].data
    assert lengths.min() == 100
    assert degrees(fine).min() >= 2


def recorded_as_before(make, adata, **options):
    """Record a graph as squidpy did before 1.8: one list of parameters for all kinds, silent on triangulations."""
    make(adata, library_key="slice", **options)
    adata.uns["spatial_neighbors"]["params"] = {
        "n_neighbors": 6,
        "coord_type": "generic",
        "radius": None,
        "transform": None,
    }


RECORDED = {
    "knn": (lambda a: sq.gr.spatial_neighbors_knn(a, n_neighs=4, library_key="slice"), "knn"),
    "delaunay": (lambda a: sq.gr.spatial_neighbors_delaunay(a, library_key="slice"), "delaunay"),
    "short delaunay": (lambda a: sq.gr.spatial_neighbors_delaunay(a, radius=150.0, library_key="slice"), "delaunay"),
    "radius": (lambda a: sq.gr.spatial_neighbors_radius(a, radius=180.0, library_key="slice"), "radius"),
    "grid": (lambda a: sq.gr.spatial_neighbors_grid(a, n_neighs=4, n_rings=2, library_key="slice"), "grid"),
    "old knn": (lambda a: recorded_as_before(sq.gr.spatial_neighbors_knn, a, n_neighs=6), "knn"),
    "old delaunay": (lambda a: recorded_as_before(sq.gr.spatial_neighbors_delaunay, a), "delaunay"),
    "with a diagonal": (
        lambda a: sq.gr.spatial_neighbors_knn(a, n_neighs=4, set_diag=True, library_key="slice"),
        "knn",
    ),
    "spectral": (
        lambda a: sq.gr.spatial_neighbors_delaunay(a, transform="spectral", library_key="slice"),
        "delaunay",
    ),
}


@pytest.mark.parametrize("um_per_px", [None, 0.3])
@pytest.mark.parametrize("name", RECORDED)
def test_a_graph_of_squidpy_is_taken_with_the_rule_that_it_recorded(name, um_per_px, tmp_path, monkeypatch):
    interpreted(monkeypatch, "squidpy.gr.neighbors", "_csr_bilateral_diag_scale_helper")
    make, mode = RECORDED[name]
    adata = spots(scattered(), scattered(40, 1))
    make(adata)
    params = adata.uns["spatial_neighbors"]["params"]
    if isinstance(params.get("radius"), tuple):
        # No h5ad takes the pair as squidpy leaves it.
        params["radius"] = list(params["radius"])
    adata.write_h5ad(tmp_path / "spots.h5ad")
    for table in (adata, anndata.read_h5ad(tmp_path / "spots.h5ad")):
        rule = rule_of(table, CONNECTIVITIES, "slice", um_per_px)
        assert rule.mode == mode
        again = spots(scattered(), scattered(40, 1))
        spatial_graph(again, rule=rule, slice_key="slice", um_per_px=um_per_px)
        assert (pattern(again) != pattern(adata)).nnz == 0


def test_squidpys_directed_graph_is_read_as_a_symmetric_one():
    adata = spots(scattered())
    sq.gr.spatial_neighbors_knn(adata, n_neighs=4)
    directed = adata.obsp[CONNECTIVITIES]
    assert (directed != directed.T).nnz
    read = graph_of(adata, CONNECTIVITIES)
    assert (read != read.T).nnz == 0
    assert ((read > 0) != (pattern(adata) > 0)).nnz == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda a: sq.gr.spatial_neighbors_delaunay(a, percentile=80.0),
        lambda a: sq.gr.spatial_neighbors_radius(a, radius=(60.0, 180.0)),
        lambda a: sq.gr.spatial_neighbors_knn(a, n_neighs=4, transform="cosine"),
        lambda a: (sq.gr.spatial_neighbors_knn(a, n_neighs=4), a.obsm.__setitem__("spatial", scattered(seed=9))),
    ],
    ids=["percentile", "a shortest length", "cosine", "moved spots"],
)
def test_a_graph_that_its_record_does_not_give(make):
    adata = spots(scattered())
    make(adata)
    with pytest.raises(GraphError, match=r"not what squidpy's record says.*'generic'.*builder=.*del adata"):
        rule_of(adata, CONNECTIVITIES, None, None)
