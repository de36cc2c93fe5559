"""Several methods side by side on the tissue: measured expression of genes and each method's prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData
from matplotlib.colors import Colormap

from st_gchb._arguments import Positive, Share, checked
from st_gchb._compat import named_layers
from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingKeyError
from st_gchb.metrics import pearson
from st_gchb.pl._figure import CMAP
from st_gchb.pl._slice import new_axes, tissue_of
from st_gchb.pl._spatial import IMAGE_ALPHA, check_genes, draw_gene, values_of


@checked
def compare_methods(
    results: AnnData | Mapping[str, AnnData],
    genes: str | Sequence[str],
    *,
    methods: Sequence[str] | None = None,
    slice: str | None = None,
    slice_key: str | None = None,
    measured_layer: str = Keys.MEASURED,
    cmap: str | Colormap = CMAP,
    size: Positive | None = None,
    image_alpha: Share = IMAGE_ALPHA,
    axs: np.ndarray | None = None,
) -> np.ndarray:
    """Plot genes on the H&E as they were measured and as each method predicts them, one row of axes per gene.

    All maps of a gene share one color scale, from the 1st to the 99th percentile of their values. The correlation of
    each prediction with the measurement over the spots of the slice is in its title.

    Parameters
    ----------
    results
        AnnData with one layer per method, and measured log-normalized expression in ``layers[measured_layer]``, as
        :meth:`Evaluation.compared <st_gchb.evaluate.Evaluation.compared>` makes it; or results of ``model.predict`` by
        name of the method, for the same spots, of which the first one holds the measured expression.
    genes
        Genes to plot.
    methods
        Methods to plot, in this order; by default all.
    slice, slice_key
        Slice to plot if there are several, and column of ``obs`` with the slice of each spot.
    measured_layer
        Layer with the measured log-normalized expression.
    cmap
        A color map or its name.
    size
        Diameter of the drawn spots over their true diameter; by default 1.5, or less if they would overlap.
    image_alpha
        Opacity of the H&E under the spots, 0 to 1.
    axs
        Axes to draw into, ``(n_genes, n_methods + 1)``; new ones by default.

    Returns
    -------
    numpy.ndarray
        Axes, ``(n_genes, n_methods + 1)``: measured, then the methods.

    Raises
    ------
    MissingKeyError
        A gene, a method or the measured expression is not there.
    SliceError
        There are several slices and none was named, or the one named does not exist.
    InputError
        No gene or method was named, the results are of different spots, or ``axs`` has another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from st_gchb import pl
    >>> values = np.random.default_rng(0).random((3, 1)).astype("float32")
    >>> found = AnnData(values, obsm={"spatial": np.array([[10.0, 10.0], [20.0, 10.0], [10.0, 20.0]])})
    >>> found.var_names = ["ERBB2"]
    >>> for name in ("measured", "default", "ridge"):
    ...     found.layers[name] = values
    >>> image = np.full((30, 30, 3), 230, dtype="uint8")
    >>> scale = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 5.0, "microns_per_pixel": 10.0}
    >>> found.uns["spatial"] = {"C2": {"images": {"hires": image}, "scalefactors": scale}}
    >>> pl.compare_methods(found, "ERBB2").shape
    (1, 3)
    """
    found = _one_table(results, measured_layer) if isinstance(results, Mapping) else results
    names = [genes] if isinstance(genes, str) else list(genes)
    check_genes(found, names, measured_layer)
    shown = _methods(found, methods, measured_layer)
    tissue = tissue_of(found, slice, slice_key)
    shape = (len(names), len(shown) + 1)
    if axs is None:
        axs = new_axes(*shape, tissue.aspect)
    elif np.shape(axs) != shape:
        raise InputError(f"axs has shape {np.shape(axs)}; expected {shape}, one row a gene, measured and each method")
    for row, gene in zip(axs, names, strict=True):
        layers = {"Measured": measured_layer} | {method: method for method in shown}
        values = {title: values_of(found, tissue, gene, layer) for title, layer in layers.items()}
        draw_gene(row, tissue, values, cmap=cmap, size=size, image_alpha=image_alpha, beside_tissue=False)
        for ax, method in zip(row[1:], shown, strict=True):
            r = pearson(values["Measured"][:, None], values[method][:, None])[0]
            ax.set_title(f"{method}\n" + f"r = {r:.2f}".replace("-", "−"), fontsize=10)
        row[0].set_ylabel(gene, fontsize=11, fontstyle="italic")
    return axs


def _methods(found: AnnData, methods: Sequence[str] | None, measured_layer: str) -> list[str]:
    """Return the layers to plot."""
    known = [name for name in named_layers(found) if name != measured_layer]
    shown = known if methods is None else list(methods)
    if not shown:
        raise InputError("no method to plot: pass results with a layer for each method, or methods=")
    missing = [name for name in shown if name not in known]
    if missing:
        raise MissingKeyError(f"methods {missing} are not among the results; found {known}")
    return shown


def _one_table(results: Mapping[str, AnnData], measured_layer: str) -> AnnData:
    """Collect the results of several models for the same spots in one table, with a layer for each."""
    if not results:
        raise InputError("no result was given: pass model.predict(query) by name of the method")
    first_name, first = next(iter(results.items()))
    genes = [gene for gene in first.var_names if all(gene in one.var_names for one in results.values())]
    if not genes:
        raise InputError(f"the results have no gene in common; found {[one.n_vars for one in results.values()]} genes")
    if measured_layer not in first.layers:
        raise MissingKeyError(
            f"the result of {first_name!r} has no layers[{measured_layer!r}]; found {list(named_layers(first))}. "
            "model.predict adds it where the query has measured expression of all genes."
        )
    table = first[:, genes].copy()
    for layer in [name for name in named_layers(table) if name != measured_layer]:
        del table.layers[layer]
    other = next((name for name, one in results.items() if not one.obs_names.equals(first.obs_names)), None)
    if other is not None:
        raise InputError(f"the results of {first_name!r} and {other!r} are of different spots")
    for name, one in results.items():
        if Keys.LAYER not in one.layers:
            raise MissingKeyError(f"the result of {name!r} has no layers[{Keys.LAYER!r}]; pass what predict returns")
        table.layers[name] = np.asarray(one[:, genes].layers[Keys.LAYER])
    return table
