"""Read JPEG, PNG and other plain image files, and Pillow images, and create thumbnails of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from st_gchb._errors import ImageError
from st_gchb.io._reading import DAMAGED, reading
from st_gchb.io.images._orientation import TAG, UPRIGHT, orientation_in, read_orientation, stored_levels, turn, upright
from st_gchb.io.images._slide_image import RGB, SlideImage
from st_gchb.io.images._validation import EXPECTED, check_memory, hash_as_read

_LOCK = RLock()
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "PPM", "JPEG2000", "TGA")
"""Supported formats. Other formats of Pillow are documents (EPS, WMF), or TIFF, which is read with tifffile."""
_TEXT_BYTES = 2**28
"""Maximum size of color profiles and text in a PNG, bytes. Pillow's own limit of 1 MB guards against attacks."""


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file with Pillow, without the size limits that slides would exceed.

    Raises
    ------
    ImageError
        The file is not an image, or it is damaged, including damage found while it is decoded within the block.
    """
    with reading(path, "the file", DAMAGED, ImageError), _slides_allowed():
        try:
            image = Image.open(path, formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{path}: the file is no image that can be read, or it is damaged. Expected TIFF (also tiled, "
                "pyramidal, OME-TIFF and SVS), JPEG, PNG, or a slide that OpenSlide knows (NDPI, MRXS, SCN, VMS, BIF); "
                "convert others to OME-TIFF first."
            ) from error
        with image:
            yield image


@contextmanager
def _slides_allowed() -> Iterator[None]:
    """Lift Pillow's size limits while a file is opened or decoded; truncated files remain errors."""
    wanted = [
        (Image, "MAX_IMAGE_PIXELS", None),
        (PngImagePlugin, "MAX_TEXT_CHUNK", _TEXT_BYTES),
        (PngImagePlugin, "MAX_TEXT_MEMORY", _TEXT_BYTES),
        (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
    ]
    with _LOCK:
        before = [(module, name, getattr(module, name)) for module, name, _ in wanted]
        try:
            for module, name, value in wanted:
                setattr(module, name, value)
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)


class PillowLevel:
    """Pixels of an image file as they are stored, decoded at the first read and kept until released.

    Parameters
    ----------
    path
        The file.
    height, width
        Size of the image, px.
    """

    chunks = None

    def __init__(self, path: Path, height: int, width: int) -> None:
        self.path = path
        self.shape = (height, width, 3)
        self.whole_bytes = height * width * 3
        self._pixels: RGB | None = None

    def __getitem__(self, window: Any) -> RGB:
        if self._pixels is None:
            check_memory(self.whole_bytes, str(self.path))
            with opened(self.path) as image:
                pixels = np.asarray(image)
            if pixels.shape != self.shape:
                raise ImageError(
                    f"{self.path}: the file has changed: it held {self.shape[:2]} px (h, w), now {pixels.shape[:2]}."
                )
            self._pixels = pixels
        return self._pixels[window]

    def release(self) -> None:
        """Free the decoded pixels."""
        self._pixels = None


def open_pillow(path: Path) -> SlideImage:
    """Open a JPEG, PNG or other image file by its header; no pixels are decoded.

    Raises
    ------
    ImageError
        The file is not an 8-bit RGB image.
    """
    name = str(path)
    with opened(path) as image:
        _check_mode(image, name, "PIL.Image.open(path)")
        width, height = image.size
        orientation = read_orientation(orientation_of(image, path), name)
    levels = upright([PillowLevel(path, height, width)], orientation)
    how = "" if orientation == UPRIGHT else f"orientation {orientation}"
    return SlideImage(levels=levels, downsamples=[1.0], name=name, content_hash=partial(hash_as_read, path, how))


def copy_pillow(image: Image.Image, name: str) -> SlideImage:
    """Copy the pixels of a Pillow image, turned upright by its EXIF tag.

    Raises
    ------
    ImageError
        The image is not 8-bit RGB, or its file is damaged.
    """
    _check_mode(image, name, "image")
    check_memory(3 * image.width * image.height, name)
    with (
        reading(name, "the image", "Open its file again, or pass the path of the file.", ImageError),
        _slides_allowed(),
    ):
        orientation = read_orientation(orientation_of(image), name)
        pixels = np.ascontiguousarray(turn(np.asarray(image), orientation))
    if 0 in pixels.shape:
        raise ImageError(f"{name}: found an image of shape {pixels.shape}; {EXPECTED}. It has no pixels.")
    return SlideImage([pixels], [1.0], name=name)


