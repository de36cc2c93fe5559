"""Which spots belong to which slice, and where they lie on its image."""

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
from st_gchb._errors import ScaleError, SliceError
from st_gchb.io import SlideImage, open_image
from st_gchb.io._libraries import Library
from st_gchb.pp._coordinates import check_fit
from st_gchb.pp._positions import spot_centers
from st_gchb.pp._sections import check_lone_slice, check_object, sections_of
from st_gchb.pp._sources import find_image, known_size, scale_argument, um_per_full_px

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
