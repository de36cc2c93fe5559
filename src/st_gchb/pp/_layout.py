"""Where on a slide query positions lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb import __version__
from st_gchb._advice import Fix, advise
from st_gchb._constants import Keys
from st_gchb._errors import InputError, TissueError
from st_gchb._logging import logger
from st_gchb.io import SlideImage
from st_gchb.pp._grid import Grid, GridKind, lay_grid, tissue_share
from st_gchb.pp._roi import read_roi, within
from st_gchb.pp._tissue import Tissue, TissueMethod, find_tissue, pixel_size


@dataclass(frozen=True, eq=False)
class Tiles:
    """Query positions on a slide.

    Parameters
    ----------
    grid
        Positions and their places in the array.
    share
        ``(n,)`` share of each tile that is tissue.
    diameter_px
        Diameter of a tile, px of the slide's finest level.
    um_per_px
        Size of a pixel of that level, µm.
    tissue
        Where there is tissue.
    settings
        How they were laid, for ``uns``.
    """

    grid: Grid
    share: np.ndarray
    diameter_px: float
    um_per_px: float
    tissue: Tissue
    settings: dict[str, Any]

    def table(self, name: str) -> AnnData:
        """One row per position, without genes."""
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
    """Find tissue and lay positions on it; arguments and errors as of :func:`tile_tissue`."""
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
    """Check that a mask is one of this slide."""
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
    """Cut bounds to where there is tissue."""
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
