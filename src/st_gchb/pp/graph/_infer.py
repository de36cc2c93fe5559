"""Spot graphs that are there already: whether they can be used, and the rule that a query's graph is built by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._errors import GraphError, MissingKeyError, StaleError
from st_gchb._matrices import matrix_of
from st_gchb.io import hand_on_libraries
from st_gchb.pp.graph._graph import GraphSpec, spatial_graph
from st_gchb.pp.graph._sublattice import spacing_of
from st_gchb.pp.patches import pixel_sizes
from st_gchb.pp.spots import sections_of, spot_centers

_SAME_LENGTH = 0.01
"""Edges that are longer or shorter than they were by no more than this share, or half a px, are unchanged."""


def graph_of(adata: AnnData, key: str) -> sparse.csr_matrix:
    """A spot graph in memory, ``(n_spots, n_spots)``, whatever holds it; not to be written to.

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
    return graph


def check_lengths(adata: AnnData, connectivities_key: str) -> None:
    """Validate that a graph of :func:`spatial_graph` was made at the positions that the object holds.

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
    """What ``uns`` says of how a graph was built; empty where it says nothing."""
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
    """The rule behind a graph that is already there.

    A graph from :func:`spatial_graph` has its rule in ``uns``. For one from elsewhere, a radius is taken that gives the
    very same graph: midway between its longest edge and the shortest distance without an edge, so that a query whose
    spots lie a little wider apart has the same neighbors.

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
    graph = own.tocoo()
    centers = spot_centers(adata)
    probe = AnnData(obs=adata.obs.copy(), obsm={Keys.SPATIAL: centers})
    hand_on_libraries(adata, probe)
    if graph.nnz:
        sections = sections_of(adata, slice_key)
        members, scale = sections.rows, pixel_sizes(adata, sections, um_per_px, features_key)
        known = {name: value for name, value in scale.items() if value is not None}
        sizes = known if len(known) == len(members) else None
        unit: Literal["um", "px"] = "px" if sizes is None else "um"
        per_spot = np.ones(adata.n_obs)
        for name, rows in members.items():
            per_spot[rows] = 1.0 if sizes is None else sizes[name]
        longest = float((np.linalg.norm(centers[graph.row] - centers[graph.col], axis=1) * per_spot[graph.row]).max())
        # The very graph is looked for: no slice is taken apart.
        pitch = min(spacing_of(centers[rows]) * per_spot[rows[0]] for rows in members.values())
        wide = GraphSpec("radius", 1.5 * longest, unit, pitch=pitch)
        spatial_graph(probe, rule=wide, slice_key=sections.key, um_per_px=sizes)
        pairs = probe.obsp[Keys.DISTANCES].tocoo()
        apart = np.asarray(own[pairs.row, pairs.col]).ravel() == 0
        shortest = float((pairs.data * per_spot[pairs.row])[apart].min(initial=1.5 * longest))
        if shortest > longest:
            rule = replace(wide, radius=(longest + shortest) / 2)
            spatial_graph(probe, rule=rule, slice_key=sections.key, um_per_px=sizes)
            if ((probe.obsp[Keys.CONNECTIVITIES] > 0) != (own > 0)).nnz == 0:
                return rule
    raise GraphError(
        f"obsp[{connectivities_key!r}] was not built by st_gchb.pp.spatial_graph and is no radius graph, so a "
        f"query's graph could not be built by the same rule. Drop it (del adata.obsp[...]) and set up again."
    )
