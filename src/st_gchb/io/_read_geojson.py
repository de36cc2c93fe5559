"""Reading of annotated regions from GeoJSON, as QuPath and other viewers export them."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry
from shapely.validation import explain_validity

from st_gchb._advice import Fix, advise
from st_gchb._arguments import checked
from st_gchb._artifacts import DamagedFileError, is_there, parse_json
from st_gchb._errors import InputError, MissingFileError
from st_gchb._logging import logger

_GEOMETRIES = ("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon")
_CHILDREN = ("childObjects", "children")
"""Members in which QuPath nests the objects within an object."""
_RING = "a list of 4 positions [x, y] or more, of which the last is the first"


@dataclass(eq=False)
class Region:
    """One object of a GeoJSON file.

    Parameters
    ----------
    geometry
        Outline in px.
    identity
        Id as text; None if the file has none.
    object_type
        QuPath's type, such as ``"annotation"``.
    name, classification
        Name and class; None if there is none. Names of nested classes are joined by ``": "``.
    class_color, color
        Color of the class, and of the object itself, as ``"#rrggbb"``.
    measurements, metadata
        Numbers and texts by name.
    """

    geometry: BaseGeometry
    identity: str | None = None
    object_type: str = "annotation"
    name: str | None = None
    classification: str | None = None
    class_color: str | None = None
    color: str | None = None
    measurements: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


class _FaultError(InputError):
    """Something within a feature is not as it should be; the feature is named where it is caught."""


@checked
def read_geojson(path: str | Path, *, repair: bool = False) -> geopandas.GeoDataFrame:
    """Read annotated regions from a GeoJSON file, as QuPath exports them.

    Parameters
    ----------
    path
        File with a FeatureCollection, one Feature, a list of these, or a bare geometry; it may be gzipped. Objects
        within objects are read, too, each after the one that holds it.
    repair
        Close open rings, and resolve outlines that cross themselves by :func:`shapely.make_valid`, instead of raising
        an error.

    Returns
    -------
    geopandas.GeoDataFrame
        One row per object, in the order of the file, without a coordinate reference system: positions are x, y in
        full-resolution px. Columns: ``geometry`` (polygons with holes, multipolygons; points and lines, too),
        ``id``, ``object_type``, ``name``, ``classification``, ``class_color`` and ``color`` (``"#rrggbb"``); None where
        an object has none. ``measurements`` and ``metadata``, dicts, are there if an object has some.

    Raises
    ------
    MissingFileError
        The file does not exist.
    InputError
        The file is not GeoJSON, or a feature, which the message names by number and name, has no geometry, one of
        another type, positions that are no finite numbers, or rings that are open or cross themselves.

    See Also
    --------
    write_geojson : Write regions, spots and tiles.
    st_gchb.pp.label_regions : Label spots with the class of the region that holds them.

    Examples
    --------
    >>> from pathlib import Path
    >>> import st_gchb
    >>> text = '{"type": "Polygon", "coordinates": [[[0, 0], [40, 0], [40, 30], [0, 30], [0, 0]]]}'
    >>> _ = Path("/tmp/st_gchb_doc.geojson").write_text(text)
    >>> st_gchb.io.read_geojson("/tmp/st_gchb_doc.geojson").area.tolist()
    [1200.0]
    """
    file = Path(path)
    try:
        content = parse_json(_bytes_of(file).removeprefix(b"\xef\xbb\xbf"))
        found = list(_features(content))
    except DamagedFileError as error:
        raise InputError(
            f"{file} cannot be read as GeoJSON: it is no JSON ({error}). Export the annotations as GeoJSON again."
        ) from error
    except _FaultError as error:
        raise InputError(f"{file} cannot be read as GeoJSON: {str(error).rstrip('.')}.") from error
    return _frame([_named(file, number, len(found), one, repair) for number, one in enumerate(found, 1)])


def _bytes_of(file: Path) -> bytes:
    if not is_there(file, Path.is_file):
        raise MissingFileError(f"{file}: there is no such file; expected GeoJSON.")
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read as GeoJSON: {error}. Export or copy it again.") from error


def _features(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the features of a file and those within them, in the order of the file."""
    # A stack instead of recursion, whose depth the file would determine.
    stack = [content]
    while stack:
        one = stack.pop()
        if isinstance(one, list):
            stack += reversed(one)
            continue
        kind = one.get("type") if isinstance(one, dict) else None
        if kind == "FeatureCollection":
            features = one.get("features")
            if not isinstance(features, list):
                raise _FaultError(f"the FeatureCollection has {_shown(features)} for features; expected a list")
            stack += reversed(features)
        elif kind == "Feature":
            yield one
            # Here, what is damaged is left to the feature itself, which names it.
            properties = one.get("properties")
            for holder in (one, properties if isinstance(properties, dict) else {}):
                for key in _CHILDREN:
                    stack += reversed(holder[key]) if isinstance(holder.get(key), list) else []
        elif kind in (*_GEOMETRIES, "GeometryCollection"):
            yield {"geometry": one}
        else:
            what = _shown(one) if kind is None else f"an object of type {_shown(kind)}"
            raise _FaultError(f"found {what}; expected a FeatureCollection, a Feature, a list of these, or a geometry")


