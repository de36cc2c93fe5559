"""TIFF files: tiled, pyramidal, OME, SVS; read tile by tile where the file allows it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr

from st_gchb._errors import ImageError
from st_gchb._files import sha256_of
from st_gchb.io._checks import check_dtype, check_layout, damage_or_failure
from st_gchb.io._slide import RGB, SlideImage
from st_gchb.io._tiff_size import tiff_size


class TiffLevel:
    """One resolution of a TIFF file, opened at the first window."""

    def __init__(self, path: Path, index: int, level: tifffile.TiffPageSeries) -> None:
        self.path, self.index = path, index
        self._channels_first = not level.axes.endswith(("S", "C"))
        self._stored = tuple(int(side) for side in level.shape)
        height, width = (self._stored[1:] if self._channels_first else self._stored[:2])[:2]
        self.shape = (height, width, 3)
        page = level.keyframe
        chunks = tuple(int(side) for side in (page.chunks[:2] if page.axes.endswith("S") else page.chunks[-2:]))
        self._offset = level.dataoffset if page.is_memmappable else None
        self._whole = self._offset is None and chunks[0] >= height and chunks[1] >= width
        # Bytes on disk that are pixels, and pixels that are decoded at once and kept, are not read in chunks.
        self.chunks = None if self._whole or self._offset is not None else chunks
        self.whole_bytes = math.prod(self.shape) if self._whole else 0
        self._pixels: Any = None
        self._store: Any = None
        self.decodable = page.compression in tifffile.TIFF.DECOMPRESSORS

    def __getitem__(self, window: tuple[slice, slice]) -> RGB:
        rows, columns = window
        try:
            pixels = self._open()
            part = np.moveaxis(pixels[:, rows, columns], 0, -1) if self._channels_first else pixels[rows, columns]
            return np.asarray(part) if self._offset is None else np.array(part)
        # Codecs raise errors of their own; all derive from these.
        except (OSError, ValueError, RuntimeError, IndexError, TypeError) as error:
            found = damage_or_failure(error, str(self.path))
            # Of an image that is decoded whole nothing is left.
            raise (ImageError(str(found)) if self._whole else found) from error

    def _open(self) -> Any:
        if self._offset is not None:
            # Mapped for each window anew: pages that were once touched would else count as the process's memory.
            return np.memmap(self.path, np.uint8, "r", self._offset, self._stored)
        if self._pixels is None and self._whole:
            self._pixels = tifffile.imread(self.path, series=0, level=self.index)
        elif self._pixels is None:
            self._store = tifffile.imread(self.path, series=0, level=self.index, aszarr=True)
            self._pixels = zarr.open(self._store, mode="r")
        return self._pixels

    def release(self) -> None:
        """Close the file and give decoded pixels back."""
        self._pixels = None
        if self._store is not None:
            self._store.close()
            self._store = None


def open_tiff(path: Path) -> SlideImage:
    """Open a TIFF file by its header.

    Raises
    ------
    ImageError
        The file is damaged or cut short, or none in 8-bit RGB.
    """
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            levels = list(series.levels)
            _check_series(series, path)
            _check_whole(levels, path)
            um_per_px = tiff_size(file, str(path))
            readers = [TiffLevel(path, index, level) for index, level in enumerate(levels)]
    except (tifffile.TiffFileError, OSError, IndexError) as error:
        raise ImageError(
            f"{path}: the TIFF file is damaged or incomplete ({error}). Fetch or export it again."
        ) from error
    height = readers[0].shape[0]
    return SlideImage(
        levels=readers,
        downsamples=[height / reader.shape[0] for reader in readers],
        um_per_px=um_per_px,
        name=str(path),
        content_hash=partial(sha256_of, path),
    )


def _check_series(series: tifffile.TiffPageSeries, path: Path) -> None:
    axes, shape = series.axes, series.shape
    # Planes that are stored one channel after another are put in order when they are read.
    if axes in ("SYX", "CYX") and shape[0] in (3, 4):
        shape = (*shape[1:], shape[0])
    check_layout(shape, str(path))
    check_dtype(np.dtype(series.dtype), str(path))


def _check_whole(levels: list[tifffile.TiffPageSeries], path: Path) -> None:
    size = path.stat().st_size
    for level in levels:
        for page in (page for page in level.pages if page is not None):
            ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
            if ends and max(ends) > size:
                raise ImageError(
                    f"{path}: the file is cut short: it has {size} bytes and its header speaks of {max(ends)}. "
                    "Fetch or export it again."
                )
