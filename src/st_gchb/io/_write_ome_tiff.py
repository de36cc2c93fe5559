"""Writing of maps of genes as pyramidal OME-TIFF that lies on the slide."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tifffile
from anndata import AnnData
from scipy.spatial import cKDTree

from st_gchb._advice import Fix, advise
from st_gchb._arguments import Fill, PixelSize, checked
from st_gchb._artifacts import is_there
from st_gchb._constants import Keys
from st_gchb._errors import InputError, ScaleError
from st_gchb._logging import logger
from st_gchb.io._nearest import nearest_rows
from st_gchb.io._pixel_size import caller_size, factor_size, settle, spot_sizes
from st_gchb.io._reading import writing
from st_gchb.io._viewer_spots import SpotValues, ViewerSpots, viewer_spots

if TYPE_CHECKING:
    from spatialdata import SpatialData

_TILE_PX = 256
_PX_PER_SPACING = 8
"""Pixels between neighboring positions, by default."""
_MAX_PIXELS = 2.5e8
_BAND = 2**20
"""Pixels that are computed at once, which bounds memory."""
_MANY = 50
"""Number of channels above which viewers become slow."""

Index = npt.NDArray[np.int32]


@checked(apart=("um_per_px",))
def write_ome_tiff(
    data: AnnData | SpatialData,
    path: str | Path,
    genes: str | Sequence[str],
    *,
    um_per_px: PixelSize | None = None,
    slide_um_per_px: PixelSize | None = None,
    shape_px: tuple[int, int] | None = None,
    layer: str | None = Keys.LAYER,
    slice: str | None = None,
    slice_key: str | None = None,
    table: str = Keys.TABLE,
    fill: Fill = 0.0,
) -> None:
    """Write maps of genes as an OME-TIFF with a channel for each, which viewers lay over the slide.

    The upper left corner of the map is that of the slide, and both state the size of their pixels, so that viewers that
    go by physical size align them. Each pixel has the value of the nearest position; tiles in rows and columns are
    squares. The file is written as a whole or not at all.

    Parameters
    ----------
    data
        Result of :meth:`~st_gchb.model.STGCHB.predict`, or another AnnData with ``obsm["spatial"]`` in full-resolution
        px; or a SpatialData with such a table.
    path
        File to write, ``.ome.tif`` or ``.ome.tiff``.
    genes
        Channels: genes, or numeric columns of ``obs`` such as ``"st_gchb_confidence"``.
    um_per_px
        Size of a pixel of the map, µm; by default an eighth of the distance between positions.
    slide_um_per_px
        Size of a pixel of the full-resolution image, µm, if ``uns["spatial"]`` does not state it.
    shape_px
        Height and width of the full-resolution image, px; by default those of the image in ``uns["spatial"]``. Without
        one, the map ends with the last position.
    layer
        Layer with the expression; None for ``X``.
    slice, slice_key
        Slice to write if there are several, and column of ``obs`` with the slice of each spot.
    table
        Name of the table of a SpatialData.
    fill
        Value of pixels without a position, and of positions without a value. Viewers choose their contrast by all
        values, and few can do so where some are NaN.

    Raises
    ------
    MissingKeyError
        There is no such table, layer, gene or column; the nearest names are told.
    SliceError, CoordinateError
        No slice was chosen among several, or positions cannot be read.
    ScaleError
        The size of a pixel of the slide is not known.
    InputError
        The file has another suffix, names occur twice, or the map would be too large.
    StoreError
        The file cannot be written; an earlier one is left as it was.

    Notes
    -----
    BigTIFF, float32, tiles of 256 px, deflate, scales halved until they fit into one tile (in sub-IFDs). Coarser scales
    are means over the pixels that show a position. Memory is bounded whatever the size of the map.

    Examples
    --------
    >>> import st_gchb, tifffile
    >>> adata = st_gchb.datasets.synthetic_tissue(1, n_rows=6, n_cols=6, n_genes=20)
    >>> st_gchb.io.write_ome_tiff(adata, "/tmp/st_gchb_doc.ome.tif", list(adata.var_names[:2]), layer=None)
    >>> tifffile.imread("/tmp/st_gchb_doc.ome.tif").dtype
    dtype('float32')
    """
    target = Path(path)
    if not re.search(r"\.ome\.tiff?$", target.name.lower()):
        raise InputError(f"path={str(path)!r}: expected a name that ends in .ome.tif or .ome.tiff.")
    spots = viewer_spots(data, table, slice, slice_key)
    values = SpotValues(spots, genes, layer)
    if not values.names:
        raise InputError("genes= is empty; expected one name or more.")
    if len(values.names) > _MANY:
        logger.warning("%s: %d channels; most viewers become slow above %d.", path, len(values.names), _MANY)
    slide_um = _slide_um(spots, slide_um_per_px)
    map_um = um_per_px if um_per_px is not None else spots.spacing * slide_um / _PX_PER_SPACING
    height, width = _slide_shape(spots, shape_px)
    step = map_um / slide_um
    shape = math.ceil(height / step), math.ceil(width / step)
    if math.prod(shape) > _MAX_PIXELS:
        raise InputError(
            f"a map of {shape[1]} x {shape[0]} px would be needed; expected at most {_MAX_PIXELS:.2g} px. Pass "
            f"um_per_px= with a larger pixel than {map_um:.3g} µm: positions are {spots.spacing * slide_um:.3g} µm "
            "apart."
        )
    table_of = np.concatenate([block for _, block in values.blocks()]).T.astype(np.float32)
    with writing(target) as part, _index(spots, shape, step, part.parent) as index:
        _write(part, ChannelTiles(table_of, index, fill), values.names, map_um, spots.slice)


def _slide_um(spots: ViewerSpots, given: float | None) -> float:
    """Determine the size of a pixel of the slide, µm, from the most reliable source."""
    where = f"{spots.library.where}['scalefactors']"
    by_spots = spot_sizes(spots.library.factors, spots.centers, where)
    known = settle([caller_size(given), factor_size(spots.library.factors, where), *by_spots], f"slice {spots.slice!r}")
    if known is None:
        raise ScaleError(
            f"slice {spots.slice!r}: the size of a pixel is not known ({where} has no {Keys.UM_PER_PX!r}). "
            + advise(Fix("slide_um_per_px", why="with the µm per px of the full-resolution image"), otherwise="Set it.")
        )
    return known


def _slide_shape(spots: ViewerSpots, given: tuple[int, int] | None) -> tuple[int, int]:
    """Determine height and width of the slide, px: as given, of its file, of a stored image, or of the positions."""
    if given is not None:
        if min(given) < 1:
            raise InputError(f"shape_px={given}; expected height and width of the slide, 1 px or more.")
        return given
    path = spots.library.image_path
    if path is not None and is_there(path, Path.is_file):
        from st_gchb.io.images import open_image

        slide = open_image(path)
        shape = slide.shape_px
        slide.release()
        return shape
    sizes = []
    for key, image in spots.library.images.items():
        scale = 1.0 if key == "fullres" else spots.library.factor(f"tissue_{key}_scalef")
        if scale is not None and len(getattr(image, "shape", ())) == 3:
            sizes.append((scale, round(image.shape[0] / scale), round(image.shape[1] / scale)))
    if sizes:
        # That of the finest image is the exact one.
        return max(sizes)[1:]
    right, bottom = (spots.centers.max(axis=0) + spots.spacing / 2).tolist()
    logger.info("slice %r has no image: the map ends with the last position (shape_px= sets its size).", spots.slice)
    return max(math.ceil(bottom), 1), max(math.ceil(right), 1)


@contextmanager
def _index(spots: ViewerSpots, shape: tuple[int, int], step: float, folder: Path) -> Iterator[Index]:
    """Compute the row number of the position that each pixel shows, -1 for none, in a temporary file."""
    is_square = spots.are_square
    spacing = spots.spacing
    tree = cKDTree(spots.centers)
    height, width = shape
    x, y = ((np.arange(n) + 0.5) * step for n in (width, height))
    rows = max(_BAND // width, 1)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Written, not mapped: on a full disk, writing to a map would end the process.
        for top in range(0, height, rows):
            file.write(nearest_rows(tree, spacing, x, y[top : top + rows], square=is_square).tobytes())
        file.flush()
        yield np.memmap(file, dtype=np.int32, mode="r", shape=shape)


class ChannelTiles:
    """Tiles of all channels of a map at any scale, computed where they are written.

    Parameters
    ----------
    values
        Values of the positions, ``(n_channels, n_positions)``.
    index
        Row number of the position that each pixel shows, ``(height, width)``; -1 for none.
    fill
        Value of pixels without a position or without a finite value.
    """

    def __init__(self, values: npt.NDArray[np.float32], index: Index, fill: float) -> None:
        nothing = np.full((len(values), 1), np.nan, dtype=np.float32)
        # The index -1 of a pixel without a position selects this last column.
        self._values, self._index, self._fill = np.concatenate([values, nothing], axis=1), index, np.float32(fill)

    @property
    def n_levels(self) -> int:
        """Number of scales: each half the size of the one before, until one fits into a tile."""
        return max(math.ceil(math.log2(max(self._index.shape) / _TILE_PX)), 0) + 1

    def shape(self, level: int) -> tuple[int, int, int]:
        """Return the number of channels, height and width of a scale."""
        height, width = (math.ceil(side / 2**level) for side in self._index.shape)
        return len(self._values), height, width

    def tiles(self, level: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the tiles of a scale, channel by channel and row by row; those at the rim are filled up."""
        n_channels, height, width = self.shape(level)
        n_columns = math.ceil(width / _TILE_PX)
        for channel in range(n_channels):
            for top in range(0, height, _TILE_PX):
                band = np.full((_TILE_PX, n_columns * _TILE_PX), self._fill)
                bottom = min(top + _TILE_PX, height)
                self._draw(band[: bottom - top, :width], self._values[channel], top, level)
                for column in range(n_columns):
                    yield np.ascontiguousarray(band[:, column * _TILE_PX : (column + 1) * _TILE_PX])

    def _draw(self, band: npt.NDArray[np.float32], values: npt.NDArray[np.float32], top: int, level: int) -> None:
        """Compute rows of a scale, from ``top`` on, in place."""
        side = 2**level
        height, width = self._index.shape
        step = max(_BAND // (width * side), 1)
        for start in range(0, len(band), step):
            first = (top + start) * side
            index = self._index[first : min(first + min(step, len(band) - start) * side, height)]
            padded = np.pad(index, [(0, -n % side) for n in index.shape], constant_values=-1)
            cells = values[padded].reshape(len(padded) // side, side, -1, side)
            known = np.isfinite(cells)
            n_known = known.sum(axis=(1, 3))
            total = np.where(known, cells, 0).sum(axis=(1, 3), dtype=np.float64)
            mean = np.divide(total, n_known, out=np.full(total.shape, self._fill, np.float64), where=n_known > 0)
            band[start : start + len(mean)] = mean


def _write(path: Path, maps: ChannelTiles, names: list[str], um_per_px: float, slice: str) -> None:
    metadata = {
        "axes": "CYX",
        "Name": slice,
        "PhysicalSizeX": um_per_px,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": um_per_px,
        "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": names},
    }
    layout: dict[str, Any] = {"dtype": np.float32, "tile": (_TILE_PX, _TILE_PX), "photometric": "minisblack"}
    with tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        for level in range(maps.n_levels):
            first = level == 0
            file.write(
                maps.tiles(level),
                shape=maps.shape(level),
                compression="zlib",
                resolution=(1e4 / (um_per_px * 2**level),) * 2,
                resolutionunit="CENTIMETER",
                subifds=maps.n_levels - 1 if first else None,
                subfiletype=0 if first else 1,
                metadata=metadata if first else None,
                **layout,
            )
