"""Read a sample of HEST-1k from the folders of the release: expression, whole-slide image, metadata, patches."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, InputError, MissingFileError, MissingKeyError, ScaleError
from st_gchb._logging import logger
from st_gchb.io._library import libraries_of, put_libraries
from st_gchb.io._pixel_size import Size, one_number
from st_gchb.io._reading import reading
from st_gchb.io.images import SlideImage, open_image
from st_gchb.io.sections._annotated import read_annotated
from st_gchb.io.sections._companions import SIZE_TOLERANCE, anndata_files, size_said
from st_gchb.io.sections._hest_patches import HestPatches, open_hest_patches
from st_gchb.io.sections._legacy_folder import is_image
from st_gchb.io.sections._losses import Loss, tell_losses

if TYPE_CHECKING:
    from anndata import AnnData

_TABLES, _SLIDES, _METADATA, _PATCHES = "st", "wsis", "metadata", "patches"
HAS_PATCH = "has_patch"
"""Column of ``obs``: whether the release has a patch of the spot, which it has of spots on at least 15 % tissue."""
_OBS = {"species": "organism", "organ": "tissue", "patient": Keys.PATIENT, "st_technology": "technology"}
"""Columns of ``obs`` by the field of the metadata that fills them."""
_SIZE_FIELD = "pixel_size_um_estimated"
_SIDES = (("fullres_height", "fullres_px_height"), ("fullres_px_width", "fullres_width"))
"""Fields with height and width of the image, in the release's metadata and in those that its library writes."""
_UNKNOWN = ("", "nan", "none", "na", "n/a", "unknown")
_ROUNDING_PX = 2.0


@dataclass(frozen=True)
class HestSample:
    """Files of one sample in a folder of the release.

    Parameters
    ----------
    root
        Folder that holds ``st/``, ``wsis/``, ``metadata/`` and ``patches/``.
    name
        Id, such as ``"TENX95"``.
    """

    root: Path
    name: str

    @property
    def table(self) -> Path:
        """The AnnData file with expression and positions."""
        return self.root / _TABLES / f"{self.name}.h5ad"

    @property
    def metadata(self) -> Path:
        """The JSON file with organ, patient, size of a pixel and more."""
        return self.root / _METADATA / f"{self.name}.json"

    @property
    def patches(self) -> Path:
        """The HDF5 file with the patches."""
        return self.root / _PATCHES / f"{self.name}.h5"

    @property
    def advice(self) -> str:
        """Remedy for a missing or wrong file."""
        return (
            f"Fetch all files of the sample: the pattern '*{self.name}[_.]**' of the data set MahmoodLab/hest takes "
            "them, and no other sample's."
        )

    def slide(self) -> Path | None:
        """Find the whole-slide image; None if it is missing.

        Raises
        ------
        InputError
            There are several.
        """
        folder = self.root / _SLIDES
        names = folder.iterdir() if folder.is_dir() else ()
        found = sorted(file for file in names if file.stem == self.name and file.is_file() and is_image(file))
        if len(found) > 1:
            raise InputError(
                f"{folder}: found {len(found)} images of sample {self.name!r}, {[file.name for file in found]}. Pass "
                "image= with one of them."
            )
        return found[0] if found else None


def find_release(path: Path) -> Path | None:
    """Return the folder of HEST-1k that a folder is, or whose ``st/`` it is; None for other folders.

    It has two of the folders ``st/``, ``wsis/`` and ``metadata/``, and no AnnData files elsewhere.
    """
    whole = Path(os.path.abspath(path))
    root = whole.parent if whole.name == _TABLES else path
    parts = sum((root / name).is_dir() for name in (_TABLES, _SLIDES, _METADATA))
    own = {file.parent.name for file in anndata_files(root)}
    return root if parts > 1 and own <= {_TABLES} else None


def sample_at(path: Path) -> HestSample | None:
    """Return the sample whose AnnData file is at a path; None if the file is not in a folder of HEST-1k."""
    folder = Path(os.path.abspath(path.parent))
    root = find_release(folder) if folder.name == _TABLES else None
    return None if root is None else HestSample(root, path.stem)


