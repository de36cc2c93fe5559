"""Concatenate slices into one AnnData."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb.io import Library, put_libraries


def join_slices(parts: Sequence[ad.AnnData], libraries: Iterable[Library]) -> ad.AnnData:
    """Concatenate slices into one object.

    Parameters
    ----------
    parts
        Slices, with ``slice`` and ``patient`` in ``obs``.
    libraries
        One ``Library`` per slice, for ``uns["spatial"]``.

    Returns
    -------
    AnnData
        The union of all genes (count 0 for genes that a slice lacks), with one image library per slice.
    """
    adata = ad.concat(list(parts), join="outer", fill_value=0, merge="same")
    if adata.X is not None:
        counts = sparse.csr_matrix(adata.X, dtype=np.float32)
        # Aligning the genes leaves each row's columns in any order, and everything that reads it would sort a copy.
        counts.sort_indices()
        adata.X = counts
    for key in (Keys.SLICE, Keys.PATIENT):
        adata.obs[key] = pd.Categorical(adata.obs[key], categories=list(dict.fromkeys(adata.obs[key])))
    put_libraries(adata, libraries)
    return adata
