"""GeoJSON files for viewers beside the results of slides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from st_gchb._constants import Keys

if TYPE_CHECKING:
    from anndata import AnnData

_N_GENES = 3
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f]')


def most_predictable(prediction: AnnData) -> list[str]:
    """Choose the three genes with the highest expected correlation; the first three where none is known."""
    if Keys.EXPECTED_PCC in prediction.var and prediction.var[Keys.EXPECTED_PCC].notna().any():
        return list(prediction.var[Keys.EXPECTED_PCC].nlargest(_N_GENES).index)
    return list(prediction.var_names[:_N_GENES])


def write_viewer_files(prediction: AnnData, out: Path, name: str, genes: Sequence[str]) -> list[str]:
    """Write the GeoJSON of a slide: ``NAME.geojson``, or ``NAME_SLICE.geojson`` for each of several slices.

    Parameters
    ----------
    prediction
        Result of the slide.
    out
        Folder of the results.
    name
        Name of the slide.
    genes
        Genes to write; the three most predictable ones if empty.

    Returns
    -------
    list of str
        Names of the files.
    """
    from st_gchb.io import sections_of, write_geojson

    chosen = list(genes) or most_predictable(prediction)
    # Of a result that is read from its file, the chosen genes are read once.
    prediction = prediction[:, chosen].copy().to_memory()
    sections = sections_of(prediction)
    if len(sections.rows) == 1:
        write_geojson(prediction, out / f"{name}.geojson", chosen)
        return [f"{name}.geojson"]
    files = [f"{name}_{_FORBIDDEN.sub('_', label)}.geojson" for label in sections.rows]
    for label, file in zip(sections.rows, files, strict=True):
        write_geojson(prediction, out / file, chosen, slice=label, slice_key=sections.key)
    return files
