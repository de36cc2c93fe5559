"""Partition a level into chunks, which are decoded as a unit, and pieces of several chunks, which are read at once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Edges = npt.NDArray[np.int64]
"""Starts of the ``n`` pieces of an axis, followed by the end of the last one, px: ``(n + 1,)``."""
Box = tuple[int, int, int, int]
"""First and last row and column of a window, ends excluded: ``(y0, y1, x0, x1)``."""

_FREE_PX = 512
"""Side of the virtual chunks of a level that is not stored in chunks, px."""
PIECE_PX = 1024
"""Side of the square up to which small chunks are read together, px, since every read has a fixed overhead."""


def chunk_edges(chunks: Any, shape: tuple[int, int]) -> tuple[Edges, Edges]:
    """Compute the edges of the chunks along rows and columns.

    Parameters
    ----------
    chunks
        Height and width of all chunks, or (as in dask) the height of each row and the width of each column of chunks;
        further entries are ignored. None if the level is not stored in chunks, so that any window is read at no extra
        cost.
    shape
        Height and width of the level, px.

    Returns
    -------
    tuple of numpy.ndarray
        Edges along rows and along columns, px.

    Examples
    --------
    >>> from st_gchb.io.images._chunks import chunk_edges
    >>> [edges.tolist() for edges in chunk_edges((30, (20, 25), 3), (70, 45))]
    [[0, 30, 60, 70], [0, 20, 45]]
    """
    sides = (_FREE_PX, _FREE_PX) if chunks is None else tuple(chunks)[:2]
    edges = []
    for side, length in zip(sides, shape, strict=True):
        if isinstance(side, int | np.integer):
            edges.append(np.append(np.arange(0, length, max(int(side), 1), dtype=np.int64), length))
        else:
            edges.append(np.concatenate([[0], np.cumsum(side)]).astype(np.int64))
    return edges[0], edges[1]


def grouped(edges: Edges, limit: int) -> Edges:
    """Join neighboring intervals as long as their total length does not exceed ``limit``.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io.images._chunks import grouped
    >>> grouped(np.array([0, 4, 8, 12, 30, 33]), 10).tolist()
    [0, 8, 12, 30, 33]
    """
    kept, last = [0], len(edges) - 1
    while kept[-1] < last:
        reach = int(np.searchsorted(edges, edges[kept[-1]] + limit, side="right")) - 1
        kept.append(max(reach, kept[-1] + 1))
    return edges[kept]


def divided(edges: Edges, limit: int) -> Edges:
    """Divide intervals longer than ``limit`` into equal parts that are not.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io.images._chunks import divided
    >>> divided(np.array([0, 10, 14]), 4).tolist()
    [0, 3, 6, 10, 14]
    """
    parts = [np.linspace(start, end, -(-(end - start) // limit) + 1)[:-1] for start, end in pairwise(edges.tolist())]
    return np.append(np.concatenate(parts).astype(np.int64), edges[-1])


def piece_edges(chunks: tuple[Edges, Edges]) -> tuple[Edges, Edges]:
    """Group chunks into pieces of about the area of a square of side :data:`PIECE_PX`, or of a single larger chunk.

    A file stored in strips always decodes whole rows, so its pieces are as wide as the slide and correspondingly low.
    """
    columns = grouped(chunks[1], PIECE_PX)
    widest = int(np.diff(columns).max())
    return grouped(chunks[0], min(PIECE_PX, max(PIECE_PX**2 // widest, 1))), columns


def boxes_between(rows: Edges, columns: Edges) -> list[Box]:
    """List the windows between the edges, row by row."""
    return [(y0, y1, x0, x1) for y0, y1 in pairwise(rows.tolist()) for x0, x1 in pairwise(columns.tolist())]


def within_box(edges: Edges, start: int, end: int) -> Edges:
    """Select the edges of the pieces that overlap the range from ``start`` to ``end``."""
    first = int(np.searchsorted(edges, start, side="right")) - 1
    last = int(np.searchsorted(edges, end, side="left"))
    return edges[first : last + 1]
