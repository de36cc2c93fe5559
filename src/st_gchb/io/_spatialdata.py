"""Tables, spots and images of a SpatialData, and the transformations between them.

Finds the table, the spots of each region and the image that belongs to them, and transforms the spots to px of that
image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from shapely import Polygon

from st_gchb._advice import Fix, advise
from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, ImageError, InputError, MissingKeyError, SliceError
from st_gchb._logging import logger
from st_gchb.io._annotation import Link, annotated_rows, bin_um, link_of
from st_gchb.io.images import SlideImage, open_image

if TYPE_CHECKING:
    from spatialdata import SpatialData

_OVERLAP = 0.9
"""Smallest intersection over union of the outlines of two images that show the same tissue."""
_COLOR = 20.0
"""Largest difference of mean color, of 255, between images of the same stained tissue."""
_WINDOWS, _WINDOW_PX = 8, 32


@dataclass(frozen=True, eq=False)
class Footprint:
    """Outline, resolution and mean color of an image element in a coordinate system.

    Parameters
    ----------
    area
        Outline of the image.
    px
        Size of a pixel in units of the coordinate system.
    color
        Mean color of a sample of pixels, ``(3,)``.
    """

    area: Polygon
    px: float
    color: npt.NDArray[np.float64]


def footprint(element: Any, affine: npt.NDArray[np.float64]) -> Footprint | None:
    """Compute the footprint of an image element from its affine matrix, 3 x 3; None if it cannot be an H&E image."""
    try:
        image = open_image(element)
    except ImageError:
        return None
    height, width = image.shape_px
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    px = float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
    return Footprint(Polygon((corners @ affine.T)[:, :2]), px, _mean_color(image))


def finest(footprints: Mapping[str, Footprint | None]) -> str | None:
    """Return the name of the finest image; None unless all are resolutions of the same image."""
    images = {name: one for name, one in footprints.items() if one is not None}
    if not images:
        return None
    first, *others = sorted(images, key=lambda name: images[name].px)
    best = images[first]
    # Different images of one place, such as two stains, often have the same resolution, which resolutions of one
    # image never have.
    same = all(images[name].px > 1.01 * best.px and _alike(best, images[name]) for name in others)
    return first if same else None


def _alike(one: Footprint, other: Footprint) -> bool:
    union = one.area.union(other.area).area
    # An outline without area, or an infinite one, has no overlap with another.
    common = one.area.intersection(other.area).area / union if 0 < union < np.inf else 0.0
    return bool(common >= _OVERLAP and np.abs(one.color - other.color).max() <= _COLOR)


def _mean_color(image: SlideImage) -> npt.NDArray[np.float64]:
    """Average the color of small windows, at the same relative places of every image, in its coarsest level."""
    level = len(image.levels) - 1
    height, width = image.level_shape(level)
    places = (np.arange(_WINDOWS) + 0.5) / _WINDOWS
    means = []
    for y in (places * height).astype(int) - _WINDOW_PX // 2:
        for x in (places * width).astype(int) - _WINDOW_PX // 2:
            means.append(image.read(level, y, y + _WINDOW_PX, x, x + _WINDOW_PX).reshape(-1, 3).mean(0))
    return np.asarray(np.mean(means, axis=0), dtype=np.float64)


Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Placed:
    """Spots of one region on its image.

    Parameters
    ----------
    centers_px
        Positions ``(n, 2)`` as x, y in px of the image's finest scale.
    scale
        px of the image per unit of the spots' intrinsic coordinates.
    diameter_px
        Diameter of circular spots, or side of the bins of Visium HD, in px of the image; None for other shapes.
    """

    centers_px: Matrix
    scale: float
    diameter_px: float | None


def find_table(sdata: SpatialData, name: str | None, shapes: str | None) -> AnnData | None:
    """Find the table that annotates the spots.

    Parameters
    ----------
    sdata
        Object to search.
    name
        Name of the table; None for the only one that annotates spots.
    shapes
        Name of the spots; None for any.

    Returns
    -------
    AnnData or None
        The table, None if there is none.

    Raises
    ------
    MissingKeyError
        There is no table of that name.
    InputError
        Several tables qualify, or the tables annotate no spots.
    """
    tables = dict(sdata.tables)
    if name is not None:
        if name not in tables:
            raise MissingKeyError(f"the SpatialData has no table {name!r}; table= takes one of {sorted(tables)}.")
        linked(tables[name], f"table {name!r}")
        return tables[name]
    fitting = [key for key, table in tables.items() if _annotates(sdata, table, shapes)]
    # Predictions of this package annotate the same spots; the original table takes precedence.
    fitting = [key for key in fitting if Keys.UNS not in tables[key].uns] or fitting
    if len(fitting) > 1:
        raise InputError(
            f"the SpatialData has {len(fitting)} tables of spots: {fitting}. "
            + advise(Fix("table", why="with one of them"), otherwise="Leave one of them in it.")
        )
    if not fitting and tables and shapes is None:
        raise InputError(
            f"the tables {sorted(tables)} annotate no element of the SpatialData. Parse the table with "
            "TableModel.parse(table, region=..., ...). "
            + advise(Fix("shapes", why=f"with one of {sorted(sdata.shapes)}"))
        )
    return tables[fitting[0]] if fitting else None


def _annotates(sdata: SpatialData, table: AnnData, shapes: str | None) -> bool:
    link = link_of(table)
    if link is None:
        return False
    return shapes in link.regions if shapes is not None else any(name in sdata for name in link.regions)


def linked(table: AnnData, name: str = "the table") -> Link:
    """Read which elements a table annotates; InputError if it annotates none."""
    link = link_of(table)
    if link is None:
        raise InputError(
            f"{name} annotates no spots. Parse it with TableModel.parse(table, region=..., region_key=..., "
            "instance_key=...)."
        )
    return link


def find_spots(sdata: SpatialData, table: AnnData | None, shapes: str | None) -> pd.DataFrame:
    """List the region and the instance id of every spot.

    Parameters
    ----------
    sdata
        Object that holds the spots.
    table
        Table that annotates them; None if there is none.
    shapes
        Name of the spots; None for all that the table annotates.

    Returns
    -------
    pandas.DataFrame
        Columns ``region`` and ``instance_id``, one row per spot in the order of the table, indexed by its row names.

    Raises
    ------
    MissingKeyError
        There are no spots of that name, or the table annotates elements that are absent.
    SliceError
        There are no spots.
    InputError
        There is no table, and not exactly one shapes element.
    """
    if shapes is not None and shapes not in sdata:
        raise MissingKeyError(f"the SpatialData has no spots {shapes!r}; shapes= takes one of {sorted(sdata.shapes)}.")
    if table is None:
        return _spots_alone(sdata, shapes)
    link = linked(table)
    region_key = link.region_key
    # Rows of other regions are dropped first, so that faults in them do not matter.
    obs = table.obs if shapes is None else table.obs[table.obs[region_key].astype(str) == shapes]
    spots = annotated_rows(obs, region_key, link.instance_key)
    unknown = sorted(set(spots["region"]) - {name for _, name, _ in sdata.gen_elements()})
    if unknown:
        raise MissingKeyError(
            f"the table's obs[{region_key!r}] names {unknown}, which the SpatialData does not hold. Drop "
            f"these rows. {advise(Fix('shapes', why=f'with one of {sorted(sdata.shapes)} for these alone'))}"
        )
    if spots.empty:
        raise SliceError(
            f"the table has no rows for the spots {shapes or sorted(sdata.shapes)}; expected at least one."
        )
    return spots


def _spots_alone(sdata: SpatialData, shapes: str | None) -> pd.DataFrame:
    names = [shapes] if shapes is not None else sorted(sdata.shapes)
    if len(names) != 1:
        raise InputError(
            f"the SpatialData has no table and {len(names)} shapes elements, {names}; expected one, the spots. "
            + advise(Fix("shapes", why="with its name"), otherwise="Leave one of them in it.")
        )
    index = sdata[names[0]].index
    if len(index) == 0:
        raise SliceError(f"the shapes element {names[0]!r} holds no spots; expected at least one.")
    return pd.DataFrame({"region": names[0], "instance_id": index}, index=index.astype(str))


def find_image(sdata: SpatialData, region: str, image: Any, system: str | None) -> tuple[str, str]:
    """Find the image of a region and the coordinate system that both share.

    Parameters
    ----------
    sdata
        Object that holds the spots and the images.
    region
        Name of the spots.
    image
        Name of the image element, a dict of names by region, or None for the finest one that shares a coordinate
        system with the spots.
    system
        Coordinate system to use; None for any.

    Returns
    -------
    image
        Name of the image element.
    system
        Name of the coordinate system.

    Raises
    ------
    MissingKeyError, ImageError
        There is no such image, or no image at all.
    InputError
        Spots and image share no coordinate system, or several that disagree.
    """
    if image is not None and not isinstance(image, str | Mapping):
        raise InputError(
            f"image= is a {type(image).__name__}; for SpatialData it is the name of an image element, one of "
            f"{sorted(sdata.images)}, or a dict of names by region. Add a new image with Image2DModel.parse."
        )
    name = image.get(region) if isinstance(image, Mapping) else image
    if name is None and isinstance(image, Mapping):
        raise MissingKeyError(f"image= names no image for the spots {region!r}; it has {sorted(image)}.")
    if name is not None and name not in sdata.images:
        raise MissingKeyError(f"the SpatialData has no image {name!r}; image= takes one of {sorted(sdata.images)}.")
    if not sdata.images:
        raise ImageError(
            "the SpatialData has no image element; expected the H&E image. Add it with Image2DModel.parse."
        )
    own = set(_transformations(sdata, region))
    reach = own if system is None else own & {system}
    candidates = (
        [name] if name is not None else [key for key in sdata.images if reach & set(_transformations(sdata, key))]
    )
    if len(candidates) > 1:
        candidates = [finest_image(sdata, candidates, reach, f"with the spots {region!r}")]
    shared = own & set(_transformations(sdata, candidates[0])) if candidates else set()
    if system is not None:
        shared &= {system}
    if not shared:
        images = {key: sorted(_transformations(sdata, key)) for key in (candidates or sdata.images)}
        raise InputError(
            f"the spots {region!r} are in the coordinate systems {sorted(own)}, the images in {images}: none in common"
            + (f" with {system!r}" if system is not None else "")
            + ". Register them with spatialdata.transformations.set_transformation."
        )
    return candidates[0], _agreed_system(sdata, region, candidates[0], shared)


def finest_image(sdata: SpatialData, names: Sequence[str], systems: set[str], what: str) -> str:
    """Choose the finest of several resolutions of one image, such as Visium's full, hires and lowres image.

    Parameters
    ----------
    sdata
        Object that holds the images.
    names
        Names of the image elements.
    systems
        Coordinate systems in which they may be compared.
    what
        Elements with which they share a coordinate system, for the error message.

    Returns
    -------
    str
        Name of the finest image element.

    Raises
    ------
    InputError
        The elements are different images.
    """
    shared = systems.intersection(*(_transformations(sdata, name) for name in names))
    system = min(shared, key=lambda name: (name != "global", name), default=None)
    footprints = (
        {} if system is None else {name: footprint(sdata.images[name], _affine(sdata, name, system)) for name in names}
    )
    chosen = finest(footprints)
    if chosen is None:
        raise InputError(
            f"{len(names)} images share a coordinate system {what}: {list(names)}, and they are not one image at "
            f"several resolutions. "
            + advise(
                Fix("image", why=f"with the name of the H&E's finest, such as {names[0]!r}"),
                otherwise="Leave the H&E alone in it.",
            )
        )
    another = advise(Fix("image", why="for another"))
    logger.info("Of the images %s the finest is taken: %r. %s", list(names), chosen, another)
    return chosen


def _agreed_system(sdata: SpatialData, region: str, image: str, shared: set[str]) -> str:
    """Choose one of the shared coordinate systems; InputError unless all place the spots identically on the image."""
    ordered = sorted(shared, key=lambda name: (name != "global", name))
    first, *others = (spots_to_px(sdata, region, image, system) for system in ordered)
    if not all(np.allclose(first, other, rtol=1e-4, atol=0.5) for other in others):
        raise InputError(
            f"the coordinate systems {ordered} put the spots {region!r} in different places of image {image!r}. Pass "
            "coordinate_system= to pp.resolve, or remove the wrong ones with remove_transformation."
        )
    return ordered[0]


def transformations_of(element: Any, name: str) -> dict[str, Any]:
    """Read the transformations of an element by coordinate system.

    Raises
    ------
    InputError
        The element has no transformations, or they are of another type.
    """
    from spatialdata.transformations import BaseTransformation, get_transformation

    try:
        found = get_transformation(element, get_all=True)
    except (AssertionError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{name!r} ({type(element).__name__}) has no coordinate transformations: {error or 'they are absent'}. Set "
            f"one: spatialdata.transformations.set_transformation(sdata[{name!r}], Identity(), 'global')."
        ) from error
    known = found if isinstance(found, dict) else {}
    odd = [system for system, one in known.items() if not isinstance(one, BaseTransformation)]
    if odd:
        raise InputError(
            f"the transformation of {name!r} to {odd[0]!r} is a {type(known[odd[0]]).__name__}; expected one of "
            "spatialdata.transformations. Set it with set_transformation."
        )
    return known


def _transformations(sdata: SpatialData, name: str) -> dict[str, Any]:
    return transformations_of(sdata[name], name)


def _affine(sdata: SpatialData, name: str, system: str) -> Matrix:
    """Compute the affine matrix, 3 x 3, from an element's intrinsic coordinates to a coordinate system."""
    transformation = _transformations(sdata, name)[system]
    try:
        matrix = transformation.to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y"))
    except (ValueError, NotImplementedError) as error:
        raise InputError(
            f"the transformation of {name!r} to {system!r} is no affine map of the plane ({error}); expected scale, "
            "translation, rotation, flip, or a sequence of these."
        ) from error
    matrix = np.asarray(matrix, dtype=np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:2, :2])) < 1e-12:
        raise InputError(f"the transformation of {name!r} to {system!r} cannot be inverted: {matrix.tolist()}.")
    return matrix


