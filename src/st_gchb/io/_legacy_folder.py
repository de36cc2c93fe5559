"""A folder of legacy Spatial Transcriptomics: a table of counts, a table of spots and an image of each section."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, InputError, MissingFileError
from st_gchb.io._legacy import SPOT_COLUMNS, read_legacy_spots
from st_gchb.io._open import open_image
from st_gchb.io._picture import picture_of
from st_gchb.io._pixel_size import Size, caller_size, settle

if TYPE_CHECKING:
    from anndata import AnnData

PITCH_UM, DIAMETER_UM = 200.0, 100.0
"""Distance and diameter of the spots of the legacy array, µm."""
_TABLES = (".tsv", ".tsv.gz", ".txt", ".txt.gz")
_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif")
_FEWEST_GENES = 5
_PICTURE_PX = 1500


def is_legacy(path: Path) -> bool:
    """Whether a folder holds a table of spots or of counts."""
    return any(_kind(file) is not None for file in _files(path, _TABLES))


def read_legacy(path: Path, name: str | None, image: Path | None, um_per_px: float | None) -> AnnData:
    """Read one section of the folder.

    Raises
    ------
    MissingFileError
        A table or the image is missing.
    InputError
        There are several sections, and none was named; or a table is damaged.
    """
    tables = _files(path, _TABLES)
    counts = _one_of(
        [file for file in tables if _kind(file) == "counts"], path, name, "table of counts (spots x genes)"
    )
    section = name or _stem(counts)
    spots = _one_of(
        [file for file in tables if _kind(file) == "spots"], path, name, "table of spots (x, y, pixel_x, pixel_y)"
    )
    if image is None:
        image = _one_of(_files(path, _IMAGES), path, name, "image", " Pass image=.")
    slide = open_image(image)
    adata = read_legacy_spots(section, counts, spots)
    adata.obs[Keys.SLICE] = pd.Categorical(adata.obs[Keys.SLICE])
    in_file = None if slide.um_per_px is None else Size(slide.um_per_px, "the image file")
    pitch_px = array_pitch(adata, spots)
    by_array = Size(PITCH_UM / pitch_px, f"spots of the legacy array {pitch_px:.4g} px apart, 200 µm")
    size = settle([caller_size(um_per_px), in_file, by_array], section) or by_array.um_per_px
    picture, scale = picture_of(slide, _PICTURE_PX)
    factors = {"tissue_hires_scalef": scale, Keys.SPOT_DIAMETER: DIAMETER_UM / size, Keys.UM_PER_PX: size}
    adata.uns[Keys.SPATIAL] = {
        section: {
            Keys.IMAGES: {"hires": picture},
            Keys.SCALEFACTORS: factors,
            Keys.METADATA: {Keys.SOURCE_IMAGE: str(image.resolve())},
        }
    }
    return adata


def array_pitch(adata: AnnData, where: Path) -> float:
    """Distance of neighbours in the array, px, by the affine map that fits all spots best.

    Raises
    ------
    CoordinateError
        The spots lie in one row, or in one place.
    """
    array = np.column_stack([adata.obs["array_col"], adata.obs["array_row"], np.ones(adata.n_obs)]).astype(np.float64)
    steps = np.linalg.lstsq(array, np.asarray(adata.obsm[Keys.SPATIAL]), rcond=None)[0][:2]
    area = abs(float(np.linalg.det(steps)))
    if np.linalg.matrix_rank(array) < 3 or area < 1:
        raise CoordinateError(
            f"{where}: the positions of the {adata.n_obs} spots do not spread over the slide as their x, y in the "
            "array do; expected neighbours a constant number of px apart."
        )
    return area**0.5


def _files(path: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file() and file.name.lower().endswith(endings))


def _kind(file: Path) -> str | None:
    """What a table is by its first line: ``"spots"``, ``"counts"``, or None."""
    try:
        with gzip.open(file, "rt") if file.suffix == ".gz" else open(file) as lines:
            names = lines.readline().rstrip("\n").split("\t")
            first = lines.readline().split("\t")[0]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError):
        # A table of counts that is damaged says so when it is read.
        return "counts" if file.name.endswith(".tsv.gz") else None
    if set(names) >= SPOT_COLUMNS:
        return "spots"
    column, _, row = first.partition("x")
    return "counts" if len(names) > _FEWEST_GENES and column.isdigit() and row.isdigit() else None


def _stem(file: Path) -> str:
    return file.name.split(".")[0]


def _one_of(files: list[Path], path: Path, name: str | None, what: str, advice: str = "") -> Path:
    if name is not None:
        files = [file for file in files if _stem(file) == name or _stem(file).startswith((f"{name}_", f"{name}-"))]
    if len(files) == 1:
        return files[0]
    section = "" if name is None else f" of section {name!r}"
    if not files:
        raise MissingFileError(
            f"{path}: found no {what}{section}; expected one beside the others, as legacy ST (her2st) is published: "
            f"C2.tsv.gz, C2_selection.tsv, C2.jpg.{advice}"
        )
    names = ", ".join(file.name for file in files)
    raise InputError(f"{path}: found more than one {what}{section}: {names}. Pass name= with one section.{advice}")
