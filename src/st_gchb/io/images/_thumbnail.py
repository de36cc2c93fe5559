"""Compute the overview and the pixel hash of a slide image piece by piece, without holding the whole image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from st_gchb._logging import logger, track
from st_gchb.io.images._chunks import Box, Edges, boxes_between

_WHITE = 255
_QUIET_S = 1.0
"""Delay before a progress bar appears, s."""


class Image(Protocol):
    """The part of :class:`~st_gchb.io.SlideImage` that this module uses; importing the class would be circular."""

    name: str
    levels: Sequence[Any]
    downsamples: Sequence[float]

    @property
    def shape_px(self) -> tuple[int, int]: ...
    def level_shape(self, level: int) -> tuple[int, int]: ...
    def pieces(self, level: int) -> tuple[Edges, Edges]: ...
    def read(self, level: int, y0: int, y1: int, x0: int, x1: int) -> npt.NDArray[np.uint8]: ...
    def read_chunks(self, level: int, box: Box) -> tuple[npt.NDArray[np.uint8], list[tuple[Box, Any]]]: ...


def shrink(image: Image, max_px: int) -> tuple[npt.NDArray[np.uint8], float, npt.NDArray[np.bool_]]:
    """Down-scale the coarsest level of sufficient resolution, holding one piece of it in memory at a time.

    Parameters
    ----------
    image
        The image.
    max_px
        Maximum length of the longer side, px.

    Returns
    -------
    pixels
        Overview, ``(h, w, 3)`` uint8. Pixels that cannot be decoded are white.
    scale
        Size relative to the finest level, at most 1.
    damaged
        ``(h, w)`` bool, True for overview pixels that contain a pixel that could not be decoded.
    """
    fine_enough = [i for i in range(len(image.levels)) if max(image.level_shape(i)) >= min(max_px, max(image.shape_px))]
    level = fine_enough[-1]
    height, width = image.level_shape(level)
    step = max(-(-max(height, width) // max_px), 1)
    # An image narrower than one step is reduced to a width of one pixel.
    steps = min(step, height), min(step, width)
    shape = height // steps[0], width // steps[1]
    sums = np.zeros((*shape, 3), dtype=np.uint32)
    damaged = np.zeros(shape, dtype=bool)
    lost: list[Box] = []
    for y0, y1, x0, x1 in _pieces(image, level, f"Overview of {image.name}"):
        pixels, bad = image.read_chunks(level, (y0, y1, x0, x1))
        lost += [box for box, _ in bad]
        pixels = pixels[: shape[0] * steps[0] - y0, : shape[1] * steps[1] - x0]
        if pixels.size:
            part = _sum(_sum(pixels, y0, steps[0], 0), x0, steps[1], 1)
            top, left = y0 // steps[0], x0 // steps[1]
            sums[top : top + part.shape[0], left : left + part.shape[1]] += part
    for y0, y1, x0, x1 in lost:
        damaged[y0 // steps[0] : -(-y1 // steps[0]), x0 // steps[1] : -(-x1 // steps[1])] = True
    if lost:
        logger.warning(
            "%s: %.3g %% of the slide cannot be decoded and is white in the overview.", image.name, 100 * damaged.mean()
        )
    small = np.empty(sums.shape, dtype=np.uint8)
    for row, total in enumerate(sums):
        small[row] = (total / np.float32(steps[0] * steps[1])).round()
    small[damaged] = _WHITE
    return small, 1.0 / (step * float(image.downsamples[level])), damaged


def _pieces(image: Image, level: int, what: str) -> Iterator[Box]:
    boxes = boxes_between(*image.pieces(level))
    return track(boxes, what, len(boxes), delay=_QUIET_S)


def _sum(values: npt.NDArray, start: int, step: int, axis: int) -> npt.NDArray:
    """Sum over blocks along an axis whose first index is ``start``; blocks end at multiples of ``step``."""
    if step == 1:
        return values
    size = values.shape[axis]
    first = start // step
    shape = list(values.shape)
    shape[axis] = -(-(start + size) // step) - first
    sums = np.zeros(shape, dtype=np.uint32)
    # The first values of all blocks at once, then the second ones: several times as fast as one block after another.
    for i in range(min(step, size)):
        block = (start + i) // step - first
        part = values[(slice(None),) * axis + (slice(i, None, step),)]
        sums[(slice(None),) * axis + (slice(block, block + part.shape[axis]),)] += part
    return sums


def hash_pixels(image: Image, level: int) -> str:
    """Hash the pixels of a level, independently of how the level is divided into chunks.

    Raises
    ------
    DamageError
        Some pixels cannot be decoded.
    """
    digest = hashlib.sha256(repr(image.level_shape(level)).encode())
    rows: list = []
    for y0, y1, x0, x1 in _pieces(image, level, f"Hash of {image.name}"):
        if x0 == 0:
            # Every row of pixels has a hash of its own, so a row of pieces can be hashed piece by piece.
            _add(digest, rows)
            rows = [hashlib.sha256() for _ in range(y1 - y0)]
        pixels = np.ascontiguousarray(image.read(level, y0, y1, x0, x1))
        for row, values in zip(rows, pixels, strict=True):
            row.update(values.data)
    _add(digest, rows)
    return digest.hexdigest()


def _add(digest: Any, rows: list) -> None:
    for row in rows:
        digest.update(row.digest())
