"""Open the patch files of HEST: 224 px patches of the spots on tissue, with their barcodes and places."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from st_gchb._artifacts import sha256_of
from st_gchb._errors import InputError, MissingFileError, MissingKeyError
from st_gchb.io._pixel_size import one_number
from st_gchb.io._reading import DAMAGED, reading
from st_gchb.io.images import SlideImage

PIXELS = "img"
_BARCODES = ("barcode", "barcodes")
_CORNERS = "coords"
_SOURCE_SIDE, _SOURCE_SIZE = "patch_size_src", "pixel_size"


@dataclass(frozen=True, eq=False)
class HestPatches:
    """Patches of a sample of HEST-1k or HEST-Bench; the pixels stay in the file.

    Parameters
    ----------
    path
        The HDF5 file.
    barcodes
        Name of the spot of each patch, ``(n_patches,)``.
    side_px
        Height and width of a patch, px.
    corners
        Upper left corner of each patch as x, y, ``(n_patches, 2)`` in px of the full-resolution image; None if the file
        does not tell.
    source_side_px
        Side of a patch in px of the full-resolution image; None if the file does not tell.
    um_per_px
        Size of a pixel of the full-resolution image, µm; None if the file does not tell.
    """

    path: Path
    barcodes: np.ndarray
    side_px: int
    corners: np.ndarray | None = None
    source_side_px: float | None = None
    um_per_px: float | None = None

    @property
    def side_um(self) -> float | None:
        """Side of a patch on the tissue, µm; None if the file does not tell."""
        if self.source_side_px is None or self.um_per_px is None:
            return None
        return self.source_side_px * self.um_per_px

    def centers(self) -> np.ndarray | None:
        """Compute the center of each patch as x, y, px of the full-resolution image; None if they are not known."""
        if self.corners is None or self.source_side_px is None:
            return None
        # The library that writes the files cuts the corner to whole px.
        return self.corners + self.source_side_px // 2

    def strip(self, side_um: float) -> SlideImage:
        """Stack the patches on top of one another as one image, from which patches can be embedded as from a slide.

        Parameters
        ----------
        side_um
            Side of a patch on the tissue, µm.

        Returns
        -------
        SlideImage
            ``(n_patches * side_px, side_px, 3)``; the pixels are read from the file when they are asked for.
        """
        level = _Strip(self.path, len(self.barcodes), self.side_px)
        um = side_um / self.side_px
        return SlideImage([level], [1.0], um, str(self.path), content_hash=partial(sha256_of, self.path))

    def strip_centers(self) -> npt.NDArray[np.float64]:
        """Compute the center of each patch on the strip as x, y, ``(n_patches, 2)`` px."""
        half = self.side_px / 2
        return np.column_stack([np.full(len(self.barcodes), half), np.arange(len(self.barcodes)) * self.side_px + half])


class _Strip:
    """Patches of a file on top of one another, as a level of a slide image."""

    def __init__(self, path: Path, n_patches: int, side_px: int) -> None:
        self.path, self.side_px = path, side_px
        self.shape = (n_patches * side_px, side_px, 3)
        self.chunks = (side_px, side_px)
        self._file: h5py.File | None = None

    def __getitem__(self, window: tuple[slice, slice]) -> npt.NDArray[np.uint8]:
        rows, columns = window
        first, last = rows.start // self.side_px, -(-rows.stop // self.side_px)
        with reading(self.path, "the pixels of the patches", DAMAGED):
            if self._file is None:
                self._file = h5py.File(self.path, "r")
            pixels: Any = self._file[PIXELS][first:last]
        start = rows.start - first * self.side_px
        return np.asarray(pixels.reshape(-1, self.side_px, 3)[start : start + rows.stop - rows.start, columns])

    def release(self) -> None:
        """Close the file; the next window opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def open_hest_patches(path: Path) -> HestPatches:
    """Open a patch file, reading all but the pixels.

    Parameters
    ----------
    path
        ``patches/<sample>.h5``.

    Returns
    -------
    HestPatches
        Barcodes, places and sizes.

    Raises
    ------
    MissingFileError
        There is no such file.
    InputError
        The file is damaged, its parts do not go together, or two patches have one barcode.
    MissingKeyError
        Pixels or barcodes are missing.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: there is no such file of patches. Fetch it again.")
    with reading(path, "the patches", DAMAGED), h5py.File(path, "r") as file:
        key = next((name for name in _BARCODES if name in file), None)
        if PIXELS not in file or key is None:
            raise MissingKeyError(
                f"{path}: the file of patches holds {sorted(file)}; expected {PIXELS!r}, {_CORNERS!r} and "
                f"{_BARCODES[0]!r}. Fetch it again."
            )
        pixels = file[PIXELS]
        named = np.asarray(file[key]).ravel()
        corners = np.asarray(file[_CORNERS], dtype=np.float64) if _CORNERS in file else None
        attributes = {name: one_number(pixels.attrs.get(name)) for name in (_SOURCE_SIDE, _SOURCE_SIZE)}
        shape, dtype = tuple(pixels.shape), pixels.dtype
    barcodes = np.array([one.decode() if isinstance(one, bytes) else str(one) for one in named], dtype=object)
    square = len(shape) == 4 and shape[3] == 3 and shape[1] == shape[2] > 0
    if not square or dtype != np.uint8:
        raise InputError(
            f"{path}: {PIXELS!r} has shape {shape} and type {dtype}; expected square RGB patches, (n, 224, 224, 3) "
            "uint8. Fetch the file again."
        )
    lengths = {PIXELS: shape[0], key: len(barcodes)} | ({} if corners is None else {_CORNERS: len(corners)})
    if len(set(lengths.values())) > 1 or (corners is not None and corners.shape[1:] != (2,)):
        found = lengths if corners is None else lengths | {f"shape of {_CORNERS}": corners.shape}
        raise InputError(f"{path}: found {found}; expected one barcode and one x, y for each patch. {DAMAGED}")
    names, times = np.unique(barcodes.astype(str), return_counts=True)
    if (times > 1).any():
        raise InputError(
            f"{path}: {int((times > 1).sum())} barcodes name several patches, first {str(names[times > 1][0])!r}; "
            "expected one patch per spot. Fetch the file again."
        )
    sizes = [value if value is not None and value > 0 else None for value in attributes.values()]
    return HestPatches(path, barcodes, int(shape[1]), corners, *sizes)
