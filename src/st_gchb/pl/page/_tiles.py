"""Deep Zoom pyramid of a slide: JPEG tiles at halved scales, written while the slide is read once from top to bottom.

Each scale holds the rows of one row of tiles, and hands rows of half the size to the next. Memory therefore grows with
the width of the slide and not with its area.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from st_gchb._logging import logger, track
from st_gchb.io import SlideImage
from st_gchb.io.images import RGB, Box, grouped

TILE_PX = 254
OVERLAP_PX = 1
"""Rows and columns that a tile shares with each neighbor, so that no seam shows; with them, tiles are 256 px wide."""
_QUALITY = 85
_STRIP_PX = 512
_PIECE_PX = 1024
"""Height and width up to which chunks of the slide are read together, px."""
_WHITE = 255
_QUIET_S = 1.0
"""Delay before a progress bar appears, s."""
_SAME_SCALE = 0.01
"""Relative difference up to which a level of the slide counts as of the wanted scale."""


def n_halvings(um_per_px: float | None, finest_um_per_px: float) -> int:
    """Compute how often a slide is halved so that its pixels are as large as possible, at most ``finest_um_per_px``.

    Parameters
    ----------
    um_per_px
        Size of a pixel of the slide, µm; None if unknown, for which the slide keeps its size.
    finest_um_per_px
        Largest size of a pixel of the result, µm, if the slide's own is smaller.

    Examples
    --------
    >>> from st_gchb.pl.page._tiles import n_halvings
    >>> [n_halvings(um, 0.5) for um in (0.25, 0.2426, 0.3, 4.0, None)]
    [1, 1, 0, 0, 0]
    """
    if um_per_px is None:
        return 0
    return max(math.floor(math.log2(finest_um_per_px / um_per_px) + 1e-6), 0)


def write_tiles(image: SlideImage, folder: Path, halvings: int, memory_mb: float) -> tuple[int, int]:
    """Write the tiles of a slide, and the file ``slide.dzi`` that describes them to other viewers.

    Parameters
    ----------
    image
        The slide.
    folder
        Existing folder, to which ``slide.dzi`` and ``slide_files/{scale}/{column}_{row}.jpeg`` are written.
    halvings
        How often the finest level is halved; a coarser level of the file is read where it has the scale.
    memory_mb
        Bound of the decoded pixels that the slide may hold, MB.

    Returns
    -------
    tuple
        Height and width of the finest scale, px.

    Raises
    ------
    ImageError
        The slide cannot be read within the bound of memory, or not at all. Places that cannot be decoded are white,
        with a warning.
    OSError
        A tile cannot be written.
    """
    level, to_halve = _source(image, halvings)
    image.hold_at_most(level, int(memory_mb * 1e6))
    height, width = (-(-side // 2**to_halve) for side in image.level_shape(level))
    scales: _Halving = _scales(folder / "slide_files", height, width)
    for _ in range(to_halve):
        scales = _Halving(scales)
    scales.set_width(image.level_shape(level)[1])
    for rows in _strips(image, level):
        scales.add(rows)
    scales.finish()
    image.release()
    (folder / "slide.dzi").write_text(_description(height, width), encoding="utf-8")
    return height, width


def _source(image: SlideImage, halvings: int) -> tuple[int, int]:
    """Choose the coarsest level that only needs whole halvings, and count these."""
    for level in range(len(image.levels) - 1, 0, -1):
        ratio = 2**halvings / image.downsamples[level]
        left = round(math.log2(ratio)) if ratio > 0 else -1
        if left >= 0 and abs(ratio / 2**left - 1) <= _SAME_SCALE:
            return level, left
    return 0, halvings


def _strips(image: SlideImage, level: int) -> Iterator[RGB]:
    """Read a level in strips of whole rows, ``(h, width, 3)``; white where it cannot be decoded."""
    rows, columns = image.chunks(level)
    rows, columns = grouped(rows, _STRIP_PX), grouped(columns, _PIECE_PX)
    width = image.level_shape(level)[1]
    n_lost = 0
    strips = list(pairwise(rows.tolist()))
    for y0, y1 in track(strips, f"Tiles of {image.name}", delay=_QUIET_S):
        strip = np.empty((y1 - y0, width, 3), dtype=np.uint8)
        for x0, x1 in pairwise(columns.tolist()):
            pixels, lost = image.read_chunks(level, (y0, y1, x0, x1))
            strip[:, x0:x1] = pixels
            for box, _ in lost:
                n_lost += _whiten(strip, box, y0)
        yield strip
    if n_lost:
        share = 100 * n_lost / math.prod(image.level_shape(level))
        logger.warning("%s: %.3g %% of the slide cannot be decoded and is white on the page.", image.name, share)


def _whiten(strip: RGB, box: Box, top: int) -> int:
    """Make a part of a strip white; returns its number of pixels."""
    y0, y1, x0, x1 = box
    strip[y0 - top : y1 - top, x0:x1] = _WHITE
    return (y1 - y0) * (x1 - x0)


class _Halving:
    """Rows of pixels that are halved and handed on.

    Parameters
    ----------
    to
        Scale that receives the halved rows; None for the coarsest one.
    """

    def __init__(self, to: _Halving | None) -> None:
        self._to = to
        self._odd: RGB | None = None

    def set_width(self, width: int) -> None:
        """Tell the number of columns, px."""
        if self._to is not None:
            self._to.set_width(-(-width // 2))

    def add(self, rows: RGB) -> None:
        """Take the next rows, ``(h, width, 3)``."""
        if self._to is None:
            return
        if self._odd is not None:
            rows = np.concatenate([self._odd, rows])
        even = len(rows) // 2 * 2
        # A copy: a view would keep the whole strip in memory.
        self._odd = rows[even:].copy() if even < len(rows) else None
        if even:
            self._to.add(_halved(rows[:even]))

    def finish(self) -> None:
        """Hand on what is left after the last rows."""
        if self._to is None:
            return
        if self._odd is not None:
            self._to.add(_halved(np.concatenate([self._odd, self._odd])))
            self._odd = None
        self._to.finish()


class _Scale(_Halving):
    """One scale of the pyramid, which writes its tiles as soon as their rows are complete.

    Parameters
    ----------
    folder
        Folder of the scale's tiles, which is made.
    to
        Scale that receives the halved rows; None for the coarsest one.
    """

    def __init__(self, folder: Path, to: _Halving | None) -> None:
        super().__init__(to)
        folder.mkdir(parents=True)
        self._folder = folder
        self._top, self._row = 0, 0

    def set_width(self, width: int) -> None:
        """Tell the number of columns, px."""
        self._rows = np.empty((0, width, 3), dtype=np.uint8)
        super().set_width(width)

    def add(self, rows: RGB) -> None:
        """Take the next rows, ``(h, width, 3)``."""
        self._rows = np.concatenate([self._rows, rows])
        while self._top + len(self._rows) >= (self._row + 1) * TILE_PX + OVERLAP_PX:
            self._write_row()
        super().add(rows)

    def finish(self) -> None:
        """Write the last row of tiles, which may be lower, and hand on what is left."""
        while self._top + len(self._rows) > self._row * TILE_PX:
            self._write_row()
        super().finish()

    def _write_row(self) -> None:
        """Write a row of tiles, and drop the rows that the next one does not share."""
        top, bottom = self._edges(self._row)
        band = self._rows[top - self._top : bottom - self._top]
        for column in range(-(-band.shape[1] // TILE_PX)):
            left, right = self._edges(column)
            tile = np.ascontiguousarray(band[:, left:right])
            Image.fromarray(tile).save(self._folder / f"{column}_{self._row}.jpeg", "JPEG", quality=_QUALITY)
        self._row += 1
        keep_from = self._edges(self._row)[0]
        self._rows = self._rows[keep_from - self._top :].copy()
        self._top = keep_from

    @staticmethod
    def _edges(index: int) -> tuple[int, int]:
        """Compute first and last row or column of a tile, overlap included; the last may be beyond the slide."""
        return max(index * TILE_PX - OVERLAP_PX, 0), (index + 1) * TILE_PX + OVERLAP_PX


def _scales(folder: Path, height: int, width: int) -> _Halving:
    """Make all scales down to a single pixel; returns the finest."""
    scale = _Scale(folder / "0", None)
    for number in range(1, math.ceil(math.log2(max(height, width))) + 1):
        scale = _Scale(folder / str(number), scale)
    return scale


def _halved(rows: RGB) -> RGB:
    """Average squares of 2 x 2 px; the last column stands twice where their number is odd."""
    if rows.shape[1] % 2:
        rows = np.concatenate([rows, rows[:, -1:]], axis=1)
    total: npt.NDArray[np.uint16] = rows[::2, ::2].astype(np.uint16)
    for part in (rows[1::2, ::2], rows[::2, 1::2], rows[1::2, 1::2]):
        total += part
    return ((total + 2) // 4).astype(np.uint8)


def _description(height: int, width: int) -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="jpeg" '
        f'Overlap="{OVERLAP_PX}" TileSize="{TILE_PX}"><Size Width="{width}" Height="{height}"/></Image>\n'
    )
