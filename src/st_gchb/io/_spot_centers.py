"""Spot centers: reading ``obsm["spatial"]``, whatever it is stored as."""

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
"""Words in column names that stand for array indices, not px."""
_LENGTHS = {"um", "\N{GREEK SMALL LETTER MU}m", "\N{MICRO SIGN}m", "micron", "microns", "mm", "nm"}
_WHOLE_IN_FLOAT16 = 2048
"""Largest value up to which float16 represents every integer; larger positions are rounded to multiples of 2 to 32."""


class MissingCoordinatesError(CoordinateError, MissingKeyError):
    """``obsm["spatial"]`` is absent."""


def spot_centers(adata: AnnData) -> Coordinates:
    """Read the centers of all spots from ``obsm["spatial"]``.

    The columns of a DataFrame are identified by name where the names distinguish x from y, and by position otherwise.

    Parameters
    ----------
    adata
        Object with ``obsm["spatial"]``, ``(n_spots, 2)`` as x, y in full-resolution px.

    Returns
    -------
    numpy.ndarray
        Positions ``(n_spots, 2)``, float64, as x, y in px.

    Raises
    ------
    CoordinateError
        The key is absent, its value has another shape, holds anything but finite real numbers, or has column names
        that contradict x, y in px.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from st_gchb.io._spot_centers import spot_centers
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
    """Convert the stored positions to float64.

    Raises
    ------
    CoordinateError
        The positions are sparse, are not real numbers, or are too large for the precision of float16.
    """
    if sparse.issparse(stored):
        raise CoordinateError(f"{_WHAT} is a sparse matrix; expected an array. Call .toarray() on it.")
    if np.ma.isMaskedArray(stored):
        stored = np.ma.filled(stored.astype(np.float64), np.nan)
    try:
        values = np.asarray(stored)
        kind = values.dtype.kind
        # astype would parse numbers stored as text, but code that reads the stored array without it would then fail.
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
    """Select the x and y columns of a DataFrame.

    Raises
    ------
    CoordinateError
        The names denote something other than px, or do not distinguish x from y.
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
    # Neither name is informative, or the only informative one is in the expected position.
    if in_place:
        return frame.to_numpy()
    raise CoordinateError(
        f"{told}; expected two, x (column) and y (row) in full-resolution px. Name them 'x' and 'y', or set "
        "adata.obsm['spatial'] to an array of x, y."
    )


def _words(name: str) -> set[str]:
    """Split a name into lower-case words, at characters that are not letters and before capitals."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return {word for word in re.split(r"[^a-z\u00b5\u03bc]+", apart.lower()) if word}
