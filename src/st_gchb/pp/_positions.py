"""Read the centers of spots from ``obsm["spatial"]``, in whichever form it holds them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, MissingKeyError

Coordinates = npt.NDArray[np.float64]

_WHAT = f"obsm[{Keys.SPATIAL!r}]"
_X = {"x", "col", "cols", "column", "imagecol", "pxlcol", "imgcol", "pxlx"}
_Y = {"y", "row", "rows", "imagerow", "pxlrow", "imgrow", "pxly"}
_INDICES = {"array", "grid", "idx", "index"}
"""Words that say places on the array, which are no px."""
_LENGTHS = {"um", "\N{GREEK SMALL LETTER MU}m", "\N{MICRO SIGN}m", "micron", "microns", "mm", "nm"}
_WHOLE_IN_FLOAT16 = 2048
"""Beyond this, float16 holds every second whole number, and every sixteenth at the far side of a scan."""


class MissingCoordinatesError(CoordinateError, MissingKeyError):
    """There is no ``obsm["spatial"]``."""


def spot_centers(adata: AnnData) -> Coordinates:
    """Read the centers of all spots from ``obsm["spatial"]``.

    Columns of a DataFrame are read by their names where these tell x and y apart, else by position.

    Parameters
    ----------
    adata
        Object with ``obsm["spatial"]``, ``(n_spots, 2)`` as x, y in full-resolution px.

    Returns
    -------
    numpy.ndarray
        ``(n_spots, 2)`` float64, x and y.

    Raises
    ------
    CoordinateError
        The key is absent, or holds another shape, no real numbers, NaN or infinite values, or columns whose names
        contradict x, y in px.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from st_gchb.pp._positions import spot_centers
    >>> spot_centers(AnnData(obsm={"spatial": np.array([[3, 4]])}))
    array([[3., 4.]])
    """
    if Keys.SPATIAL not in adata.obsm:
        raise MissingCoordinatesError(
            f"{_WHAT} is absent (obsm holds {sorted(adata.obsm)}); expected spot centers as x, y in full-resolution "
            f"px, shape ({adata.n_obs}, 2). Set adata.obsm['spatial'], or read the sample with squidpy.read.visium."
        )
    stored = adata.obsm[Keys.SPATIAL]
    if isinstance(stored, pd.DataFrame):
        stored = _columns_by_name(stored)
    centers = _numbers(stored)
    if centers.ndim != 2 or centers.shape[1] != 2:
        third = " Leave out the third axis: obsm['spatial'][:, :2]." if centers.shape[1:] == (3,) else ""
        raise CoordinateError(f"{_WHAT} has shape {centers.shape}; expected ({adata.n_obs}, 2): x, y in px.{third}")
    bad = np.asarray(~np.isfinite(centers).all(axis=1))
    if bad.any():
        raise CoordinateError(
            f"{_WHAT} is NaN or infinite for {bad.sum()} of {adata.n_obs} spots, first {adata.obs_names[bad][0]!r}. "
            "Drop them: adata = adata[np.isfinite(adata.obsm['spatial']).all(axis=1)].copy()."
        )
    return centers


def _numbers(stored: Any) -> Coordinates:
    """Give what is stored as float64; an error for what is no table of real numbers."""
    if sparse.issparse(stored):
        raise CoordinateError(f"{_WHAT} is a sparse matrix; expected an array. Call .toarray() on it.")
    if np.ma.isMaskedArray(stored):
        stored = np.ma.filled(stored.astype(np.float64), np.nan)
    try:
        values = np.asarray(stored)
        kind = values.dtype.kind
        # Text, and text among objects, would be read as numbers here and refused where it is read raw.
        if kind in "USbcmMV" or (kind == "O" and any(isinstance(one, str | bytes | bool) for one in values.ravel())):
            raise TypeError(f"they are of type {values.dtype}")
        centers = values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise CoordinateError(
            f"{_WHAT} holds values that are no numbers ({error}); expected x, y in px. Where they are numbers as text, "
            "convert them: adata.obsm['spatial'] = np.asarray(adata.obsm['spatial']).astype(float)."
        ) from error
    if values.dtype == np.float16 and np.nanmax(np.abs(centers), initial=0) > _WHOLE_IN_FLOAT16:
        raise CoordinateError(
            f"{_WHAT} is float16, which holds whole px up to {_WHOLE_IN_FLOAT16} only; its largest is "
            f"{np.nanmax(centers):.6g}. Store the positions as float32 or float64 from the start."
        )
    return centers


def _columns_by_name(frame: pd.DataFrame) -> npt.NDArray[Any]:
    """Find x and y among named columns.

    Raises
    ------
    CoordinateError
        Names say that they are something else, or both say the same.
    """
    names = [str(name) for name in frame.columns]
    words = [_words(name) for name in names]
    places = [i for i, found in enumerate(words) if not found & _INDICES]
    x = [i for i in places if words[i] & _X and not words[i] & _Y]
    y = [i for i in places if words[i] & _Y and not words[i] & _X]
    told = f"{_WHAT} is a DataFrame with the columns {names[:8]}"
    if len(x) == len(y) == 1:
        lengths = sorted((words[x[0]] | words[y[0]]) & _LENGTHS)
        if lengths:
            raise CoordinateError(
                f"{told}, which are in {lengths[0]} by their names; expected px. Divide them by the size of a pixel in "
                "that unit."
            )
        return frame.iloc[:, [x[0], y[0]]].to_numpy()
    in_place = len(names) == 2 and len(places) == 2 and x in ([], [0]) and y in ([], [1])
    # Names that say nothing, or name the one column that is where it should be.
    if in_place:
        return frame.to_numpy()
    raise CoordinateError(
        f"{told}; expected two, x (column) and y (row) in full-resolution px. Name them 'x' and 'y', or set "
        "adata.obsm['spatial'] to an array of x, y."
    )


def _words(name: str) -> set[str]:
    """Split a name into words: at what is no letter, and where a capital begins."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return {word for word in re.split(r"[^a-z\u00b5\u03bc]+", apart.lower()) if word}
