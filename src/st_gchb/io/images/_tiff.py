"""Read TIFF files (tiled, pyramidal, OME, SVS), tile by tile if the file allows it, and the pixel size they state."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import tifffile

from st_gchb._compat import read_errors
from st_gchb._errors import DamageError, ImageError
from st_gchb._logging import logger
from st_gchb.io._pixel_size import number_in, settle, square_size, um_per_unit
from st_gchb.io.images._orientation import TAG, UPRIGHT, read_orientation, swaps_sides, upright
from st_gchb.io.images._slide_image import RGB, SlideImage
from st_gchb.io.images._tiff_pages import Page, fill_of, levels_of, main_series, opened, segment_px
from st_gchb.io.images._validation import check_memory, damage_or_failure, hash_as_read

_pread: Callable[[int, int, int], bytes] | None = getattr(os, "pread", None)
"""Reads from a place of a file without moving its position, so that threads need not wait for each other."""


def tiff_size(file: tifffile.TiffFile, index: int, name: str, *, swapped: bool) -> float | None:
    """Read the pixel size of a series of pages from OME metadata, Aperio's description or the resolution tags.

    Parameters
    ----------
    file, index
        The file, and the index of the series that is read.
    name
        Name of the image in messages.
    swapped
        Whether the orientation tag exchanges height and width.

    Returns
    -------
    float or None
        Pixel size, µm; None if the file does not state it.
    """
    page = file.series[index].keyframe
    sides = [
        (_from_ome(file, index, name), "OME metadata"),
        ((_from_aperio(page), None), "Aperio's MPP"),
        (_from_tags(page), "the TIFF's resolution"),
    ]
    turned = [((y, x) if swapped and y is not None else (x, y), source) for (x, y), source in sides]
    return settle([square_size(x, y, source, name) for (x, y), source in turned], name)


def _from_ome(file: tifffile.TiffFile, index: int, name: str) -> tuple[float | None, float | None]:
    try:
        root = ElementTree.fromstring(file.ome_metadata) if file.is_ome and file.ome_metadata else None
    except ElementTree.ParseError:
        root = None
    nodes = root.iter() if root is not None else ()
    found = [node for node in nodes if node.tag.endswith("}Pixels") or node.tag == "Pixels"]
    # With one OME image per series, take the one of this series; otherwise take the first.
    pixels = found[index if len(found) == len(file.series) else 0] if found else None
    if pixels is None:
        return None, None

    def side(axis: str) -> float | None:
        value = number_in(pixels.attrib.get(f"PhysicalSize{axis}"))
        spelled = pixels.attrib.get(f"PhysicalSize{axis}Unit", "um")
        unit = um_per_unit(spelled)
        if value is not None and unit is None:
            logger.warning(
                "%s: OME metadata gives the size of a pixel as %g %r; expected a unit such as um. It is not used: pass "
                "um_per_px= if nothing else says it.",
                name,
                value,
                spelled,
            )
        return None if value is None or unit is None else value * unit

    return side("X"), side("Y")


def _from_aperio(page: tifffile.TiffPage) -> float | None:
    text = page.description if isinstance(page.description, str) else ""
    match = re.search(r"\bMPP\s*=\s*([0-9]*[.,]?[0-9]+)", text)
    return number_in(match.group(1).replace(",", ".")) if match else None


def _from_tags(page: tifffile.TiffPage) -> tuple[float | None, float | None]:
    unit = page.tags.valueof("ResolutionUnit")
    um_per_unit = {2: 25400.0, 3: 1e4}.get(unit) if isinstance(unit, int) else None

    def side(tag: str) -> float | None:
        value: Any = page.tags.valueof(tag)
        if um_per_unit is None or not isinstance(value, tuple) or len(value) != 2:
            return None
        numerator, denominator = (float(part) for part in value)
        return um_per_unit * denominator / numerator if numerator > 0 else None

    return side("XResolution"), side("YResolution")


class TiffLevel:
    """One resolution of a TIFF file; the file is opened at the first read.

    Parameters
    ----------
    path
        The file.
    place
        Index of the series of pages, and index of the level in that series.
    pages
        A single page, or one page per channel.
    """

    parallel = True
    """Several threads may read windows at the same time: they share the open file, and decode alone."""

    def __init__(self, path: Path, place: tuple[int, int], pages: list[Page]) -> None:
        self.path, self._place = path, place
        page = pages[0].keyframe
        height, width = int(page.imagelength), int(page.imagewidth)
        self.shape = (height, width, 3)
        self._segment = segment_px(page)
        # Channels are stored as planes of one page, as separate pages, or interleaved.
        self._planes = 3 if page.planarconfig == 2 else 1
        self._fill = fill_of(pages[0])
        single = len(pages) == 1 and page.is_memmappable and page.is_contiguous
        self._offset = int(pages[0].dataoffsets[0]) if single else None
        self._whole = self._offset is None and self._segment[0] >= height and self._segment[1] >= width
        # Neither memory-mapped pixels nor pixels that are decoded in full and kept are read in chunks.
        self.chunks = None if self._whole or self._offset is not None else self._segment
        self.whole_bytes = math.prod(self.shape) if self._whole else 0
        self.compression = int(page.compression)
        self.decodable = page.compression in tifffile.TIFF.DECOMPRESSORS
        self._close()

    def _close(self) -> None:
        self._pixels: RGB | None = None
        self._file: BinaryIO | None = None
        self._pages: list[Page] = []
        self._lock = RLock()
        self._compared = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without file handles and pixels; another process opens the file itself."""
        own = {"_pixels", "_file", "_pages", "_lock", "_compared"}
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._close()

    def __getitem__(self, window: tuple[slice, slice]) -> RGB:
        rows, columns = (range(*part.indices(side)) for part, side in zip(window, self.shape[:2], strict=True))
        box = (rows.start, max(rows.stop, rows.start), columns.start, max(columns.stop, columns.start))
        try:
            if self._offset is not None:
                return self._mapped(self._offset, *box)
            if not self._whole:
                return self._decode(*box)
            pixels = self._pixels
            if pixels is None:
                check_memory(self.whole_bytes, str(self.path))
                pixels = self._pixels = self._decode(0, self.shape[0], 0, self.shape[1])
            return pixels[window]
        except read_errors() as error:
            told = isinstance(error, ImageError)
            found = error if isinstance(error, ImageError) else damage_or_failure(error, str(self.path))
            if self._whole and isinstance(found, DamageError):
                # Damage in an image that is decoded in full leaves no readable part.
                raise ImageError(str(found)) from error
            if told:
                raise
            raise found from error

    def _mapped(self, offset: int, y0: int, y1: int, x0: int, x1: int) -> RGB:
        # A new map for every window: pages that were touched in a kept map would count as memory of the process.
        height, width, _ = self.shape
        if self._planes == 3:
            planes = np.memmap(self.path, np.uint8, "r", offset, (3, height, width))
            return np.moveaxis(np.array(planes[:, y0:y1, x0:x1]), 0, -1)
        return np.array(np.memmap(self.path, np.uint8, "r", offset, self.shape)[y0:y1, x0:x1])

    def _decode(self, y0: int, y1: int, x0: int, x1: int) -> RGB:
        """Decode the strips or tiles that overlap a window."""
        pixels = np.empty((y1 - y0, x1 - x0, 3), dtype=np.uint8)
        if not pixels.size:
            return pixels
        height, width = self._segment
        n_rows, n_columns = -(-self.shape[0] // height), -(-self.shape[1] // width)
        pages = self._open()
        for channel, page in enumerate(pages):
            for plane in range(self._planes):
                only = channel if len(pages) > 1 else plane
                into = pixels[..., only : only + 1] if self._planes * len(pages) > 1 else pixels
                for row in range(y0 // height, -(-y1 // height)):
                    for column in range(x0 // width, -(-x1 // width)):
                        part = self._part(page, (plane * n_rows + row) * n_columns + column)
                        top, left = row * height, column * width
                        y, x = max(top, y0), max(left, x0)
                        bottom, right = min(top + height, y1), min(left + width, x1)
                        target = into[y - y0 : bottom - y0, x - x0 : right - x0]
                        if part is None:
                            target[:] = self._fill
                            continue
                        seen = part[y - top : bottom - top, x - left : right - left]
                        if seen.shape != target.shape:
                            raise DamageError(f"{self.path}: a strip or tile holds too few pixels. Fetch it again.")
                        target[:] = seen
        return pixels

    def _part(self, page: Page, index: int) -> Any:
        """Decode a strip or tile to ``(h, w, channels)``; None if it was never written."""
        data = self._bytes(page, index)
        if data is None:
            return None
        key = page.keyframe
        part = key.decode(data, index, jpegtables=page.jpegtables, jpegheader=key.jpegheader)[0]
        if not self._compared and part.shape[1] == self._segment[0]:
            self._check_surplus(key, data, part.size)
        return part[0]

    def _bytes(self, page: Page, index: int) -> bytes | None:
        offset, count = int(page.dataoffsets[index]), int(page.databytecounts[index])
        if not count:
            return None
        data = self._read(offset, count)
        if len(data) < count:
            raise DamageError(f"{self.path}: the file is cut short. Fetch or export it again.")
        return data

    def _read(self, offset: int, count: int) -> bytes:
        """Read bytes of the open file, in any thread; fewer at its end."""
        assert self._file is not None
        data = b"" if _pread is None else _pread(self._file.fileno(), count, offset)
        if len(data) == count:
            return data
        # Systems may give less at once than there is: some network file systems, and all of them beyond 2 GiB.
        with self._lock:
            self._file.seek(offset)
            return self._file.read(count)

    def _check_surplus(self, page: Page, data: bytes, size: int) -> None:
        """Check once that a strip or tile has no more rows than the header states: tifffile drops them silently."""
        if page.compression == 1 or page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS:
            self._compared = True
            return
        held = len(tifffile.TIFF.DECOMPRESSORS[page.compression](data))
        if held >= size + self._segment[1]:
            raise ImageError(
                f"{self.path}: the header is damaged: it speaks of strips or tiles of {self._segment} px (h, w), "
                f"{size:,} bytes, and they hold {held:,}. Fetch or export it again."
            )
        self._compared = True

    def _open(self) -> list[Page]:
        with self._lock:
            if self._file is None:
                with opened(self.path, quiet=True) as file:
                    series, level = self._place
                    pages: list[Page] = list(file.series[series].levels[level])
                    for page in pages:
                        page.keyframe.decode  # noqa: B018 - created here under the lock: it is not thread-safe
                self._pages, self._file = pages, open(self.path, "rb")
        return self._pages

    def release(self) -> None:
        """Close the file and free decoded pixels."""
        if self._file is not None:
            self._file.close()
        self._close()


def open_tiff(path: Path) -> SlideImage:
    """Open a TIFF file by its headers; no pixels are decoded.

    The largest image of the file is taken as the slide, apart from labels, macro images and thumbnails.

    Raises
    ------
    ImageError
        The file is damaged or truncated, or contains no 8-bit RGB slide.
    """
    name = str(path)
    with opened(path) as file:
        index, series = main_series(file, path)
        levels = levels_of(series, path)
        orientation = read_orientation(series.keyframe.tags.valueof(TAG), name)
        readers = [TiffLevel(path, (index, level), pages) for level, pages in levels]
        um_per_px = tiff_size(file, index, name, swapped=swaps_sides(orientation))
    shown = upright(readers, orientation)
    how = "" if (orientation, index) == (UPRIGHT, 0) else f"series {index}, orientation {orientation}"
    return SlideImage(
        levels=shown,
        downsamples=[shown[0].shape[0] / level.shape[0] for level in shown],
        um_per_px=um_per_px,
        name=name,
        content_hash=partial(hash_as_read, path, how),
    )
