"""Writing of spots, tiles and regions as GeoJSON for QuPath."""

from __future__ import annotations

import gzip
import io
import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame

from st_gchb._arguments import Diameter, checked
from st_gchb._constants import Keys
from st_gchb._errors import InputError, ScaleError
from st_gchb._logging import logger
from st_gchb._options import SpotShape
from st_gchb.io._library import column_of
from st_gchb.io._reading import writing
from st_gchb.io._viewer_spots import SpotValues, ViewerSpots, own_columns, viewer_spots

if TYPE_CHECKING:
    from spatialdata import SpatialData

_CORNERS = 24
"""Corners of the polygon of a circle: a multiple of four, so that its bounding box is that of the circle."""
_SMALLEST_PX = 0.5
"""Smallest diameter: positions are written to hundredths of a pixel."""
_MANY = 20_000_000
"""Number of measurements above which viewers, which hold the whole file in memory, become slow."""
_PALETTE = (
    *((228, 26, 28), (55, 126, 184), (77, 175, 74), (152, 78, 163), (255, 127, 0)),
    *((255, 217, 47), (166, 86, 40), (247, 129, 191), (102, 194, 165), (153, 153, 153)),
)
"""Colors of classes that have none."""
_IDS = uuid.UUID("5f0b4d8e-6c55-5d0e-9d3b-2a6f1f6f6a10")
"""Namespace of the ids, which are the same whenever the same spot is written."""


@checked
def write_geojson(
    data: AnnData | SpatialData | GeoDataFrame,
    path: str | Path,
    genes: str | Sequence[str] | None = None,
    *,
    layer: str | None = Keys.LAYER,
    classification: str | None = None,
    slice: str | None = None,
    slice_key: str | None = None,
    table: str = Keys.TABLE,
    shape: SpotShape = "auto",
    diameter_px: Diameter | None = None,
    origin_px: tuple[float, float] = (0.0, 0.0),
) -> None:
    """Write spots, tiles or regions as GeoJSON that QuPath opens on the slide.

    Spots become detections and tiles become tiles, with expression, confidence and outlier flag as measurements, by
    which QuPath colors, filters and classifies them. The file is written as a whole or not at all.

    Parameters
    ----------
    data
        Result of :meth:`~st_gchb.model.STGCHB.predict`, or another AnnData with ``obsm["spatial"]`` in full-resolution
        px; a SpatialData with such a table; or regions as :func:`read_geojson` returns them, for which ``path`` and
        ``origin_px`` are the only other arguments.
    path
        File to write, ``.geojson``, ``.json``, or either with ``.gz``.
    genes
        Genes, or numeric columns of ``obs``, to write as measurements; all genes by default, none for an empty list.
        Confidence, outlier flag and share of tissue are always written where ``obs`` has them.
    layer
        Layer with the expression; None for ``X``.
    classification
        Column of ``obs`` with the class of each spot. Colors are taken from ``uns[classification + "_colors"]``.
    slice, slice_key
        Slice to write if there are several, and column of ``obs`` with the slice of each spot.
    table
        Name of the table of a SpatialData.
    shape
        ``"circle"`` or ``"square"``; ``"auto"`` writes tiles in rows and columns, and bins of Visium HD, as
        squares, all else as circles.
    diameter_px
        Diameter of the spots, or side of the tiles, in full-resolution px; by default that of ``uns["spatial"]``.
    origin_px
        Position of the viewer's origin, x and y in full-resolution px: QuPath shows some scanners' files (MRXS, say)
        without their empty margin, ``openslide.bounds-x`` and ``openslide.bounds-y``.

    Raises
    ------
    MissingKeyError
        There is no such table, layer, gene or column; the nearest names are told.
    SliceError, CoordinateError, ScaleError
        No slice was chosen among several, positions cannot be read, or the size of the spots is not known.
    InputError
        The file has another suffix, names occur twice, or a region is empty or not valid.
    StoreError
        The file cannot be written; an earlier one is left as it was.

    Notes
    -----
    Values that are not finite are left out, which QuPath shows as NaN. Ids are the same at each call for the same slice
    and row names. Memory does not grow with the number of spots or genes.

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.synthetic_tissue(1, n_rows=5, n_cols=5, n_genes=20)
    >>> gene = adata.var_names[0]
    >>> st_gchb.io.write_geojson(adata, "/tmp/st_gchb_doc.geojson", gene, layer=None)
    >>> spots = st_gchb.io.read_geojson("/tmp/st_gchb_doc.geojson")
    >>> list(spots.measurements[0]) == [gene], len(spots) == adata.n_obs
    (True, True)
    """
    target = Path(path)
    if not re.search(r"\.(geo)?json(\.gz)?$", target.name.lower()):
        raise InputError(
            f"path={str(path)!r}: expected a name that ends in .geojson, .json, .geojson.gz or .json.gz, by which "
            "viewers tell the format."
        )
    if not np.isfinite(origin_px).all():
        raise InputError(f"origin_px={origin_px}; expected two finite numbers, x and y in px.")
    if isinstance(data, GeoDataFrame):
        options = {"genes": genes, "classification": classification, "slice": slice, "diameter_px": diameter_px}
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise InputError(f"{'=, '.join(given)}=: data are regions, which hold all of their own. Leave it out.")
        features = _region_features(data, origin_px)
    else:
        spots = viewer_spots(data, table, slice, slice_key)
        chosen = [genes] if isinstance(genes, str) else genes
        columns = [name for name in own_columns(spots) if name not in (chosen or ())]
        values = [SpotValues(spots, columns, None), SpotValues(spots, chosen, layer)]
        outlines = _Outlines(spots, shape, spots.diameter(diameter_px), origin_px)
        classes = None if classification is None else _classes(spots.adata, classification)
        features = _spot_features(spots, values, outlines, classes)
        n = len(spots.rows) * len(values[1].names)
        if n > _MANY:
            logger.warning("%s: %d measurements; viewers hold all of them in memory. Pass fewer genes.", path, n)
    with _opened(target) as file:
        file.write('{"type":"FeatureCollection","features":[')
        for i, feature in enumerate(features):
            file.write(f",\n{feature}" if i else f"\n{feature}")
        file.write("\n]}\n")


