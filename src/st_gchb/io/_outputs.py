"""Output folders of Space Ranger: what is there, what is missing, and whether it fits together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, ExpressionError, InputError, MissingFileError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.io._open import open_image
from st_gchb.io._slide import SlideImage

BINS, COUNTS, SLICE_FILE = "binned_outputs", "filtered_feature_bc_matrix.h5", "feature_slice.h5"
SCALEFACTORS = "spatial/scalefactors_json.json"
POSITIONS = ("spatial/tissue_positions.csv", "spatial/tissue_positions_list.csv")
_SIGNS = (f"*{COUNTS}", "*raw_feature_bc_matrix.h5", "filtered_feature_bc_matrix", *POSITIONS, SCALEFACTORS)
_HD_SIGNS = (BINS, f"*{SLICE_FILE}")
_FULL_IMAGES = ("microscope_image/*", "*tissue_image.*", "*_image.tif", "*_image.tiff", "*_image.btf")
_SIZE_TOLERANCE = 0.02
_FEATURES = ("features/id", "features/name", "features/feature_type", "features/genome")
_MATRIX = ("barcodes", "data", "indices", "indptr", "shape", *_FEATURES)
"""Parts of a matrix of 10x."""


@dataclass(frozen=True)
class Outputs:
    """An output folder of Space Ranger.

    Parameters
    ----------
    root
        The folder ``outs``.
    is_hd
        Whether it is of Visium HD.
    bins
        Name of the folder of bins that was asked for; None for the usual one.
    """

    root: Path
    is_hd: bool
    bins: str | None = None

    @property
    def label(self) -> str:
        """Name for the section, by the folder."""
        folder = self.root.resolve()
        return clean_name((folder.parent if folder.name == "outs" else folder).name)

    def one(self, patterns: Iterable[str], what: str) -> Path:
        """The only file that one of the patterns finds.

        Raises
        ------
        MissingFileError, InputError
            There is none; or there are several.
        """
        for pattern in patterns:
            found = sorted(self.root.glob(pattern))
            if len(found) > 1:
                names = [str(file.relative_to(self.root)) for file in found]
                raise InputError(f"{self.root}: found {len(found)} files for {what}: {names}; expected one.")
            if found:
                return found[0]
        there = sorted(
            str(file.relative_to(self.root)) for pattern in ("*", "spatial/*") for file in self.root.glob(pattern)
        )
        raise MissingFileError(
            f"{self.root}: the Space Ranger folder is incomplete: {what} is missing. It holds {there[:12]}. Copy the "
            "whole folder outs/, or run Space Ranger to its end."
        )


def find_outputs(path: Path) -> Outputs | None:
    """Find the folder ``outs`` at, above or in a folder; None where this is no output of Space Ranger."""
    if path.name.startswith("square_") and path.parent.name == BINS:
        return Outputs(path.parent.parent, is_hd=True, bins=path.name)
    places = [path, path / "outs"]
    if path.name in (BINS, "spatial"):
        places.insert(0, path.parent)
    for place in places:
        for signs, is_hd in ((_HD_SIGNS, True), (_SIGNS, False)):
            if any(next(place.glob(sign), None) is not None for sign in signs):
                return Outputs(place, is_hd)
    return None


def read_factors(path: Path) -> dict[str, Any]:
    """Scale factors of Space Ranger.

    Raises
    ------
    InputError, MissingKeyError
        The file is damaged, or lacks a factor.
    """
    try:
        factors = dict(json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); expected JSON as Space Ranger writes it.") from error
    wanted = ("tissue_hires_scalef", "tissue_lowres_scalef", Keys.SPOT_DIAMETER)
    missing = [key for key in wanted if key not in factors]
    if missing:
        raise MissingKeyError(
            f"{path}: has no {missing}; it holds {sorted(factors)}. Space Ranger writes all of {wanted}."
        )
    return factors


def full_image(outputs: Outputs, image: Path | None, factors: dict[str, Any]) -> SlideImage | None:
    """Open the full-resolution image: the one that is given, else the one in the folder, else None.

    Raises
    ------
    InputError
        There are several; or it has another size than the down-scaled image says.
    """
    if image is None:
        found = [file for pattern in _FULL_IMAGES for file in sorted(outputs.root.glob(pattern)) if file.is_file()]
        if len(set(found)) > 1:
            raise InputError(f"{outputs.root}: found several full-resolution images, {found}. Pass image= with one.")
        if not found:
            logger.info("%s: no full-resolution image; patches come from the down-scaled one.", outputs.root)
            return None
        image = found[0]
    slide = open_image(image)
    for kind in ("hires", "lowres"):
        small = outputs.root / f"spatial/tissue_{kind}_image.png"
        if not small.is_file():
            continue
        scale = float(factors[f"tissue_{kind}_scalef"])
        expected = np.array(open_image(small).shape_px) / scale
        # The down-scaled image is rounded to whole px.
        if (np.abs(expected - slide.shape_px) > _SIZE_TOLERANCE * expected + 1 / scale).any():
            sides = tuple(expected.round().astype(int).tolist())
            raise InputError(
                f"{image}: found {slide.shape_px} px (h, w); expected about {sides}, as {small.name} and its factor "
                f"{scale:.6g} say. Pass the image that Space Ranger was given."
            )
        break
    return slide


def barcodes_in(path: Path) -> pd.Index:
    """Barcodes of a matrix of 10x.

    Raises
    ------
    ExpressionError
        The file is damaged, or holds none.
    """
    try:
        with h5py.File(path, "r") as file:
            matrix = file["matrix"]
            absent = [part for part in _MATRIX if part not in matrix]
            if absent:
                raise KeyError(f"matrix has no {absent}")
            names = pd.Index(np.asarray(matrix["barcodes"]).astype(str))
    except (OSError, KeyError) as error:
        raise ExpressionError(
            f"{path}: no matrix of counts that can be read ({error}). Expected HDF5 as Space Ranger writes it."
        ) from error
    if names.empty:
        raise ExpressionError(f"{path}: the matrix holds no spots; expected those under tissue.")
    return names


def check_barcodes(barcodes: pd.Index, positions: pd.DataFrame, counts: Path, path: Path) -> None:
    """See that every spot with counts has a finite position.

    Parameters
    ----------
    barcodes
        Of the counts.
    positions
        Columns ``pxl_row_in_fullres`` and ``pxl_col_in_fullres``, by barcode.
    counts, path
        Of the two files, for messages.
    """
    if not positions.index.is_unique:
        raise CoordinateError(f"{path}: a barcode is listed twice; expected each once.")
    missing = barcodes.difference(positions.index)
    if len(missing):
        raise CoordinateError(
            f"{path}: {len(missing)} of {len(barcodes)} spots in {counts.name} have no position, first {missing[0]!r}. "
            "Do the two files belong to one sample?"
        )
    places = positions.loc[barcodes].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(places).all(axis=1)
    if bad.any():
        raise CoordinateError(f"{path}: the position of {bad.sum()} spots is no number, first {barcodes[bad][0]!r}.")


def clean_name(name: str) -> str:
    """Name that SpatialData allows for elements.

    Examples
    --------
    >>> from st_gchb.io._outputs import clean_name
    >>> clean_name("Sample 1 (left)")
    'Sample_1_left'
    """
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("_.-") or "section"