def spots_to_px(sdata: SpatialData, region: str, image: str, system: str) -> Matrix:
    """Compute the affine matrix, 3 x 3, from the spots' intrinsic coordinates to px of the image's finest scale."""
    return np.asarray(np.linalg.solve(_affine(sdata, image, system), _affine(sdata, region, system)), dtype=np.float64)


def place_spots(sdata: SpatialData, region: str, image: str, system: str, instances: pd.Series) -> Placed:
    """Transform spots to px of the image's finest scale.

    Parameters
    ----------
    sdata
        Object that holds the spots and the image.
    region
        Name of the spots.
    image
        Name of the image element.
    system
        Coordinate system that both share.
    instances
        Instance ids of the spots, which determine the order of the result.

    Returns
    -------
    Placed
        Positions, scale and size of the spots.

    Raises
    ------
    CoordinateError
        An id is missing from the spots or duplicated, or a position is not finite.
    SliceError
        The element holds no spots.
    """
    _check_spots(sdata, region)
    index, points = _centroids(sdata, region, system)
    points = points[_positions(index, instances, region)]
    centers = np.asarray(np.linalg.solve(_affine(sdata, image, system), points.T).T[:, :2], dtype=np.float64)
    if not np.isfinite(centers).all():
        raise CoordinateError(f"the spots {region!r} have NaN or infinite positions. Drop them from shapes and table.")
    scale = float(np.sqrt(abs(np.linalg.det(spots_to_px(sdata, region, image, system)[:2, :2]))))
    size = _spot_size(sdata[region], region)
    return Placed(centers, scale, None if size is None else size * scale)


