"""The specification of a spot graph, which is stored with the model and applied to queries."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from st_gchb._arguments import Limits, checked
from st_gchb._errors import GraphError
from st_gchb._options import GraphMode, LengthUnit

Length = Annotated[float, Limits("a length above 0, up to 1,000,000", above=0, high=1e6)]
LengthFromZero = Annotated[float, Limits("a length of 0 or more, up to 1,000,000", low=0, high=1e6)]
Neighbors = Annotated[int, Limits("a whole number from 1 to 1,000", low=1, high=1000)]
GraphRings = Annotated[int, Limits("a whole number from 1 to 50", low=1, high=50)]


@checked
@dataclass(frozen=True)
class GraphSpec:
    """Rule by which spots become neighbors; training slices and queries follow the same one.

    Parameters
    ----------
    mode
        ``"radius"``: spots closer than ``radius``; ``"knn"``: the ``n_neighbors`` nearest, made symmetric;
        ``"delaunay"``: the edges of a Delaunay triangulation, up to ``radius`` long where one is given; ``"grid"``: the
        ``n_neighbors`` nearest that lie within 1.3 times the median distance, as squidpy's grid.
    radius
        In ``unit``; ``None`` takes 1.6 times the median distance to the nearest spot, over all slices given, and keeps
        all edges of a triangulation.
    unit
        ``"um"`` where the size of a pixel is known, else ``"px"``.
    n_neighbors
        For ``"knn"`` and ``"grid"``.
    pitch
        Median distance from a spot to the nearest, in ``unit``, in the finest of the slices that the rule was made on.
        Positions that lie finer, such as a dense grid, are taken apart into interleaved grids of about this pitch, so
        that a position has the neighbors of a spot of the reference. ``None`` takes it from the slices given.
    n_rings
        For ``"delaunay"`` and ``"grid"``: spots that are up to this many steps away are neighbors; ``None`` is 1.

    Raises
    ------
    GraphError
        ``n_rings`` or ``radius`` does not go with the mode.

    Examples
    --------
    >>> from st_gchb.pp import GraphSpec
    >>> GraphSpec("delaunay", radius=150.0).to_dict()
    {'mode': 'delaunay', 'radius': 150.0, 'unit': 'um', 'n_neighbors': 6}
    """

    mode: GraphMode = "radius"
    radius: Length | None = None
    unit: LengthUnit = "um"
    n_neighbors: Neighbors = 6
    pitch: LengthFromZero | None = None
    n_rings: GraphRings | None = None

    def __post_init__(self) -> None:
        if self.n_rings is not None and self.mode in ("radius", "knn"):
            raise GraphError(f"n_rings={self.n_rings} goes with mode 'delaunay' or 'grid'; found {self.mode!r}.")
        if self.radius is not None and (self.mode == "grid" or (self.mode == "delaunay" and (self.n_rings or 1) > 1)):
            raise GraphError(
                f"radius={self.radius:g} does not go with mode {self.mode!r} and n_rings={self.n_rings}; it bounds the "
                "edges of a triangulation without rings, or is that of mode 'radius'. Leave one of them out."
            )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON and ``uns``, without absent ones."""
        return {key: value for key, value in asdict(self).items() if value is not None}
