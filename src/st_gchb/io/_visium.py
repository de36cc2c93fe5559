"""Visium through spatialdata-io."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, ImageError, InputError
from st_gchb._logging import logger, others_quiet
from st_gchb.io._outputs import (
    COUNTS,
    POSITIONS,
    SCALEFACTORS,
    Outputs,
    barcodes_in,
    check_barcodes,
    clean_name,
    full_image,
    read_factors,
)
from st_gchb.io._pixel_size import Size, caller_size, factor_size, settle
from st_gchb.io._slide import SlideImage
from st_gchb.io._to_element import as_element

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def read_visium(outputs: Outputs, name: str | None, image: Path | None, um_per_px: float | None) -> SpatialData:
    """Read a folder of Visium, also of CytAssist.

    Raises
    ------
    MissingFileError, InputError
        A file is missing or damaged, or files do not belong together.
    """
    counts = outputs.one([f"*{COUNTS}"], COUNTS)
    factors = read_factors(outputs.one([SCALEFACTORS], SCALEFACTORS))
    positions = outputs.one(POSITIONS, f"{POSITIONS[0]} (of Space Ranger 1: {Path(POSITIONS[1]).name})")
    _check_positions(counts, positions)
    label = outputs.label if name is None else clean_name(name)
    slide = full_image(outputs, image, factors)
    from spatialdata_io import visium

    with told_by_spatialdata_io(outputs.root):
        # The full image is added below: spatialdata-io would read it as one chunk, or not know its format.
        sdata = visium(outputs.root, dataset_id=label, counts_file=counts.name)
    finish(sdata, sdata.tables["table"], label, factors, slide, um_per_px, label)
    return sdata


def finish(
    sdata: SpatialData,
    table: AnnData,
    region: str,
    factors: dict[str, Any],
    slide: SlideImage | None,
    um_per_px: float | None,
    label: str,
) -> None:
    """Add the full image, and note in the table what is known of its pixels."""
    from spatialdata.transformations import Identity

    if slide is not None:
        sdata.images[f"{label}_full_image"] = as_element(slide, {label: Identity()})
    if not sdata.images:
        raise ImageError(f"{label}: the folder holds no image of the tissue; expected one. Pass image= with its path.")
    in_file = None if slide is None or slide.um_per_px is None else Size(slide.um_per_px, "the image file")
    where = f"section {label!r}"
    size = settle([caller_size(um_per_px), factor_size(factors, "scalefactors_json.json"), in_file], where)
    known = {Keys.UM_PER_PX: size} if size is not None else {}
    stored = (table.uns.get(Keys.SPATIAL) or {}).get(region) or {}
    metadata = dict(stored.get(Keys.METADATA) or {})
    if slide is not None:
        metadata[Keys.SOURCE_IMAGE] = str(Path(slide.name).resolve())
    table.uns[Keys.SPATIAL] = {region: {Keys.SCALEFACTORS: {**factors, **known}, Keys.METADATA: metadata}}
    logger.info("%s: %d spots, %d genes, images %s.", where, table.n_obs, table.n_vars, sorted(sdata.images))


@contextmanager
def told_by_spatialdata_io(root: Path) -> Iterator[None]:
    """Turn what spatialdata-io raises into an error that names the folder."""
    try:
        with others_quiet():
            yield
    # It checks its input with assertions, and lets errors of h5py, pandas and scanpy through.
    except (OSError, ValueError, KeyError, IndexError, TypeError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"{root}: spatialdata-io cannot read the Space Ranger folder ({type(error).__name__}: {error}). Copy the "
            "whole folder again."
        ) from error


def _check_positions(counts: Path, path: Path) -> None:
    try:
        table = pd.read_csv(path, header=None, index_col=0, dtype=str)
    except ValueError as error:  # pandas' own errors are of this type as well
        raise CoordinateError(f"{path}: no table that can be read ({error}).") from error
    if table.shape[1] != 5:
        raise CoordinateError(
            f"{path}: found {table.shape[1] + 1} columns; expected barcode, in_tissue, array_row, array_col, "
            "pxl_row_in_fullres, pxl_col_in_fullres."
        )
    check_barcodes(barcodes_in(counts), table.iloc[:, -2:], counts, path)
