"""Visium HD through spatialdata-io."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from st_gchb._errors import CoordinateError, InputError, MissingFileError
from st_gchb._logging import logger
from st_gchb.io._outputs import (
    BINS,
    COUNTS,
    SCALEFACTORS,
    SLICE_FILE,
    Outputs,
    barcodes_in,
    check_barcodes,
    clean_name,
    full_image,
    read_factors,
)
from st_gchb.io._visium import finish, told_by_spatialdata_io

if TYPE_CHECKING:
    from spatialdata import SpatialData

_USUAL = "square_008um"
_POSITIONS = "spatial/tissue_positions.parquet"
_PLACES = ["pxl_row_in_fullres", "pxl_col_in_fullres"]


def read_visium_hd(outputs: Outputs, name: str | None, image: Path | None, um_per_px: float | None) -> SpatialData:
    """Read one size of bins.

    Raises
    ------
    MissingFileError, InputError
        A file is missing or damaged, or files do not belong together.
    """
    features = outputs.one([f"*{SLICE_FILE}"], SLICE_FILE)
    bins = _choose_bins(outputs)
    folder = f"{BINS}/{bins}"
    counts = outputs.one([f"{folder}/{COUNTS}"], f"{folder}/{COUNTS}")
    factors = read_factors(outputs.one([f"{folder}/{SCALEFACTORS}"], f"{folder}/{SCALEFACTORS}"))
    _check_positions(counts, outputs.one([f"{folder}/{_POSITIONS}"], f"{folder}/{_POSITIONS}"))
    label = _label(outputs, name, features)
    slide = full_image(outputs, image, factors)
    sdata = _by_spatialdata_io(outputs, label, bins)
    for other in [key for key in sdata.tables if key != bins]:
        logger.info("%s: the table %r is left out; the bins are read.", label, other)
        region = f"{label}_{other}"
        del sdata.tables[other]
        if region in sdata.shapes:
            del sdata.shapes[region]
    finish(sdata, sdata.tables[bins], f"{label}_{bins}", factors, slide, um_per_px, label)
    return sdata


def _by_spatialdata_io(outputs: Outputs, label: str, bins: str) -> SpatialData:
    from spatialdata_io import visium_hd

    # A full image would be read as one chunk: the smallest picture stands in for it and is taken out again.
    small = next(
        (file for kind in ("lowres", "hires") for file in outputs.root.rglob(f"tissue_{kind}_image.png")), None
    )
    options: dict[str, Any] = {"fullres_image_file": small, "image_models_kwargs": {"scale_factors": []}}
    with told_by_spatialdata_io(outputs.root), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No (full resolution image|image path) found", category=UserWarning)
        sdata = visium_hd(
            outputs.root,
            dataset_id=label,
            bin_size=int(bins[len("square_") : -len("um")]),
            load_segmentations_only=False,
            gex_only=True,
            **options,
        )
    stand_in = f"{label}_full_image"
    if stand_in in sdata.images:
        del sdata.images[stand_in]
    return sdata


def _choose_bins(outputs: Outputs) -> str:
    folder = outputs.root / BINS
    if outputs.bins is not None:
        return outputs.bins
    there = sorted(one.name for one in folder.glob("square_*um") if one.is_dir())
    if not there:
        raise MissingFileError(
            f"{outputs.root}: the Visium HD folder is incomplete: {BINS}/{_USUAL} is missing, and so are other bins. "
            "Copy the whole folder outs/, or unpack binned_outputs.tar.gz."
        )
    if _USUAL in there or len(there) == 1:
        chosen = _USUAL if _USUAL in there else there[0]
        logger.info("%s: bins %s of %s; others by their folder's path.", outputs.root, chosen, there)
        return chosen
    raise InputError(f"{folder}: has no {_USUAL}; found {there}. Pass the path of one of them.")


def _label(outputs: Outputs, name: str | None, features: Path) -> str:
    """Name of the section: where files begin with one, spatialdata-io knows no other."""
    prefix = features.name.removesuffix(SLICE_FILE).removesuffix("_")
    if not prefix:
        return outputs.label if name is None else clean_name(name)
    if name not in (None, prefix):
        raise InputError(f"{features}: files of this folder begin with {prefix!r}; leave name={name!r} out.")
    return prefix


def _check_positions(counts: Path, path: Path) -> None:
    try:
        positions = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are of these types as well
        raise CoordinateError(f"{path}: no Parquet table that can be read ({error}).") from error
    absent = [column for column in ("barcode", *_PLACES) if column not in positions]
    if absent:
        raise CoordinateError(f"{path}: has no columns {absent}; it has {list(positions.columns)}.")
    check_barcodes(barcodes_in(counts), positions.set_index("barcode")[_PLACES], counts, path)
