"""TIFF files: tiled, pyramidal, OME, SVS; read tile by tile where the file allows it."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
import zarr

from st_gchb._errors import ImageError
from st_gchb._files import sha256_of
from st_gchb.io._checks import check_dtype, check_layout, damage_or_failure
from st_gchb.io._slide import RGB, SlideImage

_UM_PER_PX_RANGE = (0.02, 20.0)
"""Resolutions beyond this are a printer's (72 dpi is 353 µm), not a microscope's."""
_UM_PER_UNIT = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "in": 25400.0}


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
            um_per_px = _um_per_px(file)
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


def _um_per_px(file: tifffile.TiffFile) -> float | None:
    found = _from_ome(file) or _from_aperio(file) or _from_tags(file)
    low, high = _UM_PER_PX_RANGE
    return found if found is not None and low <= found <= high else None


def _from_ome(file: tifffile.TiffFile) -> float | None:
    if not file.is_ome or not file.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError:
        return None
    pixels = next((node for node in root.iter() if node.tag.endswith("}Pixels") or node.tag == "Pixels"), None)
    if pixels is None or "PhysicalSizeX" not in pixels.attrib:
        return None
    unit = _UM_PER_UNIT.get(pixels.attrib.get("PhysicalSizeXUnit", "µm"))
    return float(pixels.attrib["PhysicalSizeX"]) * unit if unit else None


def _from_aperio(file: tifffile.TiffFile) -> float | None:
    match = re.search(r"\bMPP\s*=\s*([0-9.]+)", file.pages.first.description or "")
    return float(match.group(1)) if match else None


def _from_tags(file: tifffile.TiffFile) -> float | None:
    tags = file.pages.first.tags
    um_per_unit = {2: 25400.0, 3: 1e4}.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 0)
    if um_per_unit is None or "XResolution" not in tags:
        return None
    numerator, denominator = tags["XResolution"].value
    return um_per_unit * denominator / numerator if numerator else None
