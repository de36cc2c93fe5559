"""Figures to files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from st_gchb._arguments import Dpi, checked
from st_gchb._errors import ArgumentError
from st_gchb._files import write_whole


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
