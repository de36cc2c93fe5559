"""Read the pixel size from every source that states it, and reconcile sources that disagree."""

from __future__ import annotations

import math
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from st_gchb._advice import Fix, advise
from st_gchb._constants import VISIUM_PITCH_UM, VISIUM_SPOT_DIAMETER_UM, Keys
from st_gchb._errors import ScaleError
from st_gchb._logging import logger

_UM_PER_UNIT = {
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("um", "mum", "micron", "micrometer", "micrometre"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("pm", "picometer", "picometre"), 1e-6),
    **dict.fromkeys(("in", "inch", "inches"), 25400.0),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
}


def um_per_unit(unit: object) -> float | None:
    r"""Convert a unit of length to µm; None if it is not a known unit of length.

    The micro sign (U+00B5) and the Greek mu (U+03BC) look alike, and both occur in files.

    Examples
    --------
    >>> from st_gchb.io._pixel_size import um_per_unit
    >>> um_per_unit("\u00b5m"), um_per_unit("\u03bcm"), um_per_unit("Microns"), um_per_unit("mm"), um_per_unit("px")
    (1.0, 1.0, 1.0, 1000.0, None)
    """
    if isinstance(unit, bytes):
        unit = unit.decode("utf-8", errors="replace")
    # NFKC maps the micro sign to the Greek mu, and units of a single character (U+339B is µm) to letters.
    name = unicodedata.normalize("NFKC", str(unit)).strip().lower().replace("\N{GREEK SMALL LETTER MU}", "u")
    return _UM_PER_UNIT.get(name, _UM_PER_UNIT.get(name.removesuffix("s")))


TOLERANCE = 1.05
"""Two sources that differ by no more than this factor agree."""
SQUARE_TOLERANCE = 1.01
"""A pixel whose width and height differ by more than this factor is reported as not square."""
_WIDEST_SPOT_UM = 70.0
"""Space Ranger's ``spot_diameter_fullres`` refers to spots of 55 or 65 µm, and in early versions of 70 µm."""
_RANGE_UM = (0.02, 20.0)
"""Pixel sizes outside this range come from print resolutions (72 dpi is 353 µm), not from a microscope."""
_PITCH_PER_DIAMETER = (1.35, 1.9)
"""Range of pitch over diameter of Visium spots, which are 100 µm apart and, by version, 55 to 70 µm wide."""
_N_SPOTS = 5000


@dataclass(frozen=True)
class Size:
    """The pixel size according to one source.

    Parameters
    ----------
    um_per_px
        Pixel size, µm.
    source
        The source, for messages.
    slack
        Factor by which the true size may exceed ``um_per_px``; above 1 for an estimate.
    """

    um_per_px: float
    source: str
    slack: float = 1.0

    def agrees_with(self, other: Size) -> bool:
        """Check if the preferred size ``other`` is compatible with this source."""
        return 1 / TOLERANCE <= other.um_per_px / self.um_per_px <= self.slack * TOLERANCE


_SIZES = (1e-3, 1e4)
"""Valid pixel sizes of a tissue image, µm; the same range as for ``um_per_px=`` of all functions."""


def settle(sizes: Sequence[Size | None], name: str) -> float | None:
    """Take the pixel size from the first source that states one, and warn of every source that disagrees with it.

    Parameters
    ----------
    sizes
        Sizes by decreasing priority; None for a source that states none.
    name
        Name of the image in messages.

    Returns
    -------
    float or None
        Pixel size, µm; None if no source states it.

    Raises
    ------
    ScaleError
        The size is outside the range of tissue images.

    Examples
    --------
    >>> from st_gchb.io._pixel_size import Size, settle
    >>> settle([None, Size(0.5, "the file"), Size(0.51, "the caller")], "slide")
    0.5
    """
    known = [size for size in sizes if size is not None]
    if not known:
        return None
    first, *others = known
    for other in others:
        if not other.agrees_with(first):
            logger.warning(
                "%s: two sizes of a pixel: %.4g µm (%s) is taken, %.4g µm (%s) is not. %s",
                name,
                first.um_per_px,
                first.source,
                other.um_per_px,
                other.source,
                advise(Fix("um_per_px", why="if that is wrong"), otherwise="If that is wrong, correct the latter."),
            )
    low, high = _SIZES
    if not low <= first.um_per_px <= high:
        raise ScaleError(
            f"{name}: a pixel of {first.um_per_px:.3g} µm ({first.source}) is no microscope's; expected {low:g} to "
            f"{high:g}. " + advise(Fix("um_per_px", why="with the size of a pixel"), otherwise="Correct what says so.")
        )
    return first.um_per_px


def square_size(x: float | None, y: float | None, source: str, name: str) -> Size | None:
    """Combine the width and height of a pixel into one size; None if neither is in a microscope's range."""
    low, high = _RANGE_UM
    sides = [side for side in (x, y) if side is not None and low <= side <= high]
    if len(sides) == 2 and not 1 / SQUARE_TOLERANCE <= sides[0] / sides[1] <= SQUARE_TOLERANCE:
        logger.warning(
            "%s: pixels are not square: %.4g µm wide and %.4g µm high (%s). %.4g µm is taken for both, so patches are "
            "stretched; resample the image to square pixels.",
            name,
            *sides,
            source,
            math.sqrt(sides[0] * sides[1]),
        )
    if not sides:
        return None
    return Size(sides[0] if sides[0] == sides[-1] else math.sqrt(sides[0] * sides[-1]), source)


