"""Read Space Ranger's output folders of Visium (including CytAssist), and one bin size of Visium HD."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_gchb._errors import InputError, MissingFileError
from st_gchb._logging import logger
from st_gchb.io.sections._assemble import assemble
from st_gchb.io.sections._genes import keep_genes, tell_values
from st_gchb.io.sections._matrix_10x import read_counts
from st_gchb.io.sections._positions import place_spots, read_positions
from st_gchb.io.sections._spaceranger import (
    BINS,
    POSITIONS,
    SCALEFACTORS,
    SLICE_FILE,
    Outputs,
    clean_name,
    full_image,
    read_factors,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData


@dataclass(frozen=True)
class _Files:
    """Files of one section, and the names of its elements.

    Parameters
    ----------
    counts, positions
        Files of the counts and of the positions.
    factors
        Scale factors.
    downscaled
        Paths of the down-scaled images by kind.
    label, region, table
        Names of the coordinate system, the shapes and the table.
    """

    counts: Path
    positions: Path
    factors: dict[str, Any]
    downscaled: dict[str, Path]
    label: str
    region: str
    table: str


def read_visium(
    outputs: Outputs,
    name: str | None,
    image: Path | None,
    um_per_px: float | None,
    *,
    genome: str | None = None,
    allow_missing: bool = False,
    counts: bool = True,
) -> SpatialData:
    """Read a Visium folder, including CytAssist, or one bin size of a Visium HD folder.

    Parameters
    ----------
    outputs
        The folder, and the bins to read.
    name, image, um_per_px, genome, allow_missing
        See :func:`~st_gchb.io.read_section`.
    counts
        Whether to read the values of the matrix.

    Returns
    -------
    SpatialData
        One section, with spots as circles, or bins as squares.

    Raises
    ------
    MissingFileError, InputError
        A file is missing or damaged, or the files do not belong together.
    """
    files = _find_bins(outputs, name) if outputs.is_hd else _find_spots(outputs, name)
    slide = full_image(outputs, image, files.factors, files.downscaled)
    adata = place_spots(
        keep_genes(read_counts(files.counts, counts=counts), f"section {files.label!r}", genome),
        read_positions(files.positions),
        (files.counts, files.positions),
        filtered=outputs.is_filtered(files.counts),
        every_spot=not outputs.is_hd,
        allow_missing=allow_missing,
    )
    if counts:
        tell_values(adata, str(files.counts))
    return assemble(
        adata,
        label=files.label,
        region=files.region,
        table=files.table,
        squares=outputs.is_hd,
        factors=files.factors,
        downscaled=files.downscaled,
        slide=slide,
        um_per_px=um_per_px,
    )


def _find_spots(outputs: Outputs, name: str | None) -> _Files:
    counts = outputs.counts()
    factors = read_factors(outputs.one(SCALEFACTORS, SCALEFACTORS[0]))
    positions = outputs.one(POSITIONS, f"{POSITIONS[0]} (of Space Ranger 1: {Path(POSITIONS[1]).name})")
    label = outputs.label if name is None else clean_name(name)
    return _Files(counts, positions, factors, outputs.downscaled(), label, region=label, table="table")


_USUAL = "square_008um"
_POSITIONS = ("spatial/tissue_positions.parquet", "spatial/tissue_positions.csv")


def _find_bins(outputs: Outputs, name: str | None) -> _Files:
    bins = _choose_bins(outputs)
    folder = f"{BINS}/{bins}"
    counts = outputs.counts(f"{folder}/")
    factors = read_factors(outputs.one([f"{folder}/{SCALEFACTORS[0]}"], f"{folder}/{SCALEFACTORS[0]}"))
    positions = outputs.one([f"{folder}/{one}" for one in _POSITIONS], f"{folder}/{_POSITIONS[0]}")
    label = _label(outputs) if name is None else clean_name(name)
    downscaled = outputs.downscaled(f"{folder}/")
    return _Files(counts, positions, factors, downscaled, label, region=f"{label}_{bins}", table=bins)


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


def _label(outputs: Outputs) -> str:
    """Name the section after the prefix of its ``feature_slice.h5``, else after the folder."""
    features = sorted(outputs.root.glob(f"*_{SLICE_FILE}"))
    return clean_name(features[0].name.removesuffix(f"_{SLICE_FILE}")) if features else outputs.label
