"""Provenance of features: the position, pixel size, image and specification with which each spot was embedded.

It is stored in ``obsm``, one row per spot, so that it stays with the features through subsetting, reordering and
``anndata.concat``, even if ``uns`` is lost. Features that no longer belong to the positions or images of an object are
detected by it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from anndata import AnnData

from st_gchb._errors import StaleError
from st_gchb._logging import logger
from st_gchb.io import TOLERANCE, Library, Sections, Size, caller_size, factor_size, positive, settle, spot_centers
from st_gchb.pp.patches._feature_set import FeatureSet
from st_gchb.pp.patches._feature_spec import FeatureSpec
from st_gchb.pp.spots import Slice

_SAME_PX = 0.5
"""Largest difference of positions, px, that counts as unchanged: their patches are the same."""
_COLUMNS = 5
_HASHED_BYTES = 2**16
_LARGEST = 2**24
"""Bytes of an array up to which all rows are hashed; of larger ones, evenly spaced rows."""
_WHOLE = 2**53
"""Bound of hashes: integers below it are exact as float64."""


def made_key(key: str) -> str:
    """Return the key in ``obsm`` of the provenance of the features ``obsm[key]``.

    Its columns are x and y of the spot in full-resolution px, the size of such a px in µm (NaN if unknown), a hash of
    the specification, and a hash of the slice's image in ``uns["spatial"]`` (0 if the caller gave another image).
    """
    return f"{key}_made"


def was_on_image(adata: AnnData, key: str, centers: npt.NDArray[np.float64]) -> bool:
    """Return whether the features were made at these positions ``(n_spots, 2)``, which were on the image then."""
    made = _stored(adata, key)
    # A NaN, where a row has no provenance, is no small difference.
    return made is not None and bool((np.abs(centers - made[:, :2]) <= _SAME_PX).all())


def made_at(slices: list[Slice], rule: FeatureSet) -> npt.NDArray[np.float64]:
    """Build the provenance of features, ``(n_spots, 5)`` float64, with the columns of :func:`made_key`."""
    table = np.empty((sum(len(slide.rows) for slide in slices), _COLUMNS))
    for slide in slices:
        table[slide.rows, :2] = slide.centers_px / slide.scale
        table[slide.rows, 2] = np.nan if slide.um_per_px is None else slide.um_per_px * slide.scale
        table[slide.rows, 4] = _source_id(slide.stored_image)
    table[:, 3] = _rule_id(rule)
    return table


def check_made(
    adata: AnnData,
    key: str,
    sections: Sections,
    remedy: str,
    um_per_px: float | Mapping[str, float] | None = None,
) -> None:
    """Validate that features still belong to the positions and images of an object.

    Parameters
    ----------
    adata
        Object with features in ``obsm[key]``.
    key
        Key of the features.
    sections
        Slices of the object.
    remedy
        Advice for error messages, one sentence.
    um_per_px
        Pixel sizes that the caller gave, µm: one value, or a dict by slice.

    Raises
    ------
    StaleError
        Positions, image or pixel size differ from those with which the features were computed, or the features have
        several specifications.
    """
    made = _stored(adata, key)
    if made is None:
        if isinstance(adata.uns.get(key), Mapping) and "encoder" in adata.uns[key]:
            logger.info("obsm[%r] does not say at which positions it was made; they are taken to be unchanged.", key)
        return
    if key not in adata.uns:
        logger.warning(
            "obsm[%r] was made by st_gchb.pp.embed_patches, but uns[%r], which says how, is gone, as after "
            "anndata.concat without uns_merge='unique': a query's features cannot be made the same way.",
            key,
            key,
        )
    # Rows without provenance, such as after an outer join of objects, are NaN and cannot be compared.
    known = np.isfinite(made[:, :2]).all(axis=1)
    moved = known & (np.abs(spot_centers(adata) - made[:, :2]) > _SAME_PX).any(axis=1)
    if moved.any():
        first = int(np.flatnonzero(moved)[0])
        (x, y), (was_x, was_y) = spot_centers(adata)[first], made[first, :2]
        raise StaleError(
            f"obsm[{key!r}] was made at other positions: {moved.sum()} of {adata.n_obs} spots have moved since, first "
            f"{adata.obs_names[first]!r} from ({was_x:.6g}, {was_y:.6g}) to ({x:.6g}, {y:.6g}) px. "
            f"{remedy} If the features are right where they are, delete obsm[{made_key(key)!r}]."
        )
    if len(np.unique(made[known, 3])) > 1:
        raise StaleError(
            f"obsm[{key!r}] holds features that were made in {len(np.unique(made[known, 3]))} different ways (encoder, "
            f"weights, size of a patch or stain), as happens where objects are joined. {remedy}"
        )
    sizes = sections.given(um_per_px, "um_per_px=")
    in_um = isinstance(adata.uns.get(key), Mapping) and "patch_um" in adata.uns[key]
    for name, rows in sections.rows.items():
        _check_image(made[rows], sections.libraries[name], key, name, remedy)
        then, now = made_size(made[rows], key, name, remedy), sizes[name]
        if in_um and then is not None and now is not None and not 1 / TOLERANCE <= then / now <= TOLERANCE:
            raise StaleError(
                f"obsm[{key!r}] was made with {then:.4g} µm per px for slice {name!r}, and um_per_px= says {now:.4g}. "
                f"{remedy}"
            )


def made_size(made: npt.NDArray[np.float64], key: str, name: str, remedy: str) -> float | None:
    """Read the size of a full-resolution px, µm, with which the features of a slice were computed.

    Parameters
    ----------
    made
        Provenance of the slice's spots, ``(n, 5)``.
    key
        Key of the features, for messages.
    name
        Name of the slice, for messages.
    remedy
        Advice for error messages, one sentence.

    Returns
    -------
    float or None
        Size of a px, µm; None if it was unknown.

    Raises
    ------
    StaleError
        The spots have several sizes.
    """
    sizes = np.unique(made[np.isfinite(made[:, 2]), 2])
    if len(sizes) == 0:
        return None
    if sizes[-1] > TOLERANCE * sizes[0]:
        raise StaleError(
            f"obsm[{key!r}] of slice {name!r} was made with several sizes of a pixel, {sizes[0]:.4g} to "
            f"{sizes[-1]:.4g} µm: are these two slices? {remedy}"
        )
    return float(sizes[0])


def pixel_sizes(
    adata: AnnData,
    sections: Sections,
    given: float | Mapping[str, float] | None = None,
    features_key: str | None = None,
) -> dict[str, float | None]:
    """Determine the size of a full-resolution px of each slice, µm.

    Sources are, in this order: the caller, the provenance of the features, and the scale factors. Sources that disagree
    are reported with a warning.

    Parameters
    ----------
    adata
        Object with one or several slices.
    sections
        Slices of the object.
    given
        Value of the caller's ``um_per_px``: one value, or a dict by slice.
    features_key
        Key of the features; None if there are none.

    Returns
    -------
    dict
        Size of a px of each slice, µm; None if it is unknown.

    Raises
    ------
    ScaleError
        A size is not a positive number.
    StaleError
        The features of a slice have several sizes, or the list of sizes in ``uns`` is inconsistent.
    """
    made = None if features_key is None else _stored(adata, features_key)
    listed = {} if features_key is None else _listed_sizes(adata.uns.get(features_key))
    found: dict[str, float | None] = {}
    for name, value in sections.given(given, "um_per_px=").items():
        library = sections.libraries[name]
        sizes = [None if value is None else caller_size(positive(value, f"um_per_px of slice {name!r}"))]
        size = None
        if made is not None:
            size = made_size(made[sections.rows[name]], str(features_key), name, "Run st_gchb.pp.embed_patches again.")
        if size is None:
            lone = next(iter(listed.values())) if len(listed) == 1 == len(sections.rows) else None
            size = listed.get(name, lone)
        sizes.append(None if size is None else Size(size, f"features in obsm[{features_key!r}]"))
        sizes.append(factor_size(library.factors, f"{library.where}['scalefactors']"))
        found[name] = settle(sizes, f"slice {name!r}")
    return found


def feature_keys(adata: AnnData, key: str) -> list[str]:
    """List the keys in ``obsm`` of the features and of their provenance, as far as they exist."""
    return [name for name in (key, made_key(key)) if name in adata.obsm]


def _listed_sizes(stored: Any) -> dict[str, float]:
    """Read the pixel sizes by slice that ``uns`` lists; files of earlier versions have no other source."""
    if not isinstance(stored, Mapping) or "slices" not in stored or "um_per_px" not in stored:
        return {}
    names, sizes = (_listed(stored[part]) for part in ("slices", "um_per_px"))
    if len(names) != len(sizes):
        raise StaleError(
            f"the features' provenance lists {len(names)} slices and {len(sizes)} sizes of pixels; expected one for "
            "each. Run st_gchb.pp.embed_patches again."
        )
    return {
        str(name): positive(size, f"the size of a pixel of slice {str(name)!r} in the features' provenance")
        for name, size in zip(names, sizes, strict=True)
        if not (isinstance(size, float | np.floating) and np.isnan(size))
    }


def _listed(value: Any) -> list[Any]:
    """Convert a stored list, tuple, array or single value to a list of its entries."""
    several = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim)
    return list(value) if several else [value]


def _stored(adata: AnnData, key: str) -> npt.NDArray[np.float64] | None:
    if made_key(key) not in adata.obsm:
        return None
    made = np.asarray(adata.obsm[made_key(key)])
    if made.shape != (adata.n_obs, _COLUMNS) or made.dtype.kind != "f":
        raise StaleError(
            f"obsm[{made_key(key)!r}] has shape {made.shape} and type {made.dtype}; expected ({adata.n_obs}, "
            f"{_COLUMNS}) floats, where features were made. Run st_gchb.pp.embed_patches again, or delete it."
        )
    return np.asarray(made, dtype=np.float64)


def _check_image(made: npt.NDArray[np.float64], library: Library, key: str, name: str, remedy: str) -> None:
    """Raise if none of the stored images of a slice is the one from which its features were computed."""
    then = {int(one) for one in np.unique(made[np.isfinite(made[:, 4]), 4]) if one}
    now = _image_ids(library)
    if then and now and not then & now:
        raise StaleError(
            f"obsm[{key!r}] was made of another image of slice {name!r} than {library.where} holds now. {remedy}"
        )


def _image_ids(library: Library) -> set[int]:
    """Hash the stored images of a slice; return an empty set if the image file does not exist."""
    path = library.image_path
    # os.path instead of pathlib, which raises for names that are too long.
    if path is not None and not os.path.isfile(path):
        return set()
    return {_source_id(source) for source in (path, *library.images.values())} - {0}


def _source_id(source: Any) -> int:
    """Hash a file or an array that is stored as an image; return 0 for anything else."""
    if isinstance(source, Path) and os.path.isfile(source):
        return _file_id(source)
    is_image = isinstance(source, np.ndarray) and source.ndim in (2, 3) and source.dtype.kind in "uif"
    return _array_id(source) if is_image else 0


def _file_id(path: Path) -> int:
    """Hash the size, the start and the end of a file, because whole-slide images are too large to hash entirely."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(_HASHED_BYTES)
        file.seek(max(size - _HASHED_BYTES, 0))
        return _number(repr(size).encode(), start, file.read(_HASHED_BYTES))


def _array_id(image: npt.NDArray[Any]) -> int:
    some = image[:: max(1, image.nbytes // _LARGEST)]
    pixels = np.ascontiguousarray(some).reshape(-1).view(np.uint8)
    return _number(repr((image.shape, image.dtype.str)).encode(), pixels.data)


def _rule_id(rule: FeatureSet) -> int:
    kept = [_hashed(spec) for spec in rule.specs]
    # One part is hashed as before there were several, so that hashes in existing objects remain valid.
    return _number(json.dumps(kept[0] if len(kept) == 1 else kept, sort_keys=True).encode())


def _hashed(spec: FeatureSpec) -> dict[str, Any]:
    # The path of the weights and feature maps do not affect the features.
    kept = {k: v for k, v in spec.to_dict().items() if k not in ("weights", "feature_maps")}
    # Under its earlier name, for the same reason.
    kept["views"] = kept.pop("n_views")
    return kept


def _number(*parts: bytes | memoryview) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return 1 + int.from_bytes(digest.digest(), "little") % (_WHOLE - 1)
