"""The image of one slice, and the size of its pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData

from st_gchb._constants import Keys
from st_gchb._errors import ImageError, MissingFileError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.io import SlideImage
from st_gchb.io._pixel_size import Size, caller_size, factor_size, positive, settle, spot_sizes

_IMAGE_KEYS = ("fullres", "hires", "lowres")


def library_of(adata: AnnData, name: str, n_slices: int) -> Mapping[str, Any]:
    libraries = adata.uns.get(Keys.SPATIAL) or {}
    if name in libraries:
        return libraries[name]
    # One slice and one library belong together, whatever the column calls the slice.
    return next(iter(libraries.values())) if n_slices == 1 and len(libraries) == 1 else {}


def find_image(library: Mapping[str, Any], name: str, given: Any, image_key: str | None) -> tuple[Any, float]:
    """Find the image of a slice and its size relative to the full-resolution image."""
    if given is not None:
        return given, 1.0
    where = f"uns['spatial'][{name!r}]"
    images = library.get(Keys.IMAGES) or {}
    if image_key is not None:
        if image_key not in images:
            raise MissingKeyError(f"{where}['images'] has no {image_key!r}; image_key= takes one of {sorted(images)}.")
        return images[image_key], _image_scale(library, image_key, where)
    path = (library.get(Keys.METADATA) or {}).get(Keys.SOURCE_IMAGE)
    if path is not None:
        path = Path(path.decode() if isinstance(path, bytes) else str(path))
        if not path.is_file():
            smaller = [key for key in _IMAGE_KEYS if key in images]
            raise MissingFileError(
                f"{path}: the full-resolution image of slice {name!r}, named in {where}['metadata']"
                f"[{Keys.SOURCE_IMAGE!r}], is not there. Pass image= with its path now"
                + (f", or image_key={smaller[0]!r} for the down-scaled image (coarser patches)." if smaller else ".")
            )
        return path, 1.0
    key = next((key for key in _IMAGE_KEYS if key in images), None)
    if key is None:
        raise ImageError(
            f"slice {name!r} has no image: {where}['images'] holds {sorted(images)}; expected one of {_IMAGE_KEYS}. "
            "Pass image= with the path of the full-resolution image, or a dict of these by slice."
        )
    return images[key], _image_scale(library, key, where)


def _image_scale(library: Mapping[str, Any], key: str, where: str) -> float:
    factors = library.get(Keys.SCALEFACTORS) or {}
    name = f"tissue_{key}_scalef"
    scale = factors.get(name, 1.0 if key == "fullres" else None)
    if scale is None:
        raise MissingKeyError(
            f"{where}['scalefactors'] has no {name!r} (it holds {sorted(factors)}), so the size of image {key!r} is "
            "unknown. Set it to the image's size relative to the px of obsm['spatial'] (1.0 where they agree)."
        )
    return positive(scale, f"{where}['scalefactors'][{name!r}]")


def scale_argument(um_per_px: float | Mapping[str, float] | None, name: str) -> float | None:
    value = um_per_px.get(name) if isinstance(um_per_px, Mapping) else um_per_px
    return None if value is None else positive(value, f"um_per_px of slice {name!r}")


def um_per_full_px(
    given: float | None,
    factors: Mapping[str, Any],
    image: SlideImage,
    scale: float,
    centers: npt.NDArray[np.float64],
    name: str,
) -> float | None:
    """Size of a px of the full-resolution image, µm, by the best source; others that disagree are told."""
    where = f"uns['spatial'][{name!r}]['scalefactors']"
    in_file = None if image.um_per_px is None else Size(image.um_per_px * scale, f"image file {image.name}")
    spots = spot_sizes(factors, centers, where)
    sizes = [caller_size(given), factor_size(factors, where), in_file, *spots]
    best = next((size for size in sizes if size is not None), None)
    if best is not None and best in spots:
        logger.info("slice %r: %.4g µm per px: %s (um_per_px= sets it).", name, best.um_per_px, best.source)
    return settle(sizes, f"slice {name!r}")
