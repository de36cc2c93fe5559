"""How far a prediction can be trusted, spot by spot, on the tissue."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from st_gchb._constants import Keys
from st_gchb._errors import MissingKeyError
from st_gchb.pl._tissue import color_bar, draw_values, new_axes, tissue_of

_OUTLIER_COLOR = "#d62728"


def confidence(
    pred: AnnData,
    *,
    slice: str | None = None,
    slice_key: str | None = None,
    cmap: str = "cividis",
    size: float = 1.5,
    image_alpha: float = 0.45,
    ax: Axes | None = None,
) -> Axes:
    """Draw the confidence of each spot on the H&E; rings mark spots unlike any of the reference.

    Parameters
    ----------
    pred
        What ``model.predict`` returns, with ``obs["st_gchb_confidence"]`` (0 to 1) and, for the rings,
        ``obs["st_gchb_outlier"]``.
    slice
        The slice to draw; may be left out when there is one.
    slice_key
        Column of ``obs`` with the slice of each spot; ``"slice"`` where it is there.
    cmap
        Name of a colour map.
    size
        Diameter of the drawn spots over that of the true ones.
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
        _ring(ax, tissue.centers_px[outlier], 1.15 * size * tissue.spot_px)
    color_bar([ax], norm, cmap, "confidence")
    ax.set_title("Confidence", fontsize=10)
    return ax


def _ring(ax: Axes, centers: np.ndarray, diameter: float) -> None:
    if not len(centers):
        return
    # Circles of the tissue's own unit: they stay around their spots at every size of the figure.
    rings = [Circle((x, y), diameter / 2) for x, y in centers]
    ax.add_collection(PatchCollection(rings, facecolors="none", edgecolors=_OUTLIER_COLOR, linewidths=1.5))
    handle = Line2D([], [], marker="o", linestyle="", mfc="none", mec=_OUTLIER_COLOR, label="unlike the reference")
    ax.legend(
        handles=[handle], loc="upper left", bbox_to_anchor=(0.0, 0.0), frameon=False, fontsize=8, borderaxespad=0.2
    )
