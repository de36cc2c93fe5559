"""Apply orientation tags, so that images are read upright.

Spot coordinates usually refer to the image as viewers show it, which is upright. The tag is therefore applied for every
file format, with a warning. Arrays have no tag and are used as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from st_gchb._logging import logger
from st_gchb.io.images._chunks import Edges, chunk_edges
from st_gchb.io.images._slide_image import RGB, SlideImage

TAG = 274
"""Code of the orientation tag, in TIFF and in EXIF (which JPEG, PNG and WebP embed as a TIFF)."""
UPRIGHT = 1
# Steps that make stored pixels upright: swap rows and columns, then reverse the rows, then reverse the columns.
_STEPS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
_WORDS = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored upside down",
    5: "mirrored and turned by 90 degrees",
    6: "turned by 90 degrees",
    7: "mirrored and turned by 90 degrees",
    8: "turned by 90 degrees",
}


def read_orientation(value: Any, name: str) -> int:
    """Validate an orientation tag, and warn if the image is not stored upright.

    Parameters
    ----------
    value
        Value of the tag; None if there is none.
    name
        Name of the image in messages.

    Returns
    -------
    int
        Orientation from 1 (stored upright) to 8; 1 for an invalid tag, with a warning.

    Examples
    --------
    >>> from st_gchb.io.images._orientation import read_orientation
    >>> read_orientation(None, "slide")
    1
    """
    if value is None or value == UPRIGHT:
        return UPRIGHT
    if not isinstance(value, int | np.integer) or value not in _STEPS:
        logger.warning(
            "%s: the orientation tag holds %r; expected 1 to 8. The pixels are taken as they are stored.", name, value
        )
        return UPRIGHT
    logger.warning(
        "%s: the pixels are stored %s (orientation tag %d). They are read upright, as viewers show the image: "
        "positions are expected in px of the upright image.",
        name,
        _WORDS[int(value)],
        value,
    )
    return int(value)


def swaps_sides(orientation: int) -> bool:
    """Check if an orientation exchanges height and width.

    Examples
    --------
    >>> from st_gchb.io.images._orientation import swaps_sides
    >>> [tag for tag in range(1, 9) if swaps_sides(tag)]
    [5, 6, 7, 8]
    """
    return _STEPS[orientation][0]


def turn(pixels: RGB, orientation: int) -> RGB:
    """Turn stored pixels ``(h, w, 3)`` upright.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io.images._orientation import turn
    >>> turn(np.arange(6).reshape(1, 2, 3), 6)[:, 0, 0].tolist()
    [0, 3]
    """
    swap, turn_rows, turn_columns = _STEPS[orientation]
    pixels = pixels.swapaxes(0, 1) if swap else pixels
    return pixels[:: -1 if turn_rows else 1, :: -1 if turn_columns else 1]


def upright(levels: Sequence[Any], orientation: int) -> list[Any]:
    """Wrap stored levels so that they are read upright."""
    return list(levels) if orientation == UPRIGHT else [TurnedLevel(level, orientation) for level in levels]


def stored_levels(image: SlideImage) -> list[Any]:
    """Return the levels of an image as they are stored."""
    return [level.level if isinstance(level, TurnedLevel) else level for level in image.levels]


def orientation_in(image: SlideImage) -> int:
    """Return the orientation tag that is applied to the levels of an image."""
    level = image.levels[0]
    return level.orientation if isinstance(level, TurnedLevel) else UPRIGHT


class TurnedLevel:
    """A stored level that is read upright.

    Parameters
    ----------
    level
        The stored level.
    orientation
        Value of the orientation tag.
    """

    def __init__(self, level: Any, orientation: int) -> None:
        self.level, self.orientation = level, orientation
        self._stored = int(level.shape[0]), int(level.shape[1])
        sides = self._stored[::-1] if swaps_sides(orientation) else self._stored
        self.shape = (*sides, 3)
        self.path = level.path

    @property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Heights and widths of the chunks of the upright image."""
        if self.level.chunks is None:
            return None
        swap, *turns = _STEPS[self.orientation]
        rows, columns = chunk_edges(self.level.chunks, self._stored)
        edges = (columns, rows) if swap else (rows, columns)
        return _sizes(edges[0], turns[0]), _sizes(edges[1], turns[1])

    @property
    def whole_bytes(self) -> int:
        """Size of the decoded pixels that the first read keeps in memory, bytes."""
        return int(getattr(self.level, "whole_bytes", 0))

    @property
    def parallel(self) -> bool:
        """True if several threads may read windows at the same time."""
        return bool(getattr(self.level, "parallel", False))

    def __getitem__(self, window: tuple[slice, slice]) -> RGB:
        swap, *turns = _STEPS[self.orientation]
        parts = []
        for part, side, turned in zip(window, self.shape[:2], turns, strict=True):
            start, stop, _ = part.indices(side)
            stop = max(start, stop)
            parts.append(slice(side - stop, side - start) if turned else slice(start, stop))
        rows, columns = reversed(parts) if swap else parts
        return np.ascontiguousarray(turn(self.level[rows, columns], self.orientation))

    def release(self) -> None:
        """Close the file and free decoded pixels."""
        self.level.release()


def _sizes(edges: Edges, turned: bool) -> tuple[int, ...]:
    sizes = [end - start for start, end in pairwise(edges.tolist())]
    return tuple(sizes[::-1] if turned else sizes)
