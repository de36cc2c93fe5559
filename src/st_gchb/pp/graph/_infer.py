"""Check spot graphs that are there already, and infer the rule by which a query's graph is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._errors import GraphError, MissingKeyError, StaleError
from st_gchb._matrices import matrix_of
from st_gchb._options import LengthUnit
from st_gchb.io import Sections, hand_on_libraries, sections_of, spot_centers
from st_gchb.pp.graph._builders import in_um, specs_of_record
from st_gchb.pp.graph._graph import spatial_graph
from st_gchb.pp.graph._graph_spec import GraphSpec
from st_gchb.pp.graph._sublattice import spacing_of
from st_gchb.pp.patches import pixel_sizes

_SAME_LENGTH = 0.01
"""Edges whose length differs by no more than this share, or half a px, count as unchanged."""


def graph_of(adata: AnnData, key: str) -> sparse.csr_matrix:
    """Get a spot graph as a sparse matrix in memory, ``(n_spots, n_spots)``, which is not to be written to.

    squidpy's graphs of nearest neighbors are directed; where squidpy recorded one, it is made symmetric.

    Raises
    ------
    MissingKeyError, GraphError
        It is not there, or holds something else than finite weights.
    """
    if key not in adata.obsp:
        raise MissingKeyError(f"obsp has no {key!r}; found {list(adata.obsp)}. Make it with st_gchb.pp.spatial_graph.")
    graph = sparse.csr_matrix(matrix_of(adata.obsp[key], f"obsp[{key!r}]", GraphError))
    if not np.isfinite(graph.data).all() or (graph.data < 0).any():
        raise GraphError(
            f"obsp[{key!r}] holds NaN, infinite or negative weights. Build it with st_gchb.pp.spatial_graph."
        )
    if specs_of_record(_params(adata, key.removesuffix("_connectivities"))) and (graph != graph.T).nnz:
        graph = sparse.csr_matrix(graph.maximum(graph.T))
    return graph


def check_lengths(adata: AnnData, connectivities_key: str) -> None:
    """Validate that a graph of :func:`spatial_graph` was made at the positions that the object has now.

    Raises
    ------
    StaleError
        The distances that were stored with it are no longer those between the spots.
    """
    prefix = connectivities_key.removesuffix("_connectivities")
    key = f"{prefix}_distances"
    if "mode" not in _params(adata, prefix) or key not in adata.obsp:
        return
    stored = sparse.coo_matrix(adata.obsp[key])
    centers = spot_centers(adata)
    length = np.linalg.norm(centers[stored.row] - centers[stored.col], axis=1)
    other = np.abs(length - stored.data) > np.maximum(_SAME_LENGTH * stored.data, 0.5)
    if other.any():
        raise StaleError(
            f"obsp[{connectivities_key!r}] was made at other positions: {other.sum() // 2} of {len(other) // 2} edges "
            "have another length by obsm['spatial']. Build it again with st_gchb.pp.spatial_graph, or drop it: "
            f"del adata.obsp[{connectivities_key!r}]."
        )


def _params(adata: AnnData, prefix: str) -> Mapping[str, Any]:
    """Get the stored parameters of a graph from ``uns``; empty where there are none."""
    stored = adata.uns.get(f"{prefix}_neighbors")
    params = stored.get("params") if isinstance(stored, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def rule_of(
    adata: AnnData,
    connectivities_key: str,
    slice_key: str | None,
    um_per_px: float | dict[str, float] | None = None,
    features_key: str | None = None,
) -> GraphSpec:
    """Infer the rule of a graph that is already there.

    A graph from :func:`spatial_graph` has its rule in ``uns``. For a graph of squidpy, the rule is the one that squidpy
    recorded, where it gives the very same graph. For any other graph, it is a radius that gives the very same graph:
    midway between its longest edge and the shortest distance without an edge, so that a query whose spots lie a little
    wider apart has the same neighbors.

    Parameters
    ----------
    adata
        Spots with their graph.
    connectivities_key
        Key of the graph in ``obsp``.
    slice_key
        Column of ``obs`` that tells the slices apart.
    um_per_px
        Size of a full-resolution pixel, µm, for all slices or per slice.
    features_key
        Key in ``obsm`` of the features, where there are any.

    Returns
    -------
    GraphSpec
        The rule for queries.

    Raises
    ------
    GraphError
        If no rule is known that gives this graph: a query's graph could then not be built the same way.
    """
    prefix = connectivities_key.removesuffix("_connectivities")
    params = _params(adata, prefix)
    if "mode" in params:
        return GraphSpec(**{key: params[key] for key in GraphSpec.__dataclass_fields__ if key in params})
    own = graph_of(adata, connectivities_key)
    recorded = specs_of_record(params)
    if recorded:
        # squidpy may have set the diagonal, which training leaves out.
        own = sparse.csr_matrix(own - sparse.diags(own.diagonal()))
        own.eliminate_zeros()
    if own.nnz:
        sections = sections_of(adata, slice_key)
        scale = pixel_sizes(adata, sections, um_per_px, features_key)
        search = _Search(adata, own, sections, {name: size for name, size in scale.items() if size is not None})
        # Of a radius or an array, the inference finds a rule that allows for some play between slices.
        first = [spec for spec in recorded if spec.radius is None and str(params.get("coord_type")) == "generic"]
        last = [in_um(spec, scale) for spec in recorded if spec not in first]
        rule = search.first_of(first) or search.radius() or search.first_of(last)
        if rule is not None:
            return rule
    if "coord_type" in params:
        raise GraphError(
            f"obsp[{connectivities_key!r}] is not what squidpy's record says, {dict(params)}: it was made at other "
            "positions, or with options that are not recorded or cannot be followed (percentile, a shortest length, "
            "transform='cosine', edges between slices). A query's graph could not be built by the same rule. Build it "
            "with st_gchb.pp.spatial_graph(builder=...), or drop it (del adata.obsp[...]) and set up again."
        )
    raise GraphError(
        f"obsp[{connectivities_key!r}] was not built by st_gchb.pp.spatial_graph and is no radius graph, so a "
        f"query's graph could not be built by the same rule. Drop it (del adata.obsp[...]) and set up again."
    )


class _Search:
    """Search for the rule that gives the very same graph.

    Parameters
    ----------
    adata
        Spots; not changed.
    own
        Their graph, ``(n_spots, n_spots)``.
    sections
        Slices.
    known
        Size of a pixel of the slices for which it is known, µm.
    """

    def __init__(self, adata: AnnData, own: sparse.csr_matrix, sections: Sections, known: dict[str, float]) -> None:
        self.own, self.sections = own, sections
        self.centers = spot_centers(adata)
        self.sizes = known if len(known) == len(sections.rows) else None
        self.probe = AnnData(obs=adata.obs.copy(), obsm={Keys.SPATIAL: self.centers})
        hand_on_libraries(adata, self.probe)

    def first_of(self, specs: Sequence[GraphSpec]) -> GraphSpec | None:
        """Find the first specification that gives the graph, with what it leaves open filled in."""
        return next((rule for rule in map(self._tried, specs) if rule is not None), None)

    def radius(self) -> GraphSpec | None:
        """Find a radius that gives the graph, midway between its longest edge and the shortest pair without one."""
        unit: LengthUnit = "px" if self.sizes is None else "um"
        members, centers, graph = self.sections.rows, self.centers, self.own.tocoo()
        per_spot = np.ones(len(centers))
        for name, rows in members.items():
            per_spot[rows] = 1.0 if self.sizes is None else self.sizes[name]
        longest = float((np.linalg.norm(centers[graph.row] - centers[graph.col], axis=1) * per_spot[graph.row]).max())
        # The pitch is that of the finest slice, so that no slice is taken apart.
        pitch = min(spacing_of(centers[rows]) * per_spot[rows[0]] for rows in members.values())
        wide = GraphSpec("radius", 1.5 * longest, unit, pitch=pitch)
        self._build(wide)
        pairs = self.probe.obsp[Keys.DISTANCES].tocoo()
        apart = np.asarray(self.own[pairs.row, pairs.col]).ravel() == 0
        shortest = float((pairs.data * per_spot[pairs.row])[apart].min(initial=1.5 * longest))
        return self._tried(replace(wide, radius=(longest + shortest) / 2)) if shortest > longest else None

    def _build(self, spec: GraphSpec) -> GraphSpec:
        return spatial_graph(self.probe, rule=spec, slice_key=self.sections.key, um_per_px=self.sizes)

    def _tried(self, spec: GraphSpec) -> GraphSpec | None:
        try:
            rule = self._build(spec)
        except GraphError:
            # No spot has a neighbor, or there is no triangulation: it was another rule.
            return None
        return rule if ((self.probe.obsp[Keys.CONNECTIVITIES] > 0) != (self.own > 0)).nnz == 0 else None
