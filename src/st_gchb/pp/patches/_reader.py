"""Reading of square patches around spots: choice of the level, shares of the memory, and batches of patches.

Each chunk of the image is decoded once, in the order planned by :mod:`st_gchb.pp.patches._window_plan`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from st_gchb._arguments import Count, Megabytes, checked
from st_gchb._errors import InputError, ScaleError
from st_gchb._versions import working_threads
from st_gchb.pp.patches._damage import Damage
from st_gchb.pp.patches._size_batches import Group, Patches, PatchRead, Rows, SizeBatches
from st_gchb.pp.patches._threads import AHEAD, Workers
from st_gchb.pp.patches._window_plan import Grid, Windows, in_bands, plan, with_whole_pieces
from st_gchb.pp.spots import Slice

MEMORY_MB = 1000.0
"""Default of ``memory_mb``."""
BATCH_SIZE = 64
"""Default of ``batch_size``."""
_CROPS_SHARE = 0.125
"""Fraction of the memory for windows that wait to be resampled."""
_CROP_BYTES = 3 * 5
"""Bytes per pixel of such a window: for each channel one, and four more for the float copy that torch may make."""


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
    sizes = [SizeBatches(number, read, slide, batch_size) for number, read in enumerate(reads)]
    with Workers(working_threads()) as workers:
        for level in sorted({size.level for size in sizes}):
            slide.image.hold_at_most(level, int(memory_mb * 1e6))
            grid = Grid.of(slide.image, level)
            same = [size for size in sizes if size.level == level]
            for together, bands, peak in _groups(same, grid, batch_size, memory_mb):
                left = _memory_left(together, batch_size, memory_mb)
                boxes = np.concatenate([size.boxes for size in together])
                held, peak = with_whole_pieces([boxes[band] for band in bands], grid, peak, left)
                left -= _share(together, batch_size, memory_mb, left - peak, workers.number)
                yield from _swept(slide, together, bands, held, workers, left)


def _groups(
    sizes: list[SizeBatches], grid: Grid, batch_size: int, memory_mb: float
) -> Iterator[tuple[list[SizeBatches], list[Rows], int]]:
    """Divide the sizes of a level into groups that are read together within the memory, and order their windows.

    Yields
    ------
    tuple
        Sizes; for each band the positions of its windows among those of all sizes, one size after the other; and the
        largest number of bytes held.
    """
    planned = [(size, *_plan_alone(size, grid, batch_size, memory_mb)) for size in sizes]
    while planned:
        first, n_bands, bands, peak = planned.pop(0)
        group, later = [first], []
        for other, its_bands, own, alone in planned:
            found = _fitted([*group, other], grid, n_bands, batch_size, memory_mb) if its_bands == n_bands else None
            if found is None:
                later.append((other, its_bands, own, alone))
            else:
                group, (bands, peak) = [*group, other], found
        planned = later
        yield group, bands, peak


def _plan_alone(size: SizeBatches, grid: Grid, batch_size: int, memory_mb: float) -> tuple[int, list[Rows], int]:
    """Find the number of bands in which a size is read alone, the order of its windows, and the bytes held."""
    left = _memory_left([size], batch_size, memory_mb)
    n_bands, bands, peak = plan(size.boxes, grid, left)
    if peak > left:
        tallest, widest = (int(np.diff(edges).max()) for edges in grid.chunks)
        enough = _enough(size, peak, batch_size)
        raise InputError(
            f"slice {size.read.damage.name!r}: memory_mb={memory_mb:g} is too little: windows of {size.side} px in "
            f"chunks of up to {tallest} x {widest} px, and batches of {batch_size}, take {enough / 1e6:.0f} MB. "
            f"Pass memory_mb={-(-enough // 10**6)} or more, or a smaller batch_size."
        )
    return n_bands, bands, peak


def _enough(size: SizeBatches, peak: int, batch_size: int) -> int:
    """Compute a number of bytes from which on any memory suffices to read a size alone."""
    window = size.side**2 * _CROP_BYTES
    fixed = peak + _batch_bytes([size], batch_size)
    # Windows that wait take a share of the memory, but at least one and at most a batch of them.
    return max(fixed + window, min(int(fixed / (1 - _CROPS_SHARE)) + 1, fixed + batch_size * window))


def _fitted(
    sizes: list[SizeBatches], grid: Grid, n_bands: int, batch_size: int, memory_mb: float
) -> tuple[list[Rows], int] | None:
    """Order the windows of several sizes in a number of bands; None if they do not fit into the memory together.

    With another number of bands than alone, the batches of a size would hold other spots.
    """
    bands, peak = in_bands(np.concatenate([size.boxes for size in sizes]), grid, n_bands)
    return (bands, peak) if peak <= _memory_left(sizes, batch_size, memory_mb) else None


def _at_once(size: SizeBatches, n_sizes: int, batch_size: int, memory_mb: float) -> int:
    """Return the number of windows that wait to be resampled at once, where several sizes share the memory."""
    share = memory_mb * 1e6 * _CROPS_SHARE / n_sizes
    return int(min(max(share // (size.side**2 * _CROP_BYTES), 1), batch_size))


def _share(sizes: list[SizeBatches], batch_size: int, memory_mb: float, spare: int, n_threads: int) -> int:
    """Set how many windows of each size may wait; return the bytes that several threads take beyond those of one.

    They take up to half of what is spare, and neither the plan nor the batches depend on them.
    """
    taken = 0
    for size in sizes:
        at_once = _at_once(size, len(sizes), batch_size, memory_mb)
        n_bytes = size.side**2 * _CROP_BYTES + size.read.out_px**2 * 3
        more = min(spare // 2 // len(sizes) // n_bytes, n_threads * batch_size) if n_threads > 1 else 0
        size.share(at_once + more, n_threads)
        taken += more * n_bytes
    return taken


def _memory_left(sizes: list[SizeBatches], batch_size: int, memory_mb: float) -> int:
    """Compute the bytes that are left for decoded pixels beside windows and batches."""
    crops = sum(_at_once(one, len(sizes), batch_size, memory_mb) * one.side**2 * _CROP_BYTES for one in sizes)
    return int(memory_mb * 1e6) - crops - _batch_bytes(sizes, batch_size)


def _batch_bytes(sizes: list[SizeBatches], batch_size: int) -> int:
    """Compute the bytes of batches: complete ones wait together, and each size has one that is being collected."""
    batches = [batch_size * size.read.out_px**2 * 3 for size in sizes]
    return (AHEAD + 1) * max(batches) + sum(batches)


def _swept(
    slide: Slice, sizes: list[SizeBatches], bands: list[Rows], grid: Grid, workers: Workers, n_bytes: int
) -> Iterator[tuple[int, Rows, Patches]]:
    """Cut the windows of several sizes out of a level, in the order of a plan, and yield batches of patches."""
    waiting: deque[Group] = deque()
    try:
        for size, row, source, i in _windows_of(slide, sizes, bands, grid, workers, n_bytes):
            while not size.has_room:
                yield from _finished(waiting)
            size.take(row, source, i)
            if size.is_full:
                waiting.append(size.group(workers))
        waiting += [size.group(workers, last=True) for size in sizes if size.is_begun]
    except Exception:
        # Batches before the window that cannot be read come before its error.
        while waiting:
            yield from _finished(waiting)
        raise
    while waiting:
        yield from _finished(waiting)


def _windows_of(
    slide: Slice, sizes: list[SizeBatches], bands: list[Rows], grid: Grid, workers: Workers, n_bytes: int
) -> Iterator[tuple[SizeBatches, int, Windows, int]]:
    """Yield the size, spot and source of each window, in the order of a plan, and its position in the source."""
    boxes = np.concatenate([size.boxes for size in sizes])
    n_spots = len(slide.centers_px)
    for band in bands:
        source = Windows(slide.image, sizes[0].level, boxes[band], grid, workers, n_bytes)
        for i, position in enumerate(band.tolist()):
            number, row = divmod(position, n_spots)
            yield sizes[number], row, source, i


def _finished(waiting: deque[Group]) -> Iterator[tuple[int, Rows, Patches]]:
    """Wait for the oldest group, and yield the batch that it completes."""
    batch = waiting.popleft().finished()
    if batch is not None:
        yield batch
