"""Pixels of the patches of all spots, for methods that learn from them: read once, kept on disk, taken in any order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from st_gchb._artifacts import write_whole
from st_gchb._errors import CacheError, DamageError, MissingFileError
from st_gchb._logging import logger, track
from st_gchb.pp.patches._cache import content_key
from st_gchb.pp.patches._reader import MEMORY_MB, read_patches
from st_gchb.pp.patches._size_batches import choose_level
from st_gchb.pp.spots import Slice, side_px

Pixels = npt.NDArray[np.uint8]


class PatchPixels:
    """Patches of all spots, ``(n_spots, out_px, out_px, 3)`` uint8, read from the slides when first asked for.

    They are kept in one file per slice in the cache, addressed by the content of image and positions, and mapped into
    memory: only what is taken is read.

    Parameters
    ----------
    slices
        Slices with their images, as :func:`slices_of` gives them; together they hold every spot once.
    out_px
        Side of the patches, px; windows of another size are resampled.
    patch_um
        Side of the patches on the tissue, µm.
    patch_px
        Side in px of the full-resolution image, instead.
    folder
        Folder of the cache; None keeps the patches in a file that ends with the object.
    memory_mb
        Bound of the decoded pixels in memory, MB.

    Raises
    ------
    ScaleError
        The size of a pixel is not known and ``patch_px`` is not given, or a patch is larger than a slide.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io import open_image
    >>> from st_gchb.pp import Slice
    >>> from st_gchb.pp.patches import PatchPixels
    >>> image = open_image(np.full((90, 90, 3), 7, np.uint8))
    >>> slide = Slice("a", np.arange(2), np.array([[20.0, 20.0], [50.0, 60.0]]), image, um_per_px=1.0)
    >>> pixels = PatchPixels([slide], out_px=8, patch_um=16.0)
    >>> pixels.shape, float(pixels[np.array([1])].mean())
    ((2, 8, 8, 3), 7.0)
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        *,
        out_px: int,
        patch_um: float = 0.0,
        patch_px: float | None = None,
        folder: Path | None = None,
        memory_mb: float = MEMORY_MB,
    ) -> None:
        self._slices, self._folder, self._memory_mb = list(slices), folder, memory_mb
        # Before anything is read: a size that does not fit is told here.
        self._sides = [side_px(slide, patch_um, patch_px) for slide in self._slices]
        self.shape = (sum(len(slide.rows) for slide in self._slices), out_px, out_px, 3)
        self._place = np.zeros((self.shape[0], 2), dtype=np.int64)
        for number, slide in enumerate(self._slices):
            self._place[slide.rows] = np.column_stack([np.full(len(slide.rows), number), np.arange(len(slide.rows))])
        self._files: list[Pixels] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Pixels:
        """Take the patches of some spots, ``(n, out_px, out_px, 3)``.

        Raises
        ------
        DamageError
            The pixels of some spots of a slide cannot be decoded.
        CacheError
            The disk is full or refuses.
        """
        if self._files is None:
            pairs = list(zip(self._slices, self._sides, strict=True))
            self._files = [self._opened(*pair) for pair in track(pairs, "reading patches")]
        rows = np.asarray(rows)
        result = np.empty((len(rows), *self.shape[1:]), dtype=np.uint8)
        place = self._place[rows]
        for number in np.unique(place[:, 0]):
            own = place[:, 0] == number
            result[own] = self._files[number][place[own, 1]]
        return result

    def _opened(self, slide: Slice, side: float) -> Pixels:
        """Map the patches of a slice into memory, read from the image unless they are in the cache."""
        shape = (len(slide.rows), *self.shape[1:])
        key = None if self._folder is None else _key(slide, side, self.shape[1])
        try:
            if self._folder is None or key is None:
                with TemporaryFile(prefix="st_gchb_patches") as file:
                    _write(file, shape, self._read(slide, side))
                    file.flush()
                    file.seek(0)
                    return _mapped(file, shape)
            path = self._folder / f"{key}.patches.npy"
            if not _is_whole(path, shape):
                with write_whole(path) as part, part.open("wb") as file:
                    _write(file, shape, self._read(slide, side))
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except MissingFileError:
            # The image is gone, which is no fault of the cache.
            raise
        except OSError as error:
            raise CacheError(
                f"Patches of slice {slide.name!r} ({np.prod(shape) / 1e9:.3g} GB) could not be kept in "
                f"{self._folder if key else 'the folder of temporary files'} ({error}). Free space there, or set "
                "st_gchb.settings.cache_dir to another folder."
            ) from error

    def _read(self, slide: Slice, side: float) -> Iterator[tuple[Any, Pixels]]:
        return read_patches(slide, side, self.shape[1], memory_mb=self._memory_mb)


def _write(file: BinaryIO, shape: tuple[int, ...], batches: Iterable[tuple[Any, Pixels]]) -> None:
    """Write patches as an array of numpy, each at its place.

    They are written and not mapped: a full disk is an error of ``write``, and would end a process that writes to a map.
    """
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    start, size = file.tell(), int(np.prod(shape[1:]))
    for rows, patches in batches:
        for row, patch in zip(rows.tolist(), patches, strict=True):
            file.seek(start + row * size)
            file.write(patch.tobytes())


def _mapped(file: BinaryIO, shape: tuple[int, ...]) -> Pixels:
    """Map the patches of an open file into memory."""
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return np.memmap(file, np.uint8, "r", offset=file.tell(), shape=shape)


def _key(slide: Slice, side: float, out_px: int) -> str | None:
    """Compute the key of a slice's patches; None if the image cannot be hashed because it is damaged."""
    level = 0 if slide.image.content_hash is not None else choose_level(slide.image, side, out_px)
    try:
        image = slide.image.fingerprint(level)
    except DamageError:
        logger.info("slice %r: patches are not cached, since the image is damaged.", slide.name)
        return None
    return content_key(centers=slide.centers_px, side=side, out_px=out_px, image=image)


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """Return whether a file holds patches of this shape; one that does not is made again, with a warning."""
    if not path.is_file():
        return False
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        logger.warning("The cached patches in %s are damaged (%s): they are read again.", path, error)
        return False
    if found.shape != shape or found.dtype != np.uint8:
        logger.warning("The cached patches in %s are not what was stored: they are read again.", path)
        return False
    return True
