"""Rasterization: genes and annotations of tiles or spots as image elements aligned with the slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from geopandas import GeoDataFrame
from scipy import sparse
from scipy.spatial import cKDTree
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Sequence as Steps

from st_gchb._arguments import Fill, TilePixels, checked
from st_gchb._compat import named_layers
from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingKeyError
from st_gchb.io import annotated_rows, is_element_name, linked, nearest_rows, transformations_of

_OFF_GRID = 0.01
"""Largest deviation of a position from a square grid, in units of the spacing."""
_MAX_PIXELS = 5e8
_BAND = 2**20
"""Pixels whose nearest position is searched for at once, which bounds memory."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """A raster over positions.

    Parameters
    ----------
    index
        Row number of the position that each cell shows, ``(n_rows, n_cols)``; -1 for none.
    zoom
        Pixels along a side of a cell.
    matrix
        Affine matrix, 3 x 3, from px of the raster (x, y; the center of the first pixel is 0.5, 0.5) to the coordinates
        of the positions.
    """

    index: npt.NDArray[np.int32]
    zoom: int
    matrix: npt.NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the raster, px."""
        return self.index.shape[0] * self.zoom, self.index.shape[1] * self.zoom


def find_lattice(obs: pd.DataFrame, centers: npt.NDArray[np.float64], px_per_tile: int) -> Lattice:
    """Construct a raster over positions.

    Parameters
    ----------
    obs
        Annotation of the positions. If it has ``array_row`` and ``array_col`` of a square grid, each position becomes a
        square of pixels; otherwise each pixel shows the nearest position.
    centers
        Positions ``(n, 2)`` as x, y.
    px_per_tile
        Pixels per spacing of the positions.

    Returns
    -------
    Lattice
        Raster that covers all positions.

    Raises
    ------
    InputError
        There is only one position, most positions coincide with another, positions are not finite, or the raster would
        be too large.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from st_gchb.pp.export._raster import find_lattice
    >>> obs = pd.DataFrame({"array_row": [0, 0, 1], "array_col": [4, 5, 4]})
    >>> find_lattice(obs, np.array([[45.0, 5.0], [55.0, 5.0], [45.0, 15.0]]), 4).index.tolist()
    [[0, 1], [2, -1]]
    """
    if not np.isfinite(centers).all():
        raise InputError("the positions hold NaN or infinite values. Drop them from shapes and table.")
    return _square(obs, centers, px_per_tile) or _nearest(centers, px_per_tile)


def _square(obs: pd.DataFrame, centers: npt.NDArray[np.float64], zoom: int) -> Lattice | None:
    """Construct a raster with one cell per position; None unless rows and columns form a square grid."""
    if not {"array_row", "array_col"} <= set(obs):
        return None
    places = obs[["array_col", "array_row"]]
    if not all(pd.api.types.is_integer_dtype(kind) for kind in places.dtypes) or places.duplicated().any():
        return None
    cells = places.to_numpy(dtype=np.int64)
    if len(np.unique(cells.sum(axis=1) % 2)) == 1:
        # Hexagonal grids count columns in half steps, so that every second cell would be empty.
        return None
    cells = cells - cells.min(axis=0)
    # The center of a tile is the center of its cell, unlike in spatialdata.rasterize_bins, where it is the corner.
    design = np.column_stack([cells + 0.5, np.ones(len(cells))])
    solution, _, rank, _ = np.linalg.lstsq(design, centers, rcond=None)
    if rank < 3:
        return None
    matrix = np.eye(3)
    matrix[:2] = solution.T
    pitch = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    if not np.abs(design @ solution - centers).max() <= _OFF_GRID * pitch:
        return None
    width, height = cells.max(axis=0) + 1
    _check_size(height * zoom, width * zoom)
    index = np.full((height, width), -1, dtype=np.int32)
    index[cells[:, 1], cells[:, 0]] = np.arange(len(cells))
    return Lattice(index, zoom, matrix @ np.diag([1 / zoom, 1 / zoom, 1.0]))