def samples_of(path: Path) -> list[str]:
    """List the ids of the samples of a release."""
    return sorted(file.stem for file in (path / _TABLES).glob("*.h5ad"))


def file_of_sample(path: Path, name: str) -> Path | None:
    """Return the AnnData file of a sample of a release; None if the folder is no release."""
    return None if find_release(path) is None else HestSample(path, name).table


def choose_sample(path: Path, name: str | None) -> HestSample:
    """Choose a sample of the release by its id.

    Parameters
    ----------
    path
        Folder of the release.
    name
        Id of the sample; may be left out if there is a single one.

    Raises
    ------
    InputError
        There are several samples, and ``name`` is not given.
    MissingFileError
        There is no sample, or none of that name.
    """
    stems = samples_of(path)
    shown = f"{stems[:8]}{f' and {len(stems) - 8} more' if len(stems) > 8 else ''}"
    if name is None:
        if len(stems) > 1:
            raise InputError(f"{path}: found {len(stems)} HEST samples, {shown}. Pass name= with one of them.")
        if not stems:
            raise MissingFileError(
                f"{path / _TABLES}: the folder of HEST-1k holds no expression, a file st/<sample>.h5ad. Fetch all "
                "files of a sample, with its id, such as the pattern '*TENX95[_.]**' of the data set MahmoodLab/hest."
            )
        return HestSample(path, stems[0])
    if name not in stems:
        raise MissingFileError(
            f"{path / _TABLES / name}.h5ad: there is no HEST sample {name!r}; found {shown}. "
            f"{HestSample(path, name).advice}"
        )
    return HestSample(path, name)


def read_hest(
    sample: HestSample,
    name: str | None,
    image: Path | None,
    um_per_px: float | None,
    *,
    genome: str | None = None,
    allow_missing: bool = False,
    counts: bool = True,
) -> AnnData:
    """Read a sample of HEST-1k, and validate that its files belong together.

    Parameters
    ----------
    sample
        The files.
    name
        New name of the slice; by default the sample's id.
    image, um_per_px, genome
        See :func:`~st_gchb.io.read_section`.
    allow_missing
        Also read a sample without its whole-slide image, and any share of spots beyond the image.
    counts
        Whether to read ``X``.

    Returns
    -------
    AnnData
        Counts in ``X``; positions in full-resolution px; ``obs`` with the columns ``slice``, ``has_patch`` if there
        are patches, and ``organism``, ``tissue``, ``patient`` and ``technology`` as far as they are known; all known
        metadata in ``uns["spatial"][name]["metadata"]``.

    Raises
    ------
    MissingFileError, MissingKeyError
        The image or the metadata are missing, or the metadata lack the size of a pixel.
    ScaleError
        Two files state different sizes of a pixel.
    CoordinateError
        Spots do not lie on the image, or not on their patches.
    InputError
        Files are damaged, or of different samples.
    """
    label = name or sample.name
    metadata = _read_metadata(sample, needed=um_per_px is None)
    slide = _open_slide(sample, image, allow_missing)
    patches = open_hest_patches(sample.patches) if sample.patches.exists() else None
    if slide is not None:
        _check_sides(sample, slide, metadata)
    _check_sizes(sample, slide, patches, metadata, um_per_px)
    path = None if slide is None else Path(slide.name)
    adata = read_annotated(sample.table, label, path, um_per_px, genome=genome, counts=counts)
    if Keys.SPATIAL not in adata.obsm:
        raise MissingKeyError(
            f"{sample.table}: has no positions, obsm['spatial']; found {list(adata.obsm)}. {sample.advice}"
        )
    if not adata.obs_names.is_unique:
        raise InputError(f"{sample.table}: spots are named more than once in obs_names. Fetch the file again.")
    if slide is not None:
        _check_downscaled(sample, slide, adata, label)
        adata = _on_slide(sample, slide, adata, allow_missing)
    if patches is not None:
        _note_patches(sample, patches, adata)
    _note_metadata(adata, label, metadata)
    return adata


