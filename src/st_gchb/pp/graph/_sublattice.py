"""Positions laid finer than the reference's spots: taken apart into grids of the reference's own pitch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.neighbors import NearestNeighbors

Coordinates = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

_ARRAY = ("array_row", "array_col")
_FEW = 8
"""Neighbors from which the density around a position is taken."""
_REGULAR = 0.3
"""Spread of the distances to the nearest position, of their median, up to which positions lie on an array."""
_TOLERANCE = 0.25
"""How far the pitch within the parts may be from a multiple of the spacing for rows and columns to be believed."""


def nearest_distances(coordinates: Coordinates, n_neighbors: int = 1) -> Coordinates:
    """Distances of each position to the nearest other ones, ``(n, n_neighbors)``."""
    search = NearestNeighbors(n_neighbors=min(n_neighbors, len(coordinates) - 1)).fit(coordinates)
    return np.asarray(search.kneighbors()[0], dtype=np.float64)


def spacing_of(coordinates: Coordinates) -> float:
    """Distance between neighboring positions, in the unit of the coordinates.

    On an array it is the median distance to the nearest position. Positions without order, such as cells, have some
    neighbor very near: there it is the side of the square that each has to itself.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp.graph._sublattice import spacing_of
    >>> spacing_of(np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 9.0]]))
    5.0
    """
    distances = nearest_distances(coordinates, _FEW)
    low, median, high = np.quantile(distances[:, 0], [0.25, 0.5, 0.75])
    if high - low <= _REGULAR * median:
        return float(median)
    around = distances.shape[1]
    return float(np.median(distances[:, -1]) * np.sqrt(np.pi / around))


def interleave(coordinates: Coordinates, obs: pd.DataFrame, stride: int) -> Labels:
    """Take positions apart into interleaved grids, each ``stride`` times as wide as all of them together.

    A grid of half the reference's pitch holds four grids of that pitch, one shifted against the other. Within each, a
    position has the neighbors that a spot of the reference has, as many and as far away.

    Parameters
    ----------
    coordinates
        ``(n, 2)`` x, y.
    obs
        Rows of the positions; ``array_row`` and ``array_col`` are used where they describe the positions. Others,
        such as cells, are told apart by where they lie.
    stride
        Whole number of spacings in the pitch that is wanted.

    Returns
    -------
    numpy.ndarray
        Part of each position, ``(n,)``.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from st_gchb.pp.graph._sublattice import interleave
    >>> line = np.column_stack([np.arange(6.0), np.zeros(6)])
    >>> interleave(line, pd.DataFrame(index=list("abcdef")), 2).tolist()
    [0, 1, 0, 1, 0, 1]
    """
    spacing = spacing_of(coordinates)
    if set(_ARRAY) <= set(obs.columns):
        parts = _by_array(obs[_ARRAY[0]], obs[_ARRAY[1]], stride)
        if parts is not None and _has_pitch(coordinates, parts, stride * spacing):
            return parts
    steps = np.floor((coordinates - coordinates.min(axis=0)) / max(spacing, 1e-12) + 0.5).astype(np.int64) % stride
    return np.asarray(steps[:, 1] * stride + steps[:, 0])


def side_by_side(coordinates: Coordinates, parts: Labels, apart: float) -> Coordinates:
    """Move parts so far from one another that nothing of two parts is nearer than ``apart``, ``(n, 2)``."""
    width = float(np.ptp(coordinates[:, 0])) + 2 * apart
    moved = coordinates.copy()
    moved[:, 0] += np.unique(parts, return_inverse=True)[1] * width
    return moved


def _by_array(rows: Any, cols: Any, stride: int) -> Labels | None:
    """Parts by row and column; on a hexagonal array columns count half steps, as Visium's do."""
    if not all(pd.api.types.is_numeric_dtype(column) for column in (rows, cols)):
        return None
    row, col = (np.asarray(column, dtype=np.float64) for column in (rows, cols))
    if not (np.isfinite(row).all() and np.isfinite(col).all() and (row % 1 == 0).all() and (col % 1 == 0).all()):
        return None
    row, col = row.astype(np.int64), col.astype(np.int64)
    if np.ptp(row) and np.ptp((row + col) % 2) == 0:
        col = (col - row) // 2
    return np.asarray((row % stride) * stride + col % stride)


def _has_pitch(coordinates: Coordinates, parts: Labels, pitch: float) -> bool:
    nearest = nearest_distances(side_by_side(coordinates, parts, 3 * pitch))[:, 0]
    return bool((np.abs(np.quantile(nearest, [0.25, 0.75]) / pitch - 1) < _TOLERANCE).all())
