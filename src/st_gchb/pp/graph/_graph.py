"""Spot graphs, built one slice at a time by a rule that is stored with the model.

squidpy builds graphs of nearest neighbors, triangulations and grids, and is imported where one of these is asked for: a
prediction, by default with a graph of all spots within a radius, would wait seconds for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial import QhullError, cKDTree

from st_gchb._advice import Fix, advise
from st_gchb._arguments import PixelSize, checked
from st_gchb._constants import Keys
from st_gchb._errors import GraphError
from st_gchb._logging import logger, others_quiet
from st_gchb._options import LengthUnit
from st_gchb.io import PlacedSections, check_object, placed_sections
from st_gchb.pp.graph._builders import in_um, spec_of_builder
from st_gchb.pp.graph._graph_spec import GraphSpec
from st_gchb.pp.graph._sublattice import interleave, nearest_distances, side_by_side, spacing_of
from st_gchb.pp.patches import pixel_sizes, was_on_image
from st_gchb.pp.spots import Slice, check_positions

if TYPE_CHECKING:
    from squidpy.gr.neighbors import GraphBuilder

PITCH_FACTOR = 1.6
"""Radius in units of the distance between spots: 6 neighbors on a hexagonal array, 8 on a square one."""


@checked
def spatial_graph(
    adata: AnnData,
    *,
    rule: GraphSpec | None = None,
    builder: GraphBuilder | None = None,
    slice_key: str | None = None,
    um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
    key_added: str = "spatial",
    features_key: str = Keys.FEATURES,
) -> GraphSpec:
    """Build the spot graph of each slice, without an edge between slices.

    Writes ``obsp["spatial_connectivities"]`` (0 or 1, symmetric, no self-loops, ``(n_spots, n_spots)``),
    ``obsp["spatial_distances"]`` in px and the rule in ``uns["spatial_neighbors"]``.

    Parameters
    ----------
    adata
        Spots with ``obsm["spatial"]`` in full-resolution px.
    rule
        Rule by which spots become neighbors; by default all spots within 1.6 times the array's pitch.
    builder
        Instead of ``rule``, one of squidpy's graph builders: ``KNNBuilder``, ``RadiusBuilder``, ``DelaunayBuilder`` or
        ``GridBuilder`` of ``squidpy.gr.neighbors``. Its lengths are px of ``obsm["spatial"]``; where all slices have
        one known size of a pixel, the rule holds them in µm.
    slice_key
        Column of ``obs`` that tells the slices apart; found as :func:`slices_of` finds it.
    um_per_px
        Size of a full-resolution pixel, µm, for all slices or per slice; by default the one with which the features
        were made, else ``uns["spatial"][slice]["scalefactors"]["microns_per_pixel"]``. Where it is unknown for a slice,
        the unit is px.
    key_added
        Prefix of the keys in ``obsp``.
    features_key
        Key in ``obsm`` of the features, where there are any.

    Returns
    -------
    GraphSpec
        The rule with radius and pitch filled in, which :class:`~st_gchb.model.STGCHB` stores and applies to queries.

    Raises
    ------
    CoordinateError
        If coordinates are missing or not finite.
    SliceError
        If a slice has one spot only, or slices cannot be told apart.
    GraphError
        If no spot of a slice has a neighbor, a slice cannot be triangulated, or a query could not follow the builder.

    Examples
    --------
    >>> import anndata, numpy as np, st_gchb
    >>> grid = np.stack(np.meshgrid(np.arange(4.0), np.arange(3.0)), -1).reshape(-1, 2) * 100
    >>> adata = anndata.AnnData(obsm={"spatial": grid})
    >>> st_gchb.pp.spatial_graph(adata).radius
    160.0
    >>> int(adata.obsp["spatial_connectivities"].sum(1).max())
    8
    >>> from squidpy.gr.neighbors import DelaunayBuilder
    >>> st_gchb.pp.spatial_graph(adata, builder=DelaunayBuilder()).mode
    'delaunay'
    """
    check_object(adata)
    if rule is not None and builder is not None:
        raise GraphError("rule= and builder= were both given; expected one of them. Leave the other out.")
    if builder is not None:
        rule = spec_of_builder(builder)
    sections = placed_sections(adata, slice_key)
    if not was_on_image(adata, features_key, sections.centers):
        check_positions(sections.centers, adata.obs_names)
    sections.check_at_least(2, "a graph needs")
    scale = pixel_sizes(adata, sections, um_per_px, features_key)
    if builder is not None and rule is not None:
        rule = in_um(rule, scale)
    rule, distances = neighbor_distances(sections, adata.obs, rule or GraphSpec(), scale)
    adata.obsp[f"{key_added}_connectivities"] = connected(distances)
    adata.obsp[f"{key_added}_distances"] = distances
    adata.uns[f"{key_added}_neighbors"] = {
        "connectivities_key": f"{key_added}_connectivities",
        "distances_key": f"{key_added}_distances",
        "params": rule.to_dict(),
    }
    return rule


def neighbor_distances(
    sections: PlacedSections, obs: pd.DataFrame, rule: GraphSpec, um_per_px: dict[str, float | None]
) -> tuple[GraphSpec, sparse.csr_matrix]:
    """Compute the distances between neighbors in each slice.

    Parameters
    ----------
    sections
        The slices, each of two spots at least.
    obs
        Their spots' ``obs``, for positions on the array.
    rule
        Rule by which spots become neighbors.
    um_per_px
        Size of a full-resolution pixel of each slice, µm; None if unknown.

    Returns
    -------
    rule
        The rule with radius and pitch filled in.
    distances
        Distances between neighbors, px, ``(n_spots, n_spots)``; none between slices.

    Raises
    ------
    GraphError
        The rule is in µm, and the size of a pixel is unknown for a slice; no spot of a slice has a neighbor; or a slice
        cannot be triangulated.
    """
    rule = _fill(rule, sections, um_per_px)
    pieces = []
    for name, rows in sections.rows.items():
        size, centers = um_per_px[name], sections.centers[rows]
        distances = _slice_distances(centers, obs.iloc[rows], rule, size, name)
        if distances.nnz == 0:
            raise GraphError(_too_far(name, spacing_of(centers) / _px(rule, size), rule))
        alone = int((np.diff(distances.indptr) == 0).sum())
        if alone:
            logger.info("Slice %s: %d of %d spots have no neighbor; they are kept.", name, alone, len(rows))
        coo = distances.tocoo()
        pieces.append((rows[coo.row], rows[coo.col], coo.data))
    i, j, d = (np.concatenate(part) for part in zip(*pieces, strict=True))
    return rule, sparse.csr_matrix((d, (i, j)), shape=(len(obs), len(obs)))


def connected(distances: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the spot graph of distances between neighbors: 1 for each pair, ``(n_spots, n_spots)`` float32."""
    # Neighbors at one place have the distance 0, which stays an entry.
    ones = np.ones(distances.nnz, np.float32)
    return sparse.csr_matrix((ones, distances.indices.copy(), distances.indptr.copy()), shape=distances.shape)


