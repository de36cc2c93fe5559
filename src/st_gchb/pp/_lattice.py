"""Which pixel of a raster shows which position, and where the raster lies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from st_gchb._errors import InputError

_REACH = 0.72
"""Distance, in distances of neighbours, up to which a pixel shows the nearest position: no gaps within a square."""
_OFF_GRID = 0.01
"""Distance from its place, in distances of neighbours, up to which a position is on the grid."""
_MAX_PIXELS = 5e8
_BAND = 2**20
"""Pixels whose nearest position is looked up at once."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """A raster over positions.

    Parameters
    ----------
    index
        ``(n_rows, n_cols)`` position that a cell shows, -1 for none.
    zoom
        Pixels along a side of a cell.
    matrix
        Affine matrix, 3 x 3, from the raster's px (x, y; the centre of the first is 0.5, 0.5) to the positions' own
        coordinates.
    """

    index: npt.NDArray[np.int32]
    zoom: int
    matrix: npt.NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the raster, px."""
        return self.index.shape[0] * self.zoom, self.index.shape[1] * self.zoom


def find_lattice(obs: pd.DataFrame, centers: npt.NDArray[np.float64], px_per_tile: int) -> Lattice:
    """Lay a raster over positions.

    Parameters
    ----------
    obs
        Where it has ``array_row`` and ``array_col`` of a square grid, each position becomes a square of pixels.
    centers
        ``(n, 2)`` x, y.
    px_per_tile
        Pixels per distance of neighbours.

    Raises
    ------
    InputError
        There is one position only, two at the same place, or they lie so far apart that the raster would be huge.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from st_gchb.pp._lattice import find_lattice
    >>> obs = pd.DataFrame({"array_row": [0, 0, 1], "array_col": [4, 5, 4]})
    >>> find_lattice(obs, np.array([[45.0, 5.0], [55.0, 5.0], [45.0, 15.0]]), 4).index.tolist()
    [[0, 1], [2, -1]]
    """
    if not np.isfinite(centers).all():
        raise InputError("the positions hold NaN or infinite values. Drop them from shapes and table.")
    return _square(obs, centers, px_per_tile) or _nearest(centers, px_per_tile)


def _square(obs: pd.DataFrame, centers: npt.NDArray[np.float64], zoom: int) -> Lattice | None:
    """One cell per position; None where rows and columns are not known, or not those of a square grid."""
    if not {"array_row", "array_col"} <= set(obs):
        return None
    places = obs[["array_col", "array_row"]]
    if not all(pd.api.types.is_integer_dtype(kind) for kind in places.dtypes) or places.duplicated().any():
        return None
    cells = places.to_numpy(dtype=np.int64)
    if len(np.unique(cells.sum(axis=1) % 2)) == 1:
        # Hexagonal grids count columns in half steps: every second cell is empty.
        return None
    cells = cells - cells.min(axis=0)
    # A tile's centre is the centre of its cell; spatialdata.rasterize_bins puts the cell's corner there.
    design = np.column_stack([cells + 0.5, np.ones(len(cells))])
    solution, _, rank, _ = np.linalg.lstsq(design, centers, rcond=None)
    if rank < 3:
        return None
    matrix = np.eye(3)
    matrix[:2] = solution.T
    pitch = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if not np.abs(design @ solution - centers).max() <= _OFF_GRID * pitch:
        return None
    width, height = cells.max(axis=0) + 1
    _check_size(height * zoom, width * zoom)
    index = np.full((height, width), -1, dtype=np.int32)
    index[cells[:, 1], cells[:, 0]] = np.arange(len(cells))
    return Lattice(index, zoom, matrix @ np.diag([1 / zoom, 1 / zoom, 1.0]))


def _nearest(centers: npt.NDArray[np.float64], px_per_tile: int) -> Lattice:
    """Pixels finer than the positions, each with the nearest."""
    if len(centers) < 2:
        raise InputError("the region has one position; a raster needs at least two.")
    tree = cKDTree(centers)
    spacing = float(np.median(tree.query(centers, k=2)[0][:, 1]))
    if spacing == 0:
        raise InputError("most positions lie at the same place as another; a raster needs them apart.")
    side = spacing / px_per_tile
    low = centers.min(axis=0) - spacing / 2
    width, height = np.ceil((centers.max(axis=0) + spacing / 2 - low) / side).astype(np.int64)
    _check_size(height, width)
    index = np.empty((height, width), dtype=np.int32)
    x = low[0] + (np.arange(width) + 0.5) * side
    step = max(_BAND // int(width), 1)
    for top in range(0, int(height), step):
        y = low[1] + (np.arange(top, min(top + step, height)) + 0.5) * side
        points = np.stack(np.meshgrid(x, y), axis=-1)
        found = tree.query(points, distance_upper_bound=_REACH * spacing)[1]
        index[top : top + step] = np.where(found < len(centers), found, -1)
    matrix = np.array([[side, 0, low[0]], [0, side, low[1]], [0, 0, 1]])
    return Lattice(index, 1, matrix)


def _check_size(height: float, width: float) -> None:
    if height * width > _MAX_PIXELS:
        raise InputError(
            f"a raster of {width:.0f} x {height:.0f} px would be needed; expected at most {_MAX_PIXELS:.0e} px. Are "
            "the positions of one slide? Draw parts of it, each as a table and shapes of its own."
        )
