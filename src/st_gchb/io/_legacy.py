"""Tables of legacy Spatial Transcriptomics: counts, and spots."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, ExpressionError, InputError
from st_gchb._logging import logger

SPOT_COLUMNS = {"x", "y", "pixel_x", "pixel_y"}


def read_wide_counts(path: Path) -> ad.AnnData:
    """Table of counts, spots x genes, tab-separated, first column the spot's name.

    Parameters
    ----------
    path
        File, plain or compressed by gzip.

    Returns
    -------
    AnnData
        ``X``: CSR float32, ``(n_spots, n_genes)``. Columns of one gene's name are summed.

    Raises
    ------
    ExpressionError
        The file is damaged, or holds something other than counts.
    """
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as file:
            # Not by pandas: it is several times slower on tables this wide, and renames columns that appear twice.
            genes = file.readline().rstrip("\n").split("\t")[1:]
            names, rows = [], []
            for line in file:
                name, _, values = line.rstrip("\n").partition("\t")
                names.append(name)
                rows.append(sparse.csr_matrix(np.array(values.split("\t"), dtype=np.float32)))
        counts = sparse.vstack(rows, format="csr")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ExpressionError(
            f"{path}: the table of counts is damaged or incomplete ({error}). Expected tab-separated text, one spot a "
            "row, its name first. Fetch the file again."
        ) from error
    if counts.shape[1] != len(genes):
        raise ExpressionError(f"{path}: found {counts.shape[1]} values a row under {len(genes)} gene names.")
    if not (np.isfinite(counts.data) & (counts.data >= 0) & (counts.data == np.round(counts.data))).all():
        raise ExpressionError(f"{path}: found values that are negative, broken or missing; expected raw counts.")
    if len(set(names)) < len(names):
        raise ExpressionError(f"{path}: a spot is listed twice.")
    index = pd.Index(genes)
    if not index.is_unique:
        codes, index = pd.factorize(index)
        gather = sparse.csr_matrix((np.ones(len(codes), np.float32), (np.arange(len(codes)), codes)))
        counts = sparse.csr_matrix(counts @ gather)
    return ad.AnnData(counts, obs=pd.DataFrame(index=pd.Index(names)), var=pd.DataFrame(index=index))


def read_legacy_spots(name: str, counts_path: Path, spots_path: Path) -> ad.AnnData:
    """Spots of one section that are under tissue and have counts.

    Parameters
    ----------
    name
        Of the section: goes into ``obs["slice"]`` and before the spots' names.
    counts_path
        Table of counts, see :func:`read_wide_counts`; its spots are called ``XxY``.
    spots_path
        Tab-separated table with the array position ``x``, ``y`` and the place in px ``pixel_x``, ``pixel_y`` of each
        spot, and ``selected`` (1: under tissue) where it is known.

    Returns
    -------
    AnnData
        Counts in ``X``; ``obs``: ``slice``, ``array_row``, ``array_col``; positions in ``obsm["spatial"]``.

    Raises
    ------
    ExpressionError, CoordinateError, InputError
        A table is damaged, or the two have no spot in common.
    """
    counts = read_wide_counts(counts_path)
    try:
        spots = pd.read_csv(spots_path, sep="\t")
    except ValueError as error:  # pandas' own errors are of this type as well
        raise InputError(f"{spots_path}: no table of spots that can be read ({error}). Fetch it again.") from error
    if not SPOT_COLUMNS <= set(spots.columns):
        raise InputError(
            f"{spots_path}: found the columns {list(spots.columns)}, expected {sorted(SPOT_COLUMNS)} among them."
        )
    if "selected" in spots:
        spots = spots[spots["selected"] == 1]
    spots.index = pd.Index([f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)])
    if not spots.index.is_unique or not np.isfinite(spots[["pixel_x", "pixel_y"]]).all(axis=None):
        raise CoordinateError(f"{spots_path}: spots are listed twice, or pixel_x, pixel_y are not finite.")
    keep = spots.index[spots.index.isin(counts.obs_names)]
    if len(keep) < len(spots):
        lost = sorted(set(spots.index) - set(keep))
        logger.info("%s: dropped %d selected spots without counts (%s)", name, len(lost), ", ".join(lost))
    if not len(keep):
        raise InputError(f"{spots_path} and {counts_path.name}: no spot is in both; do they belong together?")
    adata, spots = counts[keep].copy(), spots.loc[keep]
    adata.obs_names = [f"{name}_{spot}" for spot in keep]
    # The legacy array counts columns in x and rows in y.
    adata.obs = pd.DataFrame(
        {
            Keys.SLICE: name,
            "array_row": spots["y"].to_numpy(),
            "array_col": spots["x"].to_numpy(),
        },
        index=adata.obs_names,
    )
    adata.obsm[Keys.SPATIAL] = spots[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    return adata