def check_reach(slices: list[Slice], rule: GraphSpec) -> None:
    """Refuse slices whose spots lie too far apart for a rule, before anything is made of their images.

    Raises
    ------
    GraphError
        If no spot of a slice has a neighbor.
    """
    for one in slices:
        # px of the image may be coarser than those that the spots' positions are in.
        size = None if one.um_per_px is None else one.um_per_px * one.scale
        if rule.radius is None or (rule.unit == "um" and size is None):
            continue
        nearest = nearest_distances(one.centers_px)[:, 0] / one.scale / _px(rule, size)
        if nearest.min() > rule.radius:
            raise GraphError(_too_far(one.name, float(np.median(nearest)), rule))


def _fill(rule: GraphSpec, sections: PlacedSections, scale: dict[str, float | None]) -> GraphSpec:
    """Fill in radius, unit and pitch of a rule from the slices that it is made on."""
    coordinates, members = sections.centers, sections.rows
    known = all(value is not None for value in scale.values())
    in_radius = rule.mode == "radius"
    # Nearest neighbors need no µm; a radius does, and so does the pitch that belongs to it.
    what, length = ("radius", rule.radius) if rule.radius is not None else ("pitch", rule.pitch if in_radius else None)
    if rule.unit == "um" and not known and length is not None:
        unknown = [name for name, value in scale.items() if value is None]
        raise GraphError(
            f"The graph's {what} is {length:.4g} µm, but the size of a pixel is unknown for slice {unknown[0]!r}. "
            f"Set uns['spatial'][{unknown[0]!r}]['scalefactors']['microns_per_pixel']. " + advise(Fix("um_per_px"))
        )
    if rule.pitch is not None and (rule.radius is not None or not in_radius):
        return rule
    unit: LengthUnit = rule.unit if length is not None else ("um" if known else "px")
    if unit == "px" and len(members) > 1 and in_radius:
        unknown = [name for name, value in scale.items() if value is None]
        if unknown:
            logger.warning(
                "The size of a pixel is not known for the slices %s: the graph is built in px, as if it were the same "
                "for all %d slices. Pass um_per_px= as a dict, or set uns['spatial'][slice]['scalefactors'][%r].",
                unknown[:6],
                len(members),
                Keys.UM_PER_PX,
            )
    size = {name: (scale[name] or 1.0) if unit == "um" else 1.0 for name in members}
    radius = rule.radius
    if radius is None and in_radius:
        nearest = [nearest_distances(coordinates[rows]) * size[name] for name, rows in members.items()]
        radius = PITCH_FACTOR * float(np.median(np.concatenate(nearest)))
        if radius <= 0:
            raise GraphError("Most spots share their position with another spot. Drop duplicates from obsm['spatial'].")
    spacings = [spacing_of(coordinates[rows]) * size[name] for name, rows in members.items()]
    finest = min((spacing for spacing in spacings if spacing > 0), default=0.0)
    return replace(rule, radius=radius, unit=unit, pitch=finest if rule.pitch is None else rule.pitch)


