"""Arrays of legacy Spatial Transcriptomics: which one a section lies on, and so the size of its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from st_gchb._errors import CoordinateError
from st_gchb.io._pixel_size import Size

SQUARE_PITCH_UM, STAGGERED_PITCH_UM = 200.0, 141.0
"""Distance of neighbours on the square array of 33 x 35 spots, and on the staggered one of about 2,000, µm."""
_DIAMETER_UM = {SQUARE_PITCH_UM: 100.0, STAGGERED_PITCH_UM: 55.0}
_FEWEST_SPOTS = 12
"""Fewer spots of one colour of the chess board are no evidence: they may be so by chance."""
_FAR, _ROUNDS = 10.0, 5
"""Median distances from the middle that a spot may be away; rounds in which misread positions are told."""
_STRAY = 0.02
"""Share of spots that may be of the other colour, by a misread position."""
_UNEVEN = 1.25
"""Steps in x and y that differ by more are of neither array (a hexagonal one has 1.73)."""


@dataclass(frozen=True)
class LegacyArray:
    """The array that a section lies on, as far as its spots tell.

    Parameters
    ----------
    size
        What it says of the size of a pixel; None where the array cannot be told.
    diameter_um
        Of a spot, µm.
    told
        What was seen, for messages.
    fits
        ``(n_spots,)`` whether each spot lies where its place in the array puts it, within half a step.
    """

    size: Size | None
    diameter_um: float
    told: str
    fits: npt.NDArray[np.bool_]


def find_array(array: npt.NDArray[np.float64], pixels: npt.NDArray[np.float64], where: str) -> LegacyArray:
    """Tell the square array of 200 µm from the staggered one of 141 µm.

    Parameters
    ----------
    array
        ``(n_spots, 2)`` column and row of every spot that is known, under tissue or not.
    pixels
        ``(n_spots, 2)`` x, y of the same, px.
    where
        Table of the spots, for messages.

    Raises
    ------
    CoordinateError
        The spots lie in one row, or in one place.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io._legacy_array import find_array
    >>> array = np.array([(x, y) for x in range(8) for y in range(8)], dtype=float)
    >>> round(find_array(array, 50 * array, "square").size.um_per_px, 3)
    4.0
    >>> black = array[array.sum(axis=1) % 2 == 0]
    >>> round(find_array(black, 10 * black, "staggered").size.um_per_px, 1)
    10.0
    """
    whole = np.round(array)
    steps, fits = _steps(whole, pixels, where)
    array, whole, pixels = array[fits], whole[fits], pixels[fits]
    across, along = (float(np.linalg.norm(step)) for step in steps)
    seen = f"steps of {across:.4g} px in x and {along:.4g} px in y"
    unknown = LegacyArray(None, _DIAMETER_UM[SQUARE_PITCH_UM], seen, fits)
    if not 1 / _UNEVEN <= across / along <= _UNEVEN or np.abs(array - whole).max() > 0.5:
        return unknown
    odd = float(np.mean((whole.sum(axis=1) % 2) != 0))
    stray = min(odd, 1 - odd)
    if stray > _STRAY or (stray > 0 and len(array) < _FEWEST_SPOTS):
        pitch_px = float(abs(np.linalg.det(steps)) ** 0.5)
        told = f"spots of the legacy array {pitch_px:.4g} px apart on squares of {SQUARE_PITCH_UM:g} µm"
        return LegacyArray(
            Size(SQUARE_PITCH_UM / pitch_px, told), _DIAMETER_UM[SQUARE_PITCH_UM], f"{seen}, {told}", fits
        )
    if len(array) < _FEWEST_SPOTS or any(_common_step(whole[:, axis]) != 1 for axis in (0, 1)):
        return unknown
    nearest = np.asarray(cKDTree(pixels).query(pixels, k=2)[0])[:, 1]
    pitch_px = float(np.median(nearest[nearest > 0])) if (nearest > 0).any() else float(np.hypot(across, along))
    if not 0.8 <= pitch_px / np.hypot(across, along) <= 1.25:
        # Few spots with gaps between them: their neighbours on the array are not there.
        pitch_px = float(np.hypot(across, along))
    told = f"spots of the legacy array {pitch_px:.4g} px apart, staggered, {STAGGERED_PITCH_UM:g} µm"
    return LegacyArray(
        Size(STAGGERED_PITCH_UM / pitch_px, told), _DIAMETER_UM[STAGGERED_PITCH_UM], f"{seen}, {told}", fits
    )


def _steps(
    array: npt.NDArray[np.float64], pixels: npt.NDArray[np.float64], where: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Step of one column and of one row, px, by the affine map that fits the spots best, and which spots it fits."""
    design = np.column_stack([array, np.ones(len(array))])
    steps: npt.NDArray[np.floating] = np.zeros((2, 2))
    # A position that was misread would draw the map to itself, so those far from all others do not count at first.
    away = np.abs(pixels - np.median(pixels, axis=0)) if len(pixels) else pixels
    usual = float(np.median(away, axis=0).max()) if len(pixels) else 0.0
    fits = np.asarray((away <= _FAR * max(usual, 1.0)).all(axis=1))
    for _ in range(_ROUNDS):
        if fits.sum() < 3 or np.linalg.matrix_rank(design[fits]) < 3:
            break
        fitted = np.linalg.lstsq(design[fits], pixels[fits], rcond=None)[0]
        steps = fitted[:2]
        off = np.hypot(*(pixels - design @ fitted).T)
        fits = off <= max(0.5 * abs(float(np.linalg.det(steps))) ** 0.5, 1.0)
    area = abs(float(np.linalg.det(steps)))
    if fits.sum() < max(3, 0.5 * len(array)) or np.linalg.matrix_rank(design[fits]) < 3 or not area >= 1:
        raise CoordinateError(
            f"{where}: the positions of the {len(array)} spots do not spread over the slide as their x, y in the "
            "array do; expected neighbours a constant number of px apart."
        )
    return np.asarray(steps), np.asarray(fits)


def _common_step(values: npt.NDArray[np.float64]) -> int:
    """Largest whole step that all differences are multiples of."""
    return int(np.gcd.reduce(np.diff(np.unique(values)).astype(np.int64)))
