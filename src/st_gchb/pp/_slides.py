"""Which spots belong to which slice, and where they lie on its image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from st_gchb._constants import Keys
from st_gchb._errors import ScaleError, SliceError
from st_gchb._logging import logger
from st_gchb.io import SlideImage, open_image
from st_gchb.pp._coordinates import check_fit, check_not_negative, spot_centers
from st_gchb.pp._sources import find_image, library_of, scale_argument, um_per_full_px


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
    """

    name: str
    rows: npt.NDArray[np.int64]
    centers_px: npt.NDArray[np.float64]
    image: SlideImage
    um_per_px: float | None = None
    scale: float = 1.0


def slices_of(
    adata: AnnData,
    slice_key: str | None = None,
    image: Any = None,
    image_key: str | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
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
        Positions are absent, not finite, negative, or do not lie on the image.
    SliceError
        Slices cannot be told apart.
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
    centers = spot_centers(adata)
    check_not_negative(centers, adata.obs_names)
    return split_slices(adata, centers, slice_key, image, image_key, um_per_px)


def split_slices(
    adata: AnnData,
    centers: npt.NDArray[np.float64],
    slice_key: str | None,
    image: Any,
    image_key: str | None,
    um_per_px: float | Mapping[str, float] | None,
) -> list[Slice]:
    """Do what :func:`slices_of` does, for centres that were checked."""
    if adata.n_obs == 0:
        raise SliceError("the object has no spots (shape (0, ...)); expected one row per spot.")
    images = image if isinstance(image, Mapping) else None
    names = slice_names(adata, slice_key, images)
    rows_of = {str(name): np.flatnonzero(names == name) for name in pd.unique(names)}
    if image is not None and images is None and len(rows_of) > 1:
        raise SliceError(
            f"image= is one image, and there are {len(rows_of)} slices: {list(rows_of)}. Pass a dict, "
            f"image={{{next(iter(rows_of))!r}: ..., ...}}."
        )
    slices = []
    for name, rows in rows_of.items():
        library = library_of(adata, name, len(rows_of))
        source, scale = find_image(library, name, images.get(name) if images is not None else image, image_key)
        slices.append(_make_slice(name, rows, centers[rows], source, scale, library, scale_argument(um_per_px, name)))
    return slices


def _make_slice(
    name: str,
    rows: npt.NDArray[np.int64],
    centers: npt.NDArray[np.float64],
    source: Any,
    scale: float,
    library: Mapping[str, Any],
    um_per_px: float | None,
) -> Slice:
    image = open_image(source, name=f"image of slice {name!r}")
    factors = dict(library.get(Keys.SCALEFACTORS) or {})
    in_image_px = {**factors, Keys.SPOT_DIAMETER: float(factors.get(Keys.SPOT_DIAMETER, 0)) * scale or None}
    check_fit(centers * scale, image.shape_px, f"slice {name!r} ({image.name})", in_image_px)
    full = um_per_full_px(um_per_px, factors, image, scale, centers, name)
    return Slice(name, rows, centers * scale, image, None if full is None else full / scale, scale)


def slice_names(adata: AnnData, slice_key: str | None, images: Mapping[str, Any] | None = None) -> npt.NDArray:
    """Name of the slice of every spot.

    Parameters
    ----------
    adata
        The object.
    slice_key
        Column of ``obs``, or None to find it.
    images
        Images by slice, whose names count beside those in ``uns["spatial"]``.

    Returns
    -------
    numpy.ndarray
        ``(n_spots,)`` strings.

    Raises
    ------
    SliceError
        The column is absent or has gaps, or there are several candidates.

    Examples
    --------
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> from st_gchb.pp._slides import slice_names
    >>> slice_names(AnnData(obs=pd.DataFrame({"slice": ["a", "b"]}, index=["1", "2"])), "slice").tolist()
    ['a', 'b']
    """
    libraries = [str(name) for name in (adata.uns.get(Keys.SPATIAL) or {})]
    known = set(libraries) | {str(name) for name in images or {}}
    key = slice_key if slice_key is not None else _find_slice_key(adata, known)
    if key is None:
        only = libraries or list(images or {}) or [Keys.SLICE]
        return np.full(adata.n_obs, str(only[0]), dtype=object)
    if key not in adata.obs:
        raise SliceError(f"slice_key={key!r} is no column of obs; expected one of {list(adata.obs.columns)}.")
    column = adata.obs[key]
    if column.isna().any():
        raise SliceError(
            f"obs[{key!r}] is empty for {int(column.isna().sum())} of {adata.n_obs} spots; expected the name of a "
            f"slice for each. Drop them: adata = adata[adata.obs[{key!r}].notna()].copy()."
        )
    return column.astype(str).to_numpy(dtype=object)


def _find_slice_key(adata: AnnData, known: set[str]) -> str | None:
    """Find the column that names the libraries; None where there is one slice."""
    if Keys.SLICE in adata.obs and (len(known) != 1 or adata.obs[Keys.SLICE].nunique() > 1):
        return Keys.SLICE
    if len(known) <= 1:
        return None
    columns = [name for name in adata.obs if known >= set(adata.obs[name].dropna().astype(str)) != set()]
    if len(columns) == 1:
        logger.info("Slices are told apart by obs[%r].", columns[0])
        return str(columns[0])
    raise SliceError(
        f"uns['spatial'] holds {len(known)} libraries, {sorted(known)}, and slice_key was not given. Pass slice_key=, "
        + (f"one of the obs columns that name them: {columns}." if columns else "a column of obs that names them.")
    )


def side_px(slide: Slice, patch_um: float, patch_px: float | None) -> float:
    """Side of a patch in px of the slice's image; ScaleError where the size of a pixel is needed and not known."""
    if patch_px is not None:
        return float(patch_px) * slide.scale
    if slide.um_per_px is None:
        raise ScaleError(
            f"slice {slide.name!r}: the size of a pixel is not known ({slide.image.name}). Pass um_per_px= (µm per px "
            f"of the full-resolution image), set uns['spatial'][{slide.name!r}]['scalefactors'][{Keys.UM_PER_PX!r}], "
            "or give the patch's size in px, patch_px=."
        )
    return float(patch_um) / slide.um_per_px
