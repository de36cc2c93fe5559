"""Everything that a query may be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from PIL import Image

import st_gchb


def light(tissue, *names):
    part = tissue[tissue.obs["slice"].isin(names)]
    uns = {"spatial": {name: tissue.uns["spatial"][name] for name in names}}
    return AnnData(obs=part.obs[["slice"]].copy(), obsm={"spatial": part.obsm["spatial"].copy()}, uns=uns)


def values(prediction):
    return prediction.layers["st_gchb"]


def test_the_query_is_left_as_it_was(model, query, held_out, unchanged):
    for thing in (query, held_out):
        with unchanged(thing, model.adata):
            prediction = model.predict(thing, return_neighbors=True)
            # Nor does it share what users write to.
            prediction.obsm["spatial"][:] = 0
            prediction.obs["slice"] = "x"
            prediction.X[:] = 0
            prediction.layers["st_gchb"][:] = 0
            del prediction.uns["spatial"]["S3"]


def test_features_are_made_by_the_models_rule(model, query, held_out):
    assert "X_patch" not in query.obsm
    np.testing.assert_allclose(values(model.predict(query)), values(model.predict(held_out)), rtol=1e-5, atol=1e-6)


def test_a_query_without_a_slice_column(model, query):
    expected = values(model.predict(query))
    del query.obs["slice"]
    np.testing.assert_array_equal(values(model.predict(query)), expected)


def test_a_slice_column_of_another_name(model, query):
    expected = values(model.predict(query))
    query.obs = query.obs.rename(columns={"slice": "section"})
    np.testing.assert_array_equal(values(model.predict(query, slice_key="section")), expected)
    np.testing.assert_array_equal(values(model.predict(query)), expected)


def test_a_slice_of_unseen_name(model, query):
    expected = model.predict(query)
    query.obs["slice"] = pd.Categorical(["patient 9, left"] * query.n_obs)
    query.uns["spatial"] = {"patient 9, left": query.uns["spatial"]["S3"]}
    prediction = model.predict(query)
    np.testing.assert_array_equal(values(prediction), values(expected))
    assert list(prediction.uns["spatial"]) == ["patient 9, left"]


def test_views(model, tissue, unchanged):
    view = tissue[tissue.obs["slice"] == "S3"]
    with unchanged(tissue, view):
        prediction = model.predict(view)
    assert prediction.n_obs == view.n_obs
    assert not prediction.is_view
    np.testing.assert_allclose(values(prediction), values(model.predict(view.copy())), rtol=1e-5, atol=1e-6)


def test_several_slices_are_answered_one_by_one(model, tissue):
    both = light(tissue, "S3", "S1")
    shuffled = both[np.random.default_rng(0).permutation(both.n_obs)].copy()
    prediction = model.predict(shuffled)
    assert prediction.obs_names.tolist() == shuffled.obs_names.tolist()
    assert set(prediction.uns["spatial"]) == {"S1", "S3"}
    for name in ("S1", "S3"):
        alone = model.predict(light(tissue, name))
        np.testing.assert_allclose(
            values(prediction[alone.obs_names]), values(alone), rtol=1e-5, atol=1e-6, err_msg=name
        )


def test_a_part_of_a_slide(model, query):
    """A part's neighbors are its own, and its images come with it."""
    part = query[query.obsm["spatial"][:, 0] < np.median(query.obsm["spatial"][:, 0])].copy()
    prediction = model.predict(part)
    assert prediction.n_obs == part.n_obs
    assert values(prediction).std(0).min() > 0


def test_the_image_may_be_a_path(model, query, tmp_path):
    expected = values(model.predict(query))
    pixels = query.uns["spatial"]["S3"]["images"]["hires"]
    Image.fromarray(pixels).save(tmp_path / "S3.png")
    del query.uns["spatial"]
    prediction = model.predict(query, image=tmp_path / "S3.png", um_per_px=1.0)
    np.testing.assert_allclose(values(prediction), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        values(model.predict(query, image={"S3": pixels}, um_per_px={"S3": 1.0})), values(prediction)
    )


