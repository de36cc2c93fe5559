"""Graphs that squidpy wrote into ``obsp``: whether a query could have such a graph is told at set-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import squidpy as sq
from anndata import AnnData
from scipy.spatial import KDTree
from squidpy.gr.neighbors import DelaunayBuilder, GraphBuilder, GridBuilder, KNNBuilder, RadiusBuilder

from st_gchb.errors import GraphError
from st_gchb.model import STGCHB, _validation

REFUSED = r"not what squidpy's record says.*builder=.*del adata.*set up again"

# By the median distance from a spot to the nearest.
NO_QUERYS: dict[str, Callable[[float], GraphBuilder]] = {
    "percentile": lambda pitch: DelaunayBuilder(percentile=98.0),
    "a shortest length": lambda pitch: RadiusBuilder(radius=(1.2 * pitch, 1.8 * pitch)),
    "cosine": lambda pitch: KNNBuilder(n_neighs=4, transform="cosine"),
}
A_QUERYS: dict[str, Callable[[float], GraphBuilder]] = {
    "nearest": lambda pitch: KNNBuilder(n_neighs=4),
    "triangles": lambda pitch: DelaunayBuilder(),
    "short triangles": lambda pitch: DelaunayBuilder(radius=1.8 * pitch),
    "array": lambda pitch: GridBuilder(n_neighs=6, n_rings=2),
    "radius": lambda pitch: RadiusBuilder(radius=1.3 * pitch),
}


def with_graph(adata: AnnData, make: Callable[[float], GraphBuilder]) -> AnnData:
    first = adata.obsm["spatial"][adata.obs["slice"] == "S1"]
    pitch = float(np.median(KDTree(first).query(first, 2)[0][:, 1]))
    sq.gr.spatial_neighbors_from_builder(adata, make(pitch), library_key="slice")
    return adata


def no_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let patches not be embedded, which takes minutes: what is wrong with a graph is told before."""
    monkeypatch.setattr(_validation, "embed_patches", lambda *_, **__: pytest.fail("patches were embedded"))


@pytest.mark.parametrize("name", NO_QUERYS)
@pytest.mark.parametrize("with_features", [True, False])
def test_a_graph_that_no_query_could_have_is_refused_before_anything_is_made(
    reference: AnnData, unchanged: Any, monkeypatch: pytest.MonkeyPatch, name: str, with_features: bool
):
    with_graph(reference, NO_QUERYS[name])
    if not with_features:
        del reference.obsm["X_patch"], reference.obsm["X_patch_made"], reference.uns["X_patch"]
    no_patches(monkeypatch)
    with unchanged(reference), pytest.raises(GraphError, match=REFUSED):
        STGCHB.setup_anndata(reference, slice_key="slice")
    assert "_scvi_uuid" not in reference.uns


def test_a_graph_of_other_positions_is_refused(reference: AnnData, unchanged: Any):
    with_graph(reference, A_QUERYS["nearest"])
    spots = np.random.default_rng(0).permutation(reference.n_obs)
    reference.obsm["spatial"] = np.array(reference.obsm["spatial"])[spots]
    del reference.obsm["X_patch_made"]
    with unchanged(reference), pytest.raises(GraphError, match=REFUSED):
        STGCHB.setup_anndata(reference, slice_key="slice")


@pytest.mark.parametrize("name", A_QUERYS)
def test_a_graph_that_a_query_can_have_is_taken(reference: AnnData, name: str):
    with_graph(reference, A_QUERYS[name])
    graph = reference.obsp["spatial_connectivities"].copy()
    STGCHB.setup_anndata(reference, slice_key="slice")
    assert (reference.obsp["spatial_connectivities"] != graph).nnz == 0
    own = STGCHB(reference, n_top_genes=10)._fit().adjacency
    assert ((own > 0) != (graph.maximum(graph.T) > 0)).nnz == 0
