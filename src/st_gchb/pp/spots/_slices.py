"""Slices with their images: the spots of each slice, their positions on its image and the size of a pixel."""

from __future__ import annotations

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
from st_gchb.io import (
    Library,
    PlacedSections,
    Size,
    SlideImage,
    caller_size,
    check_object,
    factor_size,
    is_image_path,
    open_image,
    placed_sections,
    positive,
    settle,
    spot_sizes,
)
from st_gchb.pp.spots._coordinates import check_fit

_IMAGE_KEYS = ("fullres", "hires", "lowres")


_BEFORE = "Make the features first: st_gchb.pp.embed_patches(adata, image=...) takes its path."
_SCALES = (1e-6, 1e3)
"""Plausible range of the size of a stored image relative to the image in whose px the positions are."""
_SIZE = Fix("um_per_px", why="if that is wrong")


def find_image(library: Library, name: str, given: Any, image_key: str | None) -> tuple[Any, float]:
    """Find the image of a slice.

    Parameters
    ----------
    library
        Entry of the slice in ``uns["spatial"]``.
    name
        Name of the slice, for messages.
    given
        Image that the caller passed, which takes precedence; None for the stored one.
    image_key
        Key among the stored images; None for the full-resolution image, or the finest one.

    Returns
    -------
    image
        Path, array or image object.
    scale
        Size of that image relative to the full-resolution image.

    Raises
    ------
    ImageError, MissingFileError, MissingKeyError
        There is no usable image.
    ScaleError
        The size of the image relative to the positions is implausible.
    """
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
        if not is_image_path(path):
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
    """List the keys of usable stored images, finest first: the usual keys, then others with a known scale factor."""
    usual = [key for key in _IMAGE_KEYS if key in library.images]
    # HEST stores its only image under the key "downscaled_fullres".
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
    """Validate the pixel size that the caller gave for a slice, µm."""
    return None if um_per_px is None else positive(um_per_px, f"um_per_px of slice {name!r}")


def known_size(given: float | None, library: Library, image: SlideImage, scale: float) -> float | None:
    """Look up the size of a px of the full-resolution image, µm: from the caller, scale factors or image file."""
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
    """Determine the size of a px of the full-resolution image, µm, from the most reliable source.

    Sources are, in this order: the caller, the scale factors, the image file, and the spots' diameter and distance.
    Sources that disagree are reported with a warning.

    Parameters
    ----------
    given
        Size that the caller gave, µm.
    library
        Entry of the slice in ``uns["spatial"]``.
    image
        Image of the slice.
    scale
        Size of ``image`` relative to the full-resolution image.
    centers
        Positions of the spots in full-resolution px, ``(n_spots, 2)``.
    name
        Name of the slice, for messages.

    Returns
    -------
    float or None
        Size of a px, µm; None if no source states it.
    """
    where = f"{library.where}['scalefactors']"
    in_file = None if image.um_per_px is None else Size(image.um_per_px * scale, f"image file {image.name}")
    spots = spot_sizes(library.factors, centers, where)
    sizes = [caller_size(given), factor_size(library.factors, where), in_file, *spots]
    best = next((size for size in sizes if size is not None), None)
    if best is not None and best in spots:
        logger.info("slice %r: %.4g µm per px: %s. %s", name, best.um_per_px, best.source, advise(_SIZE))
    return settle(sizes, f"slice {name!r}")


_WIDEST_PX = 100_000
"""Largest side of a patch, px; the same bound as that of ``patch_px``."""


