"""Layout of query positions: a grid over the slide, restricted to a region of interest and to tissue."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from st_gchb import __version__
from st_gchb._advice import Fix, advise
from st_gchb._constants import Keys
from st_gchb._errors import InputError, TissueError
from st_gchb._logging import logger
from st_gchb._options import GridKind, TissueMethod
from st_gchb.io import SlideImage
from st_gchb.pp.tissue._detection import Tissue, find_tissue, pixel_size
from st_gchb.pp.tissue._roi import read_roi, within

_MAX_POSITIONS = 5_000_000
"""Most candidate positions of one slide; more indicate a spacing in the wrong unit."""
_SAMPLES = 64
"""Points within a tile at which the tissue mask is sampled."""
_AT_ONCE = 2**14


@dataclass(frozen=True, eq=False)
class Grid:
    """Positions on a grid.

    Parameters
    ----------
    centers_px
        Positions ``(n, 2)`` as x, y in px of the slide's finest level.
    rows, cols
        Row and column in the array, ``(n,)``; on a hexagonal array, columns count half steps as Visium's do.
    """

    centers_px: npt.NDArray[np.float64]
    rows: npt.NDArray[np.int64]
    cols: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def pick(self, keep: npt.NDArray[np.bool_]) -> Grid:
        """Select the positions where ``keep``, ``(n,)``, is True."""
        return Grid(self.centers_px[keep], self.rows[keep], self.cols[keep])


def lay_grid(kind: GridKind, spacing_px: float, bounds_px: tuple[float, float, float, float]) -> Grid:
    """Place a grid of positions over a part of a slide.

    The grid is anchored to the slide, so that a position has the same coordinates, row and column whichever part is
    requested.

    Parameters
    ----------
    kind
        ``"hex"``: every second row shifted by half a step, so that a position has six neighbors at the same distance;
        ``"square"``: rows and columns.
    spacing_px
        Distance between neighbors, px.
    bounds_px
        Left, top, right and bottom of the part, px, all inclusive. A part without area may hold no position.

    Returns
    -------
    Grid
        Positions, row by row.

    Raises
    ------
    InputError
        There would be millions of positions.

    Examples
    --------
    >>> from st_gchb.pp.tissue._layout import lay_grid
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
    # Rounded down, so that the first column of shifted rows is included; positions outside are dropped below.
    start, end = math.floor(left / spacing_px - 0.5), math.floor(right / spacing_px - 0.5)
    col, row = (part.ravel() for part in np.meshgrid(np.arange(start, end + 1), np.arange(first, last + 1)))
    odd = row % 2
    x, y = (col + 0.5 + shift * odd) * spacing_px, (row + 0.5) * pitch
    grid = Grid(np.column_stack([x, y]), row, 2 * col + odd if kind == "hex" else col)
    return grid.pick((x >= left) & (x <= right) & (y >= top) & (y <= bottom))