def _read_metadata(sample: HestSample, *, needed: bool) -> dict[str, Any]:
    """Read the metadata; empty if there are none and the caller gave the size of a pixel."""
    path = sample.metadata
    if not path.is_file():
        if not needed:
            logger.warning("%s is missing: organism, tissue and patient are not known.", path)
            return {}
        raise MissingFileError(
            f"{path}: the metadata of HEST sample {sample.name!r} are missing, which state the size of a pixel. "
            f"{sample.advice} Or pass um_per_px= with it."
        )
    with reading(path, "the sample's metadata", "Expected JSON, as HEST writes it: fetch it again, or remove it."):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: the sample's metadata are a {type(content).__name__}; expected a JSON object. Fetch them again."
        )
    stated = content.get("id")
    if stated is not None and str(stated) != sample.name:
        raise InputError(
            f"{path}: the metadata are of sample {str(stated)!r}; expected {sample.name!r}. {sample.advice}"
        )
    if needed and size_said(content, path.name) is None:
        raise MissingKeyError(
            f"{path}: {_SIZE_FIELD} is {content.get(_SIZE_FIELD)!r}; expected the size of a pixel, µm. Pass um_per_px= "
            "with it, or fetch the metadata again."
        )
    return content


def _open_slide(sample: HestSample, image: Path | None, allow_missing: bool) -> SlideImage | None:
    path = image or sample.slide()
    if path is not None:
        return open_image(path)
    if allow_missing:
        logger.warning(
            "%s: there is no image of sample %r: patches come from the down-scaled one in %s.",
            sample.root / _SLIDES,
            sample.name,
            sample.table.name,
        )
        return None
    raise MissingFileError(
        f"{sample.root / _SLIDES / sample.name}.tif: the whole-slide image of HEST sample {sample.name!r} is missing. "
        f"{sample.advice} Or pass image= with its path, or allow_missing=True for the down-scaled image in "
        f"{sample.table.name}, which is coarser."
    )


def _check_sides(sample: HestSample, slide: SlideImage, metadata: Mapping[str, Any]) -> None:
    """Validate that the image has the height and width that the metadata state."""
    for side, what, fields in zip(slide.shape_px, ("high", "wide"), _SIDES, strict=True):
        field = next((name for name in fields if _positive(metadata.get(name)) is not None), None)
        stated = None if field is None else _positive(metadata[field])
        if stated is not None and abs(stated - side) > SIZE_TOLERANCE * stated + 1:
            raise InputError(
                f"{slide.name}: the image is {side} px {what}; expected {stated:g}, {field} of {sample.metadata}. Are "
                f"both of sample {sample.name!r}? {sample.advice}"
            )


def _check_sizes(
    sample: HestSample,
    slide: SlideImage | None,
    patches: HestPatches | None,
    metadata: Mapping[str, Any],
    um_per_px: float | None,
) -> None:
    """Validate that image and patches have the size of a pixel that the metadata state."""
    stated = size_said(metadata, str(sample.metadata))
    # The caller's own size takes precedence over all files.
    if stated is None or um_per_px is not None:
        return
    others = []
    if slide is not None and slide.um_per_px is not None:
        others.append(Size(slide.um_per_px, f"the resolution of {slide.name}"))
    if patches is not None and patches.um_per_px is not None:
        others.append(Size(patches.um_per_px, f"pixel_size of {patches.path}"))
    for other in others:
        if not other.agrees_with(stated):
            raise ScaleError(
                f"HEST sample {sample.name!r}: two sizes of a pixel: {stated.um_per_px:.4g} µm ({stated.source}) and "
                f"{other.um_per_px:.4g} µm ({other.source}). Pass um_per_px= with the right one, or fetch both files "
                "again."
            )


