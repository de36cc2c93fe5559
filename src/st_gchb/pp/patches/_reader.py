"""Reading of square patches around spots: prefetching, damaged regions, choice of the level, and batches of patches.

Each chunk of the image is decoded once, in the order planned by :mod:`st_gchb.pp.patches._window_plan`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import shapely
import torch
from torch.nn import functional

from st_gchb._arguments import Count, Megabytes, checked
from st_gchb._errors import DamageError, InputError, ScaleError
from st_gchb.io import SlideImage
from st_gchb.io.images import Box
from st_gchb.pp.patches._window_plan import Grid, Windows, plan
from st_gchb.pp.spots import Slice

T = TypeVar("T")

AHEAD = 2
"""Items that are prefetched while one is being processed."""
_END = object()


def prefetch(items: Iterator[T]) -> Generator[T]:
    """Prefetch items from an iterator in a background thread.

    Items keep their order, and an exception of the iterator is raised in place of its next item. If the caller stops
    early, by an error or Ctrl-C, the thread ends after its current item, provided that the generator is closed
    (:func:`contextlib.closing`).

    Examples
    --------
    >>> from st_gchb.pp.patches._reader import prefetch
    >>> list(prefetch(iter("abcd")))
    ['a', 'b', 'c', 'd']
    """
    # The context holds the function that the user called, which error messages from the thread need.
    context = copy_context()

    def take() -> T | object:
        return context.run(lambda: next(items, _END))

    with ThreadPoolExecutor(1, thread_name_prefix="st_gchb-patches") as thread:
        waiting = deque(thread.submit(take) for _ in range(AHEAD))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(take))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()


_NAMED = 5
"""Largest number of regions that a message lists."""


@dataclass(eq=False)
class Damage:
    """Regions of a slice's image that could not be decoded, and the spots that they affect.

    Parameters
    ----------
    name
        Name of the slice.
    image
        Name of its image in messages.
    n_spots
        Number of spots of the slice.
    rows
        Positions within the slice of the spots whose patches overlap such regions.
    boxes
        The chunks that could not be decoded, ``(y0, y1, x0, x1)`` in px of the image's finest level.
    reason
        Error message of the first of them.
    """

    name: str
    image: str
    n_spots: int
    rows: list[int] = field(default_factory=list)
    boxes: set[Box] = field(default_factory=set)
    reason: str = ""

    def note(self, row: int, lost: list[tuple[Box, DamageError]], downsample: float) -> None:
        """Record a spot whose patch overlaps chunks that could not be decoded.

        Parameters
        ----------
        row
            Position of the spot within the slice.
        lost
            The chunks, in px of the level, and their errors.
        downsample
            Downsampling factor of the level.
        """
        self.rows.append(row)
        self.boxes |= {tuple(round(edge * downsample) for edge in box) for box, _ in lost}  # type: ignore[misc]
        self.reason = self.reason or str(lost[0][1].__cause__ or lost[0][1])

    @property
    def regions(self) -> list[Box]:
        """Bounding boxes ``(y0, y1, x0, x1)`` of the damaged regions, with adjacent chunks merged."""
        boxes = [shapely.box(x0, y0, x1, y1) for y0, y1, x0, x1 in sorted(self.boxes)]
        parts = shapely.get_parts(shapely.union_all(boxes)) if boxes else []
        bounds = [[round(edge) for edge in part.bounds] for part in parts]
        return sorted((y0, y1, x0, x1) for x0, y0, x1, y1 in bounds)

    def describe(self) -> str:
        """Describe how many spots are affected, which regions are damaged, and the reason."""
        found = self.regions
        named = "; ".join(f"x {x0} to {x1}, y {y0} to {y1}" for y0, y1, x0, x1 in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more regions" if len(found) > _NAMED else ""
        return (
            f"slice {self.name!r} ({self.image}): the patches of {len(self.rows)} of {self.n_spots} spots touch pixels "
            f"that cannot be decoded, px {named}{more} ({self.reason})"
        )

    def check(self) -> None:
        """Raise :class:`DamageError` if any spot is affected."""
        if self.rows:
            raise DamageError(
                f"{self.describe()}. Fetch the image again; or leave these spots out: "
                "pp.embed_patches(..., on_damage='nan') gives them NaN and names them in uns['X_patch']['excluded']."
            )


MEMORY_MB = 1000.0
"""Default of ``memory_mb``."""
BATCH_SIZE = 64
"""Default of ``batch_size``."""
_CROPS_SHARE = 0.125
"""Fraction of the memory for windows that wait to be resampled."""
_CROP_BYTES = 3 * 5
"""Bytes per pixel of such a window: for each channel one, and four more for the float copy that torch may make."""
_OVERSAMPLING = 2.0
"""Smallest ratio of px along a window to ``out_px``, so that features hardly depend on how the pyramid was computed."""

Rows = npt.NDArray[np.int64]
Patches = npt.NDArray[np.uint8]


def choose_level(image: SlideImage, side_px: float, out_px: int) -> int:
    """Choose the coarsest level with at least twice ``out_px`` pixels along a patch, or the finest level.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io import SlideImage
    >>> from st_gchb.pp.patches._reader import choose_level
    >>> pyramid = SlideImage([np.zeros((80 // f, 80 // f, 3), np.uint8) for f in (1, 2, 4)], [1, 2, 4])
    >>> choose_level(pyramid, side_px=40, out_px=10), choose_level(pyramid, side_px=40, out_px=30)
    (1, 0)
    """
    fine = [i for i, downsample in enumerate(image.downsamples) if side_px / downsample >= _OVERSAMPLING * out_px]
    return max(fine, key=lambda i: image.downsamples[i], default=0)


@checked
def read_patches(
    slide: Slice, side_px: float, out_px: Count, batch_size: Count = BATCH_SIZE, memory_mb: Megabytes = MEMORY_MB
) -> Iterator[tuple[Rows, Patches]]:
    """Read the patch of every spot, in batches, within bounded memory.

    Patches do not depend on the format of the image. Beyond the border of the slide the image is mirrored. Each chunk
    of a file (tile, strip, chunk of a Zarr array) is decoded once, and dropped after the last window that needs it; if
    ``memory_mb`` is too small for that, chunks on the borders of vertical bands are decoded twice.

    Parameters
    ----------
    slide
        Spots and image.
    side_px
        Side of a patch in px of the image's finest level; need not be whole.
    out_px
        Side of the returned patches, px; windows of another size are resampled (bilinear, with antialiasing).
    batch_size
        Spots per batch; the last batch may have fewer.
    memory_mb
        Bound of the decoded pixels in memory, including windows and finished batches, MB (10**6 bytes).

    Yields
    ------
    tuple
        Positions within the slice, ``(b,)``, and patches, ``(b, out_px, out_px, 3)`` uint8. Batches are in the order of
        the regions of the image, not of the spots.

    Raises
    ------
    ScaleError
        A patch is less than a pixel wide.
    InputError
        ``memory_mb`` is too small for a single window and batch.
    DamageError
        The pixels of some spots cannot be decoded; raised after all other spots.
    ImageError
        The image cannot be read, or can only be decoded whole and is larger than ``memory_mb``.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io import open_image
    >>> from st_gchb.pp import Slice, read_patches
    >>> slide = Slice("a", np.arange(2), np.array([[5.0, 5.0], [0.0, 9.0]]), open_image(np.ones((9, 9, 3), np.uint8)))
    >>> [patches.shape for _, patches in read_patches(slide, side_px=4, out_px=4)]
    [(2, 4, 4, 3)]
    """
    damage = Damage(slide.name, slide.image.name, len(slide.centers_px))
    yield from whole_patches(slide, side_px, out_px, batch_size, memory_mb, damage)
    damage.check()


def whole_patches(
    slide: Slice, side_px: float, out_px: int, batch_size: int, memory_mb: float, damage: Damage
) -> Iterator[tuple[Rows, Patches]]:
    """Read patches like :func:`read_patches`, but record spots that cannot be decoded in ``damage`` without raising."""
    if not side_px >= 1:
        raise ScaleError(
            f"slice {slide.name!r}: a patch is {side_px:.3g} px wide; expected at least 1. Check um_per_px and "
            "patch_um, or pass a finer image."
        )
    rows: list[Rows] = []
    crops: list[Patches] = []
    for some_rows, some_crops in _crops(slide, side_px, out_px, batch_size, memory_mb, damage):
        rows.append(some_rows)
        crops.append(_resample(some_crops, out_px))
        if sum(map(len, rows)) >= batch_size:
            all_rows, all_crops = np.concatenate(rows), np.concatenate(crops)
            yield all_rows[:batch_size], all_crops[:batch_size]
            # Copies, since a view would keep the whole batch in memory.
            rows, crops = [all_rows[batch_size:].copy()], [all_crops[batch_size:].copy()]
    if sum(map(len, rows)):
        yield np.concatenate(rows), np.concatenate(crops)


def _crops(
    slide: Slice, side_px: float, out_px: int, batch_size: int, memory_mb: float, damage: Damage
) -> Iterator[tuple[Rows, Patches]]:
    """Yield windows before resampling, a few at a time, in the order in which the image is read."""
    image, level = slide.image, choose_level(slide.image, side_px, out_px)
    downsample = float(image.downsamples[level])
    starts, side = windows(slide.centers_px, side_px, downsample)
    at_once = int(min(max(memory_mb * 1e6 * _CROPS_SHARE // (side**2 * _CROP_BYTES), 1), batch_size))
    fixed = at_once * side**2 * _CROP_BYTES + (AHEAD + 2) * batch_size * out_px**2 * 3
    left = int(memory_mb * 1e6) - fixed
    image.hold_at_most(level, int(memory_mb * 1e6))
    grid = Grid.of(image, level)
    boxes = _boxes(starts, side, image.level_shape(level))
    bands, peak = plan(boxes, grid, left)
    if peak > left:
        tallest, widest = (int(np.diff(edges).max()) for edges in grid.chunks)
        raise InputError(
            f"slice {slide.name!r}: memory_mb={memory_mb:g} is too little: windows of {side} px in chunks of up to "
            f"{tallest} x {widest} px, and batches of {batch_size}, take {(peak + fixed) / 1e6:.0f} MB. Pass "
            f"memory_mb={-(-(peak + fixed) // 10**6)} or more, or a smaller batch_size."
        )
    for band in bands:
        pixels = Windows(image, level, boxes[band], grid)
        for first in range(0, len(band), at_once):
            kept: list[int] = []
            crops = np.empty((min(at_once, len(band) - first), side, side, 3), dtype=np.uint8)
            for i in range(first, first + len(crops)):
                window, lost = pixels.take(i)
                if window is None:
                    damage.note(int(band[i]), lost, downsample)
                    continue
                crops[len(kept)] = _unfold(window, boxes[band[i]], starts[band[i]], side, image.level_shape(level))
                kept.append(int(band[i]))
            if kept:
                yield np.array(kept, dtype=np.int64), crops[: len(kept)]


def windows(centers_px: npt.NDArray[np.float64], side_px: float, downsample: float) -> tuple[Rows, int]:
    """Compute the windows around centers in whole px of a level: their first pixels (x, y), ``(n, 2)``, and side.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp.patches._reader import windows
    >>> windows(np.array([[10.0, 20.0]]), side_px=4.0, downsample=1.0)
    (array([[ 8, 18]]), 4)
    """
    side = max(round(side_px / downsample), 1)
    # Coordinates that went through a transformation differ in the last bits; without rounding, this would shift windows
    # that start at half a pixel.
    starts = np.floor(np.round(centers_px / downsample - side / 2, 6) + 0.5)
    return starts.astype(np.int64), side


def mirrored(indices: Rows, size: int) -> Rows:
    """Reflect indices beyond the ends of an axis, repeatedly if needed, without repeating the end itself.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp.patches._reader import mirrored
    >>> mirrored(np.arange(-2, 6), 4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    if size == 1:
        return np.zeros_like(indices)
    period = 2 * (size - 1)
    folded = indices % period
    return np.where(folded < size, folded, period - folded)


def _boxes(starts: Rows, side: int, shape: tuple[int, int]) -> Rows:
    """Compute the box of pixels that each window needs, ``(n, 4)``, after reflection at the border of the level."""
    boxes = np.empty((len(starts), 4), dtype=np.int64)
    for axis, size in enumerate(shape):
        start = starts[:, 1 - axis]
        boxes[:, 2 * axis], boxes[:, 2 * axis + 1] = start, start + side
        for i in np.flatnonzero((start < 0) | (start + side > size)):
            shown = mirrored(start[i] + np.arange(side), size)
            boxes[i, 2 * axis], boxes[i, 2 * axis + 1] = shown.min(), shown.max() + 1
    return boxes


def _unfold(pixels: Patches, box: Rows, start: Rows, side: int, shape: tuple[int, int]) -> Patches:
    """Construct a window of ``side`` px from the pixels of its box, reflecting them at the border of the level."""
    if pixels.shape[:2] == (side, side) and box[0] == start[1] and box[2] == start[0]:
        return pixels
    steps = np.arange(side)
    return pixels[np.ix_(mirrored(start[1] + steps, shape[0]) - box[0], mirrored(start[0] + steps, shape[1]) - box[2])]


def _resample(crops: Patches, out_px: int) -> Patches:
    if crops.shape[1] == out_px:
        return crops
    channels_first = torch.from_numpy(crops).permute(0, 3, 1, 2)
    resized = functional.interpolate(channels_first, size=(out_px, out_px), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())