def _nearest(centers: npt.NDArray[np.float64], px_per_tile: int) -> Lattice:
    """Construct a raster of pixels finer than the spacing, each of which shows the nearest position."""
    if len(centers) < 2:
        raise InputError("the region has one position; a raster needs at least two.")
    tree = cKDTree(centers)
    spacing = float(np.median(tree.query(centers, k=2)[0][:, 1]))
    if spacing == 0:
        raise InputError("most positions lie at the same place as another; a raster needs them apart.")
    side = spacing / px_per_tile
    low = centers.min(axis=0) - spacing / 2
    width, height = np.ceil((centers.max(axis=0) + spacing / 2 - low) / side).astype(np.int64)
    _check_size(height, width)
    index = np.empty((height, width), dtype=np.int32)
    x = low[0] + (np.arange(width) + 0.5) * side
    step = max(_BAND // int(width), 1)
    for top in range(0, int(height), step):
        y = low[1] + (np.arange(top, min(top + step, height)) + 0.5) * side
        index[top : top + step] = nearest_rows(tree, spacing, x, y)
    matrix = np.array([[side, 0, low[0]], [0, side, low[1]], [0, 0, 1]])
    return Lattice(index, 1, matrix)


def _check_size(height: float, width: float) -> None:
    if height * width > _MAX_PIXELS:
        raise InputError(
            f"a raster of {width:.0f} x {height:.0f} px would be needed; expected at most {_MAX_PIXELS:.0e} px. Are "
            "the positions of one slide? Draw parts of it, each as a table and shapes of its own."
        )


_CHUNK_PX = 1024
_XY = ("x", "y")


@checked
def rasterize(
    sdata: SpatialData,
    genes: str | Sequence[str],
    *,
    table: str = Keys.TABLE,
    layer: str | None = Keys.LAYER,
    shapes: str | None = None,
    name: str | None = None,
    fill: Fill = 0.0,
    px_per_tile: TilePixels = 4,
    overwrite: bool = False,
) -> list[str]:
    """Add genes as an image element that is aligned with the slide, one channel per gene.

    On a square grid of tiles each tile is a square of pixels. Otherwise (hexagonal grids, spots) each pixel has the
    value of the nearest position.

    Parameters
    ----------
    sdata
        Object with a result that annotates shapes, as :meth:`~st_gchb.model.STGCHB.predict` adds it.
    genes
        Channels: genes, or columns of the table's ``obs`` such as ``"st_gchb_confidence"``.
    table
        Name of the table.
    layer
        Layer of the table; None for ``X``.
    shapes
        Region to rasterize; by default all that the table annotates.
    name
        Name of the image, by default the name of the shapes followed by ``"_raster"``. Needs ``shapes`` if there are
        several regions.
    fill
        Value of pixels without a position. NaN is transparent in napari, but spatialdata-plot does not accept it.
    px_per_tile
        Pixels along a side of a tile. The default is not 1, because spatialdata-plot up to 0.4.0 draws images shifted
        by half a pixel.
    overwrite
        Replace images of these names.

    Returns
    -------
    list of str
        Names of the images in ``sdata.images``, one per region. They have the dimensions c, y, x, are lazy float32
        arrays, and are aligned with the shapes in each of their coordinate systems.

    Raises
    ------
    MissingKeyError
        There is no such table, layer, gene, column or region.
    InputError
        A name is taken, a column is not numeric, or the positions cannot be rasterized.

    Examples
    --------
    >>> import numpy as np, spatialdata
    >>> from anndata import AnnData
    >>> from spatialdata.models import Image2DModel
    >>> import st_gchb
    >>> slide = Image2DModel.parse(np.full((3, 160, 240), 200, np.uint8), dims=("c", "y", "x"))
    >>> sdata = spatialdata.SpatialData(images={"slide": slide})
    >>> options = {"spacing_um": 10, "um_per_px": 0.5, "grid": "square", "tissue": "all"}
    >>> sdata = st_gchb.pp.tile_tissue(sdata, **options)
    >>> st_gchb.pp.rasterize(sdata, "tissue_share", table="tiles_table", layer=None)
    ['tiles_raster']
    >>> sdata.images["tiles_raster"].shape
    (1, 32, 48)
    """
    source = _find_table(sdata, table)
    channels = [genes] if isinstance(genes, str) else list(genes)
    _check_channels(source, channels, table, layer)
    link = linked(source)
    spots = annotated_rows(source.obs, link.region_key, link.instance_key)
    labels = spots["region"].to_numpy()
    regions = _find_regions(labels, shapes, table)
    if name is not None and len(regions) > 1:
        raise InputError(f"name={name!r} is one name for the regions {regions}. Pass shapes= with one of them.")
    names = {region: name or f"{region}_raster" for region in regions}
    for image in names.values():
        _check_name(sdata, image, overwrite)
    images = {}
    for region, image in names.items():
        rows = np.flatnonzero(labels == region)
        centers = _centers(sdata, region, spots["instance_id"].iloc[rows])
        lattice = find_lattice(source.obs.iloc[rows], centers, px_per_tile)
        values = _values(source, rows, channels, layer)
        images[image] = _raster(lattice, values, channels, fill, sdata[region])
    for image, element in images.items():
        if image in sdata.images:
            del sdata.images[image]
        sdata.images[image] = element
    return list(images)


class ChannelMaps:
    """Values of positions as a virtual array ``(c, y, x)``, of which only the requested window is computed.

    Parameters
    ----------
    values
        Values of the positions, ``(n_channels, n_positions)``.
    lattice
        Raster that maps pixels to positions.
    fill
        Value of pixels without a position.
    """

    ndim, dtype = 3, np.dtype(np.float32)

    def __init__(self, values: npt.NDArray[np.float32], lattice: Lattice, fill: float) -> None:
        nothing = np.full((len(values), 1), fill, dtype=np.float32)
        # The index -1 of a cell without a position selects this last column.
        self._values, self._lattice = np.concatenate([values, nothing], axis=1), lattice
        self.shape = (len(values), *lattice.shape)

    def __getitem__(self, part: tuple[slice | int, slice | int, slice | int]) -> npt.NDArray[np.float32]:
        channel, *window = part
        y, x = (np.arange(n)[one] // self._lattice.zoom for n, one in zip(self.shape[1:], window, strict=True))
        return np.asarray(self._values[channel][..., self._lattice.index[y][..., x]])


def _raster(
    lattice: Lattice, values: npt.NDArray[np.float32], channels: list[str], fill: float, shapes: GeoDataFrame
) -> Any:
    """Build the image element of a region; ``values`` as in :class:`ChannelMaps`."""
    maps = ChannelMaps(values, lattice, fill)
    # name=False gives a random name; by default dask would hash the whole content.
    lazy = da.from_array(maps, chunks=(1, _CHUNK_PX, _CHUNK_PX), name=False, meta=np.empty((0, 0, 0), np.float32))
    own = Affine(lattice.matrix, input_axes=_XY, output_axes=_XY)
    placed = {system: Steps([own, other]) for system, other in transformations_of(shapes, "the shapes").items()}
    return Image2DModel.parse(lazy, dims=("c", "y", "x"), c_coords=channels, transformations=placed)


def _values(
    source: AnnData, rows: npt.NDArray[np.int64], channels: list[str], layer: str | None
) -> npt.NDArray[np.float32]:
    """Read the values of genes and ``obs`` columns, ``(n_channels, n_rows)``."""
    values = np.empty((len(channels), len(rows)), dtype=np.float32)
    matrix = source.X if layer is None else source.layers[layer]
    for i, channel in enumerate(channels):
        if channel in source.obs:
            values[i] = source.obs[channel].to_numpy()[rows]
            continue
        column = matrix[:, source.var_names.get_loc(channel)]
        values[i] = (column.toarray() if sparse.issparse(column) else np.asarray(column)).ravel()[rows]
    return values


def _find_table(sdata: SpatialData, name: str) -> AnnData:
    if name not in sdata.tables:
        raise MissingKeyError(
            f"the SpatialData has no table {name!r}; table= takes one of {sorted(sdata.tables)}. "
            "model.predict(sdata) adds 'st_gchb'."
        )
    table = sdata.tables[name]
    if "spatialdata_attrs" not in table.uns:
        raise InputError(f"table {name!r} annotates no shapes. Parse it with TableModel.parse(table, region=..., ...).")
    return table


def _check_channels(source: AnnData, channels: list[str], table: str, layer: str | None) -> None:
    layers = named_layers(source)
    if layer is not None and layer not in layers:
        raise MissingKeyError(
            f"table {table!r} has no layer {layer!r}; layer= takes one of {sorted(layers)}, or None for X."
        )
    if not channels or len(set(channels)) < len(channels):
        raise InputError(f"genes={channels}: expected one name or more, each once.")
    for channel in channels:
        if channel in source.var_names and channel in source.obs:
            raise InputError(f"{channel!r} is a gene and a column of obs. Rename the column.")
        if channel not in source.var_names and channel not in source.obs:
            raise MissingKeyError(
                f"table {table!r} has no gene and no obs column {channel!r}; its genes are "
                f"{list(source.var_names[:3])} and so on ({source.n_vars}), its columns {list(source.obs)}."
            )
        column = source.obs.get(channel)
        if column is not None and not pd.api.types.is_numeric_dtype(column):
            raise InputError(f"obs[{channel!r}] is of type {column.dtype}; a map needs numbers.")


def _find_regions(labels: npt.NDArray[Any], shapes: str | None, table: str) -> list[str]:
    regions = [str(region) for region in pd.unique(labels)]
    if shapes is None:
        return regions
    if shapes not in regions:
        raise MissingKeyError(f"table {table!r} has no rows for shapes={shapes!r}; it annotates {regions}.")
    return [shapes]


def _check_name(sdata: SpatialData, name: str, overwrite: bool) -> None:
    if not is_element_name(name):
        raise InputError(f"name {name!r}: expected letters, digits, '_', '-' and '.', as SpatialData takes them.")
    if name in sdata and (name not in sdata.images or not overwrite):
        advice = ", or overwrite=True" if name in sdata.images else ""
        raise InputError(f"the SpatialData has an element {name!r} already. Pass another name={advice}.")


def _centers(sdata: SpatialData, region: str, instances: pd.Series) -> npt.NDArray[np.float64]:
    """Compute the centers of the rows' shapes in their intrinsic coordinates, ``(n, 2)``."""
    if region not in sdata or not isinstance(sdata[region], GeoDataFrame):
        raise InputError(f"the table annotates {region!r}, which is no shapes element; expected one of circles, say.")
    element = sdata[region]
    order = element.index.get_indexer(pd.Index(instances))
    if (order < 0).any() or len(np.unique(order)) < len(order):
        raise InputError(
            f"{(order < 0).sum()} of {len(order)} rows of the table have no shape in {region!r}, or several rows have "
            "the same. Match them with spatialdata.match_table_to_element."
        )
    points = element.geometry.iloc[order].centroid
    return np.column_stack([points.x.to_numpy(), points.y.to_numpy()])
