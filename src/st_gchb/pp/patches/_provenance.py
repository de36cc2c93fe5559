"""Where features were made: positions, sizes of pixels and images of each spot, kept beside the features.

They lie in ``obsm``, one row for each spot, so that they go with the features through every subset, reordering and
``anndata.concat``, whatever becomes of ``uns``.
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
from st_gchb.io import TOLERANCE, Library, Size, caller_size, factor_size, positive, settle
from st_gchb.pp.patches._feature_spec import FeatureSpec
from st_gchb.pp.spots import Sections, Slice, spot_centers

_SAME_PX = 0.5
"""Positions that differ by less have the same patch."""
_COLUMNS = 5
_HASHED_BYTES = 2**16
_LARGEST = 2**24
"""Bytes of a picture that are hashed: of a larger one, every so many rows."""
_WHOLE = 2**53
"""Whole numbers below this are exact as float64."""


def made_key(key: str) -> str:
    """Key in ``obsm`` of where the features ``obsm[key]`` were made.

    Columns: x and y of the spot in full-resolution px, size of such a px in µm (NaN where it was not known), a hash of
    the rule, and a hash of the slice's image as ``uns["spatial"]`` held it (0 where it came from elsewhere).
    """
    return f"{key}_made"


def made_at(slices: list[Slice], rule: FeatureSpec) -> npt.NDArray[np.float64]:
    """Where features are being made, ``(n_spots, 5)``; see :func:`made_key`."""
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
    """Validate that features still belong to the positions and images that an object holds.

    Parameters
    ----------
    adata
        Object with ``obsm[key]``.
    key
        Key of the features.
    sections
        Its slices.
    remedy
        What the caller should do, one sentence.
    um_per_px
        Sizes of pixels that the caller gives now.

    Raises
    ------
    StaleError
        Positions, image or size of a pixel are others than those that the features were made at, or parts of the
        features were made by other rules.
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
    # Rows without features were left out, and belong to no place.
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
    """Size of a full-resolution px of a slice, µm, with which its features were made; None where it was not known.

    Raises
    ------
    StaleError
        There were several.
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
    """Size of a full-resolution px of each slice, µm; None where it is not known.

    By the best source: what the caller says, the size with which the features were made, or the scale factors. Sources
    that disagree are told.

    Parameters
    ----------
    adata
        The object.
    sections
        Its slices.
    given
        ``um_per_px=`` of the caller.
    features_key
        Key of the features, where there are any.

    Raises
    ------
    ScaleError
        A size is no positive number.
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
    """Keys in ``obsm`` that belong to the features ``obsm[key]``: they themselves, and where they were made."""
    return [name for name in (key, made_key(key)) if name in adata.obsm]


def _listed_sizes(stored: Any) -> dict[str, float]:
    """Sizes by slice as ``uns`` of the features lists them, in files of earlier versions too."""
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
    """Entries of a list in whichever form a file holds it; a single value is one entry."""
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
    """Raise where none of the images that are stored of a slice is that of its features."""
    then = {int(one) for one in np.unique(made[np.isfinite(made[:, 4]), 4]) if one}
    now = _image_ids(library)
    if then and now and not then & now:
        raise StaleError(
            f"obsm[{key!r}] was made of another image of slice {name!r} than {library.where} holds now. {remedy}"
        )


def _image_ids(library: Library) -> set[int]:
    """Hashes of the images that are stored of a slice; empty where they cannot all be read."""
    path = library.image_path
    # Not by pathlib, which raises for a name that is too long.
    if path is not None and not os.path.isfile(path):
        return set()
    return {_source_id(source) for source in (path, *library.images.values())} - {0}


def _source_id(source: Any) -> int:
    """Hash of a file or array that is stored as an image; 0 for what has none."""
    if isinstance(source, Path) and os.path.isfile(source):
        return _file_id(source)
    is_picture = isinstance(source, np.ndarray) and source.ndim in (2, 3) and source.dtype.kind in "uif"
    return _array_id(source) if is_picture else 0


def _file_id(path: Path) -> int:
    """Hash of a file's size, start and end: a slide is too large to be read for this."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(_HASHED_BYTES)
        file.seek(max(size - _HASHED_BYTES, 0))
        return _number(repr(size).encode(), start, file.read(_HASHED_BYTES))


def _array_id(image: npt.NDArray[Any]) -> int:
    some = image[:: max(1, image.nbytes // _LARGEST)]
    return _number(repr((image.shape, image.dtype.str)).encode(), np.ascontiguousarray(some).tobytes())


def _rule_id(rule: FeatureSpec) -> int:
    # Where the weights lie, further versions and maps change nothing of the features.
    kept = {k: v for k, v in rule.to_dict().items() if k not in ("weights", "stain_augment", "feature_maps")}
    # Under the word by which it was hashed in the objects that users have.
    kept["views"] = kept.pop("n_views")
    return _number(json.dumps(kept, sort_keys=True).encode())


def _number(*parts: bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return 1 + int.from_bytes(digest.digest(), "little") % (_WHOLE - 1)
