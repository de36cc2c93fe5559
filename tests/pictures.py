"""What is drawn in the files of figures."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
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


def draw_coarsely(patch: pytest.MonkeyPatch, dpi: int = 72) -> None:
    """Let figures be drawn with few pixels, and once.

    To move their parts apart, and to cut the margins, all text is laid out twice more.
    """
    draw = FigureCanvasBase.print_figure

    def coarse(canvas: FigureCanvasBase, *arguments: Any, **options: Any) -> Any:
        canvas.figure.set_layout_engine("none")
        return draw(canvas, *arguments, **options | {"dpi": dpi, "bbox_inches": None})

    patch.setattr(FigureCanvasBase, "print_figure", coarse)


def sketch(figure: Figure, path: Path) -> None:
    """Write a picture of 32 pixels whose grays are a hash of what a figure holds: words, lines, shapes and values."""
    held = hashlib.sha256()
    for artist in figure.findobj():
        held.update(type(artist).__name__.encode())
        if isinstance(artist, Text):
            held.update(artist.get_text().encode())
        if isinstance(artist, Line2D):
            held.update(np.asarray(artist.get_xydata(), dtype=float).tobytes())
        if isinstance(artist, Patch):
            held.update(artist.get_patch_transform().transform(artist.get_path().vertices).tobytes())
        if isinstance(artist, Collection):
            held.update(np.ma.filled(artist.get_offsets(), np.nan).tobytes())
        if isinstance(artist, ScalarMappable) and artist.get_array() is not None:
            held.update(np.ma.filled(artist.get_array(), 0).tobytes())
    Image.frombytes("L", (8, 4), held.digest()).save(path)
