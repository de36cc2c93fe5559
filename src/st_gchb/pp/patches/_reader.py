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
from st_gchb.pp.patches._window_plan import Grid, Windows, in_bands, plan
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

    @classmethod
    def union(cls, several: list[Damage]) -> Damage:
        """Combine the damage of one slice that patches of several sizes touch; a spot is affected if one of them is."""
        first = several[0]
        rows = list(dict.fromkeys(row for one in several for row in one.rows))
        boxes = {box for one in several for box in one.boxes}
        reason = next((one.reason for one in several if one.reason), "")
        return cls(first.name, first.image, first.n_spots, rows, boxes, reason)

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


@dataclass(frozen=True, eq=False)
class PatchRead:
    """Patches of one size that are to be read around all spots of a slice.

    Parameters
    ----------
    side_px
        Side of a patch in px of the image's finest level; need not be whole.
    out_px
        Side of the returned patches, px.
    damage
        Record of the spots whose patches cannot be decoded.
    """

    side_px: float
    out_px: int
    damage: Damage


def whole_patches(
    slide: Slice, side_px: float, out_px: int, batch_size: int, memory_mb: float, damage: Damage
) -> Iterator[tuple[Rows, Patches]]:
    """Read patches like :func:`read_patches`, but record spots that cannot be decoded in ``damage`` without raising."""
    read = PatchRead(side_px, out_px, damage)
    for _, rows, patches in patches_of_sizes(slide, [read], batch_size, memory_mb):
        yield rows, patches


def patches_of_sizes(
    slide: Slice, reads: list[PatchRead], batch_size: int, memory_mb: float
) -> Iterator[tuple[int, Rows, Patches]]:
    """Read the patches of every spot in several sizes, in batches, within bounded memory.

    Sizes that are read from the same level are cut out of the same decoded pixels, so that each chunk is decoded once
    for all of them. Batches of each size hold the same spots, in the same order, as if that size were read alone. Where
    ``memory_mb`` is too small to hold what all sizes need, they are read in groups, one after the other.

    Parameters
    ----------
    slide
        Spots and image.
    reads
        Sizes of the patches.
    batch_size, memory_mb
        As in :func:`read_patches`.

    Yields
    ------
    tuple
        Position among ``reads``, and rows and patches as :func:`read_patches` yields them.

    Raises
    ------
    ScaleError, InputError, ImageError
        As for :func:`read_patches`.
    """
    for read in reads:
        if not read.side_px >= 1:
            raise ScaleError(
                f"slice {slide.name!r}: a patch is {read.side_px:.3g} px wide; expected at least 1. Check um_per_px "
                "and patch_um, or pass a finer image."
            )
    streams = [_Stream(number, read, slide, batch_size) for number, read in enumerate(reads)]
    for level in sorted({stream.level for stream in streams}):
        slide.image.hold_at_most(level, int(memory_mb * 1e6))
        grid = Grid.of(slide.image, level)
        same = [stream for stream in streams if stream.level == level]
        for group, bands in _groups(same, grid, batch_size, memory_mb):
            yield from _swept(slide, group, bands, grid)


class _Stream:
    """Windows of one size, which are cut out of a level one after the other and collected to batches of patches.

    Parameters
    ----------
    number
        Position of the size among all that are read.
    read
        The size.
    slide
        Spots and image.
    batch_size
        Patches per batch.
    """

    def __init__(self, number: int, read: PatchRead, slide: Slice, batch_size: int) -> None:
        self.number, self.read, self.batch_size = number, read, batch_size
        self.level = choose_level(slide.image, read.side_px, read.out_px)
        self.downsample = float(slide.image.downsamples[self.level])
        self.starts, self.side = windows(slide.centers_px, read.side_px, self.downsample)
        self.shape = slide.image.level_shape(self.level)
        self.boxes = _boxes(self.starts, self.side, self.shape)
        self.at_once = 1
        self._kept: list[int] = []
        self._crops: Patches = np.empty((0, self.side, self.side, 3), dtype=np.uint8)
        self._rows: list[Rows] = []
        self._patches: list[Patches] = []

    def take(self, row: int, pixels: Patches | None, lost: list[tuple[Box, DamageError]]) -> None:
        """Take the pixels of the window of a spot; None if they cannot be decoded."""
        if pixels is None:
            self.read.damage.note(row, lost, self.downsample)
            return
        if not self._kept:
            # A new array each time: patches that need no resampling are views of it.
            self._crops = np.empty((self.at_once, self.side, self.side, 3), dtype=np.uint8)
        self._crops[len(self._kept)] = _unfold(pixels, self.boxes[row], self.starts[row], self.side, self.shape)
        self._kept.append(row)

    def batches(self, *, last: bool) -> Iterator[tuple[int, Rows, Patches]]:
        """Yield the batches that are complete; with ``last``, resample what waits and yield the rest as well."""
        if self._kept and (last or len(self._kept) == self.at_once):
            self._rows.append(np.array(self._kept, dtype=np.int64))
            self._patches.append(_resample(self._crops[: len(self._kept)], self.read.out_px))
            self._kept, self._crops = [], self._crops[:0]
        n_waiting = sum(map(len, self._rows))
        if n_waiting >= self.batch_size:
            rows, patches = np.concatenate(self._rows), np.concatenate(self._patches)
            yield self.number, rows[: self.batch_size], patches[: self.batch_size]
            # Copies, since a view would keep the whole batch in memory.
            self._rows, self._patches = [rows[self.batch_size :].copy()], [patches[self.batch_size :].copy()]
            n_waiting -= self.batch_size
        if last and n_waiting:
            yield self.number, np.concatenate(self._rows), np.concatenate(self._patches)
            self._rows, self._patches = [], []


