"""Regular grids of positions on a slide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from st_gchb._advice import Fix, advise
from st_gchb._errors import InputError
from st_gchb.pp._tissue import Tissue

GridKind = Literal["hex", "square"]

_MAX_POSITIONS = 5_000_000
"""Candidates of one slide: beyond, the spacing is not the one that was meant."""
_SAMPLES = 64
"""Points within a tile at which the tissue mask is looked up."""
_AT_ONCE = 2**14


@dataclass(frozen=True, eq=False)
class Grid:
    """Positions on a grid.

    Parameters
    ----------
    centers_px
        ``(n, 2)`` x, y in px of the slide's finest level.
    rows, cols
        ``(n,)`` place in the array; on a hexagonal one, columns count half steps as Visium's do.
    """

    centers_px: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    cols: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def pick(self, keep: npt.NDArray[np.bool_]) -> Grid:
        """Positions where ``keep`` is True."""
        return Grid(self.centers_px[keep], self.rows[keep], self.cols[keep])


def lay_grid(kind: GridKind, spacing_px: float, bounds_px: tuple[float, float, float, float]) -> Grid:
    """Lay a grid over a part of a slide.

    The grid belongs to the slide, not to the part: whatever part is asked for, a position has the same place and the
    same row and column.

    Parameters
    ----------
    kind
        ``"hex"``: rows shifted by half a step in turn, six neighbours at the same distance; ``"square"``.
    spacing_px
        Distance between neighbours, px.
    bounds_px
        Left, top, right and bottom of the part, px; the ends belong to it. A part of no width holds no position.

    Returns
    -------
    Grid
        Row by row.

    Raises
    ------
    InputError
        There would be millions of positions.

    Examples
    --------
    >>> from st_gchb.pp._grid import lay_grid
    >>> lay_grid("square", 10.0, (0, 0, 20, 10)).centers_px.tolist()
    [[5.0, 5.0], [15.0, 5.0]]
    """
    left, top, right, bottom = bounds_px
    pitch = spacing_px * math.sqrt(0.75) if kind == "hex" else spacing_px
    expected = max(right - left, 0) / spacing_px * (max(bottom - top, 0) / pitch)
    if expected > _MAX_POSITIONS:
        raise InputError(
            f"a spacing of {spacing_px:.3g} px gives {expected:.2g} positions on {right - left:.0f} x "
            f"{bottom - top:.0f} px; expected at most {_MAX_POSITIONS:.0e}. Is the spacing in µm? "
            + advise(Fix("spacing_um", why="with a larger distance"), Fix("roi", why="with a smaller region"))
        )
    first, last = math.ceil(top / pitch - 0.5), math.floor(bottom / pitch - 0.5)
    shift = 0.5 if kind == "hex" else 0.0
    # Rounded down, so that rows which are shifted have their first column too; what lies outside goes below.
    start, end = math.floor(left / spacing_px - 0.5), math.floor(right / spacing_px - 0.5)
    col, row = (part.ravel() for part in np.meshgrid(np.arange(start, end + 1), np.arange(first, last + 1)))
    odd = row % 2
    x, y = (col + 0.5 + shift * odd) * spacing_px, (row + 0.5) * pitch
    grid = Grid(np.column_stack([x, y]), row, 2 * col + odd if kind == "hex" else col)
    return grid.pick((x >= left) & (x <= right) & (y >= top) & (y <= bottom))


def tissue_share(tissue: Tissue, centers_px: npt.NDArray[np.float64], diameter_px: float) -> npt.NDArray[np.float64]:
    """Share of each round tile that lies on tissue, ``(n,)``; what lies outside the slide is none."""
    # A sunflower's seeds fill a disc evenly.
    seed = np.arange(_SAMPLES) + 0.5
    angle, radius = seed * math.pi * (3 - math.sqrt(5)), diameter_px / 2 * np.sqrt(seed / _SAMPLES)
    offsets = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    blocks = [
        tissue.at(centers_px[start : start + _AT_ONCE, None] + offsets).mean(axis=1)
        for start in range(0, len(centers_px), _AT_ONCE)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0)
