"""Reading of count tables and images, and several slices put into one object."""

from __future__ import annotations

import gzip
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._errors import ExpressionError, ImageError
from st_gchb.io import open_image


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


def read_thumbnail(path: Path, side_px: int) -> tuple[NDArray[np.uint8], float]:
    """Down-scaled copy of an image file.

    Parameters
    ----------
    path
        JPEG or PNG, 8-bit RGB.
    side_px
        Longer side of the copy, px; an image that is smaller is kept as it is.

    Returns
    -------
    tuple
        Pixels, ``(height, width, 3)``, and the copy's px per px of the file.

    Raises
    ------
    ImageError
        The file is damaged, or no 8-bit RGB image.
    """
    open_image(path)  # checks mode and header
    try:
        with warnings.catch_warnings():
            # Slides are larger than what Pillow takes for an attack.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                scale = min(1.0, side_px / max(width, height))
                size = (max(1, round(width * scale)), max(1, round(height * scale)))
                # A JPEG is decoded at 1/2, 1/4 or 1/8, which is ten times faster than whole.
                image.draft("RGB", size)
                reduction = max(1, round(width / image.width))
                box = (0.0, 0.0, min(image.width, width / reduction), min(image.height, height / reduction))
                return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box)), scale
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: the file is damaged or incomplete ({error}). Fetch it again.") from error


def join_slices(parts: Sequence[ad.AnnData], libraries: Mapping[str, Mapping[str, Any]]) -> ad.AnnData:
    """Put slices into one object: the union of genes, absent ones as 0, and one image library a slice."""
    adata = ad.concat(list(parts), join="outer", fill_value=0, merge="same")
    if adata.X is not None:
        adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    for key in (Keys.SLICE, Keys.PATIENT):
        adata.obs[key] = pd.Categorical(adata.obs[key], categories=list(dict.fromkeys(adata.obs[key])))
    adata.uns[Keys.SPATIAL] = {name: dict(library) for name, library in libraries.items()}
    return adata