@contextmanager
def _opened(target: Path) -> Iterator[Any]:
    """Open a text file that is compressed if its name says so, and written as a whole or not at all."""
    with writing(target) as part, open(part, "wb") as raw:
        if target.name.lower().endswith(".gz"):
            # Without a name and a time of writing, so that equal content gives equal files; at the quickest level.
            with gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed, io.TextIOWrapper(packed, "utf-8") as file:
                yield file
        else:
            with io.TextIOWrapper(raw, "utf-8") as file:
                yield file


# ---- Spots and tiles ----


class _Outlines:
    """Outlines of the spots as GeoJSON geometries."""

    def __init__(self, spots: ViewerSpots, shape: SpotShape, diameter: float, origin: tuple[float, float]) -> None:
        if diameter < _SMALLEST_PX:
            raise ScaleError(
                f"the spots are {diameter:.3g} px wide; expected {_SMALLEST_PX} px or more. Are positions and diameter "
                "in px of the full-resolution image?"
            )
        self._is_square = spots.are_square if shape == "auto" else shape == "square"
        n = 4 if self._is_square else _CORNERS
        # Counterclockwise in numbers of x and y, as RFC 7946 asks of outlines.
        angles = 2 * np.pi * (np.arange(n) + (0.5 if self._is_square else 0.0)) / n
        radius = diameter / 2 * (2**0.5 if self._is_square else 1.0)
        self._ring = radius * np.column_stack([np.cos(angles), np.sin(angles)])
        self._centers = spots.centers - np.asarray(origin)

    def __getitem__(self, row: int) -> str:
        corners = [f"[{x:.2f},{y:.2f}]" for x, y in (self._centers[row] + self._ring).tolist()]
        ellipse = "" if self._is_square else ',"isEllipse":true'
        return f'{{"type":"Polygon","coordinates":[[{",".join([*corners, corners[0]])}]]{ellipse}}}'


def _spot_features(
    spots: ViewerSpots, values: Sequence[SpotValues], outlines: _Outlines, classes: list[str] | None
) -> Iterator[str]:
    kind = "tile" if spots.are_tiles else "detection"
    names = spots.adata.obs_names[spots.rows]
    if not names.is_unique:
        raise InputError(
            f"row names occur twice, such as {names[names.duplicated()][0]!r}; expected one for each spot. Call "
            "adata.obs_names_make_unique() first."
        )
    metadata = json.dumps({"slice": spots.slice})
    rows = zip(*(_measured_rows(one) for one in values), strict=True)
    for i, (name, measured) in enumerate(zip(names, rows, strict=True)):
        identity = uuid.uuid5(_IDS, json.dumps([spots.slice, name]))
        label = "" if classes is None else classes[spots.rows[i]]
        yield (
            f'{{"type":"Feature","id":"{identity}","geometry":{outlines[i]},"properties":{{"objectType":"{kind}",'
            f'"name":{json.dumps(name)},{label}"measurements":{{{",".join(filter(None, measured))}}},'
            f'"metadata":{metadata}}}}}'
        )


def _measured_rows(values: SpotValues) -> Iterator[str]:
    """Yield the members of each spot's measurements as text."""
    form = "%.7g" if values.is_single else "%.12g"
    members = [f"{json.dumps(name).replace('%', '%%')}:{form}" for name in values.names]
    whole = ",".join(members)
    for _, block in values.blocks():
        finite = np.isfinite(block)
        for row, complete, known in zip(block.tolist(), np.all(finite, axis=1).tolist(), finite, strict=True):
            if complete:
                yield whole % tuple(row)
            else:
                yield ",".join(one % value for one, value, there in zip(members, row, known, strict=True) if there)


