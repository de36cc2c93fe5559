"""Find the full-resolution image and the metadata next to an AnnData file, in the layouts of HEST and DeepSpot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from st_gchb._constants import Keys
from st_gchb._errors import ImageError, InputError, MissingFileError
from st_gchb._logging import logger
from st_gchb.io._pixel_size import Size, one_number
from st_gchb.io._reading import reading
from st_gchb.io.images import is_image_path, open_image
from st_gchb.io.sections._legacy_folder import IMAGE_ENDINGS

if TYPE_CHECKING:
    from anndata import AnnData

_TABLES = ("h5ad", "st")
_IMAGES = ("wsis", "wsi", "image", "images")
_METADATA = ("metadata", "meta")
_SIZES = ("pixel_size_um_estimated", Keys.UM_PER_PX)
_RIM, SIZE_TOLERANCE = 1.02, 0.02


def anndata_files(path: Path) -> list[Path]:
    """List the AnnData files of a folder, or else of its subfolder ``h5ad`` or ``st``."""
    for folder in (path, *[path / name for name in _TABLES]):
        found = sorted(file for file in folder.glob("*") if file.suffix.lower() == ".h5ad" and file.is_file())
        if found:
            return found
    return []


def choose_anndata(path: Path, files: list[Path], name: str | None) -> tuple[Path, str | None]:
    """Choose the AnnData file to read.

    Parameters
    ----------
    path
        Folder, for messages.
    files
        AnnData files in it.
    name
        Name of the section: of several files it selects one, of a single file it renames the slice.

    Returns
    -------
    tuple
        The file, and the new name for its slice (None if ``name`` selected the file).

    Raises
    ------
    InputError, MissingFileError
        There are several files and ``name`` is not given; or no file has that name.
    """
    if len(files) == 1:
        return files[0], name
    stems = [file.stem for file in files]
    if name is None:
        raise InputError(f"{path}: found {len(files)} AnnData files, {stems[:8]}. Pass name= with one of them.")
    if name not in stems:
        raise MissingFileError(f"{path}: found no AnnData file of section {name!r}; expected one of {stems[:8]}.")
    return files[stems.index(name)], None


def image_beside(path: Path, adata: AnnData, library: Mapping[str, Any]) -> Path | None:
    """Find the full-resolution image that belongs to an AnnData file.

    An image next to the file is only used if the object does not refer to an existing image itself, and if the spots
    lie on it.

    Parameters
    ----------
    path
        The AnnData file.
    adata
        Its content.
    library
        Entry of ``uns["spatial"]``.

    Returns
    -------
    pathlib.Path or None
        The image; None if the object already refers to one, or none is found.
    """
    metadata = library.get(Keys.METADATA)
    stored = metadata.get(Keys.SOURCE_IMAGE) if isinstance(metadata, Mapping) else None
    if isinstance(stored, str) and is_image_path(Path(stored)):
        return None
    moved = path.parent / Path(stored).name if isinstance(stored, str) and stored else None
    if moved is not None and os.path.isfile(moved):
        logger.info("%s: its image %s is not there; the one of that name beside the file is taken.", path, stored)
        return moved
    files = [
        file
        for folder in (*[path.parent.parent / name for name in _IMAGES], path.parent)
        for file in sorted(folder.glob(f"{_escaped(path.stem)}.*"))
        if file.suffix.lower() in IMAGE_ENDINGS and file.is_file()
    ]
    for file in files:
        if _belongs(file, adata, library):
            logger.info("%s: the image beside it is taken, %s (image= names another).", path, file)
            return file
    return None


def _escaped(stem: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in stem)


def _belongs(file: Path, adata: AnnData, library: Mapping[str, Any]) -> bool:
    """Check if the spot positions and the down-scaled images of an object are consistent with an image's size."""
    try:
        height, width = open_image(file).shape_px
    except ImageError:
        return False
    if not _lie_on(adata, (height, width)):
        logger.info("%s is not taken for the image of the spots: they do not lie on it.", file)
        return False
    images, factors = library.get(Keys.IMAGES), library.get(Keys.SCALEFACTORS)
    if not isinstance(images, Mapping) or not isinstance(factors, Mapping):
        return True
    for key, image in images.items():
        scale = one_number(factors.get(f"tissue_{key}_scalef"))
        if scale and np.ndim(image) == 3:
            expected = np.array(np.shape(image)[:2]) / scale
            # The sides of the down-scaled image are rounded to whole px.
            return bool((np.abs(expected - (height, width)) <= SIZE_TOLERANCE * expected + 1 / scale).all())
    return True


def _lie_on(adata: AnnData, shape_px: tuple[int, int]) -> bool:
    """Check if all positions lie on an image of shape ``(height, width)``, px."""
    try:
        centers = np.asarray(adata.obsm[Keys.SPATIAL], dtype=np.float64)[:, :2]
    except (KeyError, TypeError, ValueError, IndexError):
        return False
    sides = _RIM * np.array(shape_px[::-1])
    return bool(len(centers) and np.isfinite(centers).all() and (centers.max(axis=0) <= sides).all())


def size_beside(path: Path) -> Size | None:
    """Read the pixel size from the sample's JSON metadata; None if there are none, or they do not state it."""
    for folder in (*[path.parent.parent / name for name in _METADATA], path.parent):
        file = folder / f"{path.stem}.json"
        if not file.is_file():
            continue
        with reading(file, "the sample's metadata", "Expected JSON, as HEST writes it: fetch it again, or remove it."):
            content = dict(json.loads(file.read_text(encoding="utf-8-sig")))
        size = size_said(content, file.name)
        if size is not None:
            return size
    return None


def size_said(metadata: Mapping[str, Any], where: str) -> Size | None:
    """Read the pixel size from a sample's metadata; None if they do not state it."""
    for key in _SIZES:
        number = one_number(metadata.get(key))
        if number is not None and np.isfinite(number) and number > 0:
            return Size(number, f"{key} of {where}")
    return None
