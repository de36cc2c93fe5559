"""Windows of one size around all spots of a slice, cut out one after the other and collected to batches of patches."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from st_gchb._compat import resample_into
from st_gchb.io import SlideImage
from st_gchb.pp.patches._damage import Damage
from st_gchb.pp.patches._threads import Task, Workers
from st_gchb.pp.patches._window_plan import Windows
from st_gchb.pp.spots import Slice

Rows = npt.NDArray[np.int64]
Patches = npt.NDArray[np.uint8]

_OVERSAMPLING = 2.0
"""Smallest ratio of px along a window to ``out_px``, so that features hardly depend on how the pyramid was computed."""
_FEWEST = 4
"""Windows that a thread resamples at once, where so many fit: handing them over takes about as long as half of one."""


def choose_level(image: SlideImage, side_px: float, out_px: int) -> int:
    """Choose the coarsest level with at least twice ``out_px`` pixels along a patch, or the finest level.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io import SlideImage
    >>> from st_gchb.pp.patches._size_batches import choose_level
    >>> pyramid = SlideImage([np.zeros((80 // f, 80 // f, 3), np.uint8) for f in (1, 2, 4)], [1, 2, 4])
    >>> choose_level(pyramid, side_px=40, out_px=10), choose_level(pyramid, side_px=40, out_px=30)
    (1, 0)
    """
    fine = [i for i, downsample in enumerate(image.downsamples) if side_px / downsample >= _OVERSAMPLING * out_px]
    return max(fine, key=lambda i: image.downsamples[i], default=0)


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


@dataclass(eq=False)
class _Batch:
    """A batch of patches.

    Parameters
    ----------
    rows
        Positions of its spots within the slice.
    patches
        Array for their patches, ``(b, out_px, out_px, 3)``; None until there are windows to be resampled, or windows
        that are the patches.
    """

    rows: list[int] = field(default_factory=list)
    patches: Patches | None = None

    def put(self, first: int, crops: Patches) -> None:
        """Put windows into the batch from a place on, in any thread, resampled unless they are its patches."""
        if self.patches is None:
            self.patches = crops
        elif len(crops):
            resample_into(crops, self.patches[first : first + len(crops)])


@dataclass(frozen=True, eq=False)
class Group:
    """Windows that are resampled at once.

    Parameters
    ----------
    windows
        The size that they are of.
    n
        Number of windows.
    batch
        Batch to which they belong, if they complete it.
    resampled
        The work on them.
    """

    windows: SizeBatches
    n: int
    batch: _Batch | None
    resampled: Task[None]

    def finished(self) -> tuple[int, Rows, Patches] | None:
        """Wait until the windows are resampled; return the batch that they complete."""
        self.resampled.result()
        self.windows.n_waiting -= self.n
        if self.batch is None or self.batch.patches is None:
            return None
        rows = np.array(self.batch.rows, dtype=np.int64)
        return self.windows.number, rows, self.batch.patches[: len(rows)]


class SizeBatches:
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

    Attributes
    ----------
    at_once
        Most windows that wait to be resampled, those being resampled included.
    n_waiting
        Windows that are being resampled.
    """

    def __init__(self, number: int, read: PatchRead, slide: Slice, batch_size: int) -> None:
        self.number, self.read, self.batch_size = number, read, batch_size
        self.level = choose_level(slide.image, read.side_px, read.out_px)
        self.downsample = float(slide.image.downsamples[self.level])
        self.starts, self.side = windows(slide.centers_px, read.side_px, self.downsample)
        self.shape = slide.image.level_shape(self.level)
        self.boxes = boxes_of(self.starts, self.side, self.shape)
        self._inside = (self.boxes == np.repeat(self.starts[:, ::-1], 2, axis=1) + [0, self.side] * 2).all(axis=1)
        self.at_once, self.n_waiting = 1, 0
        self._per_group, self._n = 1, 0
        self._batch = _Batch()
        self._crops: Patches | None = None

    def share(self, at_once: int, n_threads: int) -> None:
        """Set how many windows may wait, and divide them so that each thread has some while others are collected."""
        self.at_once = at_once
        some = at_once if n_threads == 1 else max(at_once // (n_threads + 1), min(at_once, _FEWEST))
        # Where nothing is resampled the windows are the batch.
        self._per_group = self.batch_size if self.side == self.read.out_px else min(some, self.batch_size)

    @property
    def is_begun(self) -> bool:
        """True if a batch has been begun."""
        return len(self._batch.rows) > 0

    @property
    def has_room(self) -> bool:
        """True if another window can be taken before some of those that wait are finished."""
        return self._crops is not None or not self.n_waiting or self.n_waiting + self._per_group <= self.at_once

    @property
    def is_full(self) -> bool:
        """True if the windows taken are to be resampled."""
        return self._n == self._per_group or len(self._batch.rows) == self.batch_size

    def take(self, row: int, source: Windows, i: int) -> None:
        """Take the pixels of the window of a spot, unless they cannot be decoded.

        Parameters
        ----------
        row
            Position of the spot within the slice.
        source, i
            Windows that are being read, and the position of this one among them.
        """
        if self._crops is None:
            # A new array each time: threads may still resample the last one, and patches may be views of it.
            self._crops = np.empty((self._per_group, self.side, self.side, 3), dtype=np.uint8)
        if self._inside[row]:
            lost = source.take(i, self._crops[self._n])
        else:
            y0, y1, x0, x1 = self.boxes[row].tolist()
            shown = np.empty((y1 - y0, x1 - x0, 3), dtype=np.uint8)
            lost = source.take(i, shown)
            _unfold(shown, self.boxes[row], self.starts[row], self.side, self.shape, self._crops[self._n])
        if lost:
            self.read.damage.note(row, lost, self.downsample)
            return
        self._n += 1
        self._batch.rows.append(row)

    def group(self, workers: Workers, *, last: bool = False) -> Group:
        """Have the windows taken resampled; with ``last``, the batch is complete with them."""
        batch, n, n_rows = self._batch, self._n, len(self._batch.rows)
        complete = last or n_rows == self.batch_size
        if batch.patches is None and self.side != self.read.out_px:
            most = n_rows if complete else self.batch_size
            batch.patches = np.empty((most, self.read.out_px, self.read.out_px, 3), dtype=np.uint8)
        crops = np.empty((0, self.side, self.side, 3), dtype=np.uint8) if self._crops is None else self._crops[:n]
        work = workers.submit(batch.put, n_rows - n, crops)
        self.n_waiting += n
        self._crops, self._n = None, 0
        if complete:
            self._batch = _Batch()
        return Group(self, n, batch if complete else None, work)


def windows(centers_px: npt.NDArray[np.float64], side_px: float, downsample: float) -> tuple[Rows, int]:
    """Compute the windows around centers in whole px of a level: their first pixels (x, y), ``(n, 2)``, and side.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp.patches._size_batches import windows
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
    >>> from st_gchb.pp.patches._size_batches import mirrored
    >>> mirrored(np.arange(-2, 6), 4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    if size == 1:
        return np.zeros_like(indices)
    period = 2 * (size - 1)
    folded = indices % period
    return np.where(folded < size, folded, period - folded)


def boxes_of(starts: Rows, side: int, shape: tuple[int, int]) -> Rows:
    """Compute the box of pixels that each window needs, ``(n, 4)``, after reflection at the border of the level."""
    boxes = np.empty((len(starts), 4), dtype=np.int64)
    for axis, size in enumerate(shape):
        start = starts[:, 1 - axis]
        boxes[:, 2 * axis], boxes[:, 2 * axis + 1] = start, start + side
        for i in np.flatnonzero((start < 0) | (start + side > size)):
            shown = mirrored(start[i] + np.arange(side), size)
            boxes[i, 2 * axis], boxes[i, 2 * axis + 1] = shown.min(), shown.max() + 1
    return boxes


def _unfold(pixels: Patches, box: Rows, start: Rows, side: int, shape: tuple[int, int], window: Patches) -> None:
    """Fill a window of ``side`` px from the pixels of its box, reflecting them at the border of the level."""
    steps = np.arange(side)
    rows = _runs(mirrored(start[1] + steps, shape[0]) - box[0])
    columns = _runs(mirrored(start[0] + steps, shape[1]) - box[2])
    for into_rows, of_rows in rows:
        for into_columns, of_columns in columns:
            window[into_rows, into_columns] = pixels[of_rows, of_columns]


def _runs(indices: Rows) -> list[tuple[slice, slice]]:
    """Divide indices into runs, each with its place and as a slice, which is copied much faster than single indices.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp.patches._size_batches import _runs, mirrored
    >>> _runs(mirrored(np.arange(-2, 3), 9))
    [(slice(0, 3, None), slice(2, None, -1)), (slice(3, 5, None), slice(1, 3, 1))]
    """
    steps = np.diff(indices)
    starts = [0, *(np.flatnonzero(np.diff(steps)) + 2).tolist()]
    runs = []
    for start, end in zip(starts, [*starts[1:], len(indices)], strict=True):
        first, last = int(indices[start]), int(indices[end - 1])
        if last < first:
            run = slice(first, last - 1 if last else None, -1)
        else:
            # A single index, if all are the same: it is repeated.
            run = slice(first, last + 1, 1)
        runs.append((slice(start, end), run))
    return runs
