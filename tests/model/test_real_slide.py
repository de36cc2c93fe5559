"""A real section as a bare JPEG: its grid is predicted as well as its spots."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

import st_gchb
from st_gchb.model import STGCHB

pytestmark = pytest.mark.tissue


@pytest.mark.slow
def test_a_grid_is_predicted_as_well_as_the_spots(her2st_path, weights_path):
    ref = st_gchb.datasets.her2st(["C2", "C3", "C4"], path=her2st_path)
    st_gchb.pp.embed_patches(ref, encoder="mobilenet_v2", patch_um=150, weights=weights_path, n_views=1)
    STGCHB.setup_anndata(ref, slice_key="slice")
    model = STGCHB(ref, n_top_genes=1000)
    model.train(enable_progress_bar=False, accelerator="cpu", calibrate=False)

    section = st_gchb.datasets.her2st(["C5"], path=her2st_path)
    # Half of it shows the same in half the time.
    x, y = section.obsm["spatial"].T
    section = section[x < np.median(x)].copy()
    roi = np.array([(0, 0), (np.median(x), 0), (np.median(x), 2 * y.max()), (0, 2 * y.max())])
    um_per_px = section.uns["spatial"]["C5"]["scalefactors"]["microns_per_pixel"]
    spots = model.predict(section)
    tiles = st_gchb.pp.tile_tissue(her2st_path / "C5.jpg", um_per_px=um_per_px, spacing_um=100, roi=roi)
    grid = model.predict(tiles)
    assert grid.n_obs > 4 * spots.n_obs

    nearest = cKDTree(grid.obsm["spatial"]).query(spots.obsm["spatial"])[1]
    by_spot = st_gchb.metrics.pearson(np.asarray(spots.X), spots.layers["st_gchb"])
    by_grid = st_gchb.metrics.pearson(np.asarray(spots.X), grid.layers["st_gchb"][nearest])
    assert np.nan_to_num(by_spot).mean() > 0.08
    assert abs(np.nan_to_num(by_spot).mean() - np.nan_to_num(by_grid).mean()) < 0.02
