"""Specifications of squidpy's graph builders, and of the graphs that squidpy wrote and recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from st_gchb._errors import GraphError, InputError
from st_gchb.pp.graph._graph_spec import GraphSpec

if TYPE_CHECKING:
    from squidpy.gr.neighbors import GraphBuilder

_USE = "Pass a builder without it, or rule=st_gchb.pp.GraphSpec(...)."


def spec_of_builder(builder: GraphBuilder) -> GraphSpec:
    """Translate one of squidpy's graph builders; lengths are px, as the builder has them.

    Parameters
    ----------
    builder
        A ``KNNBuilder``, ``RadiusBuilder``, ``DelaunayBuilder`` or ``GridBuilder`` of ``squidpy.gr.neighbors``.

    Returns
    -------
    GraphSpec
        The rule that gives the same neighbors, made symmetric and without self-loops.

    Raises
    ------
    GraphError
        The builder is of another class, or has an option that a graph of 0 and 1 for further slices cannot follow.

    Examples
    --------
    >>> from squidpy.gr.neighbors import DelaunayBuilder
    >>> from st_gchb.pp.graph._builders import spec_of_builder
    >>> spec_of_builder(DelaunayBuilder(radius=150.0))
    GraphSpec(mode='delaunay', radius=150.0, unit='px', n_neighbors=6, pitch=None, n_rings=None)
    """
    # Imported here, since squidpy takes seconds, and a saved model has no builder but its specification.
    from squidpy.gr.neighbors import DelaunayBuilder, GridBuilder, KNNBuilder, RadiusBuilder

    kind = type(builder)
    if kind not in (KNNBuilder, RadiusBuilder, DelaunayBuilder, GridBuilder):
        raise GraphError(
            f"builder is a {kind.__name__}, which a saved model cannot hold: a query's graph could not be built the "
            "same way. Pass a KNNBuilder, RadiusBuilder, DelaunayBuilder or GridBuilder of squidpy.gr.neighbors, or "
            "rule=st_gchb.pp.GraphSpec(...)."
        )
    if builder.transform.value is not None:
        raise GraphError(
            f"builder has transform={builder.transform.value!r}, but the spot graph holds 0 and 1, and the network "
            f"weights them itself. {_USE}"
        )
    if builder.percentile is not None:
        raise GraphError(
            f"builder has percentile={builder.percentile}, a longest edge that differs between slices. Pass a builder "
            "with that length as its radius, or rule=st_gchb.pp.GraphSpec(...)."
        )
    if builder.set_diag:
        raise GraphError(f"builder has set_diag=True, but a spot is no neighbor of its own here. {_USE}")
    if isinstance(builder, KNNBuilder):
        return GraphSpec("knn", n_neighbors=builder.n_neighs)
    if isinstance(builder, GridBuilder):
        return _grid(builder.n_neighs, builder.n_rings, delaunay=builder.delaunay)
    longest = _longest(builder.radius)
    if longest is None and builder.radius is not None:
        raise GraphError(
            f"builder has radius={builder.radius}, but the spot graph knows no shortest edge. Pass the longest alone."
        )
    return GraphSpec("radius" if isinstance(builder, RadiusBuilder) else "delaunay", longest, "px")


def specs_of_record(params: Mapping[str, Any]) -> list[GraphSpec]:
    """List the specifications that squidpy's record of a graph may stand for, the likeliest first.

    squidpy records neither whether a graph of ``coord_type="generic"`` is a triangulation, nor a percentile: which
    specification it was shows when the graphs are compared.

    Parameters
    ----------
    params
        ``uns["spatial_neighbors"]["params"]`` as squidpy writes it, or as a file gives it back.

    Returns
    -------
    list of GraphSpec
        Lengths in px; empty where the record is not squidpy's or says nothing that can be followed.

    Examples
    --------
    >>> from st_gchb.pp.graph._builders import specs_of_record
    >>> [spec.mode for spec in specs_of_record({"coord_type": "generic", "n_neighbors": 6, "radius": None})]
    ['knn', 'delaunay']
    """
    try:
        return _specs(params)
    except InputError:
        # Such as 2,000 neighbors, which no rule of this package may have.
        return []


def _specs(params: Mapping[str, Any]) -> list[GraphSpec]:
    kind = str(params.get("coord_type"))
    n_neighbors, n_rings = (_whole(params.get(key)) for key in ("n_neighbors", "n_rings"))
    radius = params.get("radius")
    if kind == "grid":
        delaunay = bool(params.get("delaunay", False))
        return [] if n_neighbors is None else [_grid(n_neighbors, n_rings or 1, delaunay=delaunay)]
    if kind != "generic":
        return []
    if radius is not None:
        longest = _longest(radius)
        return [] if longest is None else [GraphSpec(mode, longest, "px") for mode in ("radius", "delaunay")]
    nearest = [] if n_neighbors is None else [GraphSpec("knn", n_neighbors=n_neighbors)]
    return [*nearest, GraphSpec("delaunay")]


def in_um(spec: GraphSpec, sizes: Mapping[str, float | None]) -> GraphSpec:
    """Express a length in µm where all slices have one known size of a pixel, so that it holds at other sizes too.

    Parameters
    ----------
    spec
        Specification with its radius in px.
    sizes
        Size of a pixel of each slice, µm.
    """
    known = set(sizes.values())
    size = next(iter(known)) if len(known) == 1 else None
    if spec.radius is None or spec.unit != "px" or size is None:
        return spec
    radius = spec.radius * size
    # No edge of just this length may be lost by rounding on the way there and back.
    while radius * (1.0 / size) < spec.radius:
        radius = math.nextafter(radius, math.inf)
    return replace(spec, radius=radius, unit="um")


def _grid(n_neighbors: int, n_rings: int, *, delaunay: bool) -> GraphSpec:
    rings = None if n_rings == 1 else n_rings
    return GraphSpec("delaunay" if delaunay else "grid", n_neighbors=n_neighbors, n_rings=rings)


def _longest(radius: Any) -> float | None:
    """Longest edge of squidpy's radius, a number or an interval; ``None`` where there is a shortest one too."""
    ends = sorted(float(end) for end in np.ravel(radius)) if radius is not None else []
    return ends[-1] if len(ends) == 1 or (len(ends) == 2 and ends[0] <= 0) else None


def _whole(value: Any) -> int | None:
    """Read a whole number above 0, in whichever form a file holds it."""
    number = isinstance(value, int | float | np.number) and float(value).is_integer() and value > 0
    return int(value) if number else None