def test_a_slide_of_another_scale(model, query):
    """The rules speak of µm: a slide scanned at half the px gives nearly the same answer, not another one."""
    fine = values(model.predict(query))
    library = query.uns["spatial"]["S3"]
    half = np.asarray(Image.fromarray(library["images"]["hires"]).reduce(2))
    query.obsm["spatial"] = query.obsm["spatial"] / 2
    query.uns["spatial"]["S3"] = {
        "images": {"hires": half},
        "scalefactors": {
            "tissue_hires_scalef": 1.0,
            "microns_per_pixel": 2.0,
            "spot_diameter_fullres": library["scalefactors"]["spot_diameter_fullres"] / 2,
        },
        "metadata": {},
    }
    coarse = values(model.predict(query))
    assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.95
    # Taken for px of 1 µm, patches would be twice as wide: another answer.
    assert np.abs(values(model.predict(query, um_per_px=1.0)) - fine).mean() > 1.5 * np.abs(coarse - fine).mean()


def test_some_of_the_genes(model, held_out):
    panel = model.rules_.expression.genes
    part = held_out[:, [*panel[:4], *held_out.var_names.difference(panel)]].copy()
    prediction = model.predict(part)
    measured = prediction.var["st_gchb_measured"]
    assert prediction.var_names[measured].tolist() == panel[:4].tolist()
    np.testing.assert_array_equal(prediction[:, ~measured].X, values(prediction)[:, ~measured])
    assert not np.array_equal(prediction[:, measured].X, values(prediction)[:, measured])


def test_measured_values_of_another_kind_are_not_taken_for_counts(model, held_out, caplog):
    held_out.X = sp.csr_matrix(held_out.X.toarray() / 7.0)
    with caplog.at_level("WARNING", logger="st_gchb"):
        prediction = model.predict(held_out)
    assert "not carried over" in caplog.text
    np.testing.assert_array_equal(prediction.X, values(prediction))


@pytest.mark.parametrize("kind", ["X_patch", "obsp"])
def test_old_results_in_the_query_do_no_harm(model, query, kind):
    expected = values(model.predict(query))
    if kind == "obsp":
        query.obsp["spatial_connectivities"] = sp.csr_matrix(np.ones((query.n_obs, query.n_obs)))
    else:
        st_gchb.pp.embed_patches(query, encoder="texture", patch_um=150, n_views=1, cache=False)
    np.testing.assert_allclose(values(model.predict(query)), expected, rtol=1e-5, atol=1e-6)


def test_features_of_other_views_are_refused_until_they_are_dropped(model, query):
    expected = values(model.predict(query))
    st_gchb.pp.embed_patches(query, encoder="texture", patch_um=150, n_views=4, cache=False)
    with pytest.raises(st_gchb._errors.EncoderError, match=r"n_views 4 instead of 1\. Drop"):
        model.predict(query)
    del query.obsm["X_patch"]
    np.testing.assert_allclose(values(model.predict(query)), expected, rtol=1e-5, atol=1e-6)


def test_features_from_outside(tissue, held_out):
    reference = tissue[tissue.obs["slice"] != "S3"].copy()
    for adata in (reference, held_out):
        adata.obsm["X_mine"] = np.asarray(adata.obsm["X_patch"][:, :20], dtype=np.float64)
        del adata.obsm["X_patch"], adata.uns["X_patch"]
    st_gchb.model.STGCHB.setup_anndata(reference, features_key="X_mine")
    mine = st_gchb.model.STGCHB(reference, n_top_genes=10)
    mine.train(max_epochs=1, enable_progress_bar=False, calibrate=False, accelerator="cpu")
    prediction = mine.predict(held_out)
    assert prediction.uns["st_gchb"]["encoder"] == "external"
    assert "X_patch" not in held_out.obsm
    del held_out.obsm["X_mine"]
    with pytest.raises(st_gchb._errors.QueryError, match="X_mine"):
        mine.predict(held_out)
