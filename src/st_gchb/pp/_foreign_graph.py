"""Spot graphs that were built elsewhere: the rule behind them, so that a query's graph is built the same way."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._errors import GraphError, MissingKeyError
from st_gchb._matrices import matrix_of
from st_gchb.pp._coordinates import spot_centers
from st_gchb.pp._graph import GraphRule, slice_members, spatial_graph, um_per_px_of
from st_gchb.pp._interleave import spacing_of


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
    if not np.isfinite(graph.data).all():
        raise GraphError(f"obsp[{key!r}] holds NaN or infinite weights. Build it with st_gchb.pp.spatial_graph.")
    return graph


def rule_of(
    adata: AnnData, connectivities_key: str, slice_key: str | None, um_per_px: float | dict[str, float] | None
) -> GraphRule:
    """The rule behind a graph that is already there.

    A graph from :func:`spatial_graph` has its rule in ``uns``. For one from elsewhere, a radius is taken that gives the
    very same graph: midway between its longest edge and the shortest distance without an edge, so that a query whose
    spots lie a little wider apart has the same neighbours.

    Raises
    ------
    GraphError
        If no rule is known that gives this graph: a query's graph could then not be built the same way.
    """
    prefix = connectivities_key.removesuffix("_connectivities")
    params = adata.uns.get(f"{prefix}_neighbors", {}).get("params", {})
    if "mode" in params:
        return GraphRule(**{key: params[key] for key in GraphRule.__dataclass_fields__ if key in params})
    own = graph_of(adata, connectivities_key)
    graph = own.tocoo()
    centers = spot_centers(adata)
    probe = AnnData(obs=adata.obs.copy(), obsm={Keys.SPATIAL: centers})
    if graph.nnz:
        members = slice_members(adata, slice_key)
        scale = {name: um_per_px_of(adata, name, um_per_px) for name in members}
        known = {name: value for name, value in scale.items() if value is not None}
        sizes = known if len(known) == len(members) else None
        unit: Literal["um", "px"] = "px" if sizes is None else "um"
        per_spot = np.ones(adata.n_obs)
        for name, rows in members.items():
            per_spot[rows] = 1.0 if sizes is None else sizes[name]
        longest = float((np.linalg.norm(centers[graph.row] - centers[graph.col], axis=1) * per_spot[graph.row]).max())
        # The very graph is looked for: no slice is taken apart.
        pitch = min(spacing_of(centers[rows]) * per_spot[rows[0]] for rows in members.values())
        wide = GraphRule("radius", 1.5 * longest, unit, pitch=pitch)
        spatial_graph(probe, rule=wide, slice_key=slice_key, um_per_px=sizes)
        pairs = probe.obsp[Keys.DISTANCES].tocoo()
        apart = np.asarray(own[pairs.row, pairs.col]).ravel() == 0
        shortest = float((pairs.data * per_spot[pairs.row])[apart].min(initial=1.5 * longest))
        if shortest > longest:
            rule = replace(wide, radius=(longest + shortest) / 2)
            spatial_graph(probe, rule=rule, slice_key=slice_key, um_per_px=sizes)
            if ((probe.obsp[Keys.CONNECTIVITIES] > 0) != (own > 0)).nnz == 0:
                return rule
    raise GraphError(
        f"obsp[{connectivities_key!r}] was not built by st_gchb.pp.spatial_graph and is no radius graph, so a "
        f"query's graph could not be built by the same rule. Drop it (del adata.obsp[...]) and set up again."
    )
