"""Read Space Ranger's positions of spots and bins, and match them with the counts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from st_gchb._errors import CoordinateError
from st_gchb._logging import logger
from st_gchb.io._reading import reading
from st_gchb.io.sections._losses import Loss, tell_losses
from st_gchb.io.sections._text_table import read_rows

if TYPE_CHECKING:
    from anndata import AnnData

_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
_PLACES = ["pxl_col_in_fullres", "pxl_row_in_fullres"]
_ARRAY = ["array_row", "array_col"]
_LARGEST = 2**31
"""Upper bound of valid array rows and columns."""


def read_positions(path: Path) -> pd.DataFrame:
    """Read a table of positions: CSV with or without a header (Space Ranger 1), or Parquet (Visium HD).

    Returns
    -------
    pandas.DataFrame
        ``in_tissue``, ``array_row``, ``array_col``, ``pxl_row_in_fullres`` and ``pxl_col_in_fullres`` as float64,
        indexed by barcode; NaN for cells that hold no number.

    Raises
    ------
    CoordinateError
        The table is damaged, lacks a column, or lists a barcode twice.
    """
    with reading(path, "the table of positions", "Copy the file again.", CoordinateError):
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
        if table.index.name == _COLUMNS[0]:
            table = table.reset_index()
        table.columns = pd.Index([str(name).strip().lower() for name in table.columns])
    absent = [name for name in (_COLUMNS[0], *_PLACES) if name not in table]
    if absent or table.columns.duplicated().any():
        raise CoordinateError(
            f"{path}: found the columns {list(table.columns)[:12]}; expected {', '.join(_COLUMNS)}, each once."
        )
    names = pd.Index([str(name) for name in table[_COLUMNS[0]]], dtype=object)
    numbers = {
        name: pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        if name in table
        else np.full(len(table), np.nan)
        for name in _COLUMNS[1:]
    }
    positions = pd.DataFrame(numbers, index=names)
    if not names.is_unique:
        raise CoordinateError(f"{path}: the barcode {names[names.duplicated()][0]!r} is there twice; expected it once.")
    return positions


def _read_csv(path: Path) -> pd.DataFrame:
    _, rows = read_rows(path)
    header = [cell.strip().lower() for cell in rows[0]]
    if set(header) & set(_COLUMNS):
        names, rows = header, rows[1:]
    elif len(rows[0]) == len(_COLUMNS):
        names = list(_COLUMNS)
    else:
        raise CoordinateError(f"{path}: found {len(rows[0])} columns; expected {', '.join(_COLUMNS)}.")
    # Cells of a truncated row, or of one with a surplus cell, may be in the wrong columns; only its barcode is kept.
    whole = [row if len(row) == len(names) else [row[0], *[""] * (len(names) - 1)] for row in rows]
    return pd.DataFrame(whole, columns=names, dtype=object)


def place_spots(
    counts: AnnData,
    positions: pd.DataFrame,
    files: tuple[Path, Path],
    *,
    filtered: bool,
    every_spot: bool,
    allow_missing: bool,
) -> AnnData:
    """Add positions to spots with counts, and report spots that are missing in one of the files.

    Parameters
    ----------
    counts
        Counts by barcode.
    positions
        Positions, as returned by :func:`read_positions`.
    files
        Files of the counts and of the positions, for messages.
    filtered
        Whether the matrix contains only spots under tissue; otherwise ``in_tissue`` selects them.
    every_spot
        Whether every spot under tissue should have counts (bins of Visium HD may have none).
    allow_missing
        Keep the spots that are in both files, however many are missing in one.

    Returns
    -------
    AnnData
        Spots under tissue. ``obs``: ``in_tissue``, ``array_row``, ``array_col``; ``obsm["spatial"]``: x, y in
        full-resolution px.

    Raises
    ------
    CoordinateError
        No spot, or too few spots, are in both files.
    """
    of_counts, of_positions = (file.name for file in files)
    rows = _match(counts.obs_names, positions.index)
    known = rows >= 0
    finite = np.isfinite(positions[_PLACES]).all(axis=1).to_numpy()
    placed = known.copy()
    placed[known] = finite[rows[known]]
    tissue = positions["in_tissue"].to_numpy()
    with_counts = np.zeros(len(positions), dtype=bool)
    with_counts[rows[known]] = True
    losses = [
        Loss(counts.obs_names[~known], counts.n_obs, f"spots in {of_counts} have no position in {of_positions}"),
        Loss(
            counts.obs_names[known & ~placed],
            counts.n_obs,
            f"spots in {of_counts} have a position in {of_positions} that is no number",
        ),
    ]
    if every_spot:
        losses.append(
            Loss(
                positions.index[(tissue == 1) & ~with_counts],
                int((tissue == 1).sum()),
                f"spots under tissue in {of_positions} have no counts in {of_counts}",
            )
        )
    where = str(files[1])
    if not known.any():
        raise CoordinateError(
            f"{where}: {counts.n_obs} of {counts.n_obs} spots in {of_counts} have no position, first "
            f"{counts.obs_names[0]!r} (positions are of {positions.index[0]!r} and others). Do the two files belong to "
            "one sample?"
            if len(positions)
            else f"{where}: the table of positions is empty. Copy the file again."
        )
    tell_losses(where, losses, allow_missing=allow_missing)
    keep = np.flatnonzero(placed)
    keep = _under_tissue(keep, tissue[rows[keep]], files, filtered=filtered)
    if not len(keep):
        raise CoordinateError(f"{where}: no spot with counts has a position under tissue; expected some.")
    spots = positions.iloc[rows[keep]]
    adata = counts[keep].copy()
    for name in ("in_tissue", *_ARRAY):
        values = spots[name].to_numpy()
        if (np.abs(values) < _LARGEST).all():
            adata.obs[name] = values.astype(np.int64)
    adata.obsm["spatial"] = spots[_PLACES].to_numpy()
    return adata


def _under_tissue(keep: np.ndarray, tissue: np.ndarray, files: tuple[Path, Path], *, filtered: bool) -> np.ndarray:
    """Select spots under tissue: all of a filtered matrix, those with ``in_tissue`` 1 of a matrix of all spots."""
    outside = tissue != 1
    if filtered:
        if outside.any() and np.isfinite(tissue).any():
            logger.warning(
                "%s: %d of %d spots in %s are not under tissue by in_tissue. They are kept: the matrix is of spots "
                "under tissue. Do the two files belong to one run?",
                files[1],
                outside.sum(),
                len(keep),
                files[0].name,
            )
        return keep
    if not np.isfinite(tissue).any():
        raise CoordinateError(
            f"{files[1]}: has no column in_tissue, and {files[0].name} is of all spots, so those under tissue cannot "
            "be told. Copy filtered_feature_bc_matrix.h5 into the folder."
        )
    logger.info(
        "%s: of %d spots with counts, %d are under tissue (in_tissue) and are kept.",
        files[0],
        len(keep),
        (~outside).sum(),
    )
    return keep[~outside]


def _match(barcodes: pd.Index, listed: pd.Index) -> np.ndarray:
    """Find the row of each barcode in a table, -1 if it has none, with or without the GEM well suffix (``-1``)."""
    rows = listed.get_indexer(barcodes)
    if (rows >= 0).all():
        return rows
    bare, bare_listed = (pd.Index([re.sub(r"-\d+$", "", name) for name in names]) for names in (barcodes, listed))
    if bare.is_unique and bare_listed.is_unique:
        others = bare_listed.get_indexer(bare)
        if (others >= 0).sum() > (rows >= 0).sum():
            return others
    return rows
