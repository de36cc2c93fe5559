"""Validate the layout, type and size of images, with errors that name the remedy, and hash image files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from st_gchb._artifacts import sha256_of
from st_gchb._errors import DamageError, ImageError

EXPECTED = "expected an 8-bit RGB image of shape (height, width, 3)"


def check_layout(shape: tuple[int, ...], name: str, channels_last: str = "np.moveaxis(image, 0, -1)") -> None:
    """Raise :class:`ImageError` unless ``shape`` is ``(height, width, 3)`` with pixels in it.

    Parameters
    ----------
    shape
        Shape of the image.
    name
        Name of the image in messages.
    channels_last
        Code that moves the channels of such an object to the last axis, for the message.

    Raises
    ------
    ImageError
        The shape is different.
    """
    found = f"{name}: found an image of shape {tuple(shape)}; {EXPECTED}."
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] == 1):
        raise ImageError(f"{found} It is gray: pass the RGB image of the H&E stain, not one channel of it.")
    if len(shape) != 3:
        raise ImageError(f"{found} Pass one plane, e.g. np.squeeze(image) or image[0].")
    if shape[-1] == 4:
        raise ImageError(f"{found} The fourth channel looks like transparency (RGBA): pass image[..., :3].")
    if shape[-1] != 3 and shape[0] in (3, 4):
        raise ImageError(f"{found} Its channels come first: pass {channels_last}[..., :3].")
    if shape[-1] != 3:
        raise ImageError(f"{found} {shape[-1]} channels are no RGB image: pass the H&E image.")
    if 0 in shape:
        raise ImageError(f"{found} It has no pixels.")


_MOST = 1e9
"""Downsample that no slide has: its level would have no pixel."""
_ROUNDING = 0.02
"""Share of the expected rows, beside one row, by which a level may be smaller than its downsample says."""


def check_levels(levels: Any, downsamples: Any, name: str) -> None:
    """Raise :class:`ImageError` unless levels are RGB images, finest first, that go with their downsamples.

    No pixels are decoded.

    Parameters
    ----------
    levels, downsamples
        As in :class:`~st_gchb.io.SlideImage`.
    name
        Name of the image in messages.

    Raises
    ------
    ImageError
        There is no level, a level has no such shape, or its downsample is another one.
    """
    for what, found in (("levels", levels), ("downsamples", downsamples)):
        if not isinstance(found, list | tuple):
            raise ImageError(
                f"{name}: {what} is a {type(found).__name__}; expected a list with an entry for each level, the finest "
                "first: SlideImage([image], [1.0])."
            )
    if not levels or len(levels) != len(downsamples):
        raise ImageError(
            f"{name}: found {len(levels)} levels and {len(downsamples)} downsamples; expected one downsample for each "
            "of at least one level."
        )
    shapes = [_shape_of(level, f"{name}, level {number}") for number, level in enumerate(levels)]
    _check_downsamples(downsamples, name)
    rows, columns, _ = shapes[0]
    for number, (shape, factor) in enumerate(zip(shapes, downsamples, strict=True)):
        if shape[0] > rows or shape[1] > columns:
            raise ImageError(
                f"{name}: level {number} has {shape[0]} x {shape[1]} px, the first {rows} x {columns}; expected the "
                "finest level first."
            )
        # A level may be larger: some scanners fill its last tiles up.
        if rows / factor - shape[0] > _ROUNDING * rows / factor + 1:
            raise ImageError(
                f"{name}: level {number} has {shape[0]} rows; expected about {round(rows / factor)}, since the first "
                f"has {rows} and its downsample is {factor:g}."
            )


def _shape_of(level: Any, name: str) -> tuple[int, ...]:
    shape = getattr(level, "shape", None)
    if not isinstance(shape, tuple) or not hasattr(level, "__getitem__"):
        raise ImageError(
            f"{name}: found a {type(level).__name__}; expected shape (height, width, 3) and slicing in two dimensions, "
            "as st_gchb.io.SlideLevel describes."
        )
    if not all(isinstance(side, int | np.integer) and side >= 0 for side in shape):
        raise ImageError(f"{name}: found the shape {shape}; {EXPECTED}, in whole px.")
    check_layout(shape, name)
    return shape


def _check_downsamples(downsamples: Sequence[Any], name: str) -> None:
    if not all(
        isinstance(factor, int | float | np.integer | np.floating) and 0 < factor < _MOST for factor in downsamples
    ):
        raise ImageError(f"{name}: found downsamples {downsamples}; expected numbers of 1 or more, 1.0 first.")
    factors = [float(factor) for factor in downsamples]
    if factors[0] != 1.0 or factors != sorted(factors):
        raise ImageError(f"{name}: found downsamples {factors}; expected 1.0 first, and the finest level first.")


def check_dtype(dtype: np.dtype, name: str) -> None:
    """Raise :class:`ImageError` unless ``dtype`` is uint8."""
    if dtype == np.uint8:
        return
    found = f"{name}: found pixels of type {dtype}; {EXPECTED} and type uint8."
    if dtype.kind == "u" or dtype.kind == "i":
        raise ImageError(
            f"{found} Convert it: skimage.util.img_as_ubyte(image) where the values fill the range of {dtype}, "
            "image.astype('uint8') where they lie in 0 to 255."
        )
    if dtype.kind == "f":
        raise ImageError(f"{found} Convert it: skimage.util.img_as_ubyte(image) where the values lie in 0 to 1.")
    raise ImageError(f"{found} Convert it to uint8.")


def as_rgb_array(array: npt.NDArray, name: str) -> npt.NDArray[np.uint8]:
    """Validate an array in memory; floats from 0 to 1, as matplotlib reads a PNG, are converted to uint8.

    Raises
    ------
    ImageError
        The layout or type is different; the message gives the code that converts the array.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io.images._validation import as_rgb_array
    >>> as_rgb_array(np.ones((2, 2, 3), dtype=np.float32), "white")[0, 0]
    array([255, 255, 255], dtype=uint8)
    """
    check_layout(array.shape, name)
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise ImageError(
                f"{name}: found a masked array with {int(np.ma.getmaskarray(array).sum())} masked values; {EXPECTED}. "
                "Say what they are, e.g. white: image.filled(255)."
            )
        array = array.data
    if array.dtype.kind != "f":
        check_dtype(array.dtype, name)
        return array
    if not np.isfinite(array).all():
        raise ImageError(f"{name}: found NaN or infinite pixels; {EXPECTED} and type uint8.")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ImageError(
            f"{name}: found {array.dtype} pixels between {low:g} and {high:g}; floats are taken in 0 to 1 only. "
            "Convert it: image.astype('uint8') where the values lie in 0 to 255."
        )
    return (array * 255).round().astype(np.uint8)


def damage_or_failure(error: Exception, name: str) -> ImageError:
    """Create a :class:`DamageError` for pixels that cannot be decoded, or an :class:`ImageError` for a failed read."""
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(f"{name}: the pixels cannot be read ({error}). Check the disk or the connection, try again.")
    return DamageError(
        f"{name}: the pixels cannot be decoded ({error}). The file is damaged or its compression is not known: fetch "
        "it again, or export it as OME-TIFF with JPEG or deflate compression."
    )


def check_memory(n_bytes: int, name: str) -> None:
    """Raise :class:`ImageError` if an image that can only be decoded in full does not fit into free memory."""
    free = free_bytes()
    if free is not None and n_bytes > free:
        raise ImageError(
            f"{name}: the file can only be decoded whole, which takes {n_bytes / 1e9:,.1f} GB, and "
            f"{free / 1e9:,.1f} GB of memory are free. Save the image as a tiled TIFF, which is read in parts, e.g. "
            "with libvips: vips tiffsave in.jpg slide.tif --tile --pyramid --compression jpeg."
        )


def free_bytes() -> int | None:
    """Measure the available memory, bytes; None if the system does not report it."""
    try:
        # MemAvailable includes memory that the kernel can reclaim, which sysconf does not report.
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def hash_as_read(path: Path, how: str) -> str:
    """Hash a file's bytes, together with ``how`` they are read if that differs from how they are stored."""
    own = sha256_of(path)
    return hashlib.sha256(f"{own} {how}".encode()).hexdigest() if how else own
