"""Saving of figures, and a color map for rasters that are drawn over a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, ListedColormap

from st_gchb._arguments import Dpi, checked
from st_gchb._artifacts import write_whole
from st_gchb._errors import ArgumentError, InputError

CMAP = "viridis"
"""Color map of expression."""


@checked
def save(axes: Any, path: str | Path, *, dpi: Dpi = 150) -> None:
    """Save the figure of some axes to a file and close it.

    The file is written completely or not at all.

    Parameters
    ----------
    axes
        Axes, or an array of them, as every function of :mod:`st_gchb.pl` returns.
    path
        Path of the file; its suffix sets the format.
    dpi
        Resolution of raster formats, dots per inch.

    Raises
    ------
    ArgumentError
        The suffix is no format that matplotlib can write.
    StoreError
        The file cannot be written.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, tempfile
    >>> from st_gchb import pl
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pl.save(plt.subplots()[1], folder + "/empty.png")
    """
    figure = np.ravel(axes)[0].figure
    known = sorted(figure.canvas.get_supported_filetypes())
    if Path(path).suffix.removeprefix(".").lower() not in known:
        raise ArgumentError(f"save: path={str(path)!r}; expected a name that ends in .{', .'.join(known)}.")
    with write_whole(path) as part:
        figure.savefig(part, dpi=dpi, bbox_inches="tight")
    plt.close(figure)


_STEPS = 256


class TransparentColormap(ListedColormap):
    """Color map that is transparent at and below the lower end of its scale."""

    def __call__(self, X: Any, alpha: Any = None, bytes: bool = False) -> Any:
        """Map values to RGBA colors, ``(..., 4)``; the lower end of the scale is 0."""
        rgba = np.array(super().__call__(X, alpha, bytes))
        rgba[np.ma.filled(np.ma.asarray(X) <= 0, True), 3] = 0
        return rgba if np.ndim(X) else tuple(rgba)


@checked
def transparent_cmap(cmap: str | Colormap = CMAP) -> Colormap:
    """Make a color map for a raster over the H&E that is transparent where there is no prediction.

    spatialdata-plot applies one opacity to a whole raster, so that pixels without a prediction, which are 0, would tint
    the slide. Set this color map on the image after spatialdata-plot has drawn it:
    ``ax.images[-1].set_cmap(transparent_cmap())``. Passed as ``cmap=transparent_cmap()``, it has no effect with
    versions of spatialdata-plot after 0.4.0, which rebuild the color map with opaque colors.

    Parameters
    ----------
    cmap
        A matplotlib color map or its name.

    Returns
    -------
    matplotlib.colors.Colormap
        The same colors, transparent at and below the lower end of the norm (0 by default).

    Raises
    ------
    InputError
        There is no such color map.

    Examples
    --------
    >>> import st_gchb
    >>> float(st_gchb.pl.transparent_cmap("magma")(0.0)[3])
    0.0
    """
    if isinstance(cmap, str) and cmap not in colormaps:
        raise InputError(f"cmap={cmap!r} is no color map of matplotlib; see list(matplotlib.colormaps).")
    colors = colormaps[cmap] if isinstance(cmap, str) else cmap
    return TransparentColormap(colors(np.linspace(0, 1, _STEPS)), name=f"{colors.name}_transparent")
