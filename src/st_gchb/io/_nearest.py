"""Maps of positions: the position that each pixel of a raster shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

_REACH = 0.72
"""Largest distance from a pixel to the position that it shows, in units of the spacing: half the diagonal of a square
cell (0.707), so that a square grid has no gaps."""


def nearest_rows(
    tree: cKDTree, spacing: float, x: npt.NDArray[Any], y: npt.NDArray[Any], *, square: bool = False
) -> npt.NDArray[np.int32]:
    """Find the position that each pixel of a raster shows.

    Parameters
    ----------
    tree
        Positions, ``(n, 2)`` as x, y.
    spacing
        Distance between neighboring positions, or side of square tiles.
    x, y
        Centers of the columns and rows of the raster, in the same unit.
    square
        Show a position on the square of its tile alone, rather than wherever it is the nearest one.

    Returns
    -------
    numpy.ndarray
        Row numbers ``(len(y), len(x))``; -1 where there is no position.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.spatial import cKDTree
    >>> from st_gchb.io._nearest import nearest_rows
    >>> tree = cKDTree([[5.0, 5.0], [15.0, 5.0]])
    >>> nearest_rows(tree, 10.0, np.array([1.0, 8.0, 12.0, 40.0]), np.array([5.0]))
    array([[ 0,  0,  1, -1]], dtype=int32)
    """
    points = np.stack(np.meshgrid(x, y), axis=-1)
    # Pixels on the border of two tiles belong to one of them; the bound itself is exclusive.
    norm, reach = (np.inf, 0.5 + 1e-9) if square else (2, _REACH)
    found = tree.query(points, p=norm, distance_upper_bound=reach * spacing)[1]
    return np.where(found < tree.n, found, -1).astype(np.int32)
