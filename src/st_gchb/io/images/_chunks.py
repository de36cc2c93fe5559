"""How the pixels of a level are cut: chunks that are decoded as one, and pieces of several that are read as one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Edges = npt.NDArray[np.int64]
"""Where pieces of an axis begin, and last where the last one ends, px: ``(n + 1,)``."""
Box = tuple[int, int, int, int]
"""First and last row and column of a window, ends excluded: ``(y0, y1, x0, x1)``."""

_FREE_PX = 512
"""What is not cut into chunks is treated as if it were, in pieces of this side."""
PIECE_PX = 1024
"""Small chunks are read several at once, up to a square of this side: each read has its price."""


def chunk_edges(chunks: Any, shape: tuple[int, int]) -> tuple[Edges, Edges]:
    """Edges of the chunks along rows and columns.

    Parameters
    ----------
    chunks
        Height and width of all chunks, or (as in dask) the heights of all and the widths of all; further entries do
        not count. None where a window costs nothing beside itself.
    shape
        Height and width of the level.

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
    """Join neighbors as long as they are no longer than ``limit`` together.

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
    """Cut what is longer than ``limit`` into equal parts that are not.

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
    """Edges of pieces of whole chunks, each about as large as a square of :data:`PIECE_PX`, or one chunk.

    A file in strips decodes whole rows, whatever is asked for: its pieces are as wide as the slide, and low.
    """
    columns = grouped(chunks[1], PIECE_PX)
    widest = int(np.diff(columns).max())
    return grouped(chunks[0], min(PIECE_PX, max(PIECE_PX**2 // widest, 1))), columns


def boxes_between(rows: Edges, columns: Edges) -> list[Box]:
    """Windows between the edges, row after row."""
    return [(y0, y1, x0, x1) for y0, y1 in pairwise(rows.tolist()) for x0, x1 in pairwise(columns.tolist())]


def within_box(edges: Edges, start: int, end: int) -> Edges:
    """Edges of those pieces of an axis that ``start`` to ``end`` touches."""
    first = int(np.searchsorted(edges, start, side="right")) - 1
    last = int(np.searchsorted(edges, end, side="left"))
    return edges[first : last + 1]
