"""Select the pages of a TIFF file that are the slide, and check that the file holds all data their headers list."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from st_gchb._errors import ImageError
from st_gchb._logging import logger
from st_gchb.io._reading import DAMAGED, reading
from st_gchb.io.images._validation import EXPECTED, check_dtype, check_layout

Page = Any
"""A page of tifffile: a ``TiffPage``, or a ``TiffFrame`` in a series of similar pages."""
_BESIDE = re.compile(r"\s*((slide|whole)[ _-]?)?(label|macro|thumbnail|overview)([ _-]?image)?\s*", re.IGNORECASE)
_BESIDE_OF_APERIO = re.compile(r"^Aperio[^\n]*\n\s*(label|macro)\b", re.IGNORECASE)
"""Names that scanners give to associated images (label, macro image, thumbnail)."""
_SHAPE_TOLERANCE = 0.02
_NODATA_TAG, _PAGE_NAME_TAG = 42113, 285
_YCBCR, _GRAY = 6, 1
_PHOTOMETRIC = {
    0: "white is zero",
    1: "black is zero",
    3: "palette",
    4: "mask",
    5: "CMYK",
    8: "CIELAB",
    9: "ICC L*a*b*",
}
_DECODED_TO_RGB = {6, 7, 33003, 33004, 33005, 33007, 34712, 34892, 50001}
"""Compressions whose decoders return RGB for every stored color space (JPEG, JPEG 2000, WebP)."""
_AT_MOST = 5
"""Maximum number of pages listed in a message."""


@contextmanager
def opened(path: Path, *, quiet: bool = False) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file to read its headers.

    Log messages of tifffile become one warning of this package, its exceptions an :class:`ImageError`.

    Parameters
    ----------
    path
        The file.
    quiet
        Discard log messages of tifffile, for a file that was opened before.
    """
    with reading(path, "the TIFF file", DAMAGED, ImageError), _told(path, quiet), tifffile.TiffFile(path) as file:
        yield file


@contextmanager
def _told(path: Path, quiet: bool) -> Iterator[None]:
    """Collect what tifffile logs in this thread, and log it as a single warning of this package."""
    said: dict[str, None] = {}
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if threading.get_ident() != thread:
            return True
        if record.levelno >= logging.WARNING:
            said[re.sub(r"<tifffile\.(\w+) (\d+) @\d+>", r"\1 \2", record.getMessage())] = None
        return False

    other = logging.getLogger("tifffile")
    other.addFilter(keep)
    try:
        yield
    finally:
        other.removeFilter(keep)
        if said and not quiet:
            more = f", and {len(said) - 3} more lines" if len(said) > 3 else ""
            logger.warning("%s: the TIFF's header is odd: %s%s.", path, "; ".join(list(said)[:3]), more)


def main_series(file: tifffile.TiffFile, path: Path) -> tuple[int, tifffile.TiffPageSeries]:
    """Select the series of pages that is the slide: the largest one that is not an associated image.

    Returns
    -------
    tuple
        Index of the series, and the series.

    Raises
    ------
    ImageError
        The list of pages is broken or empty, or the largest series is not an 8-bit RGB image.
    """
    _check_chain(file, path)
    known = [(i, one) for i, one in enumerate(file.series) if _area(one)]
    if not known:
        raise ImageError(f"{path}: the TIFF file holds no page with pixels; {EXPECTED}.")
    slides = [(i, one) for i, one in known if not _is_beside(one)]
    if not slides:
        raise ImageError(
            f"{path}: found only images beside the slide, {_listed([one for _, one in known])}; expected the slide "
            "itself. Export it from the scanner's software."
        )
    most = max(_area(one) for _, one in slides)
    largest = [(i, one) for i, one in slides if _area(one) == most]
    index, series = next(((i, one) for i, one in largest if _is_rgb(one)), largest[0])
    others = [one for i, one in known if i != index]
    try:
        _check_pixels(series, str(path))
    except ImageError as error:
        if not others:
            raise
        raise ImageError(
            f"{error} (This is the largest image of the file; it also holds {_listed(others)}.)"
        ) from error
    if len(largest) > 1:
        logger.warning(
            "%s: %d images are %s px (h, w); the first in RGB is taken. Save another one as a file of its own.",
            path,
            len(largest),
            _size_of(series),
        )
    elif _first_page(series) > 0:
        logger.warning(
            "%s: the first page is not the largest: page %d, %s px (h, w), is taken for the slide; the file also holds "
            "%s.",
            path,
            _first_page(series),
            _size_of(series),
            _listed(others),
        )
    return index, series


