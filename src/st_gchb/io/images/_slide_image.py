"""The interface through which the package reads slide images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from st_gchb._advice import Fix, advise
from st_gchb._arguments import Count, checked
from st_gchb._errors import DamageError, ImageError
from st_gchb.io._pixel_size import positive
from st_gchb.io.images._chunks import Box, Edges, boxes_between, chunk_edges, piece_edges, within_box
from st_gchb.io.images._thumbnail import hash_pixels, shrink
from st_gchb.io.images._validation import check_levels

RGB = npt.NDArray[np.uint8]


class SlideLevel(Protocol):
    """One resolution of a slide, as a reader of :func:`register_reader` provides it.

    NumPy arrays, memory-mapped ones included, are slide levels. Other classes need ``shape`` and ``__getitem__``, and
    may have more:

    - ``chunks``: height and width of the regions that are decoded as one, or the heights of all and the widths of all,
      as in dask. Patches are then read chunk by chunk, each chunk once.
    - ``whole_bytes``: bytes of decoded pixels that the first window brings and that are kept, for formats that can only
      be decoded whole. A level without it keeps none.
    - ``read_in_parts()``: called where ``whole_bytes`` is more than is allowed; from then on the level keeps nothing.
    - ``release()``: give decoded pixels and file handles back. A later window opens the file again.
    - ``path``: the file, by which an AnnData can name its image without holding the pixels.
    - ``parallel``: True where several threads may read windows at the same time, which gain from it if the decoder
      gives up the interpreter's lock.

    Other levels are read by one thread at a time, not always the same. A window that cannot be decoded is a
    :class:`~st_gchb.errors.DamageError`, so that the rest of the slide can be used.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io import SlideImage
    >>> class White:
    ...     shape = (400, 600, 3)
    ...
    ...     def __getitem__(self, window):
    ...         sides = [len(range(*part.indices(side))) for part, side in zip(window, self.shape)]
    ...         return np.full((*sides, 3), 255, dtype=np.uint8)
    >>> SlideImage([White()], [1.0]).read(0, 390, 420, 0, 10).shape
    (10, 10, 3)
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and 3 channels, ``(h, w, 3)``, px of the level."""

    def __getitem__(self, window: tuple[slice, slice], /) -> Any:
        """Read a window of rows and columns within the level, ``(h, w, 3)`` uint8."""


@dataclass(eq=False)
class SlideImage:
    """An 8-bit RGB slide image with one or more resolutions, read window by window.

    Made by :func:`open_image`, and by readers of :func:`register_reader`; nothing is decoded before the first
    :meth:`read`.

    Parameters
    ----------
    levels
        Resolutions as :class:`SlideLevel` describes them, finest first.
    downsamples
        Size of a pixel of each level in pixels of the first.
    um_per_px
        Size of a pixel of the finest level, µm, where the file or the caller gives it.
    name
        Name of the image in messages.
    content_hash
        Function that returns a hash of the image's content without decoding it (files: of their bytes). Without it,
        pixels are hashed.

    Raises
    ------
    ImageError
        There is no level, a level is no RGB image, or levels and downsamples do not go together.
    ScaleError
        ``um_per_px`` is no positive number.
    """

    levels: Sequence[Any]
    downsamples: Sequence[float]
    um_per_px: float | None = None
    name: str = "image"
    content_hash: Callable[[], str] | None = None

    def __post_init__(self) -> None:
        check_levels(self.levels, self.downsamples, self.name)
        if self.um_per_px is not None:
            self.um_per_px = positive(self.um_per_px, f"{self.name}: um_per_px")

    @property
    def shape_px(self) -> tuple[int, int]:
        """Height and width of the finest level, px."""
        return self.level_shape(0)

    def level_shape(self, level: int) -> tuple[int, int]:
        """Get height and width of a level, in its own px."""
        height, width = self.levels[level].shape[:2]
        return int(height), int(width)

    @checked
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
        DamageError
            Pixels of the window cannot be decoded.
        ImageError
            The image cannot be read.

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
        expected = (max(rows.stop - rows.start, 0), max(columns.stop - columns.start, 0), 3)
        if window.shape != expected:
            raise ImageError(f"{self.name}: level {level} gave a window of shape {window.shape}; expected {expected}.")
        return window

    def chunks(self, level: int) -> tuple[Edges, Edges]:
        """Get the edges of the regions that are decoded as one, along rows and along columns, px of the level."""
        return chunk_edges(getattr(self.levels[level], "chunks", None), self.level_shape(level))

    def pieces(self, level: int) -> tuple[Edges, Edges]:
        """Get the edges of the regions of whole chunks that are best read at once, along rows and along columns."""
        return piece_edges(self.chunks(level))

    def parallel(self, level: int) -> bool:
        """Tell whether several threads may read a level at the same time."""
        return bool(getattr(self.levels[level], "parallel", False))

    def read_chunks(self, level: int, box: Box) -> tuple[RGB, list[tuple[Box, DamageError]]]:
        """Read a window of whole chunks, and around those that cannot be decoded.

        Parameters
        ----------
        level
            Index of the level.
        box
            ``(y0, y1, x0, x1)``, px of the level, on the edges of :meth:`chunks`.

        Returns
        -------
        tuple
            Pixels, black where they cannot be decoded; and the chunks that cannot, each with its error.

        Raises
        ------
        ImageError
            The image cannot be read at all.
        """
        try:
            return self.read(level, *box), []
        except DamageError:
            # Reading each chunk alone shows which of them is damaged.
            y0, y1, x0, x1 = box
            rows, columns = self.chunks(level)
            pixels = np.zeros((y1 - y0, x1 - x0, 3), dtype=np.uint8)
            lost: list[tuple[Box, DamageError]] = []
            for chunk in boxes_between(within_box(rows, y0, y1), within_box(columns, x0, x1)):
                try:
                    part = self.read(level, *chunk)
                    pixels[chunk[0] - y0 : chunk[1] - y0, chunk[2] - x0 : chunk[3] - x0] = part
                except DamageError as error:
                    lost.append((chunk, error))
            return pixels, lost

    def hold_at_most(self, level: int, n_bytes: int) -> None:
        """Limit the decoded pixels that a level keeps in memory.

        Parameters
        ----------
        level
            Index of the level.
        n_bytes
            Most bytes that it may keep.

        Raises
        ------
        ImageError
            The level can only be decoded whole, and is larger.
        """
        held = int(getattr(self.levels[level], "whole_bytes", 0))
        if held <= n_bytes:
            return
        if hasattr(self.levels[level], "read_in_parts"):
            self.levels[level].read_in_parts()
            return
        raise ImageError(
            f"{self.name}: the file can only be decoded whole, which takes {held / 1e6:,.0f} MB, and "
            f"{n_bytes / 1e6:,.0f} MB are allowed. Save the image as a tiled TIFF, which is read in parts: "
            "tifffile.imwrite('slide.tif', image, tile=(256, 256), compression='jpeg'). "
            + advise(Fix("memory_mb", str(-(-held // 10**8) * 100), "or more where so much is free"))
        )

    @checked
    def thumbnail(self, max_px: Count = 1000) -> tuple[RGB, float]:
        """Shrink the image for figures, reading it piece by piece.

        Parameters
        ----------
        max_px
            Longest side of the result, px.

        Returns
        -------
        tuple
            The image, ``(h, w, 3)`` uint8, white where it cannot be decoded (with a warning), and its size relative to
            the finest level (at most 1).

        Examples
        --------
        >>> import numpy as np
        >>> from st_gchb.io import open_image
        >>> small, scale = open_image(np.zeros((400, 200, 3), dtype=np.uint8)).thumbnail(100)
        >>> small.shape, scale
        ((100, 50, 3), 0.25)
        """
        pixels, scale, _ = shrink(self, max_px)
        return pixels, scale

    def fingerprint(self, level: int = 0) -> str:
        """Hash the content: a file's bytes, or the pixels of ``level`` for an array.

        Parameters
        ----------
        level
            Level whose pixels are hashed where there is no file to hash.

        Returns
        -------
        str
            SHA-256, hexadecimal.

        Examples
        --------
        >>> import numpy as np
        >>> from st_gchb.io import open_image
        >>> black = np.zeros((40, 50, 3), dtype=np.uint8)
        >>> open_image(black).fingerprint() == open_image(black.copy()).fingerprint()
        True
        """
        # Not stored: pixels and files may change while the object exists, and the cache has to notice.
        return self.content_hash() if self.content_hash is not None else hash_pixels(self, level)

    def release(self) -> None:
        """Give back decoded pixels and file handles; a later :meth:`read` opens the image again."""
        for level in self.levels:
            if hasattr(level, "release"):
                level.release()
