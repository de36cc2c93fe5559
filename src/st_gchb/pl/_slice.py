"""Drawing of one slice on its H&E, shared by all spatial plots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib_scalebar.scalebar import ScaleBar
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, MissingKeyError, SliceError
from st_gchb.io import Library, libraries_of, put_libraries, spot_centers
from st_gchb.pp import resolve

if TYPE_CHECKING:
    from spatialdata import SpatialData


def _in_um(value: float, unit: str) -> str:
    """Format the label of the scale bar in µm, as everywhere in the package, even where mm would be shorter."""
    return f"{value * 1000:,g} µm" if unit == "mm" else f"{value:g} {unit}"


_SCALE_BAR = {"scale_formatter": _in_um, "font_properties": {"size": 8}, "pad": 0.3, "border_pad": 0.3}
# On the H&E alone, the scale bar is inside the axes.
_INSIDE = _SCALE_BAR | {"location": "lower right", "box_alpha": 0.75}
# With spots, it is below the axes, since the tissue of many slices fills the axes.
_UNDER = _SCALE_BAR | {"location": "upper right", "bbox_to_anchor": (1.0, 0.0), "frameon": False, "scale_loc": "left"}
_WIDER = 1.5
"""Default diameter of a drawn dot over that of the spot; smaller if dots would overlap."""


@dataclass(frozen=True)
class Tissue:
    """One slice with all that is needed to draw it: its spots, its image and their scale.

    Parameters
    ----------
    name
        Name of the slice.
    rows
        Rows of its spots in the caller's object, ``(n_spots,)``.
    spots
        AnnData with the spot centers and the image alone, so that the caller's object is not modified.
    image_key
        Name of the downscaled image, or ``None`` if there is none.
    scale
        Image px per full-resolution px.
    um_per_px
        Size of an image px, µm; ``None`` if unknown.
    """

    name: str
    rows: np.ndarray
    spots: AnnData
    image_key: str | None
    scale: float
    um_per_px: float | None

    @property
    def centers_px(self) -> np.ndarray:
        """Spot centers, ``(n_spots, 2)`` as x, y, image px."""
        return np.asarray(self.spots.obsm[Keys.SPATIAL]) * self.scale

    @property
    def spot_px(self) -> float:
        """Diameter of a spot, image px."""
        return (libraries_of(self.spots)[self.name].factor(Keys.SPOT_DIAMETER) or 0.0) * self.scale

    @property
    def image(self) -> np.ndarray | None:
        """The downscaled image, ``(h, w, 3)``; ``None`` if there is none."""
        images = libraries_of(self.spots)[self.name].images
        return None if self.image_key is None else np.asarray(images[self.image_key])

    def dot_px(self, size: float | None) -> float:
        """Return the diameter of a drawn dot, image px.

        Parameters
        ----------
        size
            Diameter of the dot over that of the spot; ``None`` takes 1.5, or less if dots would overlap.
        """
        if size is not None:
            return size * self.spot_px
        room = _spacing(self.centers_px) if len(self.rows) > 1 else np.inf
        return min(_WIDER * self.spot_px, room)

    @property
    def aspect(self) -> float:
        """Ratio of width to height of the drawn region."""
        left, right, bottom, top = self.limits
        return (right - left) / (bottom - top)

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of the spots with a margin, image px (y increases downwards)."""
        xy = self.centers_px
        rim = 1.5 * self.spot_px
        (left, top), (right, bottom) = xy.min(axis=0) - rim, xy.max(axis=0) + rim
        return left, right, bottom, top


def table_of(data: AnnData | SpatialData, table: str | None, slice_key: str | None) -> tuple[AnnData, str | None]:
    """Return the AnnData to plot, with its images, and the column of its slices.

    Parameters
    ----------
    data
        A SpatialData, or an AnnData, which is returned as it is unless ``table`` is given.
    table
        Table of a SpatialData; by default the prediction, or the only table.
    slice_key
        Column of ``obs`` with the slice of each spot; by default that of the SpatialData.

    Returns
    -------
    tuple[AnnData, str or None]
        The AnnData and the column.

    Raises
    ------
    InputError, MissingKeyError
        The table or its image does not exist, or there are several.
    """
    if isinstance(data, AnnData) and table is None:
        return data, slice_key
    if table is None and Keys.TABLE in getattr(data, "tables", {}):
        table = Keys.TABLE
    resolved = resolve(data, table=table, thumbnails=True)
    return resolved.adata, slice_key or resolved.slice_key


def tissue_of(pred: AnnData, slice_name: str | None, slice_key: str | None) -> Tissue:
    """Select the slice to draw, with its spots, image and scale.

    Parameters
    ----------
    pred
        AnnData with spot centers and images.
    slice_name
        Name of the slice; needed only if there are several.
    slice_key
        Column of ``obs`` with the slice of each spot; by default ``"slice"`` if present.

    Returns
    -------
    Tissue
        The slice.

    Raises
    ------
    SliceError
        There are several slices and none was named, or the one named does not exist.
    MissingKeyError
        ``slice_key`` is not a column of ``obs``.
    CoordinateError
        ``obsm["spatial"]`` is absent.
    """
    if Keys.SPATIAL not in pred.obsm:
        raise CoordinateError(
            'pred.obsm["spatial"] is absent; expected spot centers in full-resolution px, (n_spots, 2)'
        )
    name, rows = _rows_of(pred, slice_name, slice_key)
    library = libraries_of(pred).get(name) or Library(name)
    images = dict(library.images)
    factors = {factor: library.factor(factor) for factor in library.factors if factor.endswith("_scalef")}
    image_key = next((key for key in ("hires", "lowres", *images) if key in images), None)
    scale = (library.factor(f"tissue_{image_key}_scalef") or 1.0) if image_key else 1.0
    um = library.factor(Keys.UM_PER_PX)
    xy = spot_centers(pred)[rows]
    factors[Keys.SPOT_DIAMETER] = library.factor(Keys.SPOT_DIAMETER) or 0.5 * _spacing(xy)
    if image_key:
        factors[f"tissue_{image_key}_scalef"] = scale
    spots = AnnData(obs=pd.DataFrame(index=np.asarray(pred.obs_names)[rows]), obsm={Keys.SPATIAL: xy})
    put_libraries(spots, [Library(name, images, factors)])
    return Tissue(name, rows, spots, image_key, scale, None if um is None else um / scale)