def _px(rule: GraphSpec, um_per_px: float | None) -> float:
    """Convert the rule's unit to px."""
    return 1.0 / um_per_px if rule.unit == "um" and um_per_px else 1.0


def _too_far(name: str, spacing: float, rule: GraphSpec) -> str:
    return (
        f"No spot of slice {name!r} has a neighbor within {rule.radius or 0:.4g} {rule.unit}: they lie {spacing:.4g} "
        f"{rule.unit} apart. Are the coordinates in full-resolution px, and the size of a pixel right? A query's "
        f"positions may lie as far apart as the reference's spots, {rule.pitch or 0:.4g} {rule.unit}, or nearer. "
        + advise(
            Fix("spacing_um", why="with no more than that"),
            Fix("rule", "GraphSpec(radius=...)", "for a graph of your own"),
            otherwise="Lay positions with st_gchb.pp.tile_tissue(spacing_um=...), or build a reference's graph first "
            "with st_gchb.pp.spatial_graph(rule=...).",
        )
    )


def _slice_distances(
    coordinates: np.ndarray, obs: pd.DataFrame, rule: GraphSpec, um_per_px: float | None, name: str
) -> sparse.csr_matrix:
    """Compute symmetric distances between neighbors in one slice, px, CSR without a diagonal."""
    px = _px(rule, um_per_px)
    # Nearest neighbors need no µm: where these are unknown, positions are not taken apart.
    comparable = rule.unit == "px" or um_per_px is not None
    pitch, spacing = float(rule.pitch or 0) * px, spacing_of(coordinates)
    stride = round(pitch / spacing) if spacing > 0 and comparable else 1
    placed, parts = coordinates, np.zeros(len(coordinates), dtype=np.int64)
    if stride > 1:
        parts = interleave(coordinates, obs, stride)
        placed = side_by_side(coordinates, parts, 2 * max(pitch, float(rule.radius or 0) * px))
        logger.info(
            "Positions lie %.3g times finer than the reference's spots: %d interleaved grids.",
            pitch / spacing,
            len(np.unique(parts)),
        )
    if rule.mode in ("radius", "knn"):
        edges = _near(placed, rule, px)
    else:
        edges = _meshed(coordinates, parts, rule, px, name)
    # squidpy's kNN graph is directed, and its distances drop pairs at one place: rebuild both from the edges.
    edges = sparse.triu(edges.maximum(edges.T), k=1).tocoo()
    # A part with fewer positions than neighbors are asked for reaches into another.
    within = parts[edges.row] == parts[edges.col]
    edges = sparse.coo_matrix((edges.data[within], (edges.row[within], edges.col[within])), shape=edges.shape)
    length = np.linalg.norm(coordinates[edges.row] - coordinates[edges.col], axis=1)
    i, j = np.concatenate([edges.row, edges.col]), np.concatenate([edges.col, edges.row])
    return sparse.csr_matrix((np.tile(length, 2), (i, j)), shape=(len(coordinates),) * 2)


