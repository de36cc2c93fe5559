"""Open slide images from files, arrays and image elements."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import xarray

from st_gchb._arguments import PixelSize, checked
from st_gchb._errors import ImageError, MissingFileError
from st_gchb.io._pixel_size import Size, caller_size, positive, settle
from st_gchb.io._reading import reading
from st_gchb.io.images._image_element import is_stored_image, open_element, open_lazy, open_stored, open_tensor
from st_gchb.io.images._openslide import open_openslide, vendor_of
from st_gchb.io.images._orientation import UPRIGHT, orientation_in, stored_levels
from st_gchb.io.images._pillow import copy_pillow, open_pillow
from st_gchb.io.images._readers import reader_of
from st_gchb.io.images._slide_image import SlideImage
from st_gchb.io.images._tiff import open_tiff
from st_gchb.io.images._validation import EXPECTED, as_rgb_array

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN = (None, "generic-tiff", "aperio")
"""OpenSlide's names of the formats that tifffile reads as well. In files of other vendors, a reader of TIFF or JPEG may
find another image, such as that of the label, and take it for the slide."""
_LONGEST = 300
"""Most characters of a path in messages."""


@checked
def open_image(source: Any, um_per_px: PixelSize | None = None, *, name: str | None = None) -> SlideImage:
    """Open a slide image; pixels are decoded when they are first read.

    Parameters
    ----------
    source
        Path of a TIFF (tiled, pyramidal, OME, SVS), JPEG or PNG file, of a slide that OpenSlide reads (NDPI, MRXS,
        SCN, VMS, BIF, Philips TIFF, DICOM), or of a format of :func:`register_reader`; path of an image element in a
        SpatialData store, such as ``sample.zarr/images/he``; an array of shape
        ``(height, width, 3)`` (NumPy, dask, zarr, h5py, torch); a Pillow image; an image element of SpatialData, also
        one with several scales, or another xarray with dimensions y, x and c; or a :class:`SlideImage`, which is
        returned as it is. Files and Pillow images with an orientation tag are read upright, as viewers show them (with
        a warning); arrays have no such tag and are not turned.
    um_per_px
        Size of a pixel of the finest level, µm. It replaces the file's own, with a warning where they disagree.
    name
        Name of the image in messages.

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
        return _open_path(_as_path(source))
    if isinstance(source, np.ndarray):
        label = name or "image array"
        return SlideImage([as_rgb_array(source, label)], [1.0], name=label)
    if isinstance(source, PIL.Image.Image):
        return copy_pillow(source, name or "image")
    if isinstance(source, xarray.DataArray | xarray.DataTree):
        return open_element(source, name or "image element")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        return open_tensor(source, name or "image tensor")
    with reading(name or "image", f"the {type(source).__name__}", "Is its file still open?", ImageError):
        lazy = hasattr(source, "shape") and hasattr(source, "dtype") and hasattr(source, "__getitem__")
        if lazy:
            return open_lazy(source, name or "lazy image array")
    raise ImageError(
        f"{name or 'image'}: found an object of type {type(source).__name__}; {EXPECTED}, the path of such an image, "
        "or an image element of SpatialData."
    )


def _as_path(source: str | os.PathLike) -> Path:
    text = os.fsdecode(os.fspath(source))
    if re.match(r"[a-z][a-z0-9+]+://", text, re.IGNORECASE):
        raise ImageError(f"{text}: found an address; expected the path of a file. Download the image first.")
    with reading(text[:_LONGEST], "the path", "Pass the path of an image file.", ImageError):
        return Path(text).expanduser()


def _open_path(path: Path) -> SlideImage:
    with reading(str(path)[:_LONGEST], "the image", "Check the path and the rights to read it.", ImageError):
        reader = reader_of(path) if path.exists() else None
        if reader is not None:
            return reader.read(path)
        if is_stored_image(path):
            return open_stored(path)
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
        unknown = sorted({level.compression for level in stored_levels(image) if not level.decodable})
        # OpenSlide turns the tiles of some compressions one by one, which gives a wrong image: it opens only files
        # that are stored upright.
        if unknown and (vendor is None or orientation_in(image) != UPRIGHT):
            raise ImageError(
                f"{path}: the TIFF is compressed by a method that cannot be decoded (number {unknown[0]}). Export it "
                "with JPEG or deflate compression."
            )
        return open_openslide(path) if unknown else image
