"""The one interface through which the package reads slide images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from st_gchb._errors import ImageError

_BAND_PX = 2048
"""Rows that are read at once where a whole level is passed over."""

RGB = npt.NDArray[np.uint8]


@dataclass(eq=False)
class SlideImage:
    """An 8-bit RGB slide image with one or more resolutions, read window by window.

    Made by :func:`open_image`; nothing is decoded before the first :meth:`read`.

    Parameters
    ----------
    levels
        Arrays of shape ``(h, w, 3)``, finest first. Anything with ``shape`` and slicing in two dimensions will do.
    downsamples
        Size of a pixel of each level in pixels of the first.
    um_per_px
        Size of a pixel of the finest level, µm, where the file or the caller says so.
    name
        What messages call the image.
    content_hash
        Gives a hash of the image's content without decoding it (files: of their bytes). Without it, pixels are hashed.
    """

    levels: Sequence[Any]
    downsamples: Sequence[float]
    um_per_px: float | None = None
    name: str = "image"
    content_hash: Callable[[], str] | None = None

    @property
    def shape_px(self) -> tuple[int, int]:
        """Height and width of the finest level, px."""
        return self.level_shape(0)

    def level_shape(self, level: int) -> tuple[int, int]:
        """Height and width of a level, in its own px."""
        height, width = self.levels[level].shape[:2]
        return int(height), int(width)

    def read(self, level: int, y0: int, y1: int, x0: int, x1: int) -> RGB:
        """Read a window, clipped to the image.

        Parameters
        ----------
        level
            Index of the level, 0 the finest.
        y0, y1, x0, x1
            Window in px of that level, ends excluded.

        Returns
        -------
        numpy.ndarray
            ``(h, w, 3)`` uint8; smaller than asked for where the window leaves the image.

        Raises
        ------
        ImageError
            The image turns out to be damaged when its pixels are decoded.

        Examples
        --------
        >>> import numpy as np
        >>> from st_gchb.io import open_image
        >>> image = open_image(np.zeros((40, 50, 3), dtype=np.uint8))
        >>> image.read(0, 30, 60, 0, 10).shape
        (10, 10, 3)
        """
        height, width = self.level_shape(level)
        rows = slice(min(max(y0, 0), height), min(max(y1, 0), height))
        columns = slice(min(max(x0, 0), width), min(max(x1, 0), width))
        window = np.asarray(self.levels[level][rows, columns])
        if window.dtype != np.uint8:
            raise ImageError(f"{self.name}: level {level} holds {window.dtype} pixels; expected uint8.")
        return window

    def block_shape(self, level: int, block_px: int = _BAND_PX) -> tuple[int, int]:
        """Height and width of the region that is best read at once, px of the level.

        A file in strips decodes whole rows, whatever is asked for: there, a band across the slide is read.
        """
        height, width = self.level_shape(level)
        chunks = getattr(self.levels[level], "chunks", None)
        chunk_width = chunks[1] if chunks and isinstance(chunks[1], int) else 1
        if chunk_width > block_px:
            return max(block_px * block_px // max(width, 1), 1), width
        return min(block_px, height), min(block_px, width)

    def thumbnail(self, max_px: int = 1000) -> tuple[RGB, float]:
        """Shrink the image for figures, reading it in bands.

        Parameters
        ----------
        max_px
            Longest side of the result, px.

        Returns
        -------
        tuple
            The image, ``(h, w, 3)`` uint8, and its size relative to the finest level (at most 1).

        Examples
        --------
        >>> import numpy as np
        >>> from st_gchb.io import open_image
        >>> small, scale = open_image(np.zeros((400, 200, 3), dtype=np.uint8)).thumbnail(100)
        >>> small.shape, scale
        ((100, 50, 3), 0.25)
        """
        fine_enough = [
            i for i in range(len(self.levels)) if max(self.level_shape(i)) >= min(max_px, max(self.shape_px))
        ]
        level = fine_enough[-1]
        height, width = self.level_shape(level)
        step = max(-(-max(height, width) // max_px), 1)
        # A sliver thinner than a step becomes one pixel thin.
        step_y, step_x = min(step, height), min(step, width)
        bottom, right = height // step_y * step_y, width // step_x * step_x
        # Bands start at multiples of the step, so that no mean crosses from one to the next.
        rows = step_y * max(_BAND_PX // step_y, 1)
        bands = []
        for y0 in range(0, bottom, rows):
            band = self.read(level, y0, min(y0 + rows, bottom), 0, right)
            blocks = band.reshape(band.shape[0] // step_y, step_y, right // step_x, step_x, 3)
            bands.append(blocks.mean((1, 3), dtype=np.float32).round().astype(np.uint8))
        return np.concatenate(bands), 1.0 / (step * float(self.downsamples[level]))

    def fingerprint(self, level: int = 0) -> str:
        """Hash of the content: of a file's bytes, or of the pixels of ``level`` for an array.

        Examples
        --------
        >>> import numpy as np
        >>> from st_gchb.io import open_image
        >>> black = np.zeros((40, 50, 3), dtype=np.uint8)
        >>> open_image(black).fingerprint() == open_image(black.copy()).fingerprint()
        True
        """
        # Not kept: pixels and files may change while the object lives, and the cache must see it.
        return self.content_hash() if self.content_hash is not None else self._hash_pixels(level)

    def _hash_pixels(self, level: int) -> str:
        height, width = self.level_shape(level)
        digest = hashlib.sha256(repr((height, width)).encode())
        for y0 in range(0, height, _BAND_PX):
            digest.update(np.ascontiguousarray(self.read(level, y0, y0 + _BAND_PX, 0, width)).data)
        return digest.hexdigest()

    def release(self) -> None:
        """Give back decoded pixels and file handles; a later :meth:`read` opens the image again."""
        for level in self.levels:
            if hasattr(level, "release"):
                level.release()
