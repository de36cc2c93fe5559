"""Tiles of LazySlide as query and reference of a model; features that others made are used where they are the same."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import anndata
import numpy as np
import pytest

from lazyslide_stores import edit, read_store, table_of, write_store
from st_gchb._errors import EncoderError, GraphError, QueryError
from st_gchb.io import read_lazyslide, write_lazyslide
from st_gchb.model import STGCHB

SIDE = 100
"""px of the slides' 1 µm."""


def colors(pixels: np.ndarray, tiles) -> np.ndarray:
    """Features as a model of LazySlide's gives them: a number or two of each tile."""
    bounds = tiles.bounds.to_numpy(dtype=int)
    found = [pixels[y0:y1, x0:x1].reshape(-1, 3) for x0, y0, x1, y1 in bounds]
    return np.array([[*part.mean(0), *part.std(0)] for part in found], dtype=np.float32)


def slide_with_tiles(folder, tissue, name, mpp=1.0, downsample=1.0):
    """The slide of a slice with tiles, their features, and the counts of the spot that is nearest to each."""
    pixels = np.asarray(tissue.uns["spatial"][name]["images"]["hires"])
    spots = tissue[tissue.obs["slice"] == name]

    def tables(tiles):
        centers = np.column_stack([tiles.centroid.x, tiles.centroid.y])
        nearest = np.linalg.norm(centers[:, None] - np.asarray(spots.obsm["spatial"])[None], axis=2).argmin(1)
        counts = np.asarray(spots.X[nearest].todense(), dtype=np.float32)
        return {
            "colors_tiles": table_of(tiles, colors(pixels, tiles)),
            "expression": table_of(tiles, counts, spots.var_names.tolist()),
        }

    return write_store(folder, pixels, mpp, SIDE, tables, name=name, downsample=downsample)


@pytest.fixture(scope="module")
def stores(tissue, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return {name: slide_with_tiles(folder, tissue, name) for name in ("S1", "S2", "S3")}


@pytest.fixture(scope="module")
def of_features(stores):
    """A model that was trained on tiles with features and expression of LazySlide's stores."""
    parts = [read_lazyslide(stores[name], features="colors", expression="expression") for name in ("S1", "S2")]
    reference = anndata.concat(parts, uns_merge="unique", index_unique="-")
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference, n_top_genes=25, k=20)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu")
    return model


def test_tiles_are_predicted_from_the_slide(model, stores, caplog, tmp_path):
    query = read_lazyslide(stores["S3"])
    with caplog.at_level(logging.INFO, "st_gchb"):
        pred = model.predict(query)
    assert "LazySlide's tiles are 100 µm wide" in caplog.text
    assert "the model sees patches of 150 µm around their centers" in caplog.text
    assert pred.obs["tile_id"].tolist() == query.obs["tile_id"].tolist()
    pred.write_h5ad(tmp_path / "pred.h5ad")
    write_lazyslide(anndata.read_h5ad(tmp_path / "pred.h5ad"), stores["S3"], overwrite=True)
    table = read_store(stores["S3"]).tables["st_gchb_tiles"]
    np.testing.assert_array_equal(table.X, pred.layers["st_gchb"])
    np.testing.assert_array_equal(table.obs["st_gchb_confidence"], pred.obs["st_gchb_confidence"])
    assert table.uns["st_gchb"]["encoder"] == "texture"


def test_tiles_are_predicted_like_the_same_positions_of_the_same_slide(model, stores):
    query = read_lazyslide(stores["S3"])
    plain = anndata.AnnData(obsm={"spatial": query.obsm["spatial"]})
    expected = model.predict(plain, image=stores["S3"].with_suffix(".png"), um_per_px=1.0)
    np.testing.assert_array_equal(model.predict(query).layers["st_gchb"], expected.layers["st_gchb"])


@pytest.mark.parametrize(("side_px", "near_enough"), [(160, True), (240, False)])
def test_tiles_wider_than_the_patches_are_told(model, tissue, tmp_path, caplog, side_px, near_enough):
    pixels = np.asarray(tissue.uns["spatial"]["S3"]["images"]["hires"])
    query = read_lazyslide(write_store(tmp_path, pixels, 1.0, side_px, name="wide"))
    expected = nullcontext() if near_enough else pytest.raises(GraphError, match="they lie 240 um apart")
    with caplog.at_level(logging.WARNING, "st_gchb"), expected:
        model.predict(query)
    told = f"tiles are {side_px} µm wide ({side_px} px of 1 µm); the model sees patches of 150 µm around their centers"
    assert told in caplog.text
    assert "Lay tiles of at most 150 µm" in caplog.text


def test_a_reference_of_tiles_predicts_tiles(of_features, stores, tmp_path):
    query = read_lazyslide(stores["S3"], features="colors")
    pred = of_features.predict(query)
    assert np.isfinite(pred.layers["st_gchb"]).all()
    assert pred.uns["st_gchb"]["encoder"] == "lazyslide:colors, 100 px"
    of_features.save(tmp_path / "model")
    loaded = STGCHB.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(query).layers["st_gchb"], pred.layers["st_gchb"])


def test_features_that_were_made_another_way_are_refused(of_features, model, tissue, stores, tmp_path):
    path = slide_with_tiles(tmp_path, tissue, "S3", downsample=2.0)
    with pytest.raises(EncoderError, match=r"encoder 'lazyslide:colors, 50 px' instead of 'lazyslide:colors, 100 px'"):
        of_features.predict(read_lazyslide(path, features="colors"))
    with pytest.raises(QueryError, match=r"has 6 features, .* 107: encoder 'lazyslide:colors, 100 px' instead of 'tex"):
        model.predict(read_lazyslide(stores["S3"], features="colors"))
    # The same number of px, of another size.
    edit(path, lambda attributes: attributes["slide_properties"].update(mpp=0.5))
    edit(path, lambda attributes: attributes["tile_spec"]["tiles"].update(mpp=0.5, width=100, height=100))
    edit(path, lambda attributes: attributes["tile_spec"]["tiles"].update(base_downsample=1.0))
    with pytest.raises(EncoderError, match=r"another way than the reference's: patch_um 50.0 instead of 100.0\. Drop"):
        of_features.predict(read_lazyslide(path, features="colors"))


def test_a_query_without_features_is_told_how_lazyslide_makes_them(of_features, stores):
    with pytest.raises(
        EncoderError, match=r"by LazySlide, with its model 'colors' on tiles of 100 px, 100.0 µm.*features='co"
    ):
        of_features.predict(read_lazyslide(stores["S3"]))
