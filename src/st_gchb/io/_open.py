"""From whatever holds a slide to a :class:`SlideImage`."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from st_gchb._errors import ImageError, MissingFileError, ScaleError
from st_gchb.io._checks import EXPECTED, as_rgb_array
from st_gchb.io._elements import open_element, open_lazy
from st_gchb.io._pillow import open_pillow
from st_gchb.io._slide import SlideImage
from st_gchb.io._tiff import open_tiff

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_image(source: Any, um_per_px: float | None = None, *, name: str | None = None) -> SlideImage:
    """Open a slide image; pixels are decoded when they are first read.

    Parameters
    ----------
    source
        Path of a TIFF (tiled, pyramidal, OME, SVS), JPEG or PNG file; an array of shape ``(height, width, 3)``; an
        image element of SpatialData, also one with several scales; or a :class:`SlideImage`, which is passed on.
    um_per_px
        Size of a pixel of the finest level, µm. Goes before what the file says.
    name
        What messages call the image.

    Returns
    -------
    SlideImage
        The image, 8-bit RGB.

    Raises
    ------
    ImageError
        The source is no 8-bit RGB image, or it is damaged.
    MissingFileError
        There is no file at the path.
    ScaleError
        ``um_per_px`` is no positive number.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io import open_image
    >>> open_image(np.zeros((40, 50, 3), dtype=np.uint8), um_per_px=0.5).shape_px
    (40, 50)
    """
    if um_per_px is not None and not (math.isfinite(um_per_px) and um_per_px > 0):
        raise ScaleError(f"um_per_px={um_per_px!r}: expected a positive number, the size of a pixel in µm.")
    image = _open(source, name)
    return image if um_per_px is None else replace(image, um_per_px=float(um_per_px))


def _open(source: Any, name: str | None) -> SlideImage:
    if isinstance(source, SlideImage):
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source))
    if isinstance(source, np.ndarray):
        label = name or "image array"
        return SlideImage([as_rgb_array(source, label)], [1.0], name=label)
    if isinstance(source, xarray.DataArray | xarray.DataTree):
        return open_element(source, name or "image element")
    if hasattr(source, "shape") and hasattr(source, "dtype") and hasattr(source, "__getitem__"):
        return open_lazy(source, name or "lazy image array")
    raise ImageError(
        f"{name or 'image'}: found an object of type {type(source).__name__}; {EXPECTED}, the path of such an image, "
        "or an image element of SpatialData."
    )


def _open_path(path: Path) -> SlideImage:
    if path.is_dir():
        raise ImageError(
            f"{path}: found a folder, expected an image file. SpatialData is opened with spatialdata.read_zarr."
        )
    if not path.is_file():
        raise MissingFileError(f"{path}: there is no such image file. Check the path (now in {Path.cwd()}).")
    with open(path, "rb") as file:
        start = file.read(4)
    return open_tiff(path) if start in _TIFF_STARTS else open_pillow(path)