def positive(value: Any, what: str) -> float:
    """Convert a stored value to a positive number.

    Parameters
    ----------
    value
        The value, in any form that :func:`one_number` reads.
    what
        Name of the value in messages.

    Raises
    ------
    ScaleError
        The value is not a positive number.
    """
    number = one_number(value)
    if number is None or not (math.isfinite(number) and number > 0):
        raise ScaleError(f"{what} is {str(value)[:80]!r}; expected a positive number.")
    return number


def one_number(value: Any) -> float | None:
    """Convert a stored value to one number; None for anything else.

    R has no scalars, so files written from R (and by some Zarr writers) hold arrays or lists of length one. Tables and
    JSON files edited by hand hold text.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io._pixel_size import one_number
    >>> one_number(np.array([0.5])), one_number(np.array(0.5)), one_number(["0.5"]), one_number(b"0.5")
    (0.5, 0.5, 0.5, 0.5)
    >>> one_number([0.5, 0.6]), one_number(True), one_number(None)
    (None, None, None)
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return number_in(value)
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | float | np.integer | np.floating):
        return (
            float(min(max(value, -sys.float_info.max), sys.float_info.max)) if isinstance(value, int) else float(value)
        )
    if isinstance(value, list | tuple) or hasattr(value, "__array__"):
        items = np.asarray(value, dtype=object).ravel()
        return one_number(items[0]) if items.size == 1 and items[0] is not value else None
    return None


def caller_size(um_per_px: float | None) -> Size | None:
    """Wrap the pixel size that the caller passed."""
    return None if um_per_px is None else Size(um_per_px, "um_per_px= of the caller")


def factor_size(factors: Mapping[str, Any], where: str) -> Size | None:
    """Read the pixel size from scale factors: Space Ranger stores it for Visium HD, this package for every slice.

    Raises
    ------
    ScaleError
        The stored value is not a positive number.
    """
    value = factors.get(Keys.UM_PER_PX)
    return (
        None if value is None else Size(positive(value, f"{where}[{Keys.UM_PER_PX!r}]"), f"{where}, microns_per_pixel")
    )


def spot_sizes(factors: Mapping[str, Any], centers_px: npt.NDArray[np.float64], where: str) -> list[Size | None]:
    """Estimate the pixel size from Visium spots: exactly from their pitch, approximately from their diameter.

    Parameters
    ----------
    factors
        Scale factors with the spot diameter in full-resolution px.
    centers_px
        Spot centers, ``(n_spots, 2)``, in full-resolution px.
    where
        Name of ``factors`` in messages.

    Returns
    -------
    list of Size or None
        Estimates by decreasing priority; None for a pitch that is not Visium's.

    Raises
    ------
    ScaleError
        The diameter is not a positive number.
    """
    if factors.get(Keys.SPOT_DIAMETER) is None:
        return []
    diameter = positive(factors[Keys.SPOT_DIAMETER], f"{where}[{Keys.SPOT_DIAMETER!r}]")
    pitch = visium_pitch(centers_px, diameter)
    by_pitch = None if pitch is None else Size(VISIUM_PITCH_UM / pitch, f"spots {pitch:.4g} px apart, Visium's 100 µm")
    # With a stored pixel size the spots may be tiles, bins or legacy spots, whose diameters are not Visium's.
    if factors.get(Keys.UM_PER_PX) is not None:
        return [by_pitch]
    slack = _WIDEST_SPOT_UM / VISIUM_SPOT_DIAMETER_UM
    guess = Size(VISIUM_SPOT_DIAMETER_UM / diameter, f"spots {diameter:.4g} px wide, Visium's 55 µm", slack)
    return [by_pitch, guess]


def visium_pitch(centers_px: npt.NDArray[np.float64], diameter_px: float) -> float | None:
    """Measure the distance between neighboring spots, px; None if they are not arranged as on a Visium slide.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io._pixel_size import visium_pitch
    >>> rows, columns = np.mgrid[0:9, 0:9]
    >>> centers = np.column_stack([(columns + rows % 2 / 2).ravel() * 200, rows.ravel() * 100 * 3**0.5])
    >>> visium_pitch(centers, diameter_px=130)
    200.0
    >>> visium_pitch(np.column_stack([columns.ravel(), rows.ravel()]) * 200.0, diameter_px=130) is None
    True
    """
    pitch = hexagonal_pitch(centers_px)
    low, high = _PITCH_PER_DIAMETER
    return pitch if pitch is not None and low <= pitch / diameter_px <= high else None


def hexagonal_pitch(centers: npt.NDArray[np.float64]) -> float | None:
    """Measure the distance between neighboring spots, in units of ``centers``; None if the array is not hexagonal."""
    if len(centers) < 7:
        return None
    # A subset of the spots of a large slide suffices; their neighbors are sought among all spots.
    tree = cKDTree(centers)
    distances = np.asarray(tree.query(centers[:: -(-len(centers) // _N_SPOTS)], k=7)[0])[:, 1:]
    nearest = float(np.median(distances[:, 0]))
    around = distances[(distances < 1.2 * nearest).sum(axis=1) == 6]
    # Spots at the rim have fewer than six neighbors; even in a small section at most half of the spots are at the rim.
    if nearest <= 0 or len(around) < 0.1 * len(distances):
        return None
    return float(np.median(around))


def number_in(text: str | None) -> float | None:
    """Parse a finite number from a metadata string; None if there is none."""
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
