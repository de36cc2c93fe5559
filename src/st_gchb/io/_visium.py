"""Folders of Visium, of any version of Space Ranger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from st_gchb.io._assemble import assemble
from st_gchb.io._genes import keep_genes
from st_gchb.io._matrix_10x import read_counts
from st_gchb.io._outputs import POSITIONS, SCALEFACTORS, Outputs, clean_name, full_image, read_factors
from st_gchb.io._positions import place_spots, read_positions
from st_gchb.io._values import tell_values

if TYPE_CHECKING:
    from spatialdata import SpatialData


def read_visium(
    outputs: Outputs,
    name: str | None,
    image: Path | None,
    um_per_px: float | None,
    *,
    genome: str | None = None,
    allow_missing: bool = False,
) -> SpatialData:
    """Read a folder of Visium, also of CytAssist.

    Raises
    ------
    MissingFileError, InputError
        A file is missing or damaged, or files do not belong together.
    """
    counts = outputs.counts()
    factors = read_factors(outputs.one(SCALEFACTORS, SCALEFACTORS[0]))
    positions = outputs.one(POSITIONS, f"{POSITIONS[0]} (of Space Ranger 1: {Path(POSITIONS[1]).name})")
    label = outputs.label if name is None else clean_name(name)
    pictures = outputs.pictures()
    slide = full_image(outputs, image, factors, pictures)
    adata = place_spots(
        keep_genes(read_counts(counts), f"section {label!r}", genome),
        read_positions(positions),
        (counts, positions),
        filtered=outputs.is_filtered(counts),
        every_spot=True,
        allow_missing=allow_missing,
    )
    tell_values(adata, str(counts))
    return assemble(
        adata,
        label=label,
        region=label,
        table="table",
        squares=False,
        factors=factors,
        pictures=pictures,
        slide=slide,
        um_per_px=um_per_px,
    )
