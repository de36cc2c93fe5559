"""Overview of a whole slide: the outline of the tissue and the positions at which expression is predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import shapely
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from st_gchb._arguments import Share, checked
from st_gchb._constants import Keys
from st_gchb._errors import ImageError
from st_gchb._options import TissueMethod
from st_gchb.io import Library, put_libraries
from st_gchb.pl._slice import Tissue, dot_points, draw_dots, draw_slide, new_axes, table_of, tissue_of
from st_gchb.pp import Tissue as Found, find_tissue

if TYPE_CHECKING:
    from spatialdata import SpatialData

# Colors that contrast with the pink and purple of H&E.
_MASK_COLOR, _GRID_COLOR, _ROI_COLOR = "#00a844", "#ffe100", "#111111"
_RING_PT = 8.0
"""Diameter, in points, below which positions are drawn as dots and not as circles of their true size."""


@checked
def slide_overview(
    data: AnnData | SpatialData | Found,
    *,
    tissue: Found | TissueMethod | None = None,
    table: str | None = None,
    slice: str | None = None,
    slice_key: str | None = None,
    image_alpha: Share = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """Plot a slide with the outline of its tissue and the positions on it.

    Only the downscaled image in ``uns["spatial"]`` is drawn, so slides may be of any size.

    Parameters
    ----------
    data
        Result of :func:`~st_gchb.pp.tile_tissue`, any AnnData with an image in ``uns["spatial"]``, a SpatialData, or
        the tissue alone, from :func:`~st_gchb.pp.find_tissue`.
    tissue
        Tissue to outline, or the method to detect it (``"stain"``, ``"squidpy"``). By default it is detected on the
        downscaled image by the method that :func:`~st_gchb.pp.tile_tissue` used. If that was given a mask, pass the
        mask here too.
    table
        Table of the positions, for a SpatialData with several tables.
    slice
        Slice to plot; needed only if there are several.
    slice_key
        Column of ``obs`` with the slice of each position; by default ``"slice"`` if present.
    image_alpha
        Opacity of the H&E, 0 to 1.
    ax
        Axes to draw into; new ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    ImageError
        There is no image to draw.
    SliceError
        There are several slices and none was named, or the one named does not exist.
    InputError, MissingKeyError
        ``tissue`` is unknown, or the table does not exist.

    Examples
    --------
    >>> import st_gchb
    >>> slide = st_gchb.datasets.synthetic_tissue(1, n_rows=8, n_cols=8, n_genes=20).uns["spatial"]["S1"]
    >>> query = st_gchb.pp.tile_tissue(slide["images"]["hires"], um_per_px=1.0)
    >>> ax = st_gchb.pl.slide_overview(query)
    >>> [text.get_text() for text in ax.get_legend().get_texts()][1] == f"{query.n_obs} positions, 100 µm apart"
    True
    """
    if isinstance(data, Found):
        adata, tissue = _alone(data), data
    else:
        adata, slice_key = table_of(data, table, slice_key)
    shown = tissue_of(adata, slice, slice_key)
    image = shown.image
    if image is None:
        raise ImageError(f"slice {shown.name!r} has no image in uns['spatial'][{shown.name!r}]['images'].")
    height, width = image.shape[:2]
    if ax is None:
        ax = new_axes(1, 1, width / height, height=5.0)[0, 0]
    draw_slide(ax, shown, image_alpha=image_alpha)
    settings = adata.uns.get(Keys.TILES, {})
    handles = []
    found = _tissue_to_draw(tissue, shown, settings)
    if found is not None and found.mask.any():
        handles.append(_outline(ax, found, shown))
    if settings.get("roi", "whole slide") != "whole slide":
        handles.append(_region(ax, str(settings["roi"]), shown))
    if not isinstance(data, Found):
        handles.append(_positions(ax, shown, settings))
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, 0.0), "borderaxespad": 0.4}
    ax.legend(handles=handles, frameon=False, fontsize=8, **place)
    ax.set_title(shown.name, fontsize=10)
    return ax


def _alone(found: Found) -> AnnData:
    """Wrap tissue without positions in an AnnData with its image.

    Raises
    ------
    ImageError
        The tissue is a mask without an image.
    """
    if found.thumbnail is None:
        raise ImageError("this tissue has no image: it is a mask from elsewhere. Pass the query, and it as tissue=.")
    corner = np.array([[0.0, 0.0]])
    factors = {"tissue_hires_scalef": 1 / found.downsample, Keys.UM_PER_PX: found.um_per_px / found.downsample}
    alone = AnnData(obsm={Keys.SPATIAL: corner})
    put_libraries(alone, [Library("slide", {"hires": found.thumbnail}, factors)])
    return alone


def _tissue_to_draw(tissue: Found | str | None, shown: Tissue, settings: Any) -> Found | None:
    """Return the given tissue, or detect it on the downscaled image.

    Returns
    -------
    st_gchb.pp.Tissue or None
        The tissue; ``None`` if the size of a pixel or the method of detection is unknown.
    """
    if isinstance(tissue, Found):
        return tissue
    method: Any = tissue or settings.get("tissue", "stain")
    if shown.um_per_px is None or method not in get_args(TissueMethod):
        return None
    found = find_tissue(shown.image, um_per_px=shown.um_per_px, method=method)
    return Found(found.mask, found.downsample / shown.scale, found.um_per_px, found.thumbnail)


def _outline(ax: Axes, found: Found, shown: Tissue) -> Line2D:
    height, width = found.mask.shape
    step = found.downsample * shown.scale
    x, y = (np.arange(-1, n + 1) * step + step / 2 for n in (width, height))
    # A border of background closes the outline where the edge of the slide cuts the tissue.
    ax.contour(x, y, np.pad(found.mask, 1).astype(float), levels=[0.5], colors=_MASK_COLOR, linewidths=1.2)
    area = found.mask.sum() * (found.um_per_px / 1000) ** 2
    return Line2D([], [], color=_MASK_COLOR, label=f"tissue, {area:.3g} mm², {found.share:.0%} of the slide")


def _region(ax: Axes, wkt: str, shown: Tissue) -> Line2D:
    for polygon in shapely.get_parts(shapely.from_wkt(wkt)):
        for ring in (polygon.exterior, *polygon.interiors):
            ax.plot(*(np.asarray(ring.coords)[:, :2] * shown.scale).T, color=_ROI_COLOR, linestyle="--", linewidth=1.2)
    return Line2D([], [], color=_ROI_COLOR, linestyle="--", label="region of interest")


def _positions(ax: Axes, shown: Tissue, settings: Any) -> Line2D:
    diameter = shown.spot_px
    n = len(shown.rows)
    style: dict[str, Any]
    if dot_points(ax, diameter) < _RING_PT:
        draw_dots(ax, shown.centers_px, 0.3 * diameter, facecolors=_GRID_COLOR)
        style = {"mfc": _GRID_COLOR, "mec": "0.5", "mew": 0.5, "markersize": 4}
    else:
        draw_dots(ax, shown.centers_px, diameter, facecolors="none", edgecolors=_GRID_COLOR, linewidths=0.6)
        style = {"mfc": "none", "mec": "#d4b800", "markersize": 6}
    apart = f", {float(settings['spacing_um']):g} µm apart" if "spacing_um" in settings else ""
    return Line2D([], [], marker="o", linestyle="", label=f"{n:,} positions{apart}", **style)
