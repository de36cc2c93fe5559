"""A section that somebody stored as AnnData: by this package, scanpy, squidpy, CELLxGENE, HEST, DeepSpot, or from R."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import logger
from st_gchb.io._companions import image_beside, size_beside, size_said
from st_gchb.io._genes import keep_genes
from st_gchb.io._open import open_image
from st_gchb.io._pixel_size import Size, one_number
from st_gchb.io._stores import as_record, load_anndata, with_size
from st_gchb.io._values import tell_values

if TYPE_CHECKING:
    from anndata import AnnData

_PLACES = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("pixel_x", "pixel_y"),
    ("imagecol", "imagerow"),
    ("y_pixel", "x_pixel"),
)
"""Columns of ``obs`` with x, y in full-resolution px: Space Ranger's, the spot detector's, Seurat's, and DeepSpot's,
which counts rows in ``x_pixel``."""
_PICTURE = re.compile(r"(?:tissue_)?(fullres|hires|lowres)(?:_image)?(?:\.\w+)?")
_HEST_PICTURE, _HEST_LIBRARY = "downscaled_fullres", "ST"
_SYMBOLS = "feature_name"


def read_annotated(
    path: Path, name: str | None, image: Path | None, um_per_px: float | None, *, genome: str | None = None
) -> AnnData:
    """Read an AnnData file or store, whoever wrote it, in the layout that this package takes.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a Zarr store.
    name, image, um_per_px, genome
        As :func:`~st_gchb.io.read_section` takes them.

    Raises
    ------
    InputError
        The file is damaged; or it holds several slices, and one name, image or size was given.
    """
    adata = load_anndata(path)
    libraries = _libraries(adata, path)
    _find_places(adata, path)
    adata = _under_tissue(adata, libraries, path)
    adata = keep_genes(adata, str(path), genome)
    tell_values(adata, str(path))
    _tell_symbols(adata, path)
    several = len(libraries) > 1 or (Keys.SLICE in adata.obs and adata.obs[Keys.SLICE].nunique() > 1)
    if several:
        if name is not None or image is not None or um_per_px is not None:
            raise InputError(
                f"{path}: holds several slices ({sorted(libraries) or 'by obs[' + repr(Keys.SLICE) + ']'}), and name=, "
                "image=, um_per_px= speak of one. Pass dicts by slice to pp.embed_patches, or cut the slices apart "
                "first."
            )
        return adata
    old, library = next(iter(libraries.items()), (path.stem, {}))
    picture = image or image_beside(path, adata, library)
    said = size_said(as_record(library.get(Keys.METADATA)), f"uns['spatial'][{old!r}]['metadata']")
    stored = said or size_beside(path)
    if not (libraries or name is not None or picture is not None or um_per_px is not None or stored is not None):
        return adata
    slide = None if picture is None else open_image(picture)
    in_file = None if slide is None or slide.um_per_px is None else Size(slide.um_per_px, "the image file")
    if um_per_px is not None or picture is not None or stored is not None:
        library = with_size(library, str(path), um_per_px, stored, in_file)
    if picture is not None:
        library[Keys.METADATA] = {**as_record(library.get(Keys.METADATA)), Keys.SOURCE_IMAGE: str(picture.resolve())}
    # HEST calls every sample "ST", which would make one of two that are joined.
    is_hest = old == _HEST_LIBRARY and _HEST_PICTURE in as_record(library.get(Keys.IMAGES))
    label = name or (path.stem if is_hest else old)
    others = {key: held for key, held in as_record(adata.uns.get(Keys.SPATIAL)).items() if key not in libraries}
    adata.uns[Keys.SPATIAL] = {**others, label: library}
    if name is not None or is_hest:
        adata.obs[Keys.SLICE] = pd.Categorical([label] * adata.n_obs)
    return adata


def _libraries(adata: AnnData, path: Path) -> dict[str, dict[str, Any]]:
    """Entries of ``uns["spatial"]`` that are slices, as dicts under the usual names; they are put back in this form.

    CELLxGENE has ``is_single`` beside them, R makes rows of tables of dicts.
    """
    stored = adata.uns.get(Keys.SPATIAL)
    if stored is None and {Keys.IMAGES, Keys.SCALEFACTORS} <= set(adata.uns):
        # As scanpy had them at first.
        stored = {path.stem: {part: adata.uns.pop(part) for part in (Keys.IMAGES, Keys.SCALEFACTORS)}}
    entries = as_record(stored)
    if {Keys.IMAGES, Keys.SCALEFACTORS} & set(entries):
        logger.info("%s: uns['spatial'] holds one slice without a name; it is called %r.", path, path.stem)
        entries = {path.stem: entries}
    libraries = {key: _library(as_record(entry)) for key, entry in entries.items() if as_record(entry)}
    if libraries:
        adata.uns[Keys.SPATIAL] = {**entries, **libraries}
    return libraries


def _library(entry: dict[str, Any]) -> dict[str, Any]:
    for part in (Keys.IMAGES, Keys.SCALEFACTORS, Keys.METADATA):
        record = as_record(entry.get(part))
        if record:
            entry[part] = record
    images = as_record(entry.get(Keys.IMAGES))
    for key in list(images):
        usual = _PICTURE.fullmatch(key)
        if usual is not None and usual.group(1) not in images:
            images[usual.group(1)] = images.pop(key)
    if images:
        entry[Keys.IMAGES] = images
    factors = as_record(entry.get(Keys.SCALEFACTORS))
    for key, value in factors.items():
        number = one_number(value)
        # R and some writers of Zarr store one number as a list. What is none is refused where it is used.
        if number is not None:
            factors[key] = number
    if factors:
        entry[Keys.SCALEFACTORS] = factors
    return entry


def _find_places(adata: AnnData, path: Path) -> None:
    """Put positions where they belong, if they are elsewhere."""
    if Keys.SPATIAL in adata.obsm:
        return
    other = next((key for key in adata.obsm if str(key).lower() in ("x_spatial", Keys.SPATIAL)), None)
    if other is not None:
        adata.obsm[Keys.SPATIAL] = np.asarray(adata.obsm[other])
        logger.info("%s: positions are those of obsm[%r].", path, other)
        return
    for x, y in _PLACES:
        if x in adata.obs and y in adata.obs:
            numbers = [pd.to_numeric(adata.obs[column], errors="coerce").to_numpy(np.float64) for column in (x, y)]
            adata.obsm[Keys.SPATIAL] = np.column_stack(numbers)
            logger.info("%s: positions are those of obs[%r] and obs[%r].", path, x, y)
            return


def _under_tissue(adata: AnnData, libraries: dict[str, dict[str, Any]], path: Path) -> AnnData:
    """Spots under tissue, where the object also holds others, as CELLxGENE's do."""
    if "in_tissue" not in adata.obs or any(
        _HEST_PICTURE in as_record(one.get(Keys.IMAGES)) for one in libraries.values()
    ):
        # HEST's column is a left-over that says nothing of tissue.
        return adata
    flags = pd.to_numeric(
        adata.obs["in_tissue"].astype(str).str.lower().replace({"true": "1", "false": "0"}), errors="coerce"
    )
    inside, outside = (flags == 1).to_numpy(), (flags == 0).to_numpy()
    if not (inside.any() and outside.any()):
        return adata
    logger.warning(
        "%s: %d of %d spots are not under tissue (in_tissue is 0) and are left out, such as %s.",
        path,
        outside.sum(),
        adata.n_obs,
        ", ".join(repr(str(one)) for one in adata.obs_names[outside][:3]),
    )
    return adata[~outside].copy()


def _tell_symbols(adata: AnnData, path: Path) -> None:
    if _SYMBOLS in adata.var and adata.n_vars and str(adata.var_names[0]).startswith("ENS"):
        logger.info(
            "%s: genes are named by Ensembl; symbols: adata.var_names = adata.var[%r].astype(str); "
            "adata.var_names_make_unique().",
            path,
            _SYMBOLS,
        )
