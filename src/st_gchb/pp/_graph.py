"""The spot graph: squidpy's neighbours, one slice at a time, by a rule that is stored with the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import squidpy as sq
from anndata import AnnData
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from st_gchb._constants import Keys
from st_gchb._errors import GraphError, InputError, SliceError
from st_gchb._logging import logger, others_quiet
from st_gchb.pp._coordinates import spot_centers

GraphMode = Literal["radius", "knn"]

PITCH_FACTOR = 1.6
"""Radius in units of the distance between spots: 6 neighbours on a hexagonal array, 8 on a square one."""


@dataclass(frozen=True)
class GraphRule:
    """How spots become neighbours; the same rule serves training slices and queries.

    Parameters
    ----------
    mode
        ``"radius"``: spots closer than ``radius``; ``"knn"``: the ``n_neighbors`` nearest, made symmetric.
    radius
        In ``unit``; ``None`` takes 1.6 times the median distance to the nearest spot, over all slices given.
    unit
        ``"um"`` where the size of a pixel is known, else ``"px"``.
    n_neighbors
        For ``"knn"``.
    """

    mode: GraphMode = "radius"
    radius: float | None = None
    unit: Literal["um", "px"] = "um"
    n_neighbors: int = 6

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and ``uns``; what does not apply is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def spatial_graph(
    adata: AnnData,
    *,
    rule: GraphRule | None = None,
    slice_key: str | None = None,
    um_per_px: float | dict[str, float] | None = None,
    key_added: str = "spatial",
) -> GraphRule:
    """Build the spot graph of each slice, without an edge between slices.

    Writes ``obsp["spatial_connectivities"]`` (0 or 1, symmetric, no self-loops, ``(n_spots, n_spots)``),
    ``obsp["spatial_distances"]`` in px and the rule in ``uns["spatial_neighbors"]``.

    Parameters
    ----------
    adata
        Spots with ``obsm["spatial"]`` in full-resolution px.
    rule
        How spots become neighbours; by default all spots within 1.6 times the array's pitch.
    slice_key
        Column of ``obs`` that tells the slices apart; ``None`` for one slice.
    um_per_px
        Size of a full-resolution pixel, µm, for all slices or per slice; by default looked up in
        ``uns["spatial"][slice]["scalefactors"]["microns_per_pixel"]``, and where it is unknown the unit is px.
    key_added
        Prefix of the keys in ``obsp``.

    Returns
    -------
    The rule with its radius filled in, which :class:`~st_gchb.model.STGCHB` stores and applies to queries.

    Raises
    ------
    CoordinateError
        If coordinates are missing or not finite.
    SliceError
        If a slice has one spot only.
    GraphError
        If no spot of a slice has a neighbour.

    Examples
    --------
    >>> import anndata, numpy as np, st_gchb
    >>> grid = np.stack(np.meshgrid(np.arange(4.0), np.arange(3.0)), -1).reshape(-1, 2) * 100
    >>> adata = anndata.AnnData(obsm={"spatial": grid})
    >>> st_gchb.pp.spatial_graph(adata).radius
    160.0
    >>> int(adata.obsp["spatial_connectivities"].sum(1).max())
    8
    """
    rule = rule or GraphRule()
    coordinates = spot_centers(adata)
    members = slice_members(adata, slice_key)
    scale = {name: _um_per_px(adata, name, um_per_px) for name in members}
    known = all(value is not None for value in scale.values())
    if rule.mode == "radius" and rule.radius is None:
        unit: Literal["um", "px"] = "um" if known else "px"
        rule = GraphRule("radius", _default_radius(coordinates, members, scale if known else None), unit)
    if rule.mode == "radius" and rule.unit == "um" and not known:
        unknown = [name for name, value in scale.items() if value is None]
        raise GraphError(
            f"The graph's radius is {rule.radius:.4g} µm, but the size of a pixel is unknown for slice {unknown[0]!r}. "
            "Pass um_per_px=, or set uns['spatial'][slice]['scalefactors']['microns_per_pixel']."
        )
    n = adata.n_obs
    pieces = []
    for name, rows in members.items():
        distances = _slice_distances(coordinates[rows], rule, scale[name])
        if distances.nnz == 0:
            raise GraphError(
                f"No spot of slice {name!r} has a neighbour within {rule.radius or 0:.4g} {rule.unit}: "
                "the coordinates are not in full-resolution px, or the radius is too small. "
                "Pass rule=GraphRule(radius=...), larger than the distance between spots."
            )
        alone = int((np.diff(distances.indptr) == 0).sum())
        if alone:
            logger.info("Slice %s: %d of %d spots have no neighbour; they are kept.", name, alone, len(rows))
        coo = distances.tocoo()
        pieces.append((rows[coo.row], rows[coo.col], coo.data))
    i, j, d = (np.concatenate(part) for part in zip(*pieces, strict=True))
    distances = sparse.csr_matrix((d, (i, j)), shape=(n, n))
    connectivities = sparse.csr_matrix((np.ones(len(i), np.float32), (i, j)), shape=(n, n))
    adata.obsp[f"{key_added}_connectivities"] = connectivities
    adata.obsp[f"{key_added}_distances"] = distances
    adata.uns[f"{key_added}_neighbors"] = {
        "connectivities_key": f"{key_added}_connectivities",
        "distances_key": f"{key_added}_distances",
        "params": rule.to_dict(),
    }
    return rule


def slice_members(adata: AnnData, slice_key: str | None) -> dict[str, np.ndarray]:
    """Rows of each slice, in the order in which slices first appear.

    Raises
    ------
    SliceError
        If the column is absent or has gaps, or a slice has one spot only.
    """
    if slice_key is None:
        names = np.array(["slice"] * adata.n_obs)
    else:
        if slice_key not in adata.obs:
            raise SliceError(
                f"obs has no column {slice_key!r} (slice_key); found {list(adata.obs.columns)[:12]}. "
                "Name the column that tells the slices apart."
            )
        if adata.obs[slice_key].isna().any():
            raise SliceError(f"obs[{slice_key!r}] has spots without a slice. Fill the gaps or drop these spots.")
        names = adata.obs[slice_key].astype(str).to_numpy()
    members = {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(names)}
    for name, rows in members.items():
        if len(rows) < 2:
            raise SliceError(f"Slice {name!r} has {len(rows)} spot; a graph needs at least 2. Drop this slice.")
    return members


def _um_per_px(adata: AnnData, name: str, given: float | dict[str, float] | None) -> float | None:
    if isinstance(given, dict):
        return given.get(name)
    if given is not None:
        return float(given)
    libraries = adata.uns.get(Keys.SPATIAL, {})
    library = libraries.get(name) or (next(iter(libraries.values())) if len(libraries) == 1 else {})
    value = library.get(Keys.SCALEFACTORS, {}).get(Keys.UM_PER_PX)
    return None if value is None else float(value)


def _default_radius(
    coordinates: np.ndarray, members: dict[str, np.ndarray], scale: dict[str, float | None] | None
) -> float:
    nearest = []
    for name, rows in members.items():
        distance = NearestNeighbors(n_neighbors=1).fit(coordinates[rows]).kneighbors()[0][:, 0]
        nearest.append(distance * ((scale[name] or 1.0) if scale else 1.0))
    radius = PITCH_FACTOR * float(np.median(np.concatenate(nearest)))
    if radius <= 0:
        raise GraphError("Most spots share their position with another spot. Drop duplicates from obsm['spatial'].")
    return radius


def _slice_distances(coordinates: np.ndarray, rule: GraphRule, um_per_px: float | None) -> sparse.csr_matrix:
    """Symmetric distances between neighbours in one slice, px, CSR without a diagonal."""
    spots = AnnData(obsm={Keys.SPATIAL: coordinates})
    with others_quiet():
        if rule.mode == "radius":
            radius = float(rule.radius or 0) / (um_per_px if rule.unit == "um" and um_per_px else 1.0)
            sq.gr.spatial_neighbors_radius(spots, radius=radius)
        elif rule.mode == "knn":
            sq.gr.spatial_neighbors_knn(spots, n_neighs=min(rule.n_neighbors, len(coordinates) - 1))
        else:
            raise InputError(f"Unknown graph mode {rule.mode!r}; expected 'radius' or 'knn'.")
    # squidpy's kNN graph is directed, and its distances drop pairs at one place: rebuild both from the edges.
    edges = spots.obsp[Keys.CONNECTIVITIES]
    edges = sparse.triu(edges.maximum(edges.T), k=1).tocoo()
    length = np.linalg.norm(coordinates[edges.row] - coordinates[edges.col], axis=1)
    i, j = np.concatenate([edges.row, edges.col]), np.concatenate([edges.col, edges.row])
    return sparse.csr_matrix((np.tile(length, 2), (i, j)), shape=(len(coordinates),) * 2)


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
    graph = adata.obsp[connectivities_key].tocoo()
    centers = spot_centers(adata)
    probe = AnnData(obs=adata.obs.copy(), obsm={Keys.SPATIAL: centers})
    if graph.nnz:
        members = slice_members(adata, slice_key)
        scale = {name: _um_per_px(adata, name, um_per_px) for name in members}
        known = {name: value for name, value in scale.items() if value is not None}
        sizes = known if len(known) == len(members) else None
        unit: Literal["um", "px"] = "px" if sizes is None else "um"
        per_spot = np.ones(adata.n_obs)
        for name, rows in members.items():
            per_spot[rows] = 1.0 if sizes is None else sizes[name]
        longest = float((np.linalg.norm(centers[graph.row] - centers[graph.col], axis=1) * per_spot[graph.row]).max())
        wide = GraphRule("radius", 1.5 * longest, unit)
        spatial_graph(probe, rule=wide, slice_key=slice_key, um_per_px=sizes)
        pairs = probe.obsp[Keys.DISTANCES].tocoo()
        apart = np.asarray(adata.obsp[connectivities_key].tocsr()[pairs.row, pairs.col]).ravel() == 0
        shortest = float((pairs.data * per_spot[pairs.row])[apart].min(initial=1.5 * longest))
        if shortest > longest:
            rule = GraphRule("radius", (longest + shortest) / 2, unit)
            spatial_graph(probe, rule=rule, slice_key=slice_key, um_per_px=sizes)
            if ((probe.obsp[Keys.CONNECTIVITIES] > 0) != (adata.obsp[connectivities_key] > 0)).nnz == 0:
                return rule
    raise GraphError(
        f"obsp[{connectivities_key!r}] was not built by st_gchb.pp.spatial_graph and is no radius graph, so a "
        f"query's graph could not be built by the same rule. Drop it (del adata.obsp[...]) and set up again."
    )