def _groups(
    streams: list[_Stream], grid: Grid, batch_size: int, memory_mb: float
) -> Iterator[tuple[list[_Stream], list[Rows]]]:
    """Divide the sizes of a level into groups that are read together within the memory, and order their windows.

    Yields
    ------
    tuple
        Sizes, and for each band the positions of its windows among those of all sizes, one size after the other.
    """
    planned = [(stream, *_plan_alone(stream, grid, batch_size, memory_mb)) for stream in streams]
    while planned:
        first, n_bands, bands = planned.pop(0)
        group, later = [first], []
        for other, its_bands, own in planned:
            found = _fitted([*group, other], grid, n_bands, batch_size, memory_mb) if its_bands == n_bands else None
            if found is None:
                later.append((other, its_bands, own))
            else:
                group, bands = [*group, other], found
        planned = later
        for stream in group:
            stream.at_once = _at_once(stream, len(group), batch_size, memory_mb)
        yield group, bands


def _plan_alone(stream: _Stream, grid: Grid, batch_size: int, memory_mb: float) -> tuple[int, list[Rows]]:
    """Find the number of bands in which a size is read alone, and the order of its windows."""
    left, fixed = _memory_left([stream], batch_size, memory_mb)
    n_bands, bands, peak = plan(stream.boxes, grid, left)
    if peak > left:
        tallest, widest = (int(np.diff(edges).max()) for edges in grid.chunks)
        raise InputError(
            f"slice {stream.read.damage.name!r}: memory_mb={memory_mb:g} is too little: windows of {stream.side} px in "
            f"chunks of up to {tallest} x {widest} px, and batches of {batch_size}, take {(peak + fixed) / 1e6:.0f} "
            f"MB. Pass memory_mb={-(-(peak + fixed) // 10**6)} or more, or a smaller batch_size."
        )
    return n_bands, bands


def _fitted(streams: list[_Stream], grid: Grid, n_bands: int, batch_size: int, memory_mb: float) -> list[Rows] | None:
    """Order the windows of several sizes in a number of bands; None if they do not fit into the memory together.

    With another number of bands than alone, the batches of a size would hold other spots.
    """
    bands, peak = in_bands(np.concatenate([stream.boxes for stream in streams]), grid, n_bands)
    return bands if peak <= _memory_left(streams, batch_size, memory_mb)[0] else None


def _at_once(stream: _Stream, n_sizes: int, batch_size: int, memory_mb: float) -> int:
    """Return the number of windows that wait to be resampled at once, where several sizes share the memory."""
    share = memory_mb * 1e6 * _CROPS_SHARE / n_sizes
    return int(min(max(share // (stream.side**2 * _CROP_BYTES), 1), batch_size))


def _memory_left(streams: list[_Stream], batch_size: int, memory_mb: float) -> tuple[int, int]:
    """Compute the bytes that are left for decoded pixels, and those that windows and batches take."""
    batches = [batch_size * stream.read.out_px**2 * 3 for stream in streams]
    crops = sum(_at_once(one, len(streams), batch_size, memory_mb) * one.side**2 * _CROP_BYTES for one in streams)
    # Batches that are complete wait together; each size has one that is being collected.
    fixed = crops + (AHEAD + 1) * max(batches) + sum(batches)
    return int(memory_mb * 1e6) - fixed, fixed


def _swept(slide: Slice, group: list[_Stream], bands: list[Rows], grid: Grid) -> Iterator[tuple[int, Rows, Patches]]:
    """Cut the windows of several sizes out of a level, in the order of a plan, and yield batches of patches."""
    boxes = np.concatenate([stream.boxes for stream in group])
    n_spots = len(slide.centers_px)
    for band in bands:
        pixels = Windows(slide.image, group[0].level, boxes[band], grid)
        for i, position in enumerate(band.tolist()):
            size, row = divmod(position, n_spots)
            group[size].take(row, *pixels.take(i))
            yield from group[size].batches(last=False)
    for stream in group:
        yield from stream.batches(last=True)


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
