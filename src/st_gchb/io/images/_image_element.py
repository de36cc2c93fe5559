"""Convert between slide images and SpatialData image elements or other lazy arrays, without decoding them."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from st_gchb._compat import read_errors
from st_gchb._errors import DamageError, ImageError
from st_gchb.io._reading import reading
from st_gchb.io.images._slide_image import RGB, SlideImage
from st_gchb.io.images._validation import EXPECTED, as_rgb_array, check_dtype, check_layout, damage_or_failure

if TYPE_CHECKING:
    from xarray import DataArray, DataTree

_IMAGES = "images"
"""Folder of a SpatialData store that holds its images."""
_HOLD_BYTES = 2**28
"""Size up to which a lazy level is computed once and kept until released, bytes; a larger one is read by windows."""
_CHANNELS = ("c", "channel", "channels", "band", "bands", "rgb", "s")
"""Names of the channel dimension in SpatialData, squidpy, rioxarray and tifffile."""


class LazyLevel:
    """A dask or zarr array ``(h, w, 3)``, computed once if it is small, and window by window if it is large.

    Parameters
    ----------
    array
        The lazy array.
    name
        Name of the image in messages.
    """

    def __init__(self, array: Any, name: str) -> None:
        self._array, self._name = array, name
        self.shape = tuple(int(side) for side in array.shape)
        self.chunks = getattr(array, "chunks", None)
        self._hold = hasattr(array, "compute") and math.prod(self.shape) <= _HOLD_BYTES
        self._pixels: RGB | None = None

    @property
    def whole_bytes(self) -> int:
        """Size of the decoded pixels that the first read keeps in memory, bytes."""
        return math.prod(self.shape) if self._hold else 0

    def __getitem__(self, window: tuple[slice, slice]) -> RGB:
        if self._hold and self._pixels is None:
            try:
                self._pixels = self._compute((slice(None), slice(None)))
            except DamageError:
                # Undamaged windows can still be read one by one.
                self._hold = False
        return self._compute(window) if self._pixels is None else self._pixels[window]

    def _compute(self, window: tuple[slice, slice]) -> RGB:
        try:
            return np.asarray(self._array[window])
        except FileNotFoundError as error:
            raise ImageError(
                f"{self._name}: the pixels that the lazy image stands for are gone ({error}). Read the object again."
            ) from error
        except ImageError:
            raise
        except read_errors() as error:
            raise damage_or_failure(error, self._name) from error

    def read_in_parts(self) -> None:
        """Read window by window from now on, and keep no pixels."""
        self._hold, self._pixels = False, None

    def release(self) -> None:
        """Free the computed pixels."""
        self._pixels = None


def open_element(element: xarray.DataArray | xarray.DataTree, name: str) -> SlideImage:
    """Open an image element of SpatialData: a single scale, or all scales of a pyramid.

    Raises
    ------
    ImageError
        The element is not an 8-bit RGB image.
    """
    if isinstance(element, xarray.DataArray):
        arrays = [element]
    else:
        nodes = [node for node in element.children.values() if node.data_vars]
        arrays = [next(iter(node.data_vars.values())) for node in nodes]
        arrays.sort(key=lambda array: -array.sizes.get("y", 0))
    if not arrays:
        raise ImageError(f"{name}: the image element holds no scale; {EXPECTED}.")
    levels = [_level(array, name) for array in arrays]
    height = levels[0].shape[0]
    return SlideImage(levels, [height / level.shape[0] for level in levels], name=name)


def is_stored_image(path: Path) -> bool:
    """Check if a path is that of an image element in a SpatialData store, such as ``sample.zarr/images/he``."""
    store = path.parent.parent
    has_metadata = any(os.path.isfile(store / name) for name in ("zarr.json", ".zgroup", ".zattrs"))
    return path.parent.name == _IMAGES and has_metadata and os.path.isdir(path)


def is_image_path(path: Path) -> bool:
    """Check if a path is that of a file, or of an image element in a SpatialData store."""
    # os.path instead of pathlib, which raises for names that are too long.
    return os.path.isfile(path) or is_stored_image(path)


def open_stored(path: Path) -> SlideImage:
    """Open an image element of a SpatialData store by its path; without decoding it.

    Raises
    ------
    ImageError
        The store cannot be read, or the element is not an 8-bit RGB image.
    """
    import spatialdata

    with reading(path, "the image element", "Write the store again with sdata.write.", ImageError):
        element = spatialdata.read_zarr(path.parent.parent, selection=(_IMAGES,)).images[path.name]
    return open_element(element, str(path))


def open_lazy(array: Any, name: str) -> SlideImage:
    """Open a dask or zarr array, or an h5py dataset, of shape ``(h, w, 3)``.

    Raises
    ------
    ImageError
        The array is not an 8-bit RGB image, or its shape is unknown.
    """
    if not all(isinstance(side, int | np.integer) for side in array.shape):
        raise ImageError(
            f"{name}: found an array of unknown shape {tuple(array.shape)}; {EXPECTED}. Pass "
            "image.compute_chunk_sizes()."
        )
    check_layout(tuple(array.shape), name)
    check_dtype(np.dtype(array.dtype), name)
    return SlideImage([LazyLevel(array, name)], [1.0], name=name)


def open_tensor(tensor: Any, name: str) -> SlideImage:
    """Copy the pixels of a torch tensor ``(h, w, 3)`` from any device.

    Raises
    ------
    ImageError
        The tensor is not an 8-bit RGB image.
    """
    check_layout(tuple(tensor.shape), name, channels_last="image.permute(1, 2, 0)")
    with reading(name, "the tensor", "Pass image.cpu().numpy(), 8-bit RGB of shape (height, width, 3).", ImageError):
        array = tensor.detach().cpu().numpy()
    return SlideImage([as_rgb_array(array, name)], [1.0], name=name)


def _level(array: xarray.DataArray, name: str) -> Any:
    if not {"y", "x"} <= set(array.dims):
        raise ImageError(
            f"{name}: found dimensions {array.dims}; expected ('c', 'y', 'x') as in SpatialData: rename them, "
            "image.rename({'old': 'new'})."
        )
    channels = [str(axis) for axis in array.dims if str(axis).lower() in _CHANNELS]
    extra = [str(axis) for axis in array.dims if axis not in (*channels[:1], "y", "x")]
    if not channels and not extra:
        check_layout(tuple(array.shape), name)
    if extra and (channels or len(extra) > 1):
        raise ImageError(f"{name}: found the dimension {extra[-1]!r}; expected one plane: image.isel({extra[-1]}=0).")
    if extra:
        raise ImageError(
            f"{name}: found dimensions {array.dims}; expected ('c', 'y', 'x') as in SpatialData: rename the "
            f"dimension of colors, image.rename({{{extra[0]!r}: 'c'}})."
        )
    color = channels[0]
    array = array.transpose("y", "x", color)
    if color in array.coords:
        names = [str(value).lower() for value in array.coords[color].values]
        if sorted(names) == ["b", "g", "r"]:
            array = array.isel({color: [names.index(one) for one in "rgb"]})
    if isinstance(array.data, np.ndarray):
        return as_rgb_array(array.data, name)
    check_layout(tuple(array.shape), name)
    check_dtype(np.dtype(array.dtype), name)
    return LazyLevel(array.data, name)


_CHUNK_PX = 2048


class _Level:
    """Array interface to one level of a slide, for ``dask.array.from_array``."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, slide: SlideImage, level: int) -> None:
        self._slide, self._level = slide, level
        self.shape = (*slide.level_shape(level), 3)

    def __getitem__(self, window: tuple[slice, slice, slice]) -> RGB:
        y, x = (part.indices(side) for part, side in zip(window[:2], self.shape[:2], strict=True))
        return self._slide.read(self._level, y[0], y[1], x[0], x[1])[..., window[2]]


