"""Several slices put into one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._constants import Keys


def join_slices(parts: Sequence[ad.AnnData], libraries: Mapping[str, Mapping[str, Any]]) -> ad.AnnData:
    """Put slices into one object: the union of genes, absent ones as 0, and one image library a slice."""
    adata = ad.concat(list(parts), join="outer", fill_value=0, merge="same")
    if adata.X is not None:
        adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    for key in (Keys.SLICE, Keys.PATIENT):
        adata.obs[key] = pd.Categorical(adata.obs[key], categories=list(dict.fromkeys(adata.obs[key])))
    adata.uns[Keys.SPATIAL] = {name: dict(library) for name, library in libraries.items()}
    return adata
