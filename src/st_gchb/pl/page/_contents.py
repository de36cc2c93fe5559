"""Contents of a page: genes with their values, spots, and the provenance of the prediction.

A page from the disk may not fetch a file, but may load a script. Values therefore lie in scripts that hold them as
base64: one for the spots, and one for each gene, loaded when the gene is chosen. Numbers name the files, not genes,
whose names may hold any character.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps

from st_gchb._advice import Fix, advise
from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingKeyError
from st_gchb._logging import logger, track
from st_gchb.io import SpotValues, ViewerSpots
from st_gchb.pl._figure import CMAP

MOST_GENES = 5000
"""Number of genes that a page holds at most: each is a file of its own, and the list of all is searched while typed."""
COLOR_MAPS = (CMAP, "cividis", "gray_r")
"""Color maps that rise evenly in lightness, so that those who do not tell red from green read them."""
_BLOCK = 2**23
"""Values that are held at once, which bounds memory."""
_LARGE_MB = 1000
"""Size of all values from which a page is said to be large, MB."""
_BASE64 = 4 / 3
_SLICES_TOLD = 12

_PROVENANCE = {
    "model_id": "Model",
    "preset": "Preset",
    "version": "st-gchb",
    "encoder": "Image encoder",
    "weights": "Encoder's weights",
    "weights_sha256": "SHA-256 of the weights, first digits",
    "stain_norm": "Stain normalization",
    "reference_slices": "Reference slices",
    "layer": "Table of the reference",
    "k": "Retrieved spots",
    "seed": "Seed",
}
"""Entries of ``uns["st_gchb"]`` that a page tells, and their names there."""


def choose_genes(adata: AnnData, genes: str | Sequence[str] | None, n_genes: int | None) -> list[str] | None:
    """Choose the genes of a page.

    Parameters
    ----------
    adata
        The prediction.
    genes, n_genes
        As for :func:`~st_gchb.pl.report`.

    Returns
    -------
    list of str or None
        Names of genes, and of columns of ``obs`` if ``genes`` holds some; None for all genes.

    Raises
    ------
    InputError
        There are none or too many, or both arguments are given.
    MissingKeyError
        The prediction has no expected correlation by which genes could be chosen.
    """
    if genes is not None and n_genes is not None:
        raise InputError("genes= names the genes of the page, and n_genes= has them chosen. Leave one of them out.")
    if n_genes is not None:
        if Keys.EXPECTED_PCC not in adata.var:
            raise MissingKeyError(
                f"n_genes={n_genes}: var has no {Keys.EXPECTED_PCC!r}, by which the most predictable genes are chosen. "
                "Name them by genes=."
            )
        chosen: list[str] | None = [str(name) for name in adata.var_names[_by_expected(adata)[:n_genes]]]
    else:
        chosen = [genes] if isinstance(genes, str) else None if genes is None else list(genes)
    n = adata.n_vars if chosen is None else len(chosen)
    if n == 0:
        raise InputError("there is no gene to show; expected one or more in genes=.")
    if n > MOST_GENES:
        raise InputError(
            f"{n:,} genes; a page holds at most {MOST_GENES:,}, each in a file of its own. "
            + advise(
                Fix("n_genes", "2000", "for as many of the most predictable ones"), Fix("genes", why="to name some")
            )
        )
    return chosen


def _by_expected(adata: AnnData) -> npt.NDArray[np.int64]:
    """Order the genes by expected correlation, highest first; those without one come last."""
    expected = adata.var[Keys.EXPECTED_PCC].to_numpy(dtype=np.float64, na_value=np.nan)
    return np.argsort(np.where(np.isnan(expected), np.inf, -expected), kind="stable")


def write_values(spots: ViewerSpots, names: list[str] | None, layer: str | None, folder: Path) -> list[str]:
    """Write a script for each gene, ``0.js`` and so on, with its values at the spots in float32.

    Parameters
    ----------
    spots
        The spots.
    names
        Genes, or numeric columns of ``obs``; None for all genes.
    layer
        Layer with the expression; None for ``X``.
    folder
        Existing folder.

    Returns
    -------
    list of str
        Their names, in the order of the scripts.

    Raises
    ------
    MissingKeyError
        There is no such layer, gene or column.
    InputError
        A name occurs twice, or a column is not numeric.
    OSError
        A script cannot be written.
    """
    every = SpotValues(spots, names, layer).names
    size_mb = 4 * _BASE64 * len(every) * len(spots.rows) / 1e6
    if size_mb > _LARGE_MB:
        logger.warning(
            "%d genes at %d positions take %.0f MB on the page; fewer genes make it smaller (genes=, n_genes=).",
            len(every),
            len(spots.rows),
            size_mb,
        )
    step = max(_BLOCK // max(len(spots.rows), 1), 1)
    for start in track(range(0, len(every), step), "Values of the page", delay=1.0):
        part = SpotValues(spots, every[start : start + step], layer)
        values = np.concatenate([block.astype(np.float32) for _, block in part.blocks()])
        for number, column in enumerate(values.T, start):
            (folder / f"{number}.js").write_text(f'stGchb.gene({number},"{packed(column)}");\n', encoding="ascii")
    return every


def packed(values: npt.ArrayLike) -> str:
    """Encode numbers as base64 of little-endian float32.

    Examples
    --------
    >>> from st_gchb.pl.page._contents import packed
    >>> packed([1.0])
    'AACAPw=='
    """
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def spot_record(spots: ViewerSpots, scale: tuple[float, float], diameter: float) -> dict[str, Any]:
    """Describe the spots: names, places and size in px of the page's slide, confidence and outlier flag.

    Parameters
    ----------
    spots
        The spots.
    scale
        px of the page's slide for each full-resolution px, along x and y.
    diameter
        Diameter of the spots, or side of the tiles, in full-resolution px.

    Raises
    ------
    InputError
        Confidence or outlier flag is not numeric.
    """
    record: dict[str, Any] = {
        "n": len(spots.rows),
        "names": [str(name) for name in spots.adata.obs_names[spots.rows]],
        "x": packed(spots.centers[:, 0] * scale[0]),
        "y": packed(spots.centers[:, 1] * scale[1]),
        "diameter": diameter * float(np.sqrt(scale[0] * scale[1])),
        "square": bool(spots.are_square),
        "tiles": bool(spots.are_tiles),
    }
    for key, column in (("confidence", Keys.CONFIDENCE), ("outlier", Keys.OUTLIER)):
        if column in spots.adata.obs:
            record[key] = packed(np.concatenate([b[:, 0] for _, b in SpotValues(spots, column, None).blocks()]))
    return record


def gene_record(spots: ViewerSpots, names: list[str]) -> dict[str, Any]:
    """Describe the genes: names, expected correlation where it is known, and whether they are columns of ``obs``."""
    var = spots.adata.var
    expected: list[float | None] = [None] * len(names)
    if Keys.EXPECTED_PCC in var:
        numbers = var[Keys.EXPECTED_PCC].reindex(names).to_numpy(dtype=np.float64, na_value=np.nan)
        expected = [round(float(number), 4) if np.isfinite(number) else None for number in numbers]
    columns = [number for number, name in enumerate(names) if name not in spots.adata.var_names]
    return {"names": names, "expected": expected, "columns": columns}


def provenance(adata: AnnData) -> list[list[str]]:
    """List what ``uns["st_gchb"]`` tells of the prediction, as pairs of a name and a text; empty if there is none."""
    stored = adata.uns.get(Keys.UNS)
    told = stored if isinstance(stored, dict) else {}
    texts = {key: _text(told[key], _SHORTENED.get(key)) for key in _PROVENANCE if key in told}
    return [[_PROVENANCE[key], text] for key, text in texts.items() if text]


def verdict(adata: AnnData, slice: str) -> dict[str, Any] | None:
    """Return what the model says of the slide as a whole, and if it is in the reference's range; None if unknown."""
    stored = adata.uns.get(Keys.UNS)
    table = stored.get(Keys.STAIN) if isinstance(stored, dict) else None
    if not isinstance(table, pd.DataFrame) or not {"verdict", "in_range"} <= set(table) or slice not in table.index:
        return None
    return {"text": str(table.loc[slice, "verdict"]), "in_range": bool(table.loc[slice, "in_range"])}


