"""Query positions on the tissue of a slide without spots or expression."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb._arguments import Micrometers, PixelSize, PositiveShare, checked
from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._options import DEFAULT_GRID, DEFAULT_MIN_TISSUE, DEFAULT_TISSUE, GridKind, TissueMethod
from st_gchb.io import Library, SlideImage, is_spatialdata, open_image, put_libraries
from st_gchb.pp.tissue._detection import Tissue
from st_gchb.pp.tissue._layout import Tiles, lay_tiles

if TYPE_CHECKING:
    from spatialdata import SpatialData

_THUMBNAIL_PX = 1500


@checked
def tile_tissue(
    source: Any,
    *,
    spacing_um: Micrometers = 100.0,
    um_per_px: PixelSize | None = None,
    grid: GridKind = DEFAULT_GRID,
    roi: Any = None,
    tissue: TissueMethod | Tissue | np.ndarray = DEFAULT_TISSUE,
    min_tissue: PositiveShare = DEFAULT_MIN_TISSUE,
    name: str | None = None,
    image: str | None = None,
    overwrite: bool = False,
) -> AnnData | SpatialData:
    """Place query positions on the tissue of an H&E slide without spots.

    Parameters
    ----------
    source
        Path of an image, an array ``(h, w, 3)``, a :class:`~st_gchb.io.SlideImage`, or a SpatialData with an image.
    spacing_um
        Distance between neighboring positions, µm. Tiles are circles of this diameter, so that neighbors touch.
    um_per_px
        Size of a pixel of the finest level, µm, if the file does not state it.
    grid
        ``"hex"``: hexagonal, as on a Visium slide; ``"square"``: rows and columns.
    roi
        Region of interest: a shapely polygon, corners as an array ``(n, 2)`` of x, y in full-resolution px, or a list
        of these. For a SpatialData also the name of a shapes element with polygons.
    tissue
        Method of :func:`find_tissue` (``"stain"``, ``"squidpy"``, ``"all"``), a result of :func:`find_tissue`, or a
        mask ``(h, w)`` of the whole slide at any scale.
    min_tissue
        Fraction of a tile that must be tissue, above 0 and at most 1.
    name
        Name of the slice, by default the file name without its extension. For a SpatialData the name of the shapes, by
        default ``"tiles"``.
    image
        For a SpatialData: name of the image, if there are several.
    overwrite
        For a SpatialData: replace shapes and table of these names.

    Returns
    -------
    AnnData or SpatialData
        Query for :meth:`st_gchb.model.STGCHB.predict`. An AnnData has one row per position, with ``slice``,
        ``array_row``, ``array_col`` and ``tissue_share`` in ``obs``, x, y in full-resolution px in ``obsm["spatial"]``,
        ``(n, 2)``, a thumbnail, scale factors and the path of the image (or the array itself) in ``uns["spatial"]``,
        and the arguments of the layout in ``uns["tiles"]``. A SpatialData is returned itself, with circles in
        ``shapes[name]`` and a table that annotates them in ``tables[name + "_table"]``.

    Raises
    ------
    ScaleError
        The size of a pixel is not known.
    TissueError
        There is no tissue, or none in the region.
    CoordinateError
        A polygon lies outside the slide.
    ImageError, MissingFileError, MissingKeyError
        The image cannot be used, or does not exist.
    InputError
        An argument has the wrong type or an invalid value.

    Examples
    --------
    >>> import st_gchb
    >>> slide = st_gchb.datasets.synthetic_tissue(1, n_rows=8, n_cols=8, n_genes=20).uns["spatial"]["S1"]
    >>> query = st_gchb.pp.tile_tissue(slide["images"]["hires"], um_per_px=1.0, spacing_um=200)
    >>> sorted(query.obs)
    ['array_col', 'array_row', 'slice', 'tissue_share']
    """
    if is_spatialdata(source):
        from st_gchb.pp.tissue._tile_shapes import tile_spatialdata

        settings = {"spacing_um": spacing_um, "grid": grid, "tissue": tissue, "min_tissue": min_tissue}
        return tile_spatialdata(source, roi, settings, um_per_px, name or Keys.TILES, image, overwrite)
    if image is not None or overwrite:
        raise InputError(f"image= and overwrite= are for SpatialData; source is a {type(source).__name__}.")
    slide = open_image(source, um_per_px)
    try:
        tiles = lay_tiles(slide, roi, spacing_um=spacing_um, grid=grid, tissue=tissue, min_tissue=min_tissue)
        label = name or _name_of(source)
        query = tiles.table(label)
        query.obs.insert(0, Keys.SLICE, pd.Categorical([label] * len(tiles.grid)))
        put_libraries(query, [_library(label, tiles, slide, source)])
    finally:
        if isinstance(source, str | os.PathLike):
            slide.release()
    return query


def _name_of(source: Any) -> str:
    if not isinstance(source, str | os.PathLike):
        return "slide"
    return Path(source).name.split(".")[0] or "slide"


def _library(name: str, tiles: Tiles, slide: SlideImage, source: Any) -> Library:
    """Build the entry of ``uns["spatial"]`` for the slide: path or pixels of the image, and a thumbnail for figures."""
    thumbnail, scale = tiles.tissue.thumbnail, 1.0 / tiles.tissue.downsample
    if thumbnail is None:
        thumbnail, scale = slide.thumbnail(_THUMBNAIL_PX)
    images: dict[str, Any] = {"hires": thumbnail}
    metadata: dict[str, Any] = {}
    # Levels of a registered reader need not know their file.
    path = getattr(slide.levels[0], "path", source if isinstance(source, str | os.PathLike) else None)
    if path is not None:
        metadata[Keys.SOURCE_IMAGE] = str(Path(path).resolve())
    elif isinstance(slide.levels[0], np.ndarray):
        images["fullres"] = slide.levels[0]
    else:
        images["fullres"] = source
    factors = {f"tissue_{key}_scalef": scale if key == "hires" else 1.0 for key in images}
    factors |= {Keys.SPOT_DIAMETER: tiles.diameter_px, Keys.UM_PER_PX: tiles.um_per_px}
    return Library(name, images, factors, metadata)
