"""Regions of interest: polygons in px of a slide, from shapely objects, arrays of corners or SpatialData shapes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from shapely.affinity import affine_transform
from shapely.geometry import MultiPolygon, Polygon, box
from shapely.geometry.base import BaseGeometry
from shapely.validation import explain_validity

from st_gchb._errors import CoordinateError, InputError, MissingKeyError
from st_gchb._logging import logger

if TYPE_CHECKING:
    from spatialdata import SpatialData

_EXPECTED = "expected a shapely polygon, corners as an array (n, 2) of x, y in full-resolution px, or a list of these"


def read_roi(roi: Any, shape_px: tuple[int, int]) -> BaseGeometry | None:
    """Unite polygons and clip them to the slide.

    Parameters
    ----------
    roi
        A shapely polygon or multipolygon, an array ``(n, 2)`` of its corners, a list or GeoSeries of these, or None.
    shape_px
        Height and width of the slide, px.

    Returns
    -------
    shapely geometry or None
        Region in px of the slide's finest level; None for the whole slide.

    Raises
    ------
    InputError
        ``roi`` is of another type, or a polygon has no area or intersects itself.
    CoordinateError
        A polygon lies outside the slide.

    Examples
    --------
    >>> from st_gchb.pp.tissue._roi import read_roi
    >>> read_roi([(0, 0), (10, 0), (10, 10)], (100, 100)).area
    50.0
    """
    if roi is None:
        return None
    polygons = list(_polygons(roi))
    if not polygons:
        raise InputError(f"roi= holds no polygon; {_EXPECTED}. Leave it out for the whole slide.")
    height, width = shape_px
    slide = box(0, 0, width, height)
    for i, polygon in enumerate(polygons):
        which = f"polygon {i} of roi=" if len(polygons) > 1 else "the polygon roi="
        _check(polygon, which)
        inside = polygon.intersection(slide).area / polygon.area
        if inside == 0:
            left, top, right, bottom = polygon.bounds
            raise CoordinateError(
                f"{which} lies outside the slide: x from {left:.6g} to {right:.6g}, y from {top:.6g} to {bottom:.6g}, "
                f"slide {width} x {height} px (w x h). Expected x, y in px of the full-resolution image."
            )
        if inside < 0.99:
            logger.warning("%s: %.0f %% of it lies outside the slide and is left out.", which, 100 * (1 - inside))
    return shapely.union_all(polygons).intersection(slide)


def roi_of_shapes(sdata: SpatialData, name: str, image: str) -> list[Polygon | MultiPolygon]:
    """Transform the polygons of a shapes element to px of an image's finest scale.

    Parameters
    ----------
    sdata
        Object that holds the shapes and the image.
    name
        Name of the shapes element.
    image
        Name of the image element.

    Returns
    -------
    list of shapely polygons
        Polygons in px of the image.

    Raises
    ------
    MissingKeyError, InputError
        There is no such element, it holds other shapes than polygons, or shares no coordinate system with the image.
    """
    from st_gchb.io import find_image, spots_to_px

    if name not in sdata.shapes:
        raise MissingKeyError(f"the SpatialData has no shapes {name!r}; roi= takes one of {sorted(sdata.shapes)}.")
    shapes = list(sdata.shapes[name].geometry)
    if not all(isinstance(shape, Polygon | MultiPolygon) for shape in shapes):
        found = sorted({shape.geom_type for shape in shapes})
        raise InputError(f"the shapes {name!r} are of type {found}; roi= takes polygons.")
    _, system = find_image(sdata, name, image, None)
    matrix = spots_to_px(sdata, name, image, system)
    entries = [*matrix[:2, :2].ravel(), *matrix[:2, 2]]
    return [affine_transform(shape, entries) for shape in shapes]


def within(roi: BaseGeometry | None, points_px: np.ndarray) -> np.ndarray:
    """Test which points, ``(n, 2)``, lie in the region or on its border; bool ``(n,)``, all True without a region."""
    if roi is None:
        return np.ones(len(points_px), dtype=bool)
    shapely.prepare(roi)
    return np.asarray(shapely.intersects_xy(roi, points_px[:, 0], points_px[:, 1]), dtype=bool)


def _polygons(roi: Any) -> Iterable[Polygon | MultiPolygon]:
    roi = getattr(roi, "geometry", roi)
    if isinstance(roi, Polygon | MultiPolygon):
        yield roi
        return
    if isinstance(roi, str | bytes | BaseGeometry) or not isinstance(roi, Iterable):
        raise InputError(f"roi= is a {type(roi).__name__}; {_EXPECTED}.")
    parts = list(roi)
    if any(isinstance(part, BaseGeometry) for part in parts) or not _are_corners(parts):
        for part in parts:
            yield from _polygons(part)
        return
    try:
        corners = np.asarray(parts, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"roi= holds corners that are no numbers ({error}); {_EXPECTED}.") from error
    if corners.shape[1:] != (2,) or len(corners) < 3:
        raise InputError(f"roi= has shape {corners.shape}; {_EXPECTED}, at least 3 corners.")
    if not np.isfinite(corners).all():
        raise InputError(f"roi= has corners that are NaN or infinite; {_EXPECTED}.")
    yield Polygon(corners)


def _are_corners(parts: list[Any]) -> bool:
    """Return True if these are corners (x, y pairs) rather than polygons."""
    try:
        return bool(parts) and all(np.ndim(part) == 1 for part in parts if not isinstance(part, str))
    except ValueError:  # lists of several lengths
        return False


def _check(polygon: BaseGeometry, which: str) -> None:
    # The convex hull, since a self-intersecting polygon can have area 0 although it is not degenerate.
    if polygon.convex_hull.area == 0:
        raise InputError(f"{which} has no area; {_EXPECTED}.")
    if not polygon.is_valid:
        raise InputError(
            f"{which} is not valid: {explain_validity(polygon)}. Draw it again, or pass shapely.make_valid(polygon)."
        )
