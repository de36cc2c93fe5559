"""One slice drawn on its H&E: what all maps share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import squidpy as sq
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Colormap, Normalize
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, MissingKeyError, SliceError
from st_gchb.io import Library, libraries_of, put_libraries
from st_gchb.pp import resolve
from st_gchb.pp.spots import spot_centers

if TYPE_CHECKING:
    from spatialdata import SpatialData


def _in_um(value: float, unit: str) -> str:
    """Label of the scale bar: µm alone, as everywhere else in the package, also where mm would be shorter."""
    return f"{value * 1000:,g} µm" if unit == "mm" else f"{value:g} {unit}"


_SCALE_BAR = {"scale_formatter": _in_um, "font_properties": {"size": 8}, "pad": 0.3, "border_pad": 0.3}
# On the H&E alone the bar has its place inside.
_INSIDE = _SCALE_BAR | {"location": "lower right", "box_alpha": 0.75}
# Where spots are drawn it stands under the panel, for many sections fill their rectangle.
_UNDER = _SCALE_BAR | {"location": "upper right", "bbox_to_anchor": (1.0, 0.0), "frameon": False, "scale_loc": "left"}
_WIDER = 1.5
"""Dots are drawn this much wider than the spots, where the spots have that much room."""


@dataclass(frozen=True)
class Tissue:
    """One slice, ready to be drawn: its rows, spots in image px, and image.

    Parameters
    ----------
    name
        The slice.
    rows
        Its rows in the caller's object, ``(n_spots,)``.
    spots
        Light object with the spots' positions and the image alone, so that nothing is written to the caller's.
    image_key
        Name of the down-scaled image, or None where there is none.
    scale
        Image px per full-resolution px.
    um_per_px
        Size of an image px, µm; None where it is not known.
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
    def picture(self) -> np.ndarray | None:
        """The down-scaled image, ``(h, w, 3)``."""
        images = libraries_of(self.spots)[self.name].images
        return None if self.image_key is None else np.asarray(images[self.image_key])

    def dot_px(self, size: float | None) -> float:
        """Diameter of a drawn dot, image px: ``size`` spots; without it dots may touch and do not overlap."""
        if size is not None:
            return size * self.spot_px
        room = _spacing(self.centers_px) if len(self.rows) > 1 else np.inf
        return min(_WIDER * self.spot_px, room)

    @property
    def aspect(self) -> float:
        """Width of the drawn tissue over its height."""
        left, right, bottom, top = self.limits
        return (right - left) / (bottom - top)

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of the spots and a rim, image px (y grows downwards)."""
        xy = self.centers_px
        rim = 1.5 * self.spot_px
        (left, top), (right, bottom) = xy.min(axis=0) - rim, xy.max(axis=0) + rim
        return left, right, bottom, top


def table_of(data: AnnData | SpatialData, table: str | None, slice_key: str | None) -> tuple[AnnData, str | None]:
    """An AnnData with pictures, and its column of slices; of a SpatialData the prediction, unless a table is named.

    Raises
    ------
    InputError, MissingKeyError
        The table or its image is not to be found, or there are several.
    """
    if isinstance(data, AnnData) and table is None:
        return data, slice_key
    if table is None and Keys.TABLE in getattr(data, "tables", {}):
        table = Keys.TABLE
    resolved = resolve(data, table=table, thumbnails=True)
    return resolved.adata, slice_key or resolved.slice_key


def tissue_of(pred: AnnData, slice_name: str | None, slice_key: str | None) -> Tissue:
    """Find the slice to draw, its spots, image and scale.

    Raises
    ------
    SliceError
        There are several slices and none was named, or the one named is not there.
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
    """Draw the H&E alone, cut to the spots."""
    _background(ax, tissue, image_alpha=image_alpha, scale_bar=scale_bar, under=False)


def draw_slide(ax: Axes, tissue: Tissue, *, image_alpha: float) -> None:
    """Draw the whole picture of the slide, with a scale bar in its corner."""
    _background(ax, tissue, image_alpha=image_alpha, scale_bar=True, under=False)
    if tissue.picture is not None:
        height, width = tissue.picture.shape[:2]
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
    """Draw one value a spot, ``(n_spots,)``, over the faded H&E."""
    _background(ax, tissue, image_alpha=image_alpha, scale_bar=scale_bar, under=True)
    draw_dots(ax, tissue.centers_px, tissue.dot_px(size), array=np.asarray(values, dtype=float), norm=norm, cmap=cmap)


def draw_dots(ax: Axes, centers: np.ndarray, diameter: float, **style: Any) -> None:
    """Circles in the tissue's own unit, so that they keep their size relative to it in every figure.

    One collection of equal circles: 100,000 positions of a dense grid are drawn in about a second.
    """
    units = {"units": "xy", "offsets": centers, "offset_transform": ax.transData}
    ax.add_collection(EllipseCollection(diameter, diameter, 0.0, **{"linewidths": 0.0} | style | units))


def dot_points(ax: Axes, diameter: float) -> float:
    """Diameter of a circle as it will be seen, in points."""
    left, right = ax.get_xlim()
    extent = ax.get_window_extent()
    return float(diameter * abs(extent.width / (right - left)) * 72.0 / ax.figure.dpi)


def new_axes(n_rows: int, n_columns: int, aspect: float, height: float = 3.0) -> np.ndarray:
    """Axes in a grid, ``(n_rows, n_columns)``, each as wide as the tissue needs."""
    size = (n_columns * height * aspect + 1.0, n_rows * height + 0.4)
    return plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")[1]


def color_bar(axs: Iterable[Axes], norm: Normalize, cmap: str | Colormap, label: str, extend: str = "neither") -> None:
    """One named color bar at the right of the axes that share it."""
    shared = list(axs)
    mappable = plt.cm.ScalarMappable(norm=norm, cmap=cmap)
    bar = shared[0].figure.colorbar(mappable, ax=shared, extend=extend, shrink=0.85, aspect=18, pad=0.02)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _background(ax: Axes, tissue: Tissue, *, image_alpha: float, scale_bar: bool, under: bool) -> None:
    """The H&E and its scale bar, inside or under the panel, by squidpy."""
    kwargs: dict[str, Any] = {}
    under = under and scale_bar and tissue.um_per_px is not None
    if scale_bar and tissue.um_per_px is not None:
        kwargs = {"scalebar_dx": tissue.um_per_px, "scalebar_units": "um"}
        kwargs["scalebar_kwargs"] = _UNDER | {"bbox_transform": ax.transAxes} if under else _INSIDE
    sq.pl.spatial_scatter(
        # The image belongs to the slice, not to its spots: one is enough.
        tissue.spots[:1],
        library_id=tissue.name,
        img=tissue.image_key is not None,
        img_res_key=tissue.image_key,
        img_alpha=image_alpha,
        scale_factor=tissue.scale,
        colorbar=False,
        title="",
        # The layout keeps no room for a scale bar outside the axes; a blank label does.
        axis_label=[" " if under else "", ""],
        ax=ax,
        **kwargs,
    )
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
    """Distance from a spot to the next one in the median, px."""
    if len(xy) < 2:
        return 1.0
    nearest = np.asarray(cKDTree(xy).query(xy, k=[2])[0])
    return float(np.median(nearest))