def _named(file: Path, number: int, n: int, feature: dict[str, Any], repair: bool) -> Region:
    """Read a feature; errors name it by number and name."""
    try:
        return _region(feature, repair)
    except _FaultError as error:
        properties = feature.get("properties")
        name = properties.get("name") if isinstance(properties, dict) else None
        called = f" ({_shown(name)})" if isinstance(name, str) else ""
        what = str(error).rstrip(".")
        raise InputError(f"{file} cannot be read as GeoJSON: feature {number} of {n}{called}: {what}.") from error


def _region(feature: dict[str, Any], repair: bool) -> Region:
    properties = feature.get("properties")
    if properties is not None and not isinstance(properties, dict):
        raise _FaultError(f"properties are {_shown(properties)}; expected an object")
    given = properties or {}
    identity, kind = feature.get("id"), given.get("objectType", given.get("object_type"))
    label, class_color = _classification(given.get("classification"))
    return Region(
        _geometry(feature.get("geometry"), repair),
        identity=None if identity is None else str(identity),
        object_type=kind if isinstance(kind, str) else "annotation",
        name=_text(given.get("name"), "the name"),
        classification=label,
        class_color=class_color,
        color=_color(given.get("color"), "the color"),
        measurements=_measurements(given.get("measurements")),
        metadata=_metadata(given.get("metadata")),
    )


# ---- Geometry ----


def _geometry(value: Any, repair: bool) -> BaseGeometry:
    if value is None:
        raise _FaultError("it has no geometry; expected a polygon. Draw it again, or delete it")
    if not isinstance(value, dict):
        raise _FaultError(f"the geometry is {_shown(value)}; expected an object with a type and coordinates")
    kind, coordinates = value.get("type"), value.get("coordinates")
    if kind not in _GEOMETRIES:
        advice = ". Split it into one feature for each part" if kind == "GeometryCollection" else ""
        raise _FaultError(f"the geometry is of type {_shown(kind)}; expected one of {', '.join(_GEOMETRIES)}{advice}")
    if not isinstance(coordinates, list):
        raise _FaultError(f"the {kind} has {_shown(coordinates)} for coordinates; expected a list")
    if not coordinates:
        raise _FaultError(f"the {kind} is empty. Draw it again, or delete it")
    try:
        made = _of_kind(kind, coordinates, repair)
        return made if kind.endswith(("Point", "LineString")) else _valid(made, kind, repair)
    except ShapelyError as error:
        raise _FaultError(f"the {kind} cannot be built ({error})") from error


def _of_kind(kind: str, coordinates: list[Any], repair: bool) -> BaseGeometry:
    if kind == "Polygon":
        return _polygon(coordinates, repair)
    if kind == "MultiPolygon":
        return shapely.MultiPolygon([_polygon(part, repair) for part in coordinates])
    if kind == "Point":
        return shapely.Point(_positions([coordinates])[0])
    if kind == "MultiPoint":
        return shapely.MultiPoint(_positions(coordinates))
    if kind == "LineString":
        return _line(coordinates)
    return shapely.MultiLineString([_line(part) for part in coordinates])


def _line(coordinates: Any) -> shapely.LineString:
    points = _positions(coordinates)
    if len(points) < 2:
        raise _FaultError("a line has one position; expected 2 or more")
    return shapely.LineString(points)


def _polygon(rings: Any, repair: bool) -> shapely.Polygon:
    if not isinstance(rings, list) or not rings:
        raise _FaultError(f"a polygon is {_shown(rings)}; expected a list of rings: the outline, then its holes")
    outer, *holes = (_ring(ring, number, repair) for number, ring in enumerate(rings))
    return shapely.Polygon(outer, holes)


def _ring(positions: Any, number: int, repair: bool) -> npt.NDArray[np.float64]:
    what = "the outline" if number == 0 else f"hole {number}"
    points = _positions(positions)
    closed = bool((points[0] == points[-1]).all())
    if repair and not closed:
        points, closed = np.concatenate([points, points[:1]]), True
    if len(points) < 4:
        raise _FaultError(f"{what} has {len(points)} positions; expected {_RING}")
    if not closed:
        first, last = points[0].tolist(), points[-1].tolist()
        raise _FaultError(
            f"{what} is not closed: it begins at {first} and ends at {last}; expected {_RING}. "
            + advise(Fix("repair", "True", "to close it"), otherwise="Draw it again.")
        )
    return points