def _classes(adata: AnnData, key: str) -> list[str]:
    """Return the member with the class of each row of the object; empty text for rows without a class."""
    column = column_of(adata, key, "classification=")
    labels = column.astype(object).where(column.notna(), None)
    known = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else sorted(set(column.dropna()))
    stored = adata.uns.get(f"{key}_colors", ())
    colors = {
        str(name): _rgb(stored[i]) if i < len(stored) else None  # scanpy's colors are in the order of the categories
        for i, name in enumerate(known)
    }
    members = {
        name: f'"classification":{json.dumps(_class(name, color or _PALETTE[i % len(_PALETTE)]))},'
        for i, (name, color) in enumerate(colors.items())
    }
    return ["" if label is None else members[str(label)] for label in labels]


def _class(name: str, color: Sequence[int]) -> dict[str, Any]:
    """Return QuPath's classification; it refuses the whole file where a class has a name and no color."""
    parts = name.split(": ")
    return {"name": name, "color": list(color)} if len(parts) == 1 else {"names": parts, "color": list(color)}


def _rgb(text: object) -> tuple[int, ...] | None:
    """Convert ``"#rrggbb"`` to three numbers, and ``"#rrggbbaa"`` to four; None for anything else."""
    if not isinstance(text, str) or not re.fullmatch(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{8})", text):
        return None
    return tuple(bytes.fromhex(text[1:]))


# ---- Regions ----


def _region_features(regions: GeoDataFrame, origin: tuple[float, float]) -> Iterator[str]:
    """Validate all regions, then yield them as features."""
    for number, geometry in enumerate(regions.geometry, 1):
        _check_region(geometry, f"region {number} of {len(regions)}")
    classes = pd.unique(_column(regions, "classification").dropna())
    palette = {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(classes)}
    known = ("id", "object_type", "name", "classification", "class_color", "color", "measurements", "metadata")
    columns = {name: _column(regions, name) for name in known}

    def features() -> Iterator[str]:
        used: set[str] = set()
        for i, geometry in enumerate(regions.geometry):
            one = {name: _none_of(column.iloc[i]) for name, column in columns.items()}
            yield json.dumps(_region_feature(geometry, one, palette, origin, used, i), allow_nan=False)

    return features()


def _region_feature(
    geometry: Any,
    one: Mapping[str, Any],
    palette: Mapping[str, Sequence[int]],
    origin: tuple[float, float],
    used: set[str],
    number: int,
) -> dict[str, Any]:
    properties: dict[str, Any] = {"objectType": one["object_type"] or "annotation"}
    if one["name"] is not None:
        properties["name"] = str(one["name"])
    if one["classification"] is not None:
        color = _rgb(one["class_color"]) or palette[one["classification"]]
        properties["classification"] = _class(str(one["classification"]), color)
    own = _rgb(one["color"])
    if own is not None:
        properties["color"] = list(own)
    for key in ("measurements", "metadata"):
        if one[key]:
            properties[key] = {str(name): _json_number(value) for name, value in one[key].items()}
    return {
        "type": "Feature",
        "id": _unused_id(one["id"], used, [number, geometry.wkb_hex]),
        "geometry": _geometry(geometry, origin),
        "properties": properties,
    }


def _unused_id(given: Any, used: set[str], seed: list[Any]) -> str:
    """Return the given id if it is a UUID that no earlier region has, as QuPath asks, else a new one."""
    try:
        identity = str(uuid.UUID(str(given)))
    except ValueError:
        identity = ""
    if not identity or identity in used:
        identity = str(uuid.uuid5(_IDS, json.dumps(seed)))
    used.add(identity)
    return identity


def _json_number(value: Any) -> Any:
    """Return NaN and infinity as the text that QuPath writes for them, and all else as it is."""
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, float) and not np.isfinite(number):
        return "NaN" if np.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number


def _check_region(geometry: Any, which: str) -> None:
    if geometry is None or geometry.is_empty:
        raise InputError(f"{which} has no geometry. Drop it: regions[~regions.is_empty & regions.geometry.notna()].")
    if geometry.geom_type in ("GeometryCollection", "LinearRing"):
        raise InputError(f"{which} is a {geometry.geom_type}, which viewers do not read. Split it: regions.explode().")
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise InputError(f"{which} has positions that are NaN or infinite; expected x, y in full-resolution px.")
    if not geometry.is_valid:
        raise InputError(
            f"{which} is not valid: {shapely.is_valid_reason(geometry)}. Repair it: regions.geometry.make_valid()."
        )


def _geometry(geometry: Any, origin: tuple[float, float]) -> dict[str, Any]:
    """Convert a shapely geometry to GeoJSON; outlines are wound as RFC 7946 asks, and no digit is lost."""
    if geometry.geom_type in ("Polygon", "MultiPolygon"):
        geometry = shapely.orient_polygons(geometry)
    moved = shapely.force_2d(geometry)
    if any(origin):
        moved = shapely.transform(moved, lambda points: points - np.asarray(origin))
    found: dict[str, Any] = shapely.geometry.mapping(moved)
    return found


def _column(regions: GeoDataFrame, name: str) -> pd.Series:
    return regions[name] if name in regions else pd.Series([None] * len(regions), dtype=object)


def _none_of(value: Any) -> Any:
    """Return None for a missing value, NaN included."""
    is_missing = value is None or (not isinstance(value, Mapping | Iterable) and bool(pd.isna(value)))
    return None if is_missing else value