def levels_of(series: tifffile.TiffPageSeries, path: Path) -> list[tuple[int, list[Page]]]:
    """Collect the pages of every resolution of the slide, and check each page against the size of the file.

    Returns
    -------
    list of tuple
        Index of each level in the series, and its pages (one, or one per channel), finest level first.

    Raises
    ------
    ImageError
        The file lacks pages, strips or tiles that a header lists.
    """
    found: list[tuple[int, list[Page]]] = []
    for index, level in enumerate(series.levels):
        pages = [page for page in level if page is not None]
        if not pages or len(pages) != len(level):
            raise ImageError(f"{path}: the TIFF file is incomplete: pages of the image are missing. Fetch it again.")
        for page in pages:
            _check_page(page, path)
        keyframe = level.keyframe
        if index and not _is_smaller(keyframe, series.keyframe):
            logger.warning(
                "%s: page %s of %s px (h, w) is no smaller copy of the slide and is left out.",
                path,
                keyframe.index,
                (keyframe.imagelength, keyframe.imagewidth),
            )
            continue
        found.append((index, pages))
    _check_no_overlap([page for _, pages in found for page in pages], path)
    _tell_blank(found[0][1], path)
    return found


def fill_of(page: Page) -> int:
    """Return the gray value of tiles that were never written: GDAL's no-data value, else white, as in OpenSlide."""
    value = page.nodata if _NODATA_TAG in page.keyframe.tags else 255
    return int(value) if 0 <= value <= 255 else 255


def _check_chain(file: tifffile.TiffFile, path: Path) -> None:
    """Check that the linked list of pages is complete, as tifffile stops silently at a page that it cannot read."""
    place = file.pages.next_page_offset
    if place is None:
        return
    size = file.tiff.offsetsize
    file.filehandle.seek(place)
    following = file.filehandle.read(size)
    if len(following) < size or any(following):
        raise ImageError(
            f"{path}: the TIFF file is damaged or incomplete: after {len(file.pages)} pages its list of pages leads "
            "nowhere, so images may be lost. Fetch or export it again."
        )


def _is_beside(series: tifffile.TiffPageSeries) -> bool:
    page = series.keyframe
    names = (series.name, page.tags.valueof(_PAGE_NAME_TAG), page.description)
    texts = [name for name in names if isinstance(name, str)]
    return any(_BESIDE.fullmatch(text) or _BESIDE_OF_APERIO.match(text) for text in texts)


def _area(series: tifffile.TiffPageSeries) -> int:
    return int(series.keyframe.imagelength) * int(series.keyframe.imagewidth)


def _size_of(series: tifffile.TiffPageSeries) -> tuple[int, int]:
    return int(series.keyframe.imagelength), int(series.keyframe.imagewidth)


def _first_page(series: tifffile.TiffPageSeries) -> int:
    index = series.keyframe.index
    return int(index if isinstance(index, int) else index[0])


def _listed(series: Sequence[tifffile.TiffPageSeries]) -> str:
    words = [f"page {_first_page(one)} of {_size_of(one)} px" for one in series[:_AT_MOST]]
    return ", ".join(words) + (f" and {len(series) - _AT_MOST} more" if len(series) > _AT_MOST else "")


def _is_rgb(series: tifffile.TiffPageSeries) -> bool:
    try:
        _check_pixels(series, "")
    except ImageError:
        return False
    return True


def _check_pixels(series: tifffile.TiffPageSeries, name: str) -> None:
    axes, shape = series.axes, tuple(series.shape)
    # Channels that are stored as separate planes are moved to the last axis when they are read.
    if axes in ("SYX", "CYX") and shape[0] in (3, 4):
        shape = (*shape[1:], shape[0])
    page = series.keyframe
    kind = _PHOTOMETRIC.get(page.photometric)
    if kind is not None and page.photometric != _GRAY:
        raise ImageError(
            f"{name}: found a TIFF whose pixels are of the kind {kind!r}; {EXPECTED}. Convert it: "
            "PIL.Image.open(path).convert('RGB').save('slide.tif')."
        )
    if page.photometric == _YCBCR and page.compression not in _DECODED_TO_RGB:
        raise ImageError(
            f"{name}: found YCbCr pixels that are not compressed as JPEG; {EXPECTED}. Convert it: "
            "PIL.Image.open(path).convert('RGB').save('slide.tif')."
        )
    check_layout(shape, name)
    check_dtype(np.dtype(series.dtype), name)
    if page.imagedepth != 1 or page.tiledepth > 1:
        raise ImageError(f"{name}: found a volume of {page.imagedepth} planes; {EXPECTED}. Save one plane.")


def _is_smaller(page: Page, finest: Page) -> bool:
    """Check if a page has the aspect ratio of the finest one, up to rounding, and is not larger."""
    rows, columns = page.imagelength / finest.imagelength, page.imagewidth / finest.imagewidth
    # Rounding can change a side of a small level by one px.
    slack = _SHAPE_TOLERANCE + 1.5 / min(page.imagelength, page.imagewidth)
    return max(rows, columns) <= 1 and abs(rows / columns - 1) <= slack