def orientation_of(image: Image.Image, path: Path | None = None) -> Any:
    """Read the value of the orientation tag; None if there is none.

    Parameters
    ----------
    image
        An opened image that is not yet decoded.
    path
        Its file. In a PNG the tag may follow the pixels, and Pillow would decode them to find it.
    """
    if image.format != "PNG" or path is None:
        return image.getexif().get(TAG)
    chunk = _exif_chunk(path)
    if {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"} & set(image.info):
        return image.getexif().get(TAG)
    behind = Image.Exif()
    behind.load(chunk)
    return behind.get(TAG)


def _exif_chunk(path: Path) -> bytes:
    """Read the EXIF chunk of a PNG, at any position in the file; empty if there is none.

    Raises
    ------
    ImageError
        The file ends before its last chunk.
    """
    size = path.stat().st_size
    found, kind = b"", b""
    with open(path, "rb") as file:
        file.seek(8)
        while kind != b"IEND":
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if len(head) < 8 or file.tell() + length + 4 > size:
                raise ImageError(f"{path}: the file is cut short or damaged. {DAMAGED}")
            if kind == b"eXIf":
                found = file.read(length)
                file.seek(4, 1)
            else:
                file.seek(length + 4, 1)
    return found


def _check_mode(image: Image.Image, name: str, source: str) -> None:
    found = f"{name}: found an image of Pillow's mode {image.mode!r}; {EXPECTED}."
    tiles = getattr(image, "tile", None)
    raw_mode = str(tiles[0][3]) if tiles else ""
    # Pillow silently reduces 16-bit RGB to its upper byte; only the raw mode reveals it.
    if "16" in raw_mode or image.mode.startswith(("I", "F")):
        raise ImageError(f"{found} It has more than 8 bits a channel: rescale it, e.g. skimage.util.img_as_ubyte.")
    if image.mode in ("L", "1", "LA", "La"):
        raise ImageError(f"{found} It is gray: pass the RGB image of the H&E stain.")
    if image.mode != "RGB":
        raise ImageError(f"{found} Convert it: {source}.convert('RGB').save('slide.png').")


def thumbnail_of(slide: SlideImage, side_px: int) -> tuple[NDArray[np.uint8], float]:
    """Create a thumbnail of a slide image, from the file itself if Pillow reads it.

    Parameters
    ----------
    slide
        The image.
    side_px
        Maximum length of the longer side, px.

    Returns
    -------
    tuple
        Pixels, ``(height, width, 3)`` uint8, and their size relative to the finest level.
    """
    return _shrunk(slide, side_px) if isinstance(stored_levels(slide)[0], PillowLevel) else slide.thumbnail(side_px)


def read_thumbnail(path: Path, side_px: int) -> tuple[NDArray[np.uint8], float]:
    """Read a down-scaled copy of an image file.

    Parameters
    ----------
    path
        JPEG or PNG, 8-bit RGB.
    side_px
        Maximum length of the longer side, px; a smaller image keeps its size.

    Returns
    -------
    tuple
        Pixels, ``(height, width, 3)`` uint8, and their size relative to the image in the file.

    Raises
    ------
    ImageError
        The file is damaged, or is not an 8-bit RGB image.
    """
    return _shrunk(open_pillow(path), side_px)


def _shrunk(slide: SlideImage, side_px: int) -> tuple[NDArray[np.uint8], float]:
    with opened(slide.levels[0].path) as image:
        width, height = image.size
        scale = min(1.0, side_px / max(width, height))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        # draft() decodes a JPEG at 1/2, 1/4 or 1/8 of its size, which is about ten times faster than in full.
        image.draft("RGB", size)
        check_memory(3 * image.width * image.height, slide.name)
        reduction = max(1, round(width / image.width))
        box = (0.0, 0.0, min(image.width, width / reduction), min(image.height, height / reduction))
        small = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))
    return np.ascontiguousarray(turn(small, orientation_in(slide))), scale
