"""Down-scaled pictures of the tissue as Space Ranger leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from st_gchb._logging import logger
from st_gchb.io._pillow import opened
from st_gchb.io._slide import RGB


def picture_shape(path: Path) -> tuple[int, int]:
    """Height and width of a picture, px, by its header.

    Raises
    ------
    ImageError
        The file is damaged.
    """
    with opened(path) as image:
        return image.height, image.width


def read_picture(path: Path) -> RGB | None:
    """Pixels of a down-scaled picture; None, with a warning, where nothing is to be seen on it.

    Raises
    ------
    ImageError
        The file is damaged.
    """
    with opened(path) as image:
        grey = image.mode not in ("RGB", "RGBA", "P", "PA")
        # Where a picture is transparent, the glass behind it is white.
        rgba = np.asarray(image.convert("RGBA")) if image.mode in ("RGBA", "P", "PA") else None
        pixels = np.asarray(image.convert("RGB")) if rgba is None else rgba[..., :3].copy()
    if rgba is not None:
        pixels[rgba[..., 3] == 0] = 255
    if grey or (pixels == pixels[0, 0]).all():
        logger.warning(
            "%s: %s; it is left out.", path, "the picture is grey, no H&E" if grey else "the picture is of one colour"
        )
        return None
    return pixels
