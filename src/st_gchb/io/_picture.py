"""Small pictures of image files, for figures."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from st_gchb._errors import ImageError
from st_gchb.io._open import open_image
from st_gchb.io._pillow import PillowLevel
from st_gchb.io._slide import SlideImage


def picture_of(slide: SlideImage, side_px: int) -> tuple[NDArray[np.uint8], float]:
    """Shrink an image of any kind; its size relative to the finest level comes second."""
    level = slide.levels[0]
    return read_thumbnail(level.path, side_px) if isinstance(level, PillowLevel) else slide.thumbnail(side_px)


def read_thumbnail(path: Path, side_px: int) -> tuple[NDArray[np.uint8], float]:
    """Down-scaled copy of an image file.

    Parameters
    ----------
    path
        JPEG or PNG, 8-bit RGB.
    side_px
        Longer side of the copy, px; an image that is smaller is kept as it is.

    Returns
    -------
    tuple
        Pixels, ``(height, width, 3)``, and the copy's px per px of the file.

    Raises
    ------
    ImageError
        The file is damaged, or no 8-bit RGB image.
    """
    open_image(path)  # checks mode and header
    try:
        with warnings.catch_warnings():
            # Slides are larger than what Pillow takes for an attack.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                scale = min(1.0, side_px / max(width, height))
                size = (max(1, round(width * scale)), max(1, round(height * scale)))
                # A JPEG is decoded at 1/2, 1/4 or 1/8, which is ten times faster than whole.
                image.draft("RGB", size)
                reduction = max(1, round(width / image.width))
                box = (0.0, 0.0, min(image.width, width / reduction), min(image.height, height / reduction))
                return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box)), scale
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: the file is damaged or incomplete ({error}). Fetch it again.") from error
