"""Square patches around spots, each region of the image read about once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from st_gchb._errors import ScaleError
from st_gchb.io import SlideImage
from st_gchb.pp._slides import Slice

_BLOCK_PX = 2048
_CROP_PX = 2**25
"""Pixels of windows that are held before they are resampled (100 MB)."""
_OVERSAMPLING = 2.0
"""A coarser level must still hold twice the px asked for, so that it hardly matters how the pyramid was made."""

Rows = npt.NDArray[np.int64]
Patches = npt.NDArray[np.uint8]


def choose_level(image: SlideImage, side_px: float, out_px: int) -> int:
    """Coarsest level that holds at least twice ``out_px`` pixels across a patch, else the finest.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io import SlideImage
    >>> from st_gchb.pp._patches import choose_level
    >>> pyramid = SlideImage([np.zeros((80 // f, 80 // f, 3), np.uint8) for f in (1, 2, 4)], [1, 2, 4])
    >>> choose_level(pyramid, side_px=40, out_px=10), choose_level(pyramid, side_px=40, out_px=30)
    (1, 0)
    """
    fine = [i for i, downsample in enumerate(image.downsamples) if side_px / downsample >= _OVERSAMPLING * out_px]
    return max(fine, key=lambda i: image.downsamples[i], default=0)


def read_patches(slide: Slice, side_px: float, out_px: int, batch_size: int = 64) -> Iterator[tuple[Rows, Patches]]:
    """Read the patch of every spot, in batches; memory does not grow with the slide or the number of spots.

    The window of a spot is the same whatever holds the image. Beyond the slide's border the image is mirrored.

    Parameters
    ----------
    slide
        Spots and image.
    side_px
        Side of a patch in px of the image's finest level; need not be whole.
    out_px
        Side of the patches that are given, px: windows of another size are resampled (bilinear, with antialias).
    batch_size
        Spots in a batch; the last may have fewer.

    Yields
    ------
    tuple
        Positions within the slice, ``(b,)``, and patches, ``(b, out_px, out_px, 3)`` uint8. Batches follow the
        image's regions, not the order of the spots.

    Raises
    ------
    ScaleError
        A patch is less than a pixel wide.
    ImageError
        The image turns out to be damaged.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io import open_image
    >>> from st_gchb.pp import Slice, read_patches
    >>> slide = Slice("a", np.arange(2), np.array([[5.0, 5.0], [0.0, 9.0]]), open_image(np.ones((9, 9, 3), np.uint8)))
    >>> [patches.shape for _, patches in read_patches(slide, side_px=4, out_px=4)]
    [(2, 4, 4, 3)]
    """
    if not side_px >= 1:
        raise ScaleError(
            f"slice {slide.name!r}: a patch is {side_px:.3g} px wide; expected at least 1. Check um_per_px and "
            "patch_um, or pass a finer image."
        )
    level = choose_level(slide.image, side_px, out_px)
    starts, side = windows(slide.centers_px, side_px, float(slide.image.downsamples[level]))
    rows: list[Rows] = []
    crops: list[Patches] = []
    for block in _blocks(starts + side // 2, slide.image.block_shape(level, _BLOCK_PX)):
        # A crowded block is cut up too: its patches would else all be held at once.
        at_once = min(batch_size, max(_CROP_PX // side**2, 1))
        for first in range(0, len(block), at_once):
            part = block[first : first + at_once]
            rows.append(part)
            crops.append(_resample(_crop(slide.image, level, starts[part], side), out_px))
            if sum(map(len, rows)) >= batch_size:
                all_rows, all_crops = np.concatenate(rows), np.concatenate(crops)
                yield all_rows[:batch_size], all_crops[:batch_size]
                rows, crops = [all_rows[batch_size:]], [all_crops[batch_size:]]
    if sum(map(len, rows)):
        yield np.concatenate(rows), np.concatenate(crops)


def windows(centers_px: npt.NDArray[np.float64], side_px: float, downsample: float) -> tuple[Rows, int]:
    """First pixels (x, y) of the windows around the centres, and their side, in whole px of a level.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp._patches import windows
    >>> windows(np.array([[10.0, 20.0]]), side_px=4.0, downsample=1.0)
    (array([[ 8, 18]]), 4)
    """
    side = max(round(side_px / downsample), 1)
    # Transformed coordinates come back with errors in the last bits: they must not push a half over the edge.
    starts = np.floor(np.round(centers_px / downsample - side / 2, 6) + 0.5)
    return starts.astype(np.int64), side


def mirrored(indices: Rows, size: int) -> Rows:
    """Mirror indices that leave an axis at its ends, as often as needed, the end itself not repeated.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp._patches import mirrored
    >>> mirrored(np.arange(-2, 6), 4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    if size == 1:
        return np.zeros_like(indices)
    period = 2 * (size - 1)
    folded = indices % period
    return np.where(folded < size, folded, period - folded)


def _blocks(middles: Rows, shape: tuple[int, int]) -> Iterator[Rows]:
    """Spots by block of the image, row of blocks after row of blocks."""
    height, width = shape
    block_y, block_x = middles[:, 1] // height, middles[:, 0] // width
    order = np.lexsort((middles[:, 0], middles[:, 1], block_x, block_y))
    changes = np.flatnonzero(np.diff(block_y[order]) | np.diff(block_x[order])) + 1
    yield from np.split(order, changes)


def _crop(image: SlideImage, level: int, starts: Rows, side: int) -> Patches:
    """Cut windows of one block out of one region that is read at once, ``(n, side, side, 3)``."""
    height, width = image.level_shape(level)
    steps = np.arange(side)
    xs = mirrored(starts[:, :1] + steps, width)
    ys = mirrored(starts[:, 1:] + steps, height)
    x0, y0 = int(xs.min()), int(ys.min())
    region = image.read(level, y0, int(ys.max()) + 1, x0, int(xs.max()) + 1)
    crops = np.empty((len(starts), side, side, 3), dtype=np.uint8)
    for i in range(len(starts)):
        # Plain slices are copied row by row; fancy indexing is needed at the border alone.
        if xs[i, -1] - xs[i, 0] == side - 1 and ys[i, -1] - ys[i, 0] == side - 1:
            x, y = xs[i, 0] - x0, ys[i, 0] - y0
            crops[i] = region[y : y + side, x : x + side]
        else:
            crops[i] = region[np.ix_(ys[i] - y0, xs[i] - x0)]
    return crops


def _resample(crops: Patches, out_px: int) -> Patches:
    if crops.shape[1] == out_px:
        return crops
    channels_first = torch.from_numpy(crops).permute(0, 3, 1, 2)
    resized = functional.interpolate(channels_first, size=(out_px, out_px), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())
