"""Conversion of a prediction to a SpatialData with image, circles, table and rasterized genes, for viewers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray
from anndata import AnnData
from scipy.spatial import cKDTree
from spatialdata import SpatialData, sanitize_name
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, set_transformation

from st_gchb._arguments import PixelSize, checked
from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._matrices import in_memory
from st_gchb.io import Sections, SlideImage, sections_of
from st_gchb.pp.export._raster import rasterize
from st_gchb.pp.spots import Slice, slices_of, write_table

_COARSEST_PX = 1024
"""Largest side of the coarsest scale that is added to an image without a pyramid, px."""


@checked
def to_spatialdata(
    result: AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    slice_key: str | None = None,
    image: Any = None,
    um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
) -> SpatialData:
    """Convert a prediction to a SpatialData that includes the H&E image, so that viewers can overlay both.

    Parameters
    ----------
    result
        Result of :meth:`~st_gchb.model.STGCHB.predict` for an AnnData of one or several slices.
    genes
        Genes, or columns of ``obs``, to add as images by :func:`rasterize`.
    slice_key, image, um_per_px
        Slices and their images, as in :func:`slices_of`; by default those of the prediction.

    Returns
    -------
    SpatialData
        For each slice the H&E image, ``images[slice + "_image"]``, with its scales and read lazily; circles,
        ``shapes[slice]``; and, if genes are given, ``images[slice + "_raster"]``. One table, ``tables["st_gchb"]``.
        Coordinates are px of the slide, in the coordinate system ``"global"`` or, for several slices, in one named
        after each slice.

    Raises
    ------
    InputError
        ``result`` is not a prediction, or names of slices are not distinct as names of elements.
    ImageError, MissingFileError, CoordinateError, MissingKeyError
        The image cannot be used, or a gene does not exist.

    Examples
    --------
    >>> import numpy as np, st_gchb
    >>> slide = np.full((90, 120, 3), 200, np.uint8)
    >>> pred = st_gchb.pp.tile_tissue(slide, um_per_px=0.5, spacing_um=10, tissue="all", name="S1")
    >>> pred.layers["st_gchb"] = np.zeros((pred.n_obs, 0))  # as model.predict gives it
    >>> st_gchb.pp.to_spatialdata(pred, "tissue_share").images["S1_image"].shape
    (3, 90, 120)
    """
    if not isinstance(result, AnnData) or Keys.LAYER not in result.layers:
        raise InputError(
            f"found a {type(result).__name__} without layers[{Keys.LAYER!r}]; expected what model.predict(...) returns "
            "for an AnnData. A SpatialData query has its result as sdata.tables['st_gchb']."
        )
    slices = slices_of(result, slice_key, image, None, um_per_px)
    sections = sections_of(result, slice_key, image if isinstance(image, Mapping) else ())
    names = [sanitize_name(one.name) for one in slices]
    if len({name.lower() for name in names}) < len(names):
        raise InputError(f"the slices {[one.name for one in slices]} would all be called {names[0]!r}. Rename them.")
    table = in_memory(result)
    region_key = "region" if "region" not in table.obs else "st_gchb_region"
    regions, instances = np.empty(result.n_obs, dtype=object), np.empty(result.n_obs, dtype=np.int64)
    sdata = SpatialData()
    for one, name in zip(slices, names, strict=True):
        placed = {"global" if len(slices) == 1 else name: Identity()}
        sdata.images[f"{name}_image"] = image_element(one.image, placed)
        sdata.shapes[name] = _circles(one, sections, placed)
        regions[one.rows], instances[one.rows] = name, np.arange(len(one.rows))
    table.obs[region_key] = pd.Categorical(regions)
    table.obs["instance_id"] = instances
    write_table(sdata, table, region_key=region_key, overwrite=True)
    if genes is not None:
        rasterize(sdata, genes)
    return sdata


def image_element(slide: SlideImage, transformations: dict[str, Any]) -> xarray.DataArray | xarray.DataTree:
    """Build a lazy image element of a slide.

    Parameters
    ----------
    slide
        Image with one or several levels.
    transformations
        Transformations of the element by coordinate system.

    Returns
    -------
    xarray.DataArray or xarray.DataTree
        Element whose scales are the levels of the slide. For a slide with a single level, scales are added by halving
        until the longer side is about 1,024 px.
    """
    arrays = [_lazy(slide, level) for level in range(len(slide.levels))]
    if len(arrays) == 1:
        sides = slide.shape_px
        wanted = np.ceil(np.log2(max(sides) / _COARSEST_PX))
        halvings = int(np.clip(wanted, 0, np.floor(np.log2(min(sides)))))
        return Image2DModel.parse(
            arrays[0],
            dims=("c", "y", "x"),
            c_coords=["r", "g", "b"],
            scale_factors=[2] * halvings or None,
            transformations=transformations,
        )
    height, width = slide.shape_px
    scales = {}
    for i, array in enumerate(arrays):
        one = Image2DModel.parse(array, dims=("c", "y", "x"), c_coords=["r", "g", "b"])
        one.attrs.clear()
        y, x = ((np.arange(n) + 0.5) * full / n for n, full in zip(array.shape[1:], (height, width), strict=True))
        scales[f"scale{i}"] = xarray.Dataset({"image": one.assign_coords(y=y, x=x)})
    tree = xarray.DataTree.from_dict(scales)
    set_transformation(tree, transformations, set_all=True)
    Image2DModel().validate(tree)
    return tree


class ChannelsFirst:
    """A level of a slide as a virtual array ``(c, y, x)``, of which only the requested window is decoded."""

    ndim, dtype = 3, np.dtype(np.uint8)

    def __init__(self, slide: SlideImage, level: int) -> None:
        self._slide, self._level = slide, level
        self.shape = (3, *slide.level_shape(level))

    def __getitem__(self, part: tuple[slice | int, slice | int, slice | int]) -> np.ndarray:
        channel, *window = part
        # dask requests a single row by an integer, which removes the axis from the result.
        spans = [slice(one, one + 1) if isinstance(one, int | np.integer) else one for one in window]
        (y0, y1, dy), (x0, x1, dx) = (one.indices(n) for one, n in zip(spans, self.shape[1:], strict=True))
        pixels = np.moveaxis(self._slide.read(self._level, y0, y1, x0, x1), -1, 0)
        steps = [slice(None, None, step) for step in (dy, dx)]
        kept = [step if isinstance(one, slice) else 0 for one, step in zip(window, steps, strict=True)]
        return pixels[(channel, *kept)]


def _lazy(slide: SlideImage, level: int) -> da.Array:
    rows, columns = (tuple(int(side) for side in np.diff(edges)) for edges in slide.pieces(level))
    # name=False gives a random name; by default dask would hash all pixels.
    return da.from_array(
        ChannelsFirst(slide, level), chunks=((3,), rows, columns), name=False, meta=np.empty((0, 0, 0), np.uint8)
    )


def _circles(one: Slice, sections: Sections, placed: dict[str, Any]) -> Any:
    diameter = sections.libraries[one.name].factor(Keys.SPOT_DIAMETER)
    if diameter is not None:
        width = diameter * one.scale
    elif len(one.rows) > 1:
        width = float(np.median(cKDTree(one.centers_px).query(one.centers_px, k=2)[0][:, 1]))
    else:
        width = 1.0
    return ShapesModel.parse(
        one.centers_px, geometry=0, radius=width / 2, index=np.arange(len(one.rows)), transformations=placed
    )
