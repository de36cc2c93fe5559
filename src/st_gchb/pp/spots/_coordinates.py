"""Spot coordinates: validating that the spots lie on the image.

Positions in the wrong unit (px of a down-scaled image, µm, mm, array indices) are recognized, and the error names the
factor that would convert them to full-resolution px.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from st_gchb._advice import Fix, advise
from st_gchb._constants import VISIUM_PITCH_UM, Keys
from st_gchb._errors import CoordinateError
from st_gchb._logging import logger
from st_gchb.io import hexagonal_pitch

Coordinates = npt.NDArray[np.float64]

_MAX_OUTSIDE = 0.05
"""Largest fraction of spots outside the image with which a scale factor still counts as fitting: a few spots at the
rim of the slide do not indicate a wrong scale."""
_RIM = (0.01, 0.05)
"""Lower and upper bound of the distance that spots may lie beyond the image, as fractions of its longer side."""
_CORNER = 0.25
"""Spots that cover less than this fraction of both sides of the image may be in px of a down-scaled image."""
_SPREAD = 0.6
"""Positions are taken for µm only if they cover at least this fraction of both sides of the image after conversion."""
_FEW = 10
"""Fewest spots whose arrangement is used as evidence of the unit."""
_PITCH_TOLERANCE = 0.02
"""Relative tolerance of the distance between Visium's spots, nominally 100 µm."""
_PITCH_PER_DIAMETER = (1.2, 2.2)
"""Plausible range of spot distance divided by spot diameter, both in the same unit."""
_SAME_SIZE = 0.05
"""Tolerance, in µm, within which a pixel counts as 1 µm wide, so that µm and px cannot be distinguished."""


def check_positions(centers_px: Coordinates, names: object = None) -> None:
    """Validate positions without an image.

    Applies the criterion of :func:`check_fit` to the left and upper sides, the only ones that are known.

    Parameters
    ----------
    centers_px
        Positions ``(n_spots, 2)`` as x, y in px.
    names
        Names of the spots, for the error message.

    Raises
    ------
    CoordinateError
        Spots lie far beyond the left or upper side.
    """
    rim = rim_px(_nearest_distance(centers_px), tuple(centers_px.max(axis=0)[::-1]))
    far = _beyond(centers_px, (np.inf, np.inf)) > rim
    if far.any():
        first = int(np.flatnonzero(far)[0])
        called = f" {names[first]!r}" if names is not None else ""  # type: ignore[index]
        raise CoordinateError(
            f"obsm[{Keys.SPATIAL!r}] is negative for {far.sum()} of {len(centers_px)} spots, first{called} at "
            f"{_point(centers_px[first])}; expected px from the image's upper left corner. Undo a shift or a flip of "
            "the axes (some tools store -y), or drop spots beyond the image."
        )


def rim_px(nearest_px: float, shape_px: tuple[float, float]) -> float:
    """Compute how far beyond any side of the image a spot may lie, in px.

    It is half of the median distance from a spot to its nearest neighbor, so that a patch still overlaps the image, but
    at least 1 % and at most 5 % of the image's longer side.

    Examples
    --------
    >>> from st_gchb.pp.spots._coordinates import rim_px
    >>> rim_px(60.0, (1000, 2000))
    30.0
    """
    low, high = (share * max(*shape_px, 0.0) for share in _RIM)
    return float(min(max(nearest_px / 2, low), high))


def check_fit(
    centers_px: Coordinates,
    shape_px: tuple[int, int],
    where: str,
    factors: Mapping[str, float | None] | None = None,
    um_per_px: float | None = None,
    scale: float = 1.0,
) -> None:
    """Validate that the spots lie on the image.

    Spots slightly beyond the image (see :func:`rim_px`) are accepted with a warning. The error names the factor that
    would place the spots on the image, if one is found.

    Parameters
    ----------
    centers_px
        Positions ``(n_spots, 2)`` as x, y, expected in px of the image.
    shape_px
        Height and width of the image, px.
    where
        Slice and image, for messages.
    factors
        Known scale factors of the slice, and the spot diameter in px of the image.
    um_per_px
        Size of a pixel of the full-resolution image, µm, if a source other than the spots states it.
    scale
        Size of the image relative to the full-resolution image.

    Raises
    ------
    CoordinateError
        Spots lie far outside the image, all lie in a corner of it and a known factor would spread them, all lie within
        one pixel, or the positions are in µm or mm.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp.spots._coordinates import check_fit
    >>> check_fit(np.array([[10.0, 20.0]]), (100, 100), "slice 'a'")
    """
    known = _known_factors(factors or {}, um_per_px)
    beyond = _beyond(centers_px, shape_px)
    nearest = _nearest_distance(centers_px)
    far = beyond > rim_px(nearest, shape_px)
    if far.any():
        raise CoordinateError(_outside_message(centers_px, shape_px, where, known, far))
    if (beyond > 0).any():
        logger.warning(
            "%s: %d of %d spots lie up to %.3g px outside the image; their patches are made of its mirrored border.",
            where,
            (beyond > 0).sum(),
            len(centers_px),
            beyond.max(),
        )
    diameter = (factors or {}).get(Keys.SPOT_DIAMETER)
    crowded = _crowding_factor(centers_px, shape_px, known, diameter, nearest)
    if crowded is not None:
        raise CoordinateError(
            f"{_cover(centers_px, shape_px, where)}, and lie nearer to one another than a spot is wide: they seem to "
            f"be px of a down-scaled image. Multiply obsm['spatial'] by {known[crowded]:.6g} ({crowded})."
        )
    if diameter is not None and len(centers_px) >= _FEW and nearest < 0.5 * diameter:
        logger.warning(
            "%s: spots lie %.3g px apart and are said to be %.3g px wide, so they overlap. Are the positions px of a "
            "smaller image?",
            where,
            nearest,
            diameter,
        )
    if um_per_px is not None:
        _check_unit(centers_px, shape_px, where, um_per_px, scale, diameter, nearest)
    _check_extent(centers_px, where)


