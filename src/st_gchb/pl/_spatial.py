"""Spatial plots on the H&E: measured and predicted expression of genes, and confidence of spots."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.lines import Line2D

from st_gchb._arguments import Positive, Share, checked
from st_gchb._compat import named_layers
from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingKeyError
from st_gchb.metrics import pearson
from st_gchb.pl._figure import CMAP
from st_gchb.pl._slice import (
    Tissue,
    color_bar,
    dot_points,
    draw_dots,
    draw_tissue,
    draw_values,
    new_axes,
    table_of,
    tissue_of,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData

IMAGE_ALPHA = 0.45
"""Opacity of the image below spots."""
_UNIT = "log(1 + counts per 10⁴)"


@checked
def measured_vs_predicted(
    pred: AnnData | SpatialData,
    genes: str | Sequence[str],
    *,
    table: str | None = None,
    slice: str | None = None,
    slice_key: str | None = None,
    layer: str = Keys.LAYER,
    measured_layer: str = "measured",
    show_tissue: bool = True,
    cmap: str | Colormap = CMAP,
    size: Positive | None = None,
    image_alpha: Share = IMAGE_ALPHA,
    axs: np.ndarray | None = None,
) -> np.ndarray:
    """Plot measured and predicted expression of genes on the H&E, one row of axes per gene.

    Both share one color scale, from the 1st to the 99th percentile of their values. Their Pearson correlation over the
    spots of the slice is in the title.

    Parameters
    ----------
    pred
        Result of ``model.predict``: predicted log-normalized expression in ``layers[layer]``, ``(n_spots, n_genes)``,
        spot centers in ``obsm["spatial"]``, the H&E in ``uns["spatial"]``; or the SpatialData to which it was written.
    genes
        Genes to plot.
    table
        Table to plot, for a SpatialData; by default ``"st_gchb"``.
    slice
        Slice to plot; needed only if there are several.
    slice_key
        Column of ``obs`` with the slice of each spot; by default ``"slice"`` if present.
    layer
        Layer with the prediction.
    measured_layer
        Layer with the measured log-normalized expression; if it is absent, there is no such column of axes.
    show_tissue
        Show the H&E alone in the first column of axes.
    cmap
        A color map or its name.
    size
        Diameter of the drawn spots over their true diameter; by default 1.5, or less if they would overlap.
    image_alpha
        Opacity of the H&E under the spots, 0 to 1.
    axs
        Axes to draw into, ``(n_genes, n_columns)``; new ones by default.

    Returns
    -------
    numpy.ndarray
        Axes, ``(n_genes, n_columns)``, with the columns H&E, measured and predicted.

    Raises
    ------
    MissingKeyError
        A gene or the layer is not in ``pred``.
    SliceError
        There are several slices and none was named, or the one named does not exist.
    InputError
        ``axs`` has another shape, or no gene was named.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from st_gchb import pl
    >>> values = np.random.default_rng(0).random((3, 1)).astype("float32")
    >>> pred = AnnData(values, obsm={"spatial": np.array([[10.0, 10.0], [20.0, 10.0], [10.0, 20.0]])})
    >>> pred.var_names = ["ERBB2"]
    >>> pred.layers["st_gchb"] = pred.layers["measured"] = values
    >>> image = np.full((30, 30, 3), 230, dtype="uint8")
    >>> scale = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 5.0, "microns_per_pixel": 10.0}
    >>> pred.uns["spatial"] = {"C2": {"images": {"hires": image}, "scalefactors": scale}}
    >>> pl.measured_vs_predicted(pred, "ERBB2").shape
    (1, 3)
    """
    names = [genes] if isinstance(genes, str) else list(genes)
    pred, slice_key = table_of(pred, table, slice_key)
    check_genes(pred, names, layer)
    tissue = tissue_of(pred, slice, slice_key)
    layers = {"Measured": measured_layer} if measured_layer in pred.layers else {}
    layers["Predicted"] = layer
    n_columns = len(layers) + show_tissue
    if axs is None:
        axs = new_axes(len(names), n_columns, tissue.aspect)
    elif np.shape(axs) != (len(names), n_columns):
        raise InputError(f"axs has shape {np.shape(axs)}; expected ({len(names)}, {n_columns}), one row a gene")
    for row, gene in zip(axs, names, strict=True):
        values = {title: values_of(pred, tissue, gene, layer) for title, layer in layers.items()}
        if show_tissue:
            draw_tissue(row[0], tissue, scale_bar=True)
            row[0].set_title("H&E", fontsize=10)
        style: Any = {"cmap": cmap, "size": size, "image_alpha": image_alpha, "beside_tissue": show_tissue}
        own = row[int(show_tissue) :]
        draw_gene(own, tissue, values, **style)
        if len(values) == 2:
            r = pearson(*(shown[:, None] for shown in values.values()))[0]
            own[-1].set_title(f"Predicted, r = {r:.2f}".replace("-", "−"), fontsize=10)
        row[0].set_ylabel(gene, fontsize=11, fontstyle="italic")
    return axs


def draw_gene(
    row: Sequence[Axes],
    tissue: Tissue,
    values: dict[str, np.ndarray],
    *,
    cmap: str | Colormap,
    size: float | None,
    image_alpha: float,
    beside_tissue: bool,
) -> None:
    """Draw maps of a gene by title, one in each of the axes, with one color scale for all."""
    every = np.concatenate(list(values.values()))
    low, high = np.percentile(every, [1, 99])
    norm = Normalize(low, high if high > low else low + 1.0)
    for ax, (title, shown) in zip(row, values.items(), strict=True):
        # If the H&E has a column of its own, the scale bar is there.
        scale_bar = ax is row[0] and not beside_tissue
        draw_values(ax, tissue, shown, norm=norm, cmap=cmap, size=size, image_alpha=image_alpha, scale_bar=scale_bar)
        ax.set_title(title, fontsize=10)
    below, above = every.min() < low, every.max() > high
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get((below, above), "both")
    color_bar(row, norm, cmap, _UNIT, extend)


def values_of(pred: AnnData, tissue: Tissue, gene: str, layer: str) -> np.ndarray:
    """Return a gene's values of a layer at the spots of the slice, ``(n,)``."""
    column = pred[tissue.rows, gene].to_df(layer).iloc[:, 0]
    return column.to_numpy(dtype=float)


