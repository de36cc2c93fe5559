"""Which spots belong to which slice, and where they lie on its image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData

from st_gchb._advice import Fix, advise
from st_gchb._arguments import PixelSize, checked
from st_gchb._constants import Keys
from st_gchb._errors import ImageError, MissingFileError, MissingKeyError, ScaleError, SliceError
from st_gchb._logging import logger
from st_gchb.io import Library, Size, SlideImage, caller_size, factor_size, open_image, positive, settle, spot_sizes
from st_gchb.pp.spots._coordinates import check_fit, spot_centers
from st_gchb.pp.spots._sections import check_lone_slice, check_object, sections_of

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


_WIDEST_PX = 100_000
"""Side of a patch at most, px; as for patch_px= of all functions."""


@dataclass(frozen=True, eq=False)
class Slice:
    """The spots of one slice and its image.

    Parameters
    ----------
    name
        Name of the slice.
    rows
        ``(n,)`` positions of its spots in the object.
    centers_px
        ``(n, 2)`` x, y of the spots in px of the image's finest level.
    image
        The image.
    um_per_px
        Size of a pixel of that level, µm; None where it is unknown.
    scale
        Size of that level relative to the image that ``obsm["spatial"]`` speaks of (1 for the image itself).
    stored_image
        The image as ``uns["spatial"]`` holds it, path or array; None where the caller gave another.
    """

    name: str
    rows: npt.NDArray[np.int64]
    centers_px: npt.NDArray[np.float64]
    image: SlideImage
    um_per_px: float | None = None
    scale: float = 1.0
    stored_image: Any = None


@checked
def slices_of(
    adata: AnnData,
    slice_key: str | None = None,
    image: Any = None,
    image_key: str | None = None,
    um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
) -> list[Slice]:
    """Split an object into slices, each with its image, checked against one another.

    Parameters
    ----------
    adata
        Object with ``obsm["spatial"]`` in full-resolution px.
    slice_key
        Column of ``obs`` that tells slices apart. Without it: the column ``"slice"``, or the only column that names the
        libraries of ``uns["spatial"]``, or one slice.
    image
        Full-resolution image: path, array, :class:`~st_gchb.io.SlideImage`, or a dict of these by slice. Without it the
        path in ``uns["spatial"][slice]["metadata"]["source_image_path"]`` is taken, else the finest image in ``uns``.
    image_key
        Key in ``uns["spatial"][slice]["images"]``, such as ``"hires"``, to be taken instead.
    um_per_px
        Size of a pixel of the full-resolution image, µm, or a dict of these by slice.

    Returns
    -------
    list of Slice
        In order of appearance of their first spots.

    Raises
    ------
    CoordinateError
        Positions are absent, not finite, or do not lie on the image.
    InputError
        It is no AnnData, or what it says of its slices cannot be read.
    SliceError
        It has no spots, or slices cannot be told apart.
    ImageError, MissingFileError, MissingKeyError
        A slice has no usable image.
    ScaleError
        ``um_per_px`` is no positive number.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from st_gchb.pp import slices_of
    >>> adata = AnnData(obsm={"spatial": np.array([[10.0, 20.0]])})
    >>> slices_of(adata, image=np.zeros((40, 50, 3), dtype=np.uint8), um_per_px=0.5)[0].um_per_px
    0.5
    """
    check_object(adata)
    return split_slices(adata, slice_key, image, image_key, um_per_px)


def split_slices(
    adata: AnnData,
    slice_key: str | None,
    image: Any,
    image_key: str | None,
    um_per_px: float | Mapping[str, float] | None,
) -> list[Slice]:
    """Do what :func:`slices_of` does, for an object that was checked."""
    centers = spot_centers(adata)
    images = image if isinstance(image, Mapping) else None
    sections = sections_of(adata, slice_key, images or ())
    check_lone_slice(adata, sections, centers)
    if image is not None and images is None and len(sections.rows) > 1:
        raise SliceError(
            f"image= is one image, and there are {len(sections.rows)} slices: {list(sections.rows)}. Pass a dict, "
            f"image={{{next(iter(sections.rows))!r}: ..., ...}}."
        )
    sources = sections.given(image, "image=")
    sizes = sections.given(um_per_px, "um_per_px=")
    slices = []
    for name, rows in sections.rows.items():
        library = sections.libraries[name]
        source, scale = find_image(library, name, sources[name], image_key)
        size = scale_argument(sizes[name], name)
        one = _make_slice(name, rows, centers[rows], source, scale, library, size)
        slices.append(one if sources[name] is not None else replace(one, stored_image=source))
    return slices


def _make_slice(
    name: str,
    rows: npt.NDArray[np.int64],
    centers: npt.NDArray[np.float64],
    source: Any,
    scale: float,
    library: Library,
    um_per_px: float | None,
) -> Slice:
    image = open_image(source, name=f"image of slice {name!r}")
    diameter = library.factor(Keys.SPOT_DIAMETER)
    factors = {key: library.factor(key) for key in ("tissue_hires_scalef", "tissue_lowres_scalef")}
    factors[Keys.SPOT_DIAMETER] = None if diameter is None else diameter * scale
    # What the spots themselves say of the size cannot tell whether they lie right.
    said = known_size(um_per_px, library, image, scale)
    check_fit(centers * scale, image.shape_px, f"slice {name!r} ({image.name})", factors, said, scale)
    full = um_per_full_px(um_per_px, library, image, scale, centers, name)
    return Slice(name, rows, centers * scale, image, None if full is None else full / scale, scale)


def side_px(slide: Slice, patch_um: float, patch_px: float | None) -> float:
    """Side of a patch in px of the slice's image; ScaleError where the size of a pixel is needed and not known."""
    if patch_px is not None:
        return float(patch_px) * slide.scale
    if slide.um_per_px is None:
        raise ScaleError(
            f"slice {slide.name!r}: the size of a pixel is not known ({slide.image.name}). Set "
            f"uns['spatial'][{slide.name!r}]['scalefactors'][{Keys.UM_PER_PX!r}]. "
            + advise(
                Fix("um_per_px", why="with the µm per px of the full-resolution image"),
                Fix("patch_px", why="with the side of a patch in px"),
            )
        )
    side = float(patch_um) / slide.um_per_px
    if side > _WIDEST_PX:
        raise ScaleError(
            f"slice {slide.name!r}: a patch of {patch_um:g} µm would be {side:.3g} px wide at {slide.um_per_px:.3g} µm "
            f"per px; expected at most {_WIDEST_PX:,} px. "
            + advise(Fix("um_per_px", why="with the size of a pixel"), Fix("patch_um", why="with a smaller patch"))
        )
    return side