def _file_name(text: str) -> str:
    """Return the name of a file without its folder, which tells of the machine and not of the model."""
    is_path = PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    return PureWindowsPath(text).name if is_path else text


def _first_digits(text: str) -> str:
    """Return as much of a hash as is needed to compare it."""
    return text[:12]


_SHORTENED: dict[str, Callable[[str], str]] = {"weights": _file_name, "weights_sha256": _first_digits}


def _text(value: Any, shorten: Callable[[str], str] | None = None) -> str:
    """Write a stored value for readers; of many, the first."""
    values = np.atleast_1d(np.asarray(value, dtype=object)).ravel().tolist()
    texts = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in values]
    texts = [shorten(text) if shorten else text for text in texts if text]
    more = len(texts) - _SLICES_TOLD
    return ", ".join(texts[:_SLICES_TOLD]) + (f" and {more} more" if more > 0 else "")


def color_tables() -> dict[str, str]:
    """Encode the color maps of a page as base64 of 256 x 3 bytes each, by name."""
    tables: Iterator[tuple[str, npt.NDArray[np.uint8]]] = (
        (name, colormaps[name](np.arange(256), bytes=True)[:, :3]) for name in COLOR_MAPS
    )
    return {name: base64.b64encode(np.ascontiguousarray(table).tobytes()).decode("ascii") for name, table in tables}


def as_script(record: dict[str, Any]) -> str:
    r"""Write a record as a script in ASCII that opens the page with it.

    Examples
    --------
    >>> from st_gchb.pl.page._contents import as_script
    >>> as_script({"gene": "</script>µ"})
    'stGchb.open({"gene": "\\u003c/script>\\u00b5"});\n'
    """
    return f"stGchb.open({json.dumps(record, allow_nan=False).replace('<', chr(92) + 'u003c')});\n"
