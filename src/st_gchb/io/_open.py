"""From whatever holds a slide to a :class:`SlideImage`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from st_gchb._errors import ImageError, MissingFileError
from st_gchb.io._checks import EXPECTED, as_rgb_array
from st_gchb.io._elements import open_element, open_lazy
from st_gchb.io._openslide import open_openslide, vendor_of
from st_gchb.io._pillow import open_pillow
from st_gchb.io._pixel_size import Size, caller_size, positive, settle
from st_gchb.io._slide import SlideImage
from st_gchb.io._tiff import open_tiff

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN = (None, "generic-tiff", "aperio")
"""Of the formats that OpenSlide knows, those that tifffile reads as well. Of others a reader of TIFF or JPEG may see
something, such as the picture of the label, and take it for the slide."""


def open_image(source: Any, um_per_px: float | None = None, *, name: str | None = None) -> SlideImage:
    """Open a slide image; pixels are decoded when they are first read.

    Parameters
    ----------
    source
        Path of a TIFF (tiled, pyramidal, OME, SVS), JPEG or PNG file, or of a slide that OpenSlide reads (NDPI, MRXS,
        SCN, VMS, BIF, Philips TIFF, DICOM); an array of shape ``(height, width, 3)``; an
        image element of SpatialData, also one with several scales; or a :class:`SlideImage`, which is passed on.
    um_per_px
        Size of a pixel of the finest level, µm. Goes before what the file says, with a warning where they disagree.
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
    given = None if um_per_px is None else positive(um_per_px, "um_per_px")
    image = _open(source, name)
    if given is None:
        return image
    stored = None if image.um_per_px is None else Size(image.um_per_px, "the image file")
    return replace(image, um_per_px=settle([caller_size(given), stored], image.name))


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
    vendor = vendor_of(path)
    if vendor not in _PLAIN:
        return open_openslide(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if start not in _TIFF_STARTS:
        return open_pillow(path)
    image = open_tiff(path)
    by_tifffile = all(level.decodable for level in image.levels)
    return image if by_tifffile or vendor is None else open_openslide(path)
