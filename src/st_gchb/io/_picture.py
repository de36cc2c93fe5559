"""Small pictures of image files, for figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from st_gchb.io._checks import check_memory
from st_gchb.io._orientation import orientation_in, stored_levels, turn
from st_gchb.io._pillow import PillowLevel, open_pillow, opened
from st_gchb.io._slide import SlideImage


def picture_of(slide: SlideImage, side_px: int) -> tuple[NDArray[np.uint8], float]:
    """Shrink an image of any kind; its size relative to the finest level comes second."""
    return _shrunk(slide, side_px) if isinstance(stored_levels(slide)[0], PillowLevel) else slide.thumbnail(side_px)


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
    return _shrunk(open_pillow(path), side_px)


def _shrunk(slide: SlideImage, side_px: int) -> tuple[NDArray[np.uint8], float]:
    with opened(slide.levels[0].path) as image:
        width, height = image.size
        scale = min(1.0, side_px / max(width, height))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        # A JPEG is decoded at 1/2, 1/4 or 1/8, which is ten times faster than whole.
        image.draft("RGB", size)
        check_memory(3 * image.width * image.height, slide.name)
        reduction = max(1, round(width / image.width))
        box = (0.0, 0.0, min(image.width, width / reduction), min(image.height, height / reduction))
        small = np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))
    return np.ascontiguousarray(turn(small, orientation_in(slide))), scale