def _positions(values: Any) -> npt.NDArray[np.float64]:
    """Convert positions, of which each may have further numbers after x and y, to an array ``(n, 2)``."""
    if not isinstance(values, list) or not values:
        raise _FaultError(f"found {_shown(values)}; expected a list of positions [x, y]")
    for value in values:
        if not isinstance(value, list) or len(value) < 2:
            raise _FaultError(f"a position is {_shown(value)}; expected two numbers, x and y")
    pairs = [value[:2] for value in values]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for pair in pairs for number in pair):
        wrong = next(pair for pair in pairs if not all(type(number) in (int, float) for number in pair))
        raise _FaultError(f"a position is {_shown(wrong)}; expected two numbers, x and y")
    try:
        points = np.array(pairs, dtype=np.float64)
    except OverflowError:
        points = np.full((1, 2), np.inf)
    bad = ~np.isfinite(points).all(axis=1)
    if bad.any():
        raise _FaultError(f"{int(bad.sum())} positions are NaN, infinite or beyond all numbers; expected x, y in px")
    return points


def _valid(made: BaseGeometry, kind: str, repair: bool) -> BaseGeometry:
    if made.is_valid and not made.is_empty:
        return made
    if not repair:
        raise _FaultError(
            f"the {kind} is not valid: {explain_validity(made)}. "
            + advise(Fix("repair", "True", "to resolve it"), otherwise="Draw it again.")
        )
    parts = [part for part in _polygons_in(shapely.make_valid(made)) if part.area > 0]
    if not parts:
        raise _FaultError(f"the {kind} has no area. Draw it again, or delete it")
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _polygons_in(geometry: BaseGeometry) -> list[shapely.Polygon]:
    if isinstance(geometry, shapely.Polygon):
        return [geometry]
    return [part for one in getattr(geometry, "geoms", ()) for part in _polygons_in(one)]


# ---- Properties ----


def _text(value: Any, what: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise _FaultError(f"{what} is {_shown(value)}; expected text")


def _classification(value: Any) -> tuple[str | None, str | None]:
    """Read name and color of a class in the forms of QuPath 0.2 and later."""
    if not isinstance(value, dict):
        return _text(value, "the classification"), None
    names = value.get("names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        label = ": ".join(names) or None
    else:
        label = _text(value.get("name"), "the classification's name")
    return label, _color(value.get("color", value.get("colorRGB")), "the color of the class")


def _color(value: Any, what: str) -> str | None:
    """Convert a list of 3 or 4 numbers, or a packed number, to ``"#rrggbb"`` or ``"#rrggbbaa"``."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**32:
        return f"#{value & 0xFFFFFF:06x}"
    parts = value if isinstance(value, list) and len(value) in (3, 4) else []
    if not parts or not all(type(part) in (int, float) and 0 <= part <= 255 and part == int(part) for part in parts):
        raise _FaultError(f"{what} is {_shown(value)}; expected [red, green, blue], each from 0 to 255")
    return "#" + "".join(f"{int(part):02x}" for part in parts)


def _measurements(value: Any) -> dict[str, float]:
    """Read measurements, a dict or, before QuPath 0.4, a list of names and values; those without a number are left."""
    if value is None:
        return {}
    pairs = list(value.items()) if isinstance(value, dict) else None
    if isinstance(value, list) and all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in value):
        pairs = [(one["name"], one.get("value")) for one in value]
    if pairs is None:
        raise _FaultError(f"measurements are {_shown(value)}; expected numbers by name")
    numbers = {name: _number(item, name) for name, item in pairs}
    empty = [name for name, number in numbers.items() if number is None]
    if empty:
        logger.warning("%d measurements without a number are left out, such as %r.", len(empty), empty[0])
    return {name: number for name, number in numbers.items() if number is not None}


def _number(value: Any, name: str) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        # QuPath writes "NaN" and "Infinity" as text, since JSON has neither.
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)
    except (TypeError, ValueError):
        raise _FaultError(f"the measurement {_shown(name)} is {_shown(value)}; expected a number") from None


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _FaultError(f"metadata are {_shown(value)}; expected texts by name")
    return {key: str(item) for key, item in value.items() if isinstance(item, str | int | float)}


def _shown(value: Any) -> str:
    """Show a value of the file, shortened, in an error message."""
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        return f"{kind} of {len(value)}" if value else f"an empty {kind.split()[1]}"
    if value is None:
        return "null"
    # The digits of numbers beyond all floats cannot even be shown.
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _frame(regions: list[Region]) -> geopandas.GeoDataFrame:
    columns: dict[str, list[Any]] = {
        "id": [one.identity for one in regions],
        "object_type": [one.object_type for one in regions],
        "name": [one.name for one in regions],
        "classification": [one.classification for one in regions],
        "class_color": [one.class_color for one in regions],
        "color": [one.color for one in regions],
        "measurements": [one.measurements for one in regions],
        "metadata": [one.metadata for one in regions],
    }
    for name in ("measurements", "metadata"):
        if not any(columns[name]):
            del columns[name]
    # Columns of text would be of pandas' own type from version 3 on, in which what is absent is NaN.
    table = {name: pd.Series(values, dtype=object) for name, values in columns.items()}
    geometry = geopandas.GeoSeries([one.geometry for one in regions])
    return geopandas.GeoDataFrame(table, geometry=geometry)
