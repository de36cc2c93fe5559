"""A query of which a part cannot be decoded: that part is reported and left out, the rest is predicted."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata
import tifffile
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, get_table_keys

import st_gchb
from st_gchb._errors import DamageError

TILE = 128


@pytest.fixture(scope="module")
def pixels(tissue):
    """Section S3 of the tissue that the model was trained on, 1 µm per px."""
    return tissue.uns["spatial"]["S3"]["images"]["hires"]


@pytest.fixture
def broken_tiff(pixels, tmp_path):
    """The section as a tiled TIFF, the tile in its middle overwritten."""
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(TILE, TILE), compression="zlib")
    content = bytearray(path.read_bytes())
    rows, columns = (-(-side // TILE) for side in pixels.shape[:2])
    tile = rows // 2 * columns + columns // 2
    with tifffile.TiffFile(path) as file:
        start, n = file.pages[0].dataoffsets[tile], file.pages[0].databytecounts[tile]
    content[start : start + n] = bytes(n)
    path.write_bytes(content)
    return path


@pytest.fixture
def broken_store(pixels, tmp_path):
    """The section as a SpatialData store, one chunk of its finest image overwritten."""
    image = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), chunks=(3, TILE, TILE))
    sdata = st_gchb.pp.tile_tissue(SpatialData(images={"he": image}), um_per_px=1.0)
    sdata.write(tmp_path / "s.zarr")
    rows, columns = (-(-side // TILE) for side in pixels.shape[:2])
    (chunk,) = (tmp_path / "s.zarr" / "images" / "he").rglob(f"c/0/{rows // 2}/{columns // 2}")
    chunk.write_bytes(b"\x55" * 300)
    return tmp_path / "s.zarr"


def values(prediction):
    return prediction.layers["st_gchb"]


def whole_query(pixels, keep=None):
    query = st_gchb.pp.tile_tissue(pixels, um_per_px=1.0)
    return query if keep is None else query[query.obs_names.isin(keep)].copy()


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_the_rest_of_a_slide_is_predicted(model, pixels, broken_tiff, caplog, unchanged):
    query = st_gchb.pp.tile_tissue(broken_tiff, um_per_px=1.0, tissue="all", name="slide")
    caplog.clear()
    with unchanged(query):
        prediction = model.predict(query)
    excluded = prediction.uns["st_gchb"]["excluded"]
    assert 1 <= len(excluded) < 0.5 * query.n_obs
    assert prediction.n_obs == query.n_obs - len(excluded)
    assert prediction.obs_names.tolist() == query.obs_names[~query.obs_names.isin(excluded)].tolist()
    (message,) = warnings_of(caplog)
    assert f"{len(excluded)} of {query.n_obs} spots" in message
    rows, columns = (side // TILE // 2 * TILE for side in (pixels.shape[0] + TILE - 1, pixels.shape[1] + TILE - 1))
    assert f"x {columns} to {columns + TILE}, y {rows} to {rows + TILE}" in message
    # Neighbors are those that exist: the same as for a query that never held the others.
    others = whole_query(pixels, prediction.obs_names)
    assert others.n_obs < prediction.n_obs  # all of the slide was gridded, not the tissue alone
    full = st_gchb.pp.tile_tissue(pixels, um_per_px=1.0, tissue="all", name="slide")
    expected = model.predict(full[full.obs_names.isin(prediction.obs_names)].copy())
    assert expected.obs_names.tolist() == prediction.obs_names.tolist()
    np.testing.assert_allclose(values(prediction), values(expected), rtol=1e-4, atol=1e-5)
    assert "excluded" not in expected.uns["st_gchb"]


def test_the_answer_survives_a_file(model, broken_tiff, tmp_path):
    from anndata import read_h5ad

    prediction = model.predict(st_gchb.pp.tile_tissue(broken_tiff, um_per_px=1.0, tissue="all"))
    prediction.write_h5ad(tmp_path / "p.h5ad")
    again = read_h5ad(tmp_path / "p.h5ad").uns["st_gchb"]["excluded"]
    assert list(again) == list(prediction.uns["st_gchb"]["excluded"])


def test_a_damaged_store(model, pixels, broken_store, caplog):
    sdata = spatialdata.read_zarr(broken_store)
    prediction = model.predict(sdata, table="tiles_table")
    excluded = prediction.uns["st_gchb"]["excluded"]
    table = sdata["st_gchb"]
    assert 1 <= len(excluded) < 0.5 * sdata["tiles_table"].n_obs
    assert table.n_obs == prediction.n_obs == sdata["tiles_table"].n_obs - len(excluded)
    assert get_table_keys(table)[0] in ("tiles", ["tiles"])
    assert not np.isin(excluded, table.obs_names).any()
    by_id = table.obs.set_index("instance_id").index
    assert set(by_id) < set(sdata["tiles"].index)
    assert sum("Left out" in message for message in warnings_of(caplog)) == 1
    full = whole_query(pixels)
    keep = np.isin(place_of(full), place_of(table))
    expected = model.predict(full[keep].copy())
    np.testing.assert_allclose(values(prediction), values(expected), rtol=1e-4, atol=1e-5)
    # Written and read back with fewer instances than there are shapes.
    sdata.write_element("st_gchb")
    again = spatialdata.read_zarr(broken_store)["st_gchb"]
    assert again.obs_names.tolist() == table.obs_names.tolist()


def place_of(table):
    return (table.obs["array_row"].astype(str) + " " + table.obs["array_col"].astype(str)).to_numpy(dtype=str)


def test_features_that_were_made_before(model, broken_tiff):
    """The user may embed a slide first: the same spots are left out."""
    query = st_gchb.pp.tile_tissue(broken_tiff, um_per_px=1.0, tissue="all")
    expected = model.predict(query)
    rule = model.rules_.features
    st_gchb.pp.embed_patches_like(query, rule, on_damage="nan", cache=False)
    prediction = model.predict(query)
    np.testing.assert_array_equal(prediction.uns["st_gchb"]["excluded"], expected.uns["st_gchb"]["excluded"])
    np.testing.assert_allclose(values(prediction), values(expected), rtol=1e-5, atol=1e-6)
    with pytest.raises(DamageError, match=r"excluded"):
        model.get_latent_representation(query, modality="image")


def test_an_embedding_by_position_has_to_be_whole(model, broken_tiff):
    """Rows of an array have no names by which they could be matched."""
    query = st_gchb.pp.tile_tissue(broken_tiff, um_per_px=1.0, tissue="all")
    with pytest.raises(DamageError, match="slide.tif"):
        model.get_latent_representation(query, modality="image")


def test_the_bound_of_memory_comes_through(model, pixels, tmp_path, monkeypatch):
    seen = []
    from st_gchb.pp.patches import _embed_slices as _embed

    original = _embed.patches_of_sizes
    monkeypatch.setattr(_embed, "patches_of_sizes", lambda *args: seen.append(args[3]) or original(*args))
    monkeypatch.setenv("ST_GCHB_CACHE", str(tmp_path))
    query = st_gchb.pp.tile_tissue(pixels, um_per_px=1.0)
    model.predict(query, memory_mb=100)
    model.get_latent_representation(query[:-1].copy(), modality="image", memory_mb=99)
    assert seen == [100, 99]
    with pytest.raises(ValueError, match="memory_mb=0"):
        model.predict(query, memory_mb=0)
