"""Read scanner formats that tifffile and Pillow do not support through OpenSlide, region by region."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import openslide

from st_gchb._artifacts import sha256_of
from st_gchb._compat import read_errors
from st_gchb._errors import DamageError, ImageError
from st_gchb.io._pixel_size import number_in, settle, square_size
from st_gchb.io._reading import reading
from st_gchb.io.images._slide_image import RGB, SlideImage

_WHITE = "FFFFFF"
_INCOMPLETE = (
    "It is damaged or incomplete: fetch or export it again, with the folder beside it where the format has one (MRXS, "
    "VMS)."
)


def vendor_of(path: Path) -> str | None:
    """Detect OpenSlide's name for the format of a file, such as ``"hamamatsu"``; None if OpenSlide does not know it."""
    vendor = openslide.OpenSlide.detect_format(str(path))
    return None if vendor is None else str(vendor)


class OpenSlideLevel:
    """One resolution of a slide; the file is opened at the first read.

    Parameters
    ----------
    path
        The file.
    index
        Index of the level, 0 the finest.
    slide
        The opened slide, from which the properties of the level are read.
    """

    def __init__(self, path: Path, index: int, slide: openslide.OpenSlide) -> None:
        self.path, self.index = path, index
        width, height = slide.level_dimensions[index]
        self.shape = (int(height), int(width), 3)
        self._downsample = float(slide.level_downsamples[index])
        known = [slide.properties.get(f"openslide.level[{index}].tile-{side}") for side in ("height", "width")]
        self.chunks = (int(known[0]), int(known[1])) if known[0] and known[1] else None
        color = slide.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, _WHITE)
        self._background = np.array([int(color[i : i + 2], 16) for i in (0, 2, 4)], dtype=np.float32)
        self._slide: openslide.OpenSlide | None = None

    def __getitem__(self, window: tuple[slice, slice]) -> RGB:
        (top, bottom, _), (left, right, _) = (
            part.indices(side) for part, side in zip(window, self.shape[:2], strict=True)
        )
        if bottom <= top or right <= left:
            return np.empty((max(bottom - top, 0), max(right - left, 0), 3), dtype=np.uint8)
        # OpenSlide takes the location in px of the finest level, and the size in px of this one.
        place = (round(left * self._downsample), round(top * self._downsample))
        try:
            if self._slide is None:
                self._slide = openslide.OpenSlide(str(self.path))
            region = self._slide.read_region(place, self.index, (right - left, bottom - top))
        except read_errors() as error:
            # After an error OpenSlide refuses every further read, so the next read has to reopen the file.
            self.release()
            raise DamageError(
                f"{self.path}: the pixels cannot be decoded ({error}). The file is damaged: fetch or export it again."
            ) from error
        return self._on_background(np.asarray(region))

    def _on_background(self, pixels: RGB) -> RGB:
        """Blend pixels onto the background color: regions that were not scanned are transparent."""
        if (pixels[..., 3] == 255).all():
            return np.ascontiguousarray(pixels[..., :3])
        opacity = pixels[..., 3:].astype(np.float32) / 255
        blend = pixels[..., :3] * opacity + self._background * (1 - opacity)
        return np.asarray(blend.round(), dtype=np.uint8)

    def release(self) -> None:
        """Close the file."""
        if self._slide is not None:
            self._slide.close()
            self._slide = None


def open_openslide(path: Path) -> SlideImage:
    """Open a slide by its header; no pixels are decoded.

    Raises
    ------
    ImageError
        OpenSlide cannot open the file.
    """
    with reading(path, "the slide", _INCOMPLETE, ImageError), openslide.OpenSlide(str(path)) as slide:
        levels = [OpenSlideLevel(path, index, slide) for index in range(slide.level_count)]
        properties = dict(slide.properties)
    width, height = (
        number_in(properties.get(name)) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    )
    return SlideImage(
        levels=levels,
        downsamples=[levels[0].shape[0] / level.shape[0] for level in levels],
        um_per_px=settle([square_size(width, height, "OpenSlide's mpp-x, mpp-y", str(path))], str(path)),
        name=str(path),
        content_hash=partial(_hash, path, properties.get(openslide.PROPERTY_NAME_QUICKHASH1, "")),
    )


def _hash(path: Path, quickhash: str) -> str:
    """Hash the file together with OpenSlide's quickhash, since some formats keep pixels in a folder beside the file."""
    return hashlib.sha256(f"{sha256_of(path)} {quickhash}".encode()).hexdigest()