def as_element(slide: SlideImage, transformations: dict[str, Any]) -> DataArray | DataTree:
    """Create a lazy image element from a slide image.

    Parameters
    ----------
    slide
        The image. Its levels become the scales of the element; no scale is computed.
    transformations
        Transformations by coordinate system.

    Returns
    -------
    xarray.DataArray or xarray.DataTree
        A single scale or a pyramid, with dimensions ``("c", "y", "x")``, uint8. Pixels are read on access.
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
    # The lock makes dask read one window at a time, since the file handles of a slide are not thread-safe.
    pixels = dask.array.from_array(
        source,
        chunks=(_CHUNK_PX, _CHUNK_PX, 3),
        name=False,
        lock=True,
        asarray=False,
        meta=np.empty((0, 0, 0), dtype=np.uint8),  # without meta, dask reads a window to infer the type
    )
    element = Image2DModel.parse(
        pixels, dims=("y", "x", "c"), c_coords=["r", "g", "b"], transformations=dict(transformations)
    )
    # Coordinates are pixel centers in px of the finest scale, as in every SpatialData pyramid.
    coordinates = {
        axis: (np.arange(n) + 0.5) * (full / n)
        for axis, n, full in zip(("y", "x"), source.shape, slide.shape_px, strict=False)
    }
    return element.assign_coords(coordinates) if level else element