@dataclass(frozen=True, eq=False)
class Slice:
    """The spots of one slice and its image.

    Parameters
    ----------
    name
        Name of the slice.
    rows
        Row numbers of its spots in the object, ``(n,)``.
    centers_px
        Positions of the spots, ``(n, 2)``, as x, y in px of the image's finest level.
    image
        Image of the slice.
    um_per_px
        Size of a pixel of that level, µm; None if unknown.
    scale
        Size of that level relative to the image in whose px ``obsm["spatial"]`` is (1 for that image itself).
    stored_image
        Image as stored in ``uns["spatial"]``, path or array; None if the caller gave another.
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
    """Split an object into slices with their images, and validate that the spots lie on them.

    Parameters
    ----------
    adata
        Object with ``obsm["spatial"]`` in full-resolution px.
    slice_key
        Column of ``obs`` that identifies the slices. By default the column ``"slice"``, otherwise the only column that
        names the entries of ``uns["spatial"]``. Without either, all spots belong to one slice.
    image
        Full-resolution image: path, array, :class:`~st_gchb.io.SlideImage`, or a dict of these by slice. By default the
        file at ``uns["spatial"][slice]["metadata"]["source_image_path"]``, otherwise the finest image in ``uns``.
    image_key
        Key in ``uns["spatial"][slice]["images"]``, such as ``"hires"``, of the image to use instead.
    um_per_px
        Size of a pixel of the full-resolution image, µm, or a dict of these by slice.

    Returns
    -------
    list of Slice
        The slices, in the order in which their first spots appear.

    Raises
    ------
    CoordinateError
        Positions are absent, not finite, or not on the image.
    InputError
        The object is not an AnnData, or its slices cannot be read.
    SliceError
        The object has no spots, or the slices cannot be identified.
    ImageError, MissingFileError, MissingKeyError
        A slice has no usable image.
    ScaleError
        ``um_per_px`` is not a positive number.

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
    sections = placed_sections(adata, slice_key, named_by(image))
    return open_slices(sections, image, image_key, um_per_px)


def named_by(image: Any) -> list[object]:
    """List the names of slices that an ``image=`` argument knows: the keys of a dict, none otherwise."""
    return list(image) if isinstance(image, Mapping) else []


def open_slices(
    sections: PlacedSections,
    image: Any,
    image_key: str | None,
    um_per_px: float | Mapping[str, float] | None,
) -> list[Slice]:
    """Open the images of slices, and validate that the spots lie on them.

    Parameters
    ----------
    sections
        The slices.
    image, image_key, um_per_px
        As for :func:`slices_of`, which also lists the errors.

    Returns
    -------
    list of Slice
        The slices with their images, in the same order.
    """
    if image is not None and not isinstance(image, Mapping) and len(sections.rows) > 1:
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
        one = _make_slice(name, rows, sections.centers[rows], source, scale, library, size)
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
    # A pixel size that is derived from the spots cannot be used to validate their positions.
    said = known_size(um_per_px, library, image, scale)
    check_fit(centers * scale, image.shape_px, f"slice {name!r} ({image.name})", factors, said, scale)
    full = um_per_full_px(um_per_px, library, image, scale, centers, name)
    return Slice(name, rows, centers * scale, image, None if full is None else full / scale, scale)


def side_px(slide: Slice, patch_um: float, patch_px: float | None) -> float:
    """Convert the side of a patch to px of the slice's image.

    Parameters
    ----------
    slide
        Slice with its image.
    patch_um
        Side of a patch, µm.
    patch_px
        Side of a patch in px of the full-resolution image, which takes precedence.

    Returns
    -------
    float
        Side of a patch, px of the image's finest level.

    Raises
    ------
    ScaleError
        The size of a pixel is needed and unknown, or the patch is larger than the slide.
    """
    if patch_px is not None:
        return _within_slide(slide, float(patch_px) * slide.scale, f"{patch_px:g} px", "patch_px")
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
    return _within_slide(slide, side, f"{patch_um:g} µm", "patch_um")


def _within_slide(slide: Slice, side: float, size: str, argument: str) -> float:
    """Validate that a patch is no larger than the slide: beyond its border there would be reflections alone."""
    height, width = slide.image.shape_px
    if round(side) > min(height, width):
        raise ScaleError(
            f"slice {slide.name!r}: a patch of {size} is {side:.6g} px wide, and the slide ({slide.image.name}) has "
            f"{width} x {height} px; expected a patch no larger than the slide. "
            + advise(Fix(argument, why="with a smaller patch"), Fix("um_per_px", why="with the size of a pixel"))
        )
    return side