def _near(placed: np.ndarray, rule: GraphSpec, px: float) -> sparse.csr_matrix:
    """Join spots that are near one another, ``(n, n)``."""
    if rule.mode == "radius":
        i, j = cKDTree(placed).query_pairs(float(rule.radius or 0) * px, output_type="ndarray").T
        return sparse.csr_matrix((np.ones(len(i), np.float32), (i, j)), shape=(len(placed),) * 2)
    import squidpy as sq

    spots = AnnData(obsm={Keys.SPATIAL: placed})
    with others_quiet():
        sq.gr.spatial_neighbors_knn(spots, n_neighs=min(rule.n_neighbors, len(placed) - 1))
    return spots.obsp[Keys.CONNECTIVITIES]


def _meshed(coordinates: np.ndarray, parts: np.ndarray, rule: GraphSpec, px: float, name: str) -> sparse.csr_matrix:
    """Join spots by a triangulation or a grid, each interleaved part by itself, ``(n, n)``.

    Raises
    ------
    GraphError
        Positions of a part lie on a line, so that they cannot be triangulated.
    """
    least = 3 if rule.mode == "delaunay" else 2
    none = np.empty(0, dtype=np.int64)
    pieces = [(none, none)]
    for part in np.unique(parts):
        rows = np.flatnonzero(parts == part)
        if len(rows) < min(least, len(coordinates)):
            continue
        spots = AnnData(obsm={Keys.SPATIAL: coordinates[rows]})
        try:
            with others_quiet():
                _mesh(spots, rule)
        except QhullError as error:
            raise GraphError(
                f"The {len(rows)} positions of slice {name!r} cannot be triangulated: they are fewer than 3, or lie on "
                "a line. Drop the slice, or build the graph with st_gchb.pp.spatial_graph(rule=GraphSpec('knn'))."
            ) from error
        edges = spots.obsp[Keys.CONNECTIVITIES].tocoo()
        pieces.append((rows[edges.row], rows[edges.col]))
    i, j = (np.concatenate(ends) for ends in zip(*pieces, strict=True))
    if rule.radius is not None:
        short = np.linalg.norm(coordinates[i] - coordinates[j], axis=1) <= rule.radius * px
        i, j = i[short], j[short]
    return sparse.csr_matrix((np.ones(len(i), np.float32), (i, j)), shape=(len(coordinates),) * 2)


def _mesh(spots: AnnData, rule: GraphSpec) -> None:
    import squidpy as sq

    n_rings = rule.n_rings or 1
    n_neighbors = min(rule.n_neighbors, spots.n_obs - 1)
    if rule.mode == "delaunay" and n_rings == 1:
        sq.gr.spatial_neighbors_delaunay(spots)
    else:
        sq.gr.spatial_neighbors_grid(spots, n_neighs=n_neighbors, n_rings=n_rings, delaunay=rule.mode == "delaunay")
