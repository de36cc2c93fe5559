from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse


def make_library(um_per_px: float | None = 0.5) -> dict:
    """A white slide with a dark square in its upper left quarter, 400 px wide, shown at a quarter of its size."""
    image = np.full((100, 100, 3), 255, dtype=np.uint8)
    image[:50, :50] = 40
    factors = {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 16.0}
    if um_per_px is not None:
        factors["microns_per_pixel"] = um_per_px
    return {"images": {"hires": image}, "scalefactors": factors, "metadata": {}}


@pytest.fixture
def pred() -> AnnData:
    """Two slices of 25 spots; the first gene rises from left to right."""
    rng = np.random.default_rng(0)
    x, y = (grid.ravel() * 40.0 + 100.0 for grid in np.meshgrid(np.arange(5), np.arange(5)))
    xy = np.tile(np.column_stack([x, y]), (2, 1))
    measured = rng.random((50, 3)).astype(np.float32)
    measured[:, 0] = (xy[:, 0] - 100.0) / 40.0
    obs = pd.DataFrame({"slice": pd.Categorical(["C2"] * 25 + ["C3"] * 25)}, index=[f"spot{i}" for i in range(50)])
    obs["st_gchb_confidence"] = np.linspace(0.0, 1.0, 50)
    obs["st_gchb_outlier"] = np.arange(50) % 25 < 3
    adata = AnnData(measured.copy(), obs=obs, var=pd.DataFrame(index=["ERBB2", "COL1A1", "CD74"]))
    adata.layers["measured"] = sparse.csr_matrix(measured)
    adata.layers["st_gchb"] = measured * 0.5
    adata.obsm["spatial"] = xy
    adata.uns["spatial"] = {"C2": make_library(), "C3": make_library()}
    return adata
