"""Stain from training to query: normalized alike, refused where it is not, augmented in training alone, judged."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

import st_gchb
from st_gchb._errors import EncoderError, MissingKeyError
from st_gchb.evaluate._foreign import recolored
from st_gchb.evaluate._run_cache import data_sha256
from st_gchb.model import STGCHB
from st_gchb.model._fit import fit, training_data
from st_gchb.model._loading import read_settings

OPTIONS = {"encoder": "texture", "n_views": 1, "device": "cpu"}


def made(tissue, **more):
    adata = tissue[tissue.obs["slice"] != "S3"].copy()
    st_gchb.pp.embed_patches(adata, **OPTIONS, **more)
    return adata


@pytest.fixture(scope="module")
def bare(tissue):
    """S3 as a slide with H&E alone."""
    part = tissue[tissue.obs["slice"] == "S3"]
    library = {"S3": tissue.uns["spatial"]["S3"]}
    return AnnData(
        obs=part.obs[["slice"]].copy(), obsm={"spatial": np.array(part.obsm["spatial"])}, uns={"spatial": library}
    )


@pytest.fixture(scope="module")
def normalized(tissue):
    adata = made(tissue, stain_norm="macenko", stain_augment=2)
    STGCHB.setup_anndata(adata, slice_key="slice")
    model = STGCHB(adata, n_top_genes=20, k=30)
    model.train(max_epochs=2, enable_progress_bar=False, accelerator="cpu")
    return model


def test_a_query_walks_the_same_steps_before_and_after_saving(normalized, bare, tmp_path):
    answer = normalized.predict(bare)
    assert answer.uns["st_gchb"]["stain_norm"] == "macenko"
    assert answer.uns["st_gchb"]["stain_augment"] == 2
    query = bare.copy()
    st_gchb.pp.embed_patches_like(query, normalized.rules_.features)
    np.testing.assert_array_equal(normalized.predict(query).layers["st_gchb"], answer.layers["st_gchb"])
    normalized.save(tmp_path / "m")
    loaded = STGCHB.load(tmp_path / "m", accelerator="cpu")
    assert loaded.rules_.features == normalized.rules_.features
    np.testing.assert_array_equal(loaded.predict(bare).layers["st_gchb"], answer.layers["st_gchb"])
    answer.write_h5ad(tmp_path / "a.h5ad")
    stored = read_h5ad(tmp_path / "a.h5ad").uns["st_gchb"]["stain"]
    pd.testing.assert_frame_equal(stored, answer.uns["st_gchb"]["stain"], check_names=False, check_dtype=False)


def test_programs_that_know_no_stain_refuse_a_model_with_one_and_read_others(normalized, model, tmp_path):
    normalized.save(tmp_path / "stained")
    model.save(tmp_path / "plain")
    for name in ("stained", "plain"):
        assert read_settings(tmp_path / name)["format"] == 4
    record = json.loads((tmp_path / "plain" / "model.json").read_text())
    assert not any("stain" in key for key in record["features"])


def test_features_of_another_stain_are_refused(normalized, model, tissue, bare):
    plain = bare.copy()
    st_gchb.pp.embed_patches(plain, **OPTIONS)
    with pytest.raises(EncoderError, match="stain_norm None instead of 'macenko'"):
        normalized.predict(plain)
    other = bare.copy()
    st_gchb.pp.embed_patches(other, **OPTIONS, stain_norm="macenko")
    with pytest.raises(EncoderError, match="stain_target"):
        normalized.predict(other)
    with pytest.raises(EncoderError, match="stain_norm 'macenko' instead of None"):
        model.predict(other)


def test_training_sees_the_versions_and_the_bank_does_not(normalized, tissue):
    assert not [name for name in normalized.bank_.tables if "stain" in name]
    adata = made(tissue, stain_augment=2)
    STGCHB.setup_anndata(adata, slice_key="slice")
    model = STGCHB(adata, n_top_genes=20, k=30)
    fitted = fit(adata, model._where, model.settings, None, 0)
    data = training_data(fitted, adata)
    assert data.stained.shape == (2, *data.image.shape)
    adata.obsm["X_patch_stain1"] = adata.obsm["X_patch"].copy()
    same = training_data(fitted, adata).stained[0]
    np.testing.assert_allclose(same, data.image, atol=1e-5)
    assert np.abs(data.stained[0] - data.image).max() > 0.1
    del adata.obsm["X_patch_stain1"]
    fresh = adata.copy()
    with pytest.raises(MissingKeyError, match="X_patch_stain1"):
        STGCHB.setup_anndata(fresh, slice_key="slice")


def test_training_with_versions_is_another_training_and_repeats(tissue, bare):
    answers = []
    for versions in (0, 1, 1):
        adata = made(tissue, stain_augment=versions)
        STGCHB.setup_anndata(adata, slice_key="slice")
        model = STGCHB(adata, n_top_genes=20, k=30)
        model.train(max_epochs=2, calibrate=False, enable_progress_bar=False, accelerator="cpu")
        answers.append(model.predict(bare).layers["st_gchb"])
    np.testing.assert_array_equal(answers[1], answers[2])
    assert np.abs(answers[0] - answers[1]).max() > 1e-4


def test_kept_runs_of_other_versions_are_not_taken(tissue):
    hashes = [data_sha256(made(tissue, **more), "slice", "X_patch") for more in ({}, {"stain_augment": 1})]
    hashes.append(data_sha256(made(tissue, stain_augment=1, stain_seed=1), "slice", "X_patch"))
    assert len(set(hashes)) == 3


def test_each_slide_is_judged_in_words(model, bare, caplog):
    def said(answer):
        return answer.uns["st_gchb"]["stain"].loc["S3"]

    with caplog.at_level(logging.WARNING, logger="st_gchb"):
        own = model.predict(bare)
        assert said(own)["in_range"]
        assert "like the reference's" in said(own)["verdict"]
        assert not caplog.records
        brown = recolored(bare.uns["spatial"]["S3"]["images"]["hires"])
        off = model.predict(bare, image=brown, um_per_px=1.0)
    assert not said(off)["in_range"]
    assert said(off)["distance"] > said(off)["limit"]
    assert off.obs["st_gchb_outlier"].all()
    assert "slice 'S3': stain, scanner or tissue is unlike any reference slide" in caplog.text


def test_a_few_spots_are_not_judged(model, bare):
    said = model.predict(bare[:8].copy()).uns["st_gchb"]["stain"].iloc[0]
    assert said["in_range"]
    assert said["n_spots"] == 8
    assert "too few to judge" in said["verdict"]
