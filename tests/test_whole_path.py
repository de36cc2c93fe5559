"""From real sections to a prediction, a saved model and back."""

from __future__ import annotations

import numpy as np
import pytest

import st_gchb
from st_gchb.metrics import pearson
from st_gchb.model import STGCHB

pytestmark = pytest.mark.tissue


@pytest.fixture(scope="module")
def sections(her2st_path):
    adata = st_gchb.datasets.her2st(["C3", "C4", "C5"], path=her2st_path)
    st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    return adata


@pytest.fixture(scope="module")
def model(sections):
    reference = sections[sections.obs["slice"] != "C5"].copy()
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference, n_top_genes=300, seed=0)
    model.train(enable_progress_bar=False)
    return model


def test_a_held_out_section_is_predicted_better_than_by_chance(model, sections):
    measured = sections[sections.obs["slice"] == "C5"].copy()
    pred = model.predict(measured[:, []].copy())
    checked = model.predict(measured)
    np.testing.assert_array_equal(pred.layers["st_gchb"], checked.layers["st_gchb"])
    found = pearson(checked.layers["measured"], checked.layers["st_gchb"])
    shuffled = checked.layers["st_gchb"][np.random.default_rng(0).permutation(checked.n_obs)]
    chance = pearson(checked.layers["measured"], shuffled)
    assert np.mean(found) > np.mean(chance) + 0.03
    assert np.sort(found)[-50:].mean() > 0.3


def test_confident_spots_are_predicted_better(model, sections):
    checked = model.predict(sections[sections.obs["slice"] == "C5"].copy())
    error = np.sqrt(((checked.layers["measured"] - checked.layers["st_gchb"]) ** 2).mean(1))
    order = np.argsort(checked.obs["st_gchb_confidence"].to_numpy())
    third = len(order) // 3
    assert error[order[-third:]].mean() < 0.85 * error[order[:third]].mean()


def test_a_saved_model_predicts_the_same(model, sections, tmp_path):
    query = sections[sections.obs["slice"] == "C5", []].copy()
    model.save(tmp_path / "model")
    again = STGCHB.load(tmp_path / "model").predict(query)
    np.testing.assert_array_equal(again.layers["st_gchb"], model.predict(query).layers["st_gchb"])
