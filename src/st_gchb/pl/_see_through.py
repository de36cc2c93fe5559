"""Colours for maps that are drawn over a slide."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, ListedColormap

from st_gchb._arguments import checked
from st_gchb._errors import InputError

_STEPS = 256


class SeeThrough(ListedColormap):
    """A colour map that shows nothing at, and below, the lower end of its scale."""

    def __call__(self, X: Any, alpha: Any = None, bytes: bool = False) -> Any:
        """Colours of values, ``(..., 4)``; the scale's lower end is 0."""
        rgba = np.array(super().__call__(X, alpha, bytes))
        rgba[np.ma.filled(np.ma.asarray(X) <= 0, True), 3] = 0
        return rgba if np.ndim(X) else tuple(rgba)


@checked
def see_through(cmap: str | Colormap = "viridis") -> Colormap:
    """Colour map for a raster that is drawn over the H&E: nothing is drawn where there is no tissue.

    spatialdata-plot sets one opacity for a whole map, so that places without a prediction, which are 0, would tint the
    slide. Set this map on the picture that it has drawn: ``ax.images[-1].set_cmap(see_through())``. As an argument,
    ``cmap=see_through()``, spatialdata-plot after 0.4.0 takes it apart and draws all of it opaque.

    Parameters
    ----------
    cmap
        Name of a matplotlib colour map, or one.

    Returns
    -------
    matplotlib.colors.Colormap
        The same colours; what is at or below the lower end of the norm (0 by default) is see-through.

    Raises
    ------
    InputError
        There is no such colour map.

    Examples
    --------
    >>> import st_gchb
    >>> float(st_gchb.pl.see_through("magma")(0.0)[3])
    0.0
    """
    if isinstance(cmap, str) and cmap not in colormaps:
        raise InputError(f"cmap={cmap!r} is no colour map of matplotlib; see list(matplotlib.colormaps).")
    colours = colormaps[cmap] if isinstance(cmap, str) else cmap
    return SeeThrough(colours(np.linspace(0, 1, _STEPS)), name=f"{colours.name}_see_through")