def _centroids(sdata: SpatialData, region: str, system: str) -> tuple[pd.Index, Matrix]:
    """Compute the centroids of spots in a coordinate system, as x, y and 1, ``(n, 3)``, and list their ids."""
    if region not in sdata.shapes:
        from spatialdata import get_centroids

        found = get_centroids(sdata[region], coordinate_system=system).compute()
        xy = found[["x", "y"]].to_numpy(dtype=np.float64)
        return pd.Index(found.index), np.column_stack([xy, np.ones(len(xy))])
    # spatialdata makes a dask table of points, for most of the time that a section takes to be found.
    centers = sdata.shapes[region].geometry.centroid
    points = np.column_stack([centers.x, centers.y, np.ones(len(centers))])
    return centers.index, points @ _affine(sdata, region, system).T


def _check_spots(sdata: SpatialData, region: str) -> None:
    """Validate that an element holds spots and that each has a geometry."""
    if region not in {**sdata.shapes, **sdata.points, **sdata.labels}:
        raise InputError(
            f"the table annotates {region!r}, which holds no shapes, points or labels. Annotate the spots."
        )
    if region not in sdata.shapes:
        return
    geometry = sdata.shapes[region].geometry
    if len(geometry) == 0:
        raise SliceError(f"the shapes element {region!r} holds no spots; expected at least one.")
    bare = np.asarray(geometry.isna() | geometry.is_empty)
    if bare.any():
        raise CoordinateError(
            f"the spots {region!r} have {int(bare.sum())} shapes without geometry, first "
            f"{geometry.index[bare][0]!r}. Drop them from shapes and table."
        )


