"""The image of one slice, and the size of its pixels."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from st_gchb._advice import Fix, advise
from st_gchb._constants import Keys
from st_gchb._errors import ImageError, MissingFileError, MissingKeyError, ScaleError
from st_gchb._logging import logger
from st_gchb.io import SlideImage
from st_gchb.io._libraries import Library
from st_gchb.io._pixel_size import Size, caller_size, factor_size, positive, settle, spot_sizes

_IMAGE_KEYS = ("fullres", "hires", "lowres")


_BEFORE = "Make the features first: st_gchb.pp.embed_patches(adata, image=...) takes its path."
_SCALES = (1e-6, 1e3)
"""No picture is smaller, or larger, than this many times the image that the spots' positions are in."""
_SIZE = Fix("um_per_px", why="if that is wrong")


def find_image(library: Library, name: str, given: Any, image_key: str | None) -> tuple[Any, float]:
    """Find the image of a slice and its size relative to the full-resolution image."""
    if given is not None:
        return given, 1.0
    images = library.images
    if image_key is not None:
        if image_key not in images:
            raise MissingKeyError(
                f"{library.where}['images'] has no {image_key!r}; image_key= takes one of {sorted(images)}."
            )
        return images[image_key], _image_scale(library, image_key)
    path = library.image_path
    if path is not None:
        # Not by pathlib, which raises for a name that is too long.
        if not os.path.isfile(path):
            smaller = _usable(library)
            fixes = [Fix("image", why="with its path now")]
            fixes += [Fix("image_key", repr(key), "for the down-scaled image (coarser patches)") for key in smaller[:1]]
            raise MissingFileError(
                f"{path}: the full-resolution image of slice {name!r}, named in {library.where}['metadata']"
                f"[{Keys.SOURCE_IMAGE!r}], is not there. {advise(*fixes, otherwise=_BEFORE)}"
            )
        return path, 1.0
    usable = _usable(library)
    if not usable:
        raise ImageError(
            f"slice {name!r} has no image: {library.where}['images'] holds {sorted(images)}; expected one of "
            f"{_IMAGE_KEYS}, or another with its factor tissue_..._scalef. "
            + advise(
                Fix("image", why="with the path of the full-resolution image, or a dict by slice"), otherwise=_BEFORE
            )
        )
    if usable[0] not in _IMAGE_KEYS:
        logger.info("slice %r: the image %r is taken (image_key= or image= names another).", name, usable[0])
    return images[usable[0]], _image_scale(library, usable[0])


def _usable(library: Library) -> list[str]:
    """Pictures that can be taken, the finest first: those of the usual names, and others whose factor is known."""
    usual = [key for key in _IMAGE_KEYS if key in library.images]
    # HEST calls its only picture "downscaled_fullres".
    others = [key for key in library.images if key not in usual and f"tissue_{key}_scalef" in library.factors]
    return [*usual, *sorted(others, key=lambda key: -_image_scale(library, key))]


def _image_scale(library: Library, key: str) -> float:
    name = f"tissue_{key}_scalef"
    scale = library.factor(name)
    if scale is None and key != "fullres":
        raise MissingKeyError(
            f"{library.where}['scalefactors'] has no {name!r} (it holds {sorted(library.factors)}), so the size of "
            f"image {key!r} is unknown. Set it to the image's size relative to the px of obsm['spatial'] (1.0 where "
            "they agree)."
        )
    if scale is not None and not _SCALES[0] <= scale <= _SCALES[1]:
        raise ScaleError(
            f"{library.where}['scalefactors'][{name!r}] is {scale:.3g}; expected the size of image {key!r} relative to "
            f"the px of obsm['spatial'], from {_SCALES[0]:g} to {_SCALES[1]:g}."
        )
    return 1.0 if scale is None else scale


def scale_argument(um_per_px: float | None, name: str) -> float | None:
    """Validate what the caller says of a slice's pixels."""
    return None if um_per_px is None else positive(um_per_px, f"um_per_px of slice {name!r}")


def known_size(given: float | None, library: Library, image: SlideImage, scale: float) -> float | None:
    """Size of a px of the full-resolution image, µm, by whoever says it: caller, scale factors, image file."""
    if given is not None:
        return given
    stored = library.factor(Keys.UM_PER_PX)
    return stored if stored is not None or image.um_per_px is None else image.um_per_px * scale


def um_per_full_px(
    given: float | None,
    library: Library,
    image: SlideImage,
    scale: float,
    centers: npt.NDArray[np.float64],
    name: str,
) -> float | None:
    """Size of a px of the full-resolution image, µm, by the best source; others that disagree are told."""
    where = f"{library.where}['scalefactors']"
    in_file = None if image.um_per_px is None else Size(image.um_per_px * scale, f"image file {image.name}")
    spots = spot_sizes(library.factors, centers, where)
    sizes = [caller_size(given), factor_size(library.factors, where), in_file, *spots]
    best = next((size for size in sizes if size is not None), None)
    if best is not None and best in spots:
        logger.info("slice %r: %.4g µm per px: %s. %s", name, best.um_per_px, best.source, advise(_SIZE))
    return settle(sizes, f"slice {name!r}")
