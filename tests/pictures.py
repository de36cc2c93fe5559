"""What is drawn in the files of figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def pixels_of(path: Path) -> np.ndarray:
    """Read a PNG, ``(height, width, 3)``."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def n_colors(pixels: np.ndarray) -> int:
    """Count the colors of an image; numpy takes a second to sort a million rows of three, and no time for numbers."""
    red, green, blue = pixels.reshape(-1, 3).astype(np.int64).T
    return len(np.unique((red << 16) + (green << 8) + blue))
