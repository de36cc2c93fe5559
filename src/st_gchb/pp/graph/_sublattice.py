"""Sublattices: splitting query positions that are denser than the reference into grids of the reference's pitch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

Coordinates = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

_ARRAY = ("array_row", "array_col")
_FEW = 8
"""Number of neighbors from which the density around a position is estimated."""
_REGULAR = 0.3
"""Largest interquartile range of nearest distances, relative to their median, of positions on a regular array."""
_TOLERANCE = 0.25
"""Relative tolerance of the pitch within sublattices by row and column; beyond it, rows and columns are ignored."""


def nearest_distances(coordinates: Coordinates, n_neighbors: int = 1) -> Coordinates:
    """Compute the distances of each position to its nearest neighbors, ``(n, n_neighbors)``, ascending."""
    found, _ = cKDTree(coordinates).query(coordinates, k=1 + min(n_neighbors, len(coordinates) - 1))
    # The nearest of all is the position itself, or another one at the same place.
    return np.asarray(found[:, 1:], dtype=np.float64)


def spacing_of(coordinates: Coordinates) -> float:
    """Estimate the distance between neighboring positions, in the unit of the coordinates.

    On a regular array it is the median distance to the nearest neighbor. Irregular positions, such as cells, often have
    one very close neighbor; for them it is the side of a square with the mean area per position.

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
    """Assign positions to interleaved sublattices whose pitch is ``stride`` times the spacing of the positions.

    A grid with half the pitch of the reference consists of four shifted grids with that pitch. Within each of them, a
    position has as many neighbors as a spot of the reference, at the same distances.

    Parameters
    ----------
    coordinates
        Positions ``(n, 2)`` as x, y.
    obs
        Annotation of the positions, ``n`` rows. ``array_row`` and ``array_col`` are used if they are consistent with
        the coordinates; otherwise, as for cells, coordinates are rounded to multiples of the spacing.
    stride
        Wanted pitch in units of the spacing.

    Returns
    -------
    numpy.ndarray
        Label of the sublattice of each position, ``(n,)``.

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
    """Shift sublattices along x so that positions of different ones are at least ``apart`` from each other.

    Parameters
    ----------
    coordinates
        Positions ``(n, 2)``.
    parts
        Label of the sublattice of each position, ``(n,)``.
    apart
        Smallest distance between sublattices, in the unit of the coordinates.

    Returns
    -------
    numpy.ndarray
        Shifted positions, ``(n, 2)``.
    """
    width = float(np.ptp(coordinates[:, 0])) + 2 * apart
    moved = coordinates.copy()
    moved[:, 0] += np.unique(parts, return_inverse=True)[1] * width
    return moved


def _by_array(rows: Any, cols: Any, stride: int) -> Labels | None:
    """Label sublattices by row and column; None unless both are whole numbers.

    On a hexagonal array columns count half steps, as Visium's do.
    """
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