def _spot_size(element: Any, region: str) -> float | None:
    """Compute the diameter of circles or the side of bins in the spots' intrinsic units; None for other shapes."""
    columns = getattr(element, "columns", ())
    if "radius" in columns:
        return float(2 * np.median(element["radius"].to_numpy(dtype=np.float64)))
    if bin_um(region) is not None and "geometry" in columns:
        return float(np.sqrt(np.median(element.geometry.area)))
    return None


def _positions(index: pd.Index, instances: pd.Series, region: str) -> npt.NDArray[np.int64]:
    """Find the position within the element of each row of the table, ``(n_rows,)``.

    Raises
    ------
    CoordinateError
        The index of the element is not unique, or lacks instance ids of the table.
    """
    if not index.is_unique:
        raise CoordinateError(f"the spots {region!r} have the same index more than once; expected one per spot.")
    positions = index.get_indexer(pd.Index(instances))
    missing = positions < 0
    if missing.any():
        raise CoordinateError(
            f"{missing.sum()} of {len(missing)} rows of the table have no spot in {region!r}: instance id "
            f"{instances.iloc[int(np.flatnonzero(missing)[0])]!r} (type {instances.dtype}) is not in its index (type "
            f"{index.dtype}). Match them with spatialdata.match_table_to_element."
        )
    return positions.astype(np.int64)