def _check_page(page: Page, path: Path) -> None:
    """Check that the file holds every strip or tile that the size of a page requires."""
    key = page.keyframe
    which = f"page {page.index}, {key.imagelength} x {key.imagewidth} px (h x w)"
    rows, columns = segment_px(key)
    if rows < 1 or columns < 1:
        raise ImageError(f"{path}: the TIFF file is damaged: {which} has tiles of {rows} x {columns} px.")
    planes = key.samplesperpixel if key.planarconfig == 2 else 1
    asked = math.ceil(key.imagelength / rows) * math.ceil(key.imagewidth / columns) * planes
    offsets, counts = np.atleast_1d(page.dataoffsets), np.atleast_1d(page.databytecounts)
    if offsets.dtype.kind not in "iu" or counts.dtype.kind not in "iu":
        raise ImageError(f"{path}: the header is damaged: places or sizes of {which} are no whole numbers.")
    kind = "tiles" if key.is_tiled else "strips"
    stored = _stored_counts(page)
    if {len(offsets), len(counts), *stored} != {asked}:
        raise ImageError(
            f"{path}: the header is damaged or the file incomplete: {which} asks for {asked:,} {kind}, and the file "
            f"lists {max(stored, default=len(offsets)):,}. Fetch or export it again."
        )
    if (counts < 0).any() or ((offsets < 8) & (counts > 0)).any():
        raise ImageError(f"{path}: the header is damaged: {kind} of {which} lie nowhere. Fetch or export it again.")
    end = int((offsets.astype(np.int64) + counts.astype(np.int64))[counts > 0].max(initial=0))
    size = path.stat().st_size
    if end > size:
        raise ImageError(
            f"{path}: the file is cut short: it has {size} bytes and its header speaks of {end}. Fetch or export it "
            "again."
        )
    if not counts.any():
        raise ImageError(f"{path}: {which} has no pixels: none of its {kind} was ever written. Export it again.")
    if key.compression == 1:
        _check_bytes(key, counts, which, path)


def segment_px(page: Page) -> tuple[int, int]:
    """Return the height and width of a strip or tile, px."""
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)


def _stored_counts(page: Page) -> set[int]:
    """Count the entries of the tags that list strips or tiles, as tifffile drops surplus entries."""
    tags = getattr(page, "tags", {})
    return {tags[code].count for code in (273, 279, 324, 325) if code in tags}


def _check_bytes(page: Page, counts: npt.NDArray, which: str, path: Path) -> None:
    """Check that uncompressed strips or tiles have the size that their shape requires."""
    rows, columns = segment_px(page)
    in_row = columns * (page.samplesperpixel if page.planarconfig == 1 else 1)
    asked = np.full(len(counts), rows * in_row, dtype=np.int64)
    n_strips = math.ceil(page.imagelength / rows)
    if not page.is_tiled and page.imagelength % rows:
        asked[n_strips - 1 :: n_strips] = page.imagelength % rows * in_row
    # Some writers pad the last strip to the height of the others, or every strip to a multiple of four bytes.
    padded = (counts == rows * in_row) | (counts - asked < 4)
    wrong = (counts > 0) & ((counts < asked) | ~padded)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ImageError(
            f"{path}: the header is damaged: {which} asks for {int(asked[first]):,} bytes where the file lists "
            f"{int(counts[first]):,}. Fetch or export it again."
        )


def _check_no_overlap(pages: list[Page], path: Path) -> None:
    """Check that strips and tiles overlap neither a header nor each other.

    Several strips or tiles may refer to exactly the same bytes.
    """
    offsets = np.concatenate([np.atleast_1d(page.dataoffsets) for page in pages]).astype(np.int64)
    counts = np.concatenate([np.atleast_1d(page.databytecounts) for page in pages]).astype(np.int64)
    headers = [_header_place(page) for page in pages if getattr(page, "tags", None)]
    places = np.column_stack([offsets, counts])[counts > 0]
    places = np.concatenate([places, np.array(headers, dtype=np.int64).reshape(-1, 2)])
    places = places[np.lexsort(places.T[::-1])]
    places = places[np.append(True, (places[1:] != places[:-1]).any(axis=1))]
    if (places[1:, 0] < places[:-1].sum(axis=1)).any():
        raise ImageError(
            f"{path}: the header is damaged: strips or tiles share a part of their bytes, or lie in the header. Fetch "
            "or export it again."
        )


def _header_place(page: Page) -> tuple[int, int]:
    """Return the offset and length of a page's list of tags, bytes."""
    start = int(page.offset)
    return start, max(int(tag.offset) for tag in page.tags) - start + 1


def _tell_blank(pages: list[Page], path: Path) -> None:
    counts = np.concatenate([np.atleast_1d(page.databytecounts) for page in pages])
    if not counts.all():
        color = fill_of(pages[0])
        logger.warning(
            "%s: %d of %d tiles were never written (a sparse file): they are %s.",
            path,
            int((counts == 0).sum()),
            len(counts),
            "white" if color == 255 else f"of the value {color}, as the file says",
        )
