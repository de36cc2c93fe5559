"""JPEG and PNG files, which can only be decoded whole: once, and not before the first read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from st_gchb._errors import ImageError
from st_gchb._files import sha256_of
from st_gchb.io._checks import EXPECTED
from st_gchb.io._slide import RGB, SlideImage

_LOCK = RLock()


@contextmanager
def _slides_allowed() -> Iterator[None]:
    """Lift Pillow's limit on the number of pixels, which every slide exceeds, while a file is opened."""
    with _LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


class PillowLevel:
    """Pixels of an image file, decoded at the first window and kept until they are released."""

    def __init__(self, path: Path, height: int, width: int) -> None:
        self.path = path
        self.shape = (height, width, 3)
        self.whole_bytes = height * width * 3
        self._pixels: RGB | None = None

    def __getitem__(self, window: Any) -> RGB:
        if self._pixels is None:
            self._pixels = self._decode()
        return self._pixels[window]

    def _decode(self) -> RGB:
        try:
            with _slides_allowed(), Image.open(self.path) as image:
                return np.asarray(image)
        # Pillow raises SyntaxError and ValueError, beside OSError, on damaged PNG chunks.
        except (OSError, SyntaxError, ValueError) as error:
            raise ImageError(
                f"{self.path}: the file is damaged or incomplete ({error}). Fetch or export the image again."
            ) from error

    def release(self) -> None:
        """Give the decoded pixels back."""
        self._pixels = None


def open_pillow(path: Path) -> SlideImage:
    """Open a JPEG, PNG or other image file by its header.

    Raises
    ------
    ImageError
        The file is no image, or none in 8-bit RGB.
    """
    try:
        with _slides_allowed(), Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
            raw_mode = str(image.tile[0][3]) if image.tile else ""
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path}: the file is no image that can be read, or it is damaged. Expected TIFF (also tiled, pyramidal, "
            "OME-TIFF and SVS), JPEG, PNG, or a slide that OpenSlide knows (NDPI, MRXS, SCN, VMS, BIF); convert "
            "others to OME-TIFF first."
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: the file is damaged ({error}). Fetch or export the image again.") from error
    _check_mode(path, mode, raw_mode)
    return SlideImage(
        levels=[PillowLevel(path, height, width)],
        downsamples=[1.0],
        name=str(path),
        content_hash=partial(sha256_of, path),
    )


def _check_mode(path: Path, mode: str, raw_mode: str) -> None:
    found = f"{path}: found an image of Pillow's mode {mode!r}; {EXPECTED}."
    # Pillow cuts 16-bit RGB to its upper byte and says nothing: only the raw mode tells.
    if "16" in raw_mode or mode.startswith(("I", "F")):
        raise ImageError(f"{found} It has more than 8 bits a channel: rescale it, e.g. skimage.util.img_as_ubyte.")
    if mode in ("L", "1", "LA"):
        raise ImageError(f"{found} It is grey: pass the RGB image of the H&E stain.")
    if mode != "RGB":
        raise ImageError(f"{found} Convert it: PIL.Image.open(path).convert('RGB').save(...).")
