"""Colors for maps that are drawn over a slide."""

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


@checked
def save(axes: Any, path: str | Path, *, dpi: Dpi = 150) -> None:
    """Write the figure of some axes to a file, whole or not at all, and close it.

    Parameters
    ----------
    axes
        Axes, or an array of them, as every function of :mod:`st_gchb.pl` returns.
    path
        File; its ending says the format.
    dpi
        Resolution of pixel formats.

    Raises
    ------
    ArgumentError
        The file's ending says no format that matplotlib writes.
    StoreError
        No file can be written there.

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


class SeeThrough(ListedColormap):
    """A color map that shows nothing at, and below, the lower end of its scale."""

    def __call__(self, X: Any, alpha: Any = None, bytes: bool = False) -> Any:
        """Colors of values, ``(..., 4)``; the scale's lower end is 0."""
        rgba = np.array(super().__call__(X, alpha, bytes))
        rgba[np.ma.filled(np.ma.asarray(X) <= 0, True), 3] = 0
        return rgba if np.ndim(X) else tuple(rgba)


@checked
def transparent_cmap(cmap: str | Colormap = "viridis") -> Colormap:
    """Color map for a raster that is drawn over the H&E: nothing is drawn where there is no tissue.

    spatialdata-plot sets one opacity for a whole map, so that places without a prediction, which are 0, would tint the
    slide. Set this map on the picture that it has drawn: ``ax.images[-1].set_cmap(transparent_cmap())``. As
    an argument, ``cmap=transparent_cmap()``, spatialdata-plot after 0.4.0 takes it apart and draws all of it opaque.

    Parameters
    ----------
    cmap
        Name of a matplotlib color map, or one.

    Returns
    -------
    matplotlib.colors.Colormap
        The same colors; what is at or below the lower end of the norm (0 by default) is see-through.

    Raises
    ------
    InputError
        There is no such color map.

    Examples
    --------
    >>> import st_gchb
    >>> float(st_gchb.pl.see_through("magma")(0.0)[3])
    0.0
    """
    if isinstance(cmap, str) and cmap not in colormaps:
        raise InputError(f"cmap={cmap!r} is no color map of matplotlib; see list(matplotlib.colormaps).")
    colors = colormaps[cmap] if isinstance(cmap, str) else cmap
    return SeeThrough(colors(np.linspace(0, 1, _STEPS)), name=f"{colors.name}_see_through")
