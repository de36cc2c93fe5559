"""A slide image as an image element of SpatialData, without decoding it."""

from __future__ import annotations

import math
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

    pass

_HOLD_BYTES = 2**28
"""A lazy level up to this size is computed once and kept until released; a larger one is read window by window."""
_CHANNELS = ("c", "channel", "channels", "band", "bands", "rgb", "s")
"""Names of the dimension of colors: SpatialData's, squidpy's, rioxarray's, tifffile's."""


class LazyLevel:
    """A dask or zarr array ``(h, w, 3)``, computed once where it is small, window by window where it is large."""

    def __init__(self, array: Any, name: str) -> None:
        self._array, self._name = array, name
        self.shape = tuple(int(side) for side in array.shape)
        self.chunks = getattr(array, "chunks", None)
        self._hold = hasattr(array, "compute") and math.prod(self.shape) <= _HOLD_BYTES
        self._pixels: RGB | None = None

    @property
    def whole_bytes(self) -> int:
        """Bytes of decoded pixels that the first window brings and that are kept."""
        return math.prod(self.shape) if self._hold else 0

    def __getitem__(self, window: tuple[slice, slice]) -> RGB:
        if self._hold and self._pixels is None:
            try:
                self._pixels = self._compute((slice(None), slice(None)))
            except DamageError:
                # The rest can be had window by window.
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
        """Keep nothing from now on."""
        self._hold, self._pixels = False, None

    def release(self) -> None:
        """Give the computed pixels back."""
        self._pixels = None


def open_element(element: xarray.DataArray | xarray.DataTree, name: str) -> SlideImage:
    """Open an image element of SpatialData: one scale, or all scales of a pyramid.

    Raises
    ------
    ImageError
        The element is no 8-bit RGB image.
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


def open_lazy(array: Any, name: str) -> SlideImage:
    """Open a dask or zarr array, or a dataset of h5py, of shape ``(h, w, 3)``."""
    if not all(isinstance(side, int | np.integer) for side in array.shape):
        raise ImageError(
            f"{name}: found an array of unknown shape {tuple(array.shape)}; {EXPECTED}. Pass "
            "image.compute_chunk_sizes()."
        )
    check_layout(tuple(array.shape), name)
    check_dtype(np.dtype(array.dtype), name)
    return SlideImage([LazyLevel(array, name)], [1.0], name=name)


def open_tensor(tensor: Any, name: str) -> SlideImage:
    """Take the pixels of a torch tensor ``(h, w, 3)``, from whatever device."""
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
    # Centers of pixels in px of the finest scale, as in every pyramid of SpatialData.
    coordinates = {
        axis: (np.arange(n) + 0.5) * (full / n)
        for axis, n, full in zip(("y", "x"), source.shape, slide.shape_px, strict=False)
    }
    return element.assign_coords(coordinates) if level else element