def draw_tissue(ax: Axes, tissue: Tissue, *, image_alpha: float = 1.0, scale_bar: bool = False) -> None:
    """Draw the H&E alone, cropped to the spots."""
    _background(ax, tissue, image_alpha=image_alpha, scale_bar=scale_bar, under=False)


def draw_slide(ax: Axes, tissue: Tissue, *, image_alpha: float) -> None:
    """Draw the whole image of the slide, with a scale bar inside."""
    _background(ax, tissue, image_alpha=image_alpha, scale_bar=True, under=False)
    if tissue.image is not None:
        height, width = tissue.image.shape[:2]
        ax.set(xlim=(0, width), ylim=(height, 0))


def draw_values(
    ax: Axes,
    tissue: Tissue,
    values: ArrayLike,
    *,
    norm: Normalize,
    cmap: str | Colormap,
    size: float | None,
    image_alpha: float,
    scale_bar: bool = False,
) -> None:
    """Draw one value per spot, ``(n_spots,)``, over the H&E at opacity ``image_alpha``."""
    _background(ax, tissue, image_alpha=image_alpha, scale_bar=scale_bar, under=True)
    draw_dots(ax, tissue.centers_px, tissue.dot_px(size), array=np.asarray(values, dtype=float), norm=norm, cmap=cmap)


def draw_dots(ax: Axes, centers: np.ndarray, diameter: float, **style: Any) -> None:
    """Draw circles at ``centers``, ``(n, 2)``, with a diameter in data units (image px).

    They therefore keep their size relative to the tissue in a figure of any size. They are one matplotlib collection,
    which draws 100,000 positions of a dense grid in about a second.
    """
    units = {"units": "xy", "offsets": centers, "offset_transform": ax.transData}
    ax.add_collection(EllipseCollection(diameter, diameter, 0.0, **{"linewidths": 0.0} | style | units))


def dot_points(ax: Axes, diameter: float) -> float:
    """Convert the diameter of a circle from data units to points on the figure."""
    left, right = ax.get_xlim()
    extent = ax.get_window_extent()
    return float(diameter * abs(extent.width / (right - left)) * 72.0 / ax.figure.dpi)


def new_axes(n_rows: int, n_columns: int, aspect: float, height: float = 3.0) -> np.ndarray:
    """Create a grid of axes, ``(n_rows, n_columns)``, with ``height`` in inches and ``aspect`` as width over height."""
    size = (n_columns * height * aspect + 1.0, n_rows * height + 0.4)
    return plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")[1]


def color_bar(axs: Iterable[Axes], norm: Normalize, cmap: str | Colormap, label: str, extend: str = "neither") -> None:
    """Add a labeled color bar to the right of the axes that share it."""
    shared = list(axs)
    mappable = plt.cm.ScalarMappable(norm=norm, cmap=cmap)
    bar = shared[0].figure.colorbar(mappable, ax=shared, extend=extend, shrink=0.85, aspect=18, pad=0.02)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _background(ax: Axes, tissue: Tissue, *, image_alpha: float, scale_bar: bool, under: bool) -> None:
    """Draw the H&E, with a scale bar inside or below the axes."""
    with_bar = scale_bar and tissue.um_per_px is not None
    # A blank axis label reserves the room for a scale bar below the axes, which the layout does not do.
    ax.set(xticks=[], yticks=[], title="", xlabel=" " if under and with_bar else "", ylabel="")
    if tissue.image is not None:
        ax.imshow(tissue.image, alpha=image_alpha)
    if with_bar:
        style = _UNDER | {"bbox_transform": ax.transAxes} if under else _INSIDE
        ax.add_artist(ScaleBar(tissue.um_per_px, units="um", **style))
    left, right, bottom, top = tissue.limits
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    for spine in ax.spines.values():
        spine.set_visible(False)


def _rows_of(pred: AnnData, slice_name: str | None, slice_key: str | None) -> tuple[str, np.ndarray]:
    libraries = list(libraries_of(pred))
    key = slice_key if slice_key is not None else Keys.SLICE
    if slice_key is not None and slice_key not in pred.obs:
        raise MissingKeyError(f"pred.obs has no column {slice_key!r}; found {list(pred.obs.columns)}")
    labels = pred.obs[key].astype(str).to_numpy() if key in pred.obs else None
    names = libraries if labels is None else list(dict.fromkeys(labels))
    if slice_name is None:
        if len(names) != 1:
            raise SliceError(f"pred holds {len(names)} slices, {names}; name the one to draw: slice={names[:1]}")
        slice_name = names[0]
    elif slice_name not in names:
        raise SliceError(f"pred holds no slice {slice_name!r}; found {names}")
    rows = np.arange(pred.n_obs) if labels is None else np.flatnonzero(labels == slice_name)
    return slice_name, rows


def _spacing(xy: np.ndarray) -> float:
    """Compute the median distance from a spot to its nearest neighbor, px; 1 for a single spot."""
    if len(xy) < 2:
        return 1.0
    nearest = np.asarray(cKDTree(xy).query(xy, k=[2])[0])
    return float(np.median(nearest))