def _check_unit(
    centers_px: Coordinates,
    shape_px: tuple[int, int],
    where: str,
    um_per_px: float,
    scale: float,
    diameter: float | None,
    nearest: float,
) -> None:
    """Raise or warn if positions seem to be in µm or mm, judged by the known size of a pixel."""
    n = len(centers_px)
    if n < 2 or abs(um_per_px - 1) <= _SAME_SIZE:
        return
    # A distance that agrees with the spot diameter in px shows that the positions are px, however few they cover.
    fits_diameter = diameter is not None and nearest >= 0.5 * diameter
    for unit, length in (("µm", 1.0), ("mm", 1000.0)):
        factor = length / um_per_px
        spread = centers_px * factor
        if factor <= 1 or _share_outside(spread, shape_px) > _MAX_OUTSIDE:
            continue
        message = (
            f"{_cover(centers_px, shape_px, where)}. They seem to be in {unit}: a pixel is {um_per_px:.4g} µm wide, "
            f"and as px they would be spread over the image. Multiply obsm['spatial'] by {factor:.6g} "
            f"({length:g} / um_per_px)"
        )
        if _is_visium_in(centers_px / scale, length, diameter and diameter / scale):
            raise CoordinateError(f"{message}: they lie {VISIUM_PITCH_UM / length:g} apart, Visium's 100 µm.")
        if fits_diameter or (n < _FEW and nearest >= 1) or (_coverages(spread, shape_px) < _SPREAD).any():
            continue
        keep = (
            f". If they are px, and the tissue lies in the image's corner alone, say how wide a spot is in px: "
            f"uns['spatial'][slice]['scalefactors'][{Keys.SPOT_DIAMETER!r}]."
        )
        if (centers_px.min(axis=0) <= _CORNER * centers_px.max(axis=0)).all():
            raise CoordinateError(message + keep)
        logger.warning("%s%s", message, keep)


def _is_visium_in(centers: Coordinates, length: float, diameter: float | None) -> bool:
    """Return True if spots lie 100 µm apart in the given unit, and their diameter in px does not fit that distance."""
    pitch, expected = hexagonal_pitch(centers), VISIUM_PITCH_UM / length
    if pitch is None or abs(pitch - expected) > _PITCH_TOLERANCE * expected:
        return False
    low, high = _PITCH_PER_DIAMETER
    return diameter is None or not low <= pitch / diameter <= high


def _check_extent(centers_px: Coordinates, where: str) -> None:
    """Raise if all spots lie within one pixel."""
    extent = centers_px.max(axis=0) - centers_px.min(axis=0) if len(centers_px) else np.ones(2)
    if len(centers_px) > 1 and (extent < 1).all():
        raise CoordinateError(
            f"{where}: all {len(centers_px)} spots lie within one pixel, around {_point(centers_px[0])}; expected the "
            "centers of spots in full-resolution px. Multiply obsm['spatial'] by the factor that makes them px."
        )


def _beyond(centers_px: Coordinates, shape_px: tuple[float, float]) -> np.ndarray:
    """Compute how far each spot lies beyond the image, px, ``(n_spots,)``; 0 for spots on the image."""
    size = np.array(shape_px[::-1], dtype=float)
    return np.maximum(np.maximum(-centers_px, centers_px - size), 0).max(axis=1)


def _share_outside(centers_px: Coordinates, shape_px: tuple[int, int]) -> float:
    return float((_beyond(centers_px, shape_px) > 0).mean())


def _known_factors(factors: Mapping[str, float | None], um_per_px: float | None) -> dict[str, float]:
    """Collect the factors by which positions may have to be multiplied, keyed by a description for messages."""
    known = {}
    for name in ("tissue_hires_scalef", "tissue_lowres_scalef"):
        value = factors.get(name)
        if value is not None and value != 1:
            known[name] = value
            known[f"1 / {name}"] = 1 / value
    if um_per_px is not None and abs(um_per_px - 1) > _SAME_SIZE:
        known["1 / um_per_px: they are in µm"] = 1 / um_per_px
    return known


