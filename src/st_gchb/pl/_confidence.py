"""How far a prediction can be trusted, spot by spot, on the tissue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.lines import Line2D

from st_gchb._arguments import Positive, Share, checked
from st_gchb._constants import Keys
from st_gchb._errors import MissingKeyError
from st_gchb.pl._tissue import Tissue, color_bar, dot_points, draw_dots, draw_values, new_axes, table_of, tissue_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

_OUTLIER_COLOR = "#d62728"
_RINGED_PT = 5.0
"""Dots smaller than this, in points, have no room for a ring."""


@checked
def confidence(
    pred: AnnData | SpatialData,
    *,
    table: str | None = None,
    slice: str | None = None,
    slice_key: str | None = None,
    cmap: str | Colormap = "cividis",
    size: Positive | None = None,
    image_alpha: Share = 0.45,
    ax: Axes | None = None,
) -> Axes:
    """Draw the confidence of each spot on the H&E; rings, or red dots, mark spots unlike any of the reference.

    Parameters
    ----------
    pred
        What ``model.predict`` returns, with ``obs["st_gchb_confidence"]`` (0 to 1) and, for the rings,
        ``obs["st_gchb_outlier"]``. Or the SpatialData that it was written to.
    table
        For a SpatialData: the table to draw, by default ``"st_gchb"``.
    slice
        The slice to draw; may be left out when there is one.
    slice_key
        Column of ``obs`` with the slice of each spot; ``"slice"`` where it is there.
    cmap
        Name of a colour map.
    size
        Diameter of the drawn spots over that of the true ones; by default 1.5, or less where dots would overlap.
    image_alpha
        Opacity of the H&E under the spots, 0 to 1.
    ax
        Axes to draw into; new ones where left out.

    Returns
    -------
    The axes.

    Raises
    ------
    MissingKeyError
        ``pred`` has no confidence.
    SliceError
        There are several slices and none was named.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from st_gchb import pl
    >>> pred = AnnData(obsm={"spatial": np.array([[10.0, 10.0], [20.0, 10.0]])})
    >>> pred.obs["st_gchb_confidence"] = [0.2, 0.9]
    >>> scale = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 5.0}
    >>> image = np.full((30, 30, 3), 230, dtype="uint8")
    >>> pred.uns["spatial"] = {"C2": {"images": {"hires": image}, "scalefactors": scale}}
    >>> pl.confidence(pred).get_title()
    'Confidence'
    """
    pred, slice_key = table_of(pred, table, slice_key)
    if Keys.CONFIDENCE not in pred.obs:
        raise MissingKeyError(
            f"pred.obs has no {Keys.CONFIDENCE!r}; found {list(pred.obs.columns)}. Pass what model.predict returns"
        )
    tissue = tissue_of(pred, slice, slice_key)
    if ax is None:
        ax = new_axes(1, 1, tissue.aspect, height=4.0)[0, 0]
    norm = Normalize(0.0, 1.0)
    values = pred.obs[Keys.CONFIDENCE].to_numpy(dtype=float)[tissue.rows]
    draw_values(ax, tissue, values, norm=norm, cmap=cmap, size=size, image_alpha=image_alpha, scale_bar=True)
    if Keys.OUTLIER in pred.obs:
        outlier = pred.obs[Keys.OUTLIER].to_numpy(dtype=bool)[tissue.rows]
        if _whole_slide(pred, tissue.name, outlier):
            _below(ax, [Line2D([], [], linestyle="", label="The whole slide is unlike the reference.")], _OUTLIER_COLOR)
        else:
            _mark(ax, tissue, outlier, size)
    color_bar([ax], norm, cmap, "confidence")
    ax.set_title("Confidence", fontsize=10)
    return ax


def _mark(ax: Axes, tissue: Tissue, outlier: np.ndarray, size: float | None) -> None:
    """Ring the outliers; where dots are too small for rings, draw them in the rings' colour."""
    if not outlier.any():
        return
    centers, diameter = tissue.centers_px[outlier], tissue.dot_px(size)
    style: dict[str, Any] = {"mfc": _OUTLIER_COLOR, "mec": _OUTLIER_COLOR}
    if dot_points(ax, diameter) < _RINGED_PT:
        draw_dots(ax, centers, diameter, facecolors=_OUTLIER_COLOR)
    else:
        # Inside the dot, whose edge may touch its neighbour's.
        draw_dots(ax, centers, 0.9 * diameter, facecolors="none", edgecolors=_OUTLIER_COLOR, linewidths=1.5)
        style["mfc"] = "none"
    text = f"unlike the reference: {outlier.sum():,} of {len(outlier):,}"
    handle = Line2D([], [], marker="o", linestyle="", label=text, **style)
    _below(ax, [handle], "black")


def _below(ax: Axes, handles: list[Any], color: str) -> None:
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, 0.0), "borderaxespad": 0.2}
    ax.legend(handles=handles, frameon=False, fontsize=8, handletextpad=0.4, labelcolor=color, **place)


def _whole_slide(pred: AnnData, name: str, outlier: np.ndarray) -> bool:
    """Whether the slide was flagged as a whole: rings around every spot would say no more than a line of text."""
    stored = pred.uns.get(Keys.UNS, {}).get(Keys.STAIN)
    if stored is None or not outlier.all():
        return False
    return name in stored.index and not bool(stored.loc[name, "in_range"])
