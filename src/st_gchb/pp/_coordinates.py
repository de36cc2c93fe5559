"""Whether the spots lie on the image and, if not, which scale factor would put them there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, MissingKeyError
from st_gchb._logging import logger

_MAX_OUTSIDE = 0.05
"""Share of spots that may lie outside the image: a slide's rim, not a wrong scale."""
_CORNER = 0.25
"""Spots that cover less than this share of both sides of the image may be in a smaller image's px."""

Coordinates = npt.NDArray[np.float64]


def spot_centers(adata: AnnData) -> Coordinates:
    """Centres of all spots as they are in ``obsm["spatial"]``, checked.

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
        The key is absent, or holds another shape, NaN, infinite or negative values.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from st_gchb.pp._coordinates import spot_centers
    >>> spot_centers(AnnData(obsm={"spatial": np.array([[3, 4]])}))
    array([[3., 4.]])
    """
    what = f"obsm[{Keys.SPATIAL!r}]"
    if Keys.SPATIAL not in adata.obsm:
        raise MissingCoordinatesError(
            f"{what} is absent (obsm holds {sorted(adata.obsm)}); expected spot centres as x, y in full-resolution px, "
            f"shape ({adata.n_obs}, 2). Set adata.obsm['spatial'], or read the sample with squidpy.read.visium."
        )
    try:
        centers = np.asarray(adata.obsm[Keys.SPATIAL], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CoordinateError(f"{what} holds values that are no numbers ({error}); expected x, y in px.") from error
    if centers.ndim != 2 or centers.shape[1] != 2:
        raise CoordinateError(f"{what} has shape {centers.shape}; expected ({adata.n_obs}, 2): x, y in px.")
    bad = np.asarray(~np.isfinite(centers).all(axis=1))
    if bad.any():
        raise CoordinateError(
            f"{what} is NaN or infinite for {bad.sum()} of {adata.n_obs} spots, first {adata.obs_names[bad][0]!r}. "
            "Drop them: adata = adata[np.isfinite(adata.obsm['spatial']).all(axis=1)].copy()."
        )
    return centers


def check_not_negative(centers: Coordinates, names: Any) -> None:
    """Raise :class:`CoordinateError` where a coordinate lies before the image's first pixel."""
    bad = np.asarray((centers < 0).any(axis=1))
    if bad.any():
        raise CoordinateError(
            f"obsm[{Keys.SPATIAL!r}] is negative for {bad.sum()} of {len(centers)} spots, first {names[bad][0]!r} at "
            f"{tuple(float(v) for v in centers[bad][0])}; expected px from the image's upper left corner. Undo a shift "
            "or a flip of the axes (some tools store -y)."
        )


class MissingCoordinatesError(CoordinateError, MissingKeyError):
    """There is no ``obsm["spatial"]``."""


def check_fit(
    centers_px: Coordinates, shape_px: tuple[int, int], where: str, scalefactors: Mapping[str, Any] | None = None
) -> None:
    """Raise unless the spots lie on the image, and name the factor that would put them there.

    Parameters
    ----------
    centers_px
        ``(n_spots, 2)`` x, y that should be px of the image.
    shape_px
        Height and width of the image, px.
    where
        Slice and image, for the message.
    scalefactors
        Space Ranger's factors for the slice, where they are known.

    Raises
    ------
    CoordinateError
        More than a few spots lie outside the image, or all crowd in a corner that a known factor would spread.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp._coordinates import check_fit
    >>> check_fit(np.array([[10.0, 20.0]]), (100, 100), "slice 'a'")
    """
    factors = dict(scalefactors or {})
    outside = _share_outside(centers_px, shape_px)
    if outside > _MAX_OUTSIDE:
        raise CoordinateError(_outside_message(centers_px, shape_px, where, factors, outside))
    if outside > 0:
        logger.warning(
            "%s: %d of %d spots lie outside the image; their patches are made of its mirrored border.",
            where,
            round(outside * len(centers_px)),
            len(centers_px),
        )
    crowded = _crowding_factor(centers_px, shape_px, factors)
    if crowded is not None:
        name, factor = crowded
        raise CoordinateError(
            f"{where}: the spots cover x to {centers_px[:, 0].max():.6g} and y to {centers_px[:, 1].max():.6g} px "
            f"of an image of {shape_px[1]} x {shape_px[0]} px (w x h), and lie nearer to one another than a spot is "
            f"wide: they seem to be px of a down-scaled image. Multiply obsm['spatial'] by {factor:.6g} ({name})."
        )


def _share_outside(centers_px: Coordinates, shape_px: tuple[int, int]) -> float:
    size = np.array(shape_px[::-1], dtype=float)
    return float(((centers_px < 0) | (centers_px > size)).any(axis=1).mean())


def _known_factors(factors: Mapping[str, Any]) -> dict[str, float]:
    known = {}
    for name in ("tissue_hires_scalef", "tissue_lowres_scalef"):
        value = factors.get(name)
        if value is not None and np.isfinite(value) and value > 0 and value != 1:
            known[name] = float(value)
            known[f"1 / {name}"] = 1 / float(value)
    return known


def _coverage(centers_px: Coordinates, shape_px: tuple[int, int]) -> float:
    return float((centers_px.max(axis=0) / np.array(shape_px[::-1], dtype=float)).max())


def _best_factor(
    centers_px: Coordinates, shape_px: tuple[int, int], factors: Mapping[str, Any]
) -> tuple[str, float] | None:
    fitting = {
        name: factor
        for name, factor in _known_factors(factors).items()
        if _share_outside(centers_px * factor, shape_px) <= _MAX_OUTSIDE
    }
    if not fitting:
        return None
    name = max(fitting, key=lambda item: _coverage(centers_px * fitting[item], shape_px))
    return name, fitting[name]


def _outside_message(
    centers_px: Coordinates, shape_px: tuple[int, int], where: str, factors: Mapping[str, Any], outside: float
) -> str:
    height, width = shape_px
    low, high = centers_px.min(axis=0), centers_px.max(axis=0)
    message = (
        f"{where}: {outside:.0%} of {len(centers_px)} spots lie outside the image: x from {low[0]:.6g} "
        f"to {high[0]:.6g}, y from {low[1]:.6g} to {high[1]:.6g}, image {width} x {height} px (w x h)."
    )
    if _share_outside(centers_px[:, ::-1], shape_px) == 0:
        return f"{message} They fit with x and y exchanged: expected x, y (column, row), pass obsm['spatial'][:, ::-1]."
    best = _best_factor(centers_px, shape_px, factors)
    if best is not None:
        name, factor = best
        advice = f"The scale factor {factor:.6g} ({name}) makes them fit: multiply obsm['spatial'] by it"
        image_key = name.removeprefix("tissue_").removesuffix("_scalef")
        if not name.startswith("1 /"):
            advice += f", or pass the full-resolution image, or image_key={image_key!r} instead of image="
        return f"{message} {advice}."
    if (high > 0).all():
        factor = float((np.array([width, height]) / high).min())
        return (
            f"{message} A scale factor of about {factor:.3g} would make them fit: is the image down-scaled? Pass the "
            "full-resolution image, or multiply obsm['spatial'] by the image's own factor (Space Ranger: "
            "scalefactors_json.json)."
        )
    return f"{message} No scale factor makes them fit: do image and spots belong to one slide?"


def _crowding_factor(
    centers_px: Coordinates, shape_px: tuple[int, int], factors: Mapping[str, Any]
) -> tuple[str, float] | None:
    if len(centers_px) < 2 or _coverage(centers_px, shape_px) >= _CORNER:
        return None
    best = _best_factor(centers_px, shape_px, {k: v for k, v in factors.items() if k in _known_factors(factors)})
    diameter = factors.get(Keys.SPOT_DIAMETER)
    if best is None or diameter is None or best[1] <= 1 or _coverage(centers_px * best[1], shape_px) < 2 * _CORNER:
        return None
    # Spots of one slide never overlap: in the right px, neighbours are farther apart than a spot is wide.
    return best if _nearest_distance(centers_px) < 0.5 * float(diameter) else None


def _nearest_distance(centers_px: Coordinates) -> float:
    from scipy.spatial import cKDTree

    distances, _ = cKDTree(centers_px).query(centers_px, k=2)
    return float(np.median(np.asarray(distances)[:, 1]))