def _coverages(centers_px: Coordinates, shape_px: tuple[int, int]) -> np.ndarray:
    return np.asarray(centers_px.max(axis=0) / np.array(shape_px[::-1], dtype=float))


def _coverage(centers_px: Coordinates, shape_px: tuple[int, int]) -> float:
    return float(_coverages(centers_px, shape_px).max())


def _best_factor(centers_px: Coordinates, shape_px: tuple[int, int], known: Mapping[str, float]) -> str | None:
    """Return the name of the known factor with which the spots fit the image and cover most of it, or None."""
    fitting = [name for name, factor in known.items() if _share_outside(centers_px * factor, shape_px) <= _MAX_OUTSIDE]
    return max(fitting, key=lambda name: _coverage(centers_px * known[name], shape_px), default=None)


def _outside_message(
    centers_px: Coordinates, shape_px: tuple[int, int], where: str, known: Mapping[str, float], far: np.ndarray
) -> str:
    height, width = shape_px
    low, high = centers_px.min(axis=0), centers_px.max(axis=0)
    first = int(np.flatnonzero(far)[0])
    outside = _share_outside(centers_px, shape_px)
    message = (
        f"{where}: {outside:.0%} of {len(centers_px)} spots lie outside the image: x from {low[0]:.6g} "
        f"to {high[0]:.6g}, y from {low[1]:.6g} to {high[1]:.6g}, image {width} x {height} px (w x h)."
    )
    if _share_outside(centers_px[:, ::-1], shape_px) == 0:
        return f"{message} They fit with x and y exchanged: expected x, y (column, row), pass obsm['spatial'][:, ::-1]."
    if far.mean() <= _MAX_OUTSIDE or (far.sum() == 1 and len(far) >= _FEW):
        return (
            f"{message} {far.sum()} of them lie far outside, first at {_point(centers_px[first])}. Drop them, or "
            "correct their positions."
        )
    best = _best_factor(centers_px, shape_px, known)
    if best is not None and (best.startswith("tissue_") or _coverage(centers_px * known[best], shape_px) >= 0.5):
        advice = f"The scale factor {known[best]:.6g} ({best}) makes them fit: multiply obsm['spatial'] by it"
        image_key = best.removeprefix("tissue_").removesuffix("_scalef")
        if not best.startswith("tissue_"):
            return f"{message} {advice}."
        full = Fix("image", why="with the full-resolution image")
        down_scaled = Fix("image_key", repr(image_key), "for this one")
        return f"{message} {advice}. Or: " + advise(full, down_scaled, otherwise="take the full-resolution image.")
    if (low < 0).any() and (high <= 0).any():
        return f"{message} Positions are negative. Undo a shift or a flip of the axes (some tools store -y)."
    if (high > 0).all():
        factor = float((np.array([width, height]) / high).min())
        return (
            f"{message} A scale factor of about {factor:.3g} would make them fit: is the image down-scaled? Pass the "
            "full-resolution image, or multiply obsm['spatial'] by the image's own factor (Space Ranger: "
            "scalefactors_json.json)."
        )
    return f"{message} No scale factor makes them fit: do image and spots belong to one slide?"


def _cover(centers_px: Coordinates, shape_px: tuple[int, int], where: str) -> str:
    high = centers_px.max(axis=0)
    return (
        f"{where}: the spots cover x to {high[0]:.6g} and y to {high[1]:.6g} px of an image of {shape_px[1]} x "
        f"{shape_px[0]} px (w x h)"
    )


def _point(center: Coordinates) -> tuple[float, float]:
    return float(f"{center[0]:.6g}"), float(f"{center[1]:.6g}")


def _crowding_factor(
    centers_px: Coordinates,
    shape_px: tuple[int, int],
    known: Mapping[str, float],
    diameter: float | None,
    nearest: float,
) -> str | None:
    if len(centers_px) < 2 or diameter is None or _coverage(centers_px, shape_px) >= _CORNER:
        return None
    best = _best_factor(centers_px, shape_px, {name: value for name, value in known.items() if "scalef" in name})
    if best is None or known[best] <= 1 or _coverage(centers_px * known[best], shape_px) < 2 * _CORNER:
        return None
    # Spots of one slice never overlap: in full-resolution px, neighbors are farther apart than a spot is wide.
    return best if nearest < 0.5 * diameter else None


def _nearest_distance(centers_px: Coordinates) -> float:
    """Compute the median distance from a spot to its nearest neighbor; 0 for a single spot."""
    if len(centers_px) < 2:
        return 0.0
    distances, _ = cKDTree(centers_px).query(centers_px, k=2)
    return float(np.median(np.asarray(distances)[:, 1]))
