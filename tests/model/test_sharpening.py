"""Sharpening: predictions moved away from the mean of their neighbors; and what the heads add to retrieval."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import st_gchb
from st_gchb.errors import InputError
from st_gchb.metrics import morans_i
from st_gchb.model import STGCHB, sharpened


@pytest.fixture(scope="module")
def slices(tissue: AnnData) -> AnnData:
    adata = tissue.copy()
    adata.obsm["share"] = np.random.default_rng(0).random((adata.n_obs, 2))
    return adata


def trained(slices: AnnData, calibrate: bool = False, **settings) -> STGCHB:
    adata = slices[slices.obs["slice"] != "S3"].copy()
    STGCHB.setup_anndata(adata, slice_key="slice")
    model = STGCHB(adata, n_top_genes=30, k=30, seed=1, **settings)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", calibrate=calibrate)
    return model


@pytest.fixture(scope="module")
def sharp(slices: AnnData) -> STGCHB:
    """A model that sharpens; with its calibration."""
    return trained(slices, calibrate=True, sharpening=0.5)


@pytest.fixture(scope="module")
def plain(slices: AnnData) -> STGCHB:
    """The same model, but that it does not sharpen."""
    return trained(slices, calibrate=True, sharpening=0.0)


@pytest.fixture(scope="module")
def held_out(slices: AnnData) -> AnnData:
    return slices[slices.obs["slice"] == "S3"].copy()


def test_the_difference_to_the_neighbors_grows_by_the_share():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 4)).astype(np.float32)
    graph = np.triu(rng.random((30, 30)) < 0.2, 1)
    graph = (graph | graph.T).astype(float) * 3.0  # weights of edges do not matter
    graph[7] = graph[:, 7] = 0.0
    expected = values.copy()
    for spot in range(30):
        near = np.flatnonzero(graph[spot])
        if len(near):
            expected[spot] = values[spot] + 0.4 * (values[spot] - values[near].mean(0))
    found = sharpened(values, sparse.csr_matrix(graph), 0.4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(found[7], values[7])


@pytest.mark.parametrize("layer", [None, "all_genes", "share"])
def test_a_prediction_is_sharpened_and_stays_in_range(sharp, plain, held_out, layer):
    found, smooth = (one.predict(held_out, slice_key="slice", layer=layer) for one in (sharp, plain))
    query = held_out.copy()
    st_gchb.pp.spatial_graph(query, slice_key="slice")
    graph = query.obsp["spatial_connectivities"]
    table = sharp.bank_.table(layer)
    expected = np.clip(sharpened(smooth.layers["st_gchb"], graph, 0.5), *table.bounds)
    # Where the smooth values themselves were clipped, the sharpened ones start from beyond.
    inside = (smooth.layers["st_gchb"] > table.bounds[0]) & (smooth.layers["st_gchb"] < table.bounds[1])
    clear = inside.all(0)
    assert clear.any()
    np.testing.assert_allclose(found.layers["st_gchb"][:, clear], expected[:, clear], atol=1e-5)
    values = np.asarray(found.layers["st_gchb"])
    assert (values >= table.bounds[0]).all()
    assert (values <= table.bounds[1]).all()
    pattern = [np.nanmean(morans_i(np.asarray(one.layers["st_gchb"]), graph)) for one in (found, smooth)]
    assert pattern[0] < pattern[1]
    assert found.uns["st_gchb"]["sharpening"] == 0.5
    assert "sharpening" not in plain.predict(held_out, slice_key="slice").uns["st_gchb"]


def test_a_saved_model_sharpens_alike(sharp, held_out, tmp_path):
    sharp.save(tmp_path / "model")
    again = STGCHB.load(tmp_path / "model")
    before, after = (one.predict(held_out, slice_key="slice") for one in (sharp, again))
    np.testing.assert_array_equal(before.layers["st_gchb"], after.layers["st_gchb"])
    for name in ("st_gchb_expected_pcc", "st_gchb_retrieval_pcc"):
        np.testing.assert_array_equal(before.var[name], after.var[name])


def test_a_prediction_tells_what_the_heads_add(slices, plain, held_out):
    assert plain.settings.kernel_weight > 0
    without = trained(slices, calibrate=True, kernel_weight=0.0, sharpening=0.0)
    both, alone = (one.predict(held_out, slice_key="slice").var for one in (plain, without))
    np.testing.assert_allclose(both["st_gchb_retrieval_pcc"], alone["st_gchb_expected_pcc"], atol=1e-6)
    np.testing.assert_allclose(alone["st_gchb_retrieval_pcc"], alone["st_gchb_expected_pcc"], atol=1e-6)
    assert (both["st_gchb_retrieval_pcc"] - both["st_gchb_expected_pcc"]).abs().max() > 0.01


@pytest.mark.parametrize("sharpening", [-0.1, float("nan"), "strong"])
def test_a_sharpening_that_is_none_is_refused(slices, sharpening):
    with pytest.raises(InputError, match="sharpening"):
        trained(slices, sharpening=sharpening)