def check_genes(pred: AnnData, genes: list[str], layer: str) -> None:
    """Validate that a layer and genes are there; errors as :func:`measured_vs_predicted`."""
    if not genes:
        raise InputError("no gene was named: pass genes=, such as pred.var_names[:3]")
    layers = list(named_layers(pred))
    if layer not in layers:
        raise MissingKeyError(
            f"pred.layers has no {layer!r}; found {layers}. Pass what model.predict returns, or layer="
        )
    for gene in genes:
        if gene not in pred.var_names:
            close = difflib.get_close_matches(gene, list(pred.var_names), n=3, cutoff=0.5)
            raise MissingKeyError(
                f"gene {gene!r} is not among the {pred.n_vars:,} of pred; close names: {close or 'none'}"
            )


_OUTLIER_COLOR = "#d62728"
_RINGED_PT = 5.0
"""Diameter, in points, below which a dot is too small for a ring."""


@checked
def confidence(
    pred: AnnData | SpatialData,
    *,
    table: str | None = None,
    slice: str | None = None,
    slice_key: str | None = None,
    cmap: str | Colormap = "cividis",
    size: Positive | None = None,
    image_alpha: Share = IMAGE_ALPHA,
    ax: Axes | None = None,
) -> Axes:
    """Plot the confidence of each spot on the H&E; rings, or red dots, mark spots unlike the reference.

    Parameters
    ----------
    pred
        Result of ``model.predict``, with ``obs["st_gchb_confidence"]`` (0 to 1) and, for the marks,
        ``obs["st_gchb_outlier"]``; or the SpatialData to which it was written.
    table
        Table to plot, for a SpatialData; by default ``"st_gchb"``.
    slice
        Slice to plot; needed only if there are several.
    slice_key
        Column of ``obs`` with the slice of each spot; by default ``"slice"`` if present.
    cmap
        A color map or its name.
    size
        Diameter of the drawn spots over their true diameter; by default 1.5, or less if they would overlap.
    image_alpha
        Opacity of the H&E under the spots, 0 to 1.
    ax
        Axes to draw into; new ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    MissingKeyError
        ``pred`` has no confidence.
    SliceError
        There are several slices and none was named, or the one named does not exist.

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
    """Mark outliers by rings, or by the color of their dots if these are too small for rings."""
    if not outlier.any():
        return
    centers, diameter = tissue.centers_px[outlier], tissue.dot_px(size)
    style: dict[str, Any] = {"mfc": _OUTLIER_COLOR, "mec": _OUTLIER_COLOR}
    if dot_points(ax, diameter) < _RINGED_PT:
        draw_dots(ax, centers, diameter, facecolors=_OUTLIER_COLOR)
    else:
        # The ring is drawn inside the dot, whose edge may touch its neighbor's.
        draw_dots(ax, centers, 0.9 * diameter, facecolors="none", edgecolors=_OUTLIER_COLOR, linewidths=1.5)
        style["mfc"] = "none"
    text = f"unlike the reference: {outlier.sum():,} of {len(outlier):,}"
    handle = Line2D([], [], marker="o", linestyle="", label=text, **style)
    _below(ax, [handle], "black")


def _below(ax: Axes, handles: list[Any], color: str) -> None:
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0.0, 0.0), "borderaxespad": 0.2}
    ax.legend(handles=handles, frameon=False, fontsize=8, handletextpad=0.4, labelcolor=color, **place)


def _whole_slide(pred: AnnData, name: str, outlier: np.ndarray) -> bool:
    """Return True if the slide was flagged as a whole, so that one line of text replaces a ring around every spot."""
    stored = pred.uns.get(Keys.UNS, {}).get(Keys.STAIN)
    if stored is None or not outlier.all():
        return False
    return name in stored.index and not bool(stored.loc[name, "in_range"])
