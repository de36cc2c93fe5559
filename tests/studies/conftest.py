"""Three small slices of two patients with features."""

from __future__ import annotations

import pandas as pd
import pytest
from anndata import AnnData

import st_gchb


@pytest.fixture(scope="session")
def _tissue() -> AnnData:
    adata = st_gchb.datasets.synthetic_tissue(3, n_rows=7, n_cols=7, n_genes=40, seed=5)
    adata.obs["patient"] = pd.Categorical(adata.obs["slice"].map({"S1": "P1", "S2": "P1", "S3": "P2"}))
    st_gchb.pp.embed_patches(adata, encoder="texture", n_views=1, cache=False)
    return adata


@pytest.fixture
def tissue(_tissue: AnnData) -> AnnData:
    return _tissue.copy()
