"""A slide image as an image element of SpatialData, without decoding it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from st_gchb.io._slide import RGB, SlideImage

if TYPE_CHECKING:
    from xarray import DataArray, DataTree

_CHUNK_PX = 2048


class _Level:
    """One level of a slide in the form that dask takes arrays in."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, slide: SlideImage, level: int) -> None:
        self._slide, self._level = slide, level
        self.shape = (*slide.level_shape(level), 3)

    def __getitem__(self, window: tuple[slice, slice, slice]) -> RGB:
        y, x = (part.indices(side) for part, side in zip(window[:2], self.shape[:2], strict=True))
        return self._slide.read(self._level, y[0], y[1], x[0], x[1])[..., window[2]]


def as_element(slide: SlideImage, transformations: dict[str, Any]) -> DataArray | DataTree:
    """Make an image element whose pixels are read when they are needed.

    Parameters
    ----------
    slide
        The image. Its own levels become the scales: none is computed.
    transformations
        By coordinate system.

    Returns
    -------
    xarray.DataArray or xarray.DataTree
        One scale, or all; dimensions ``("c", "y", "x")``, uint8.
    """
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import set_transformation
    from xarray import Dataset, DataTree

    scales = [_scale(slide, level, transformations) for level in range(len(slide.levels))]
    if len(scales) == 1:
        return scales[0]
    tree = DataTree.from_dict({f"scale{i}": Dataset({"image": scale}) for i, scale in enumerate(scales)})
    set_transformation(tree, transformations, set_all=True)
    Image2DModel().validate(tree)
    return tree


def _scale(slide: SlideImage, level: int, transformations: dict[str, Any]) -> DataArray:
    import dask.array
    from spatialdata.models import Image2DModel

    source = _Level(slide, level)
    # One window at a time: a slide's file handle is not made for several threads.
    pixels = dask.array.from_array(
        source,
        chunks=(_CHUNK_PX, _CHUNK_PX, 3),
        name=False,
        lock=True,
        asarray=False,
        meta=np.empty((0, 0, 0), dtype=np.uint8),  # else dask reads a window to see what it gets
    )
    element = Image2DModel.parse(
        pixels, dims=("y", "x", "c"), c_coords=["r", "g", "b"], transformations=dict(transformations)
    )
    # Centres of pixels in px of the finest scale, as in every pyramid of SpatialData.
    coordinates = {
        axis: (np.arange(n) + 0.5) * (full / n)
        for axis, n, full in zip(("y", "x"), source.shape, slide.shape_px, strict=False)
    }
    return element.assign_coords(coordinates) if level else element