def tissue_share(tissue: Tissue, centers_px: npt.NDArray[np.float64], diameter_px: float) -> npt.NDArray[np.float64]:
    """Compute the fraction of each tile that lies on tissue.

    Parameters
    ----------
    tissue
        Mask of tissue; outside the slide there is none.
    centers_px
        Centers of the tiles, ``(n, 2)``, as x, y in px of the slide's finest level.
    diameter_px
        Diameter of the circular tiles, px.

    Returns
    -------
    numpy.ndarray
        Fractions, ``(n,)``, in 0 to 1.
    """
    # A Fibonacci (sunflower) spiral samples a disc evenly.
    seed = np.arange(_SAMPLES) + 0.5
    angle, radius = seed * math.pi * (3 - math.sqrt(5)), diameter_px / 2 * np.sqrt(seed / _SAMPLES)
    offsets = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    blocks = [
        tissue.at(centers_px[start : start + _AT_ONCE, None] + offsets).mean(axis=1)
        for start in range(0, len(centers_px), _AT_ONCE)
    ]
    return np.concatenate(blocks) if blocks else np.zeros(0)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Query positions on a slide.

    Parameters
    ----------
    grid
        Positions with their rows and columns.
    share
        Fraction of each tile that is tissue, ``(n,)``.
    diameter_px
        Diameter of a tile, px of the slide's finest level.
    um_per_px
        Size of a pixel of that level, µm.
    tissue
        Mask of the tissue on the slide.
    settings
        Arguments of the layout, to be stored in ``uns``.
    """

    grid: Grid
    share: np.ndarray
    diameter_px: float
    um_per_px: float
    tissue: Tissue
    settings: dict[str, Any]

    def table(self, name: str) -> AnnData:
        """Build an AnnData with one row per position and no genes; row names start with ``name``."""
        rows, cols = self.grid.rows, self.grid.cols
        names = [f"{name}_{col}x{row}" for col, row in zip(cols, rows, strict=True)]
        obs = pd.DataFrame({"array_row": rows, "array_col": cols, Keys.TISSUE_SHARE: self.share}, index=names)
        adata = AnnData(obs=obs, obsm={Keys.SPATIAL: self.grid.centers_px})
        adata.uns[Keys.TILES] = dict(self.settings)
        return adata


def lay_tiles(
    slide: SlideImage,
    roi: Any,
    *,
    spacing_um: float,
    grid: GridKind,
    tissue: TissueMethod | Tissue | np.ndarray,
    min_tissue: float,
) -> Tiles:
    """Find tissue and place positions on it; parameters and errors as for :func:`tile_tissue`."""
    size = pixel_size(slide)
    region = read_roi(roi, slide.shape_px)
    found = find_tissue(slide, method=tissue) if isinstance(tissue, str) else _given_tissue(tissue, slide, size)
    diameter = spacing_um / size
    if diameter < 1:
        raise InputError(
            f"{slide.name}: a spacing of {spacing_um:g} µm is {diameter:.3g} px, so that several positions would lie "
            f"within one pixel. {advise(Fix('spacing_um', why='with a larger distance'))}"
        )
    height, width = slide.shape_px
    left, top, right, bottom = region.bounds if region is not None else (0, 0, width, height)
    laid = lay_grid(grid, diameter, _cut(found, (left, top, right, bottom), diameter / 2))
    laid = laid.pick(within(region, laid.centers_px))
    share = tissue_share(found, laid.centers_px, diameter)
    keep = share >= min_tissue
    if not keep.any():
        where = "" if region is None else " in the region roi="
        most = f"the fullest of {len(share)} tiles{where} has {share.max():.0%}" if len(share) else f"no tile{where}"
        raise TissueError(
            f"{slide.name}: no tissue found: {found.share:.2%} of the slide is tissue, and of tiles {spacing_um:g} µm "
            f"wide {most}; expected at least {min_tissue:.0%} in one. Look at pp.find_tissue(...).mask; then pass a "
            "smaller spacing_um= or min_tissue=, a mask of your own as tissue=, or tissue='all' for the whole slide."
        )
    settings = {
        "spacing_um": float(spacing_um),
        "grid": grid,
        "um_per_px": size,
        "tissue": tissue if isinstance(tissue, str) else "mask",
        "min_tissue": float(min_tissue),
        "tissue_share": found.share,
        "roi": "whole slide" if region is None else region.wkt,
        "st_gchb_version": __version__,
    }
    logger.info("%s: %d positions, %g µm apart.", slide.name, keep.sum(), spacing_um)
    return Tiles(laid.pick(keep), share[keep], diameter, size, found, settings)


def _given_tissue(tissue: Tissue | np.ndarray, slide: SlideImage, um_per_px: float) -> Tissue:
    """Validate that a mask covers this slide, and set its pixel size."""
    if not isinstance(tissue, Tissue):
        mask = np.asarray(tissue)
        if mask.ndim != 2 or mask.dtype != bool or mask.size == 0:
            raise InputError(
                f"tissue= is an array of shape {mask.shape} and type {mask.dtype}; expected a mask (h, w) of "
                "type bool: pass labels > 0."
            )
        downsample = min(slide.shape_px[0] / mask.shape[0], slide.shape_px[1] / mask.shape[1])
        tissue = Tissue(mask, downsample, um_per_px * downsample)
    covered = np.array(tissue.mask.shape) * tissue.downsample
    if (np.abs(covered - slide.shape_px) > 1 + 2 * tissue.downsample).any():
        raise InputError(
            f"tissue= is a mask of {tissue.mask.shape} px (h, w), {slide.name} has {slide.shape_px} px: expected a "
            "mask of the whole slide, at any scale."
        )
    return replace(tissue, um_per_px=um_per_px * tissue.downsample)


def _cut(tissue: Tissue, bounds: tuple[float, float, float, float], margin: float) -> tuple[float, float, float, float]:
    """Reduce bounds to the bounding box of the tissue plus a margin, px."""
    y, x = (np.flatnonzero(tissue.mask.any(axis=axis)) for axis in (1, 0))
    if not len(y):
        return bounds
    left, top, right, bottom = bounds
    scale = tissue.downsample
    return (
        max(left, x[0] * scale - margin),
        max(top, y[0] * scale - margin),
        min(right, (x[-1] + 1) * scale + margin),
        min(bottom, (y[-1] + 1) * scale + margin),
    )
