"""Stain from training to query: normalized alike, refused where it is not, judged."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, read_h5ad

import st_gchb
from st_gchb._artifacts import digest
from st_gchb._errors import EncoderError
from st_gchb.model import STGCHB, read_settings
from studies._stains import recolored

OPTIONS = {"encoder": "texture", "patch_um": 150, "n_views": 1, "device": "cpu"}


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
    adata = made(tissue, stain_norm="macenko")
    STGCHB.setup_anndata(adata, slice_key="slice")
    model = STGCHB(adata, n_top_genes=20, k=30)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    return model


def test_a_query_walks_the_same_steps_before_and_after_saving(normalized, bare, tmp_path):
    answer = normalized.predict(bare)
    assert answer.uns["st_gchb"]["stain_norm"] == "macenko"
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
        assert read_settings(tmp_path / name)["format"] == 5
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


def test_a_model_that_was_stored_with_versions_in_other_stains_is_read(normalized, bare, tmp_path):
    normalized.save(tmp_path / "m")
    file = tmp_path / "m" / "model.json"
    record = json.loads(file.read_text())
    del record["record_sha256"]
    record["features"]["stain_augment"] = 2
    file.write_text(json.dumps(record | {"record_sha256": digest(record)}))
    loaded = STGCHB.load(tmp_path / "m", accelerator="cpu")
    assert loaded.rules_.features == normalized.rules_.features
    np.testing.assert_array_equal(loaded.predict(bare).layers["st_gchb"], normalized.predict(bare).layers["st_gchb"])


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