def _check_downscaled(sample: HestSample, slide: SlideImage, adata: AnnData, label: str) -> None:
    """Validate that the image has the size that the down-scaled image in the AnnData implies."""
    library = libraries_of(adata)[label]
    for key, pixels in library.images.items():
        scale = library.factor(f"tissue_{key}_scalef")
        if scale is None or np.ndim(pixels) != 3:
            continue
        expected = np.array(np.shape(pixels)[:2]) / scale
        # The sides of the down-scaled image are rounded to whole px.
        if (np.abs(expected - slide.shape_px) > SIZE_TOLERANCE * expected + 1 / scale).any():
            raise InputError(
                f"{slide.name}: the image has {slide.shape_px} px (h, w); expected about "
                f"{tuple(expected.round().astype(int).tolist())}, as the down-scaled image in {sample.table} says. Are "
                f"both of sample {sample.name!r}? {sample.advice}"
            )


def _on_slide(sample: HestSample, slide: SlideImage, adata: AnnData, allow_missing: bool) -> AnnData:
    """Drop spots whose center is not on the image."""
    centers = np.asarray(adata.obsm[Keys.SPATIAL], dtype=np.float64)[:, :2]
    inside = ((centers >= 0) & (centers <= np.array(slide.shape_px[::-1]))).all(axis=1)
    what = f"spots of {sample.table} are not on the image {slide.name}, {slide.shape_px} px (h, w)"
    lost = Loss(list(adata.obs_names[~inside]), adata.n_obs, what)
    tell_losses(f"HEST sample {sample.name!r}", [lost], allow_missing=allow_missing)
    if not inside.any():
        raise CoordinateError(f"HEST sample {sample.name!r}: {lost.told()}. {sample.advice}")
    return adata if inside.all() else adata[inside].copy()


def _note_patches(sample: HestSample, patches: HestPatches, adata: AnnData) -> None:
    """Store in ``obs`` which spots have a patch, after validating that the patches are those of the spots."""
    rows = adata.obs_names.get_indexer(pd.Index(patches.barcodes.astype(str)))
    known = rows >= 0
    if len(rows) and not known.any():
        raise InputError(
            f"{patches.path}: no barcode of the {len(rows)} patches, such as {str(patches.barcodes[0])!r}, is a spot "
            f"of {sample.table}, such as {adata.obs_names[0]!r}. {sample.advice}"
        )
    centers = patches.centers()
    if centers is not None and known.any():
        places = np.asarray(adata.obsm[Keys.SPATIAL], dtype=np.float64)[rows[known], :2]
        apart = np.abs(centers[known] - places).max(axis=1)
        side = float(patches.source_side_px or 0)
        if np.median(apart) > SIZE_TOLERANCE * side + _ROUNDING_PX:
            raise CoordinateError(
                f"{patches.path}: patches of {side:g} px lie {np.median(apart):.4g} px (median) from the spots of "
                f"{sample.table} that have their barcodes. Are both of one version of the release? {sample.advice}"
            )
    adata.obs[HAS_PATCH] = np.isin(np.arange(adata.n_obs), rows[known])


def _note_metadata(adata: AnnData, label: str, metadata: Mapping[str, Any]) -> None:
    """Store the metadata: what is known of organism, tissue and patient in ``obs``, all of it in ``uns["spatial"]``."""
    known = {str(key): value for key, value in metadata.items() if _is_known(value)}
    for field, column in _OBS.items():
        if field in known:
            adata.obs[column] = pd.Categorical([str(known[field])] * adata.n_obs)
    library = libraries_of(adata)[label]
    put_libraries(adata, [replace(library, metadata={**known, **library.metadata})])


def _is_known(value: Any) -> bool:
    """Check if a value of the metadata says anything and can be stored in an AnnData file."""
    if isinstance(value, bool | int):
        return True
    if isinstance(value, float):
        return bool(np.isfinite(value))
    return isinstance(value, str) and value.strip().lower() not in _UNKNOWN


def _positive(value: Any) -> float | None:
    number = one_number(value)
    return number if number is not None and np.isfinite(number) and number > 0 else None
