"""Results where users look: in the SpatialData, in its store, in files, over the slide."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import spatialdata
from PIL import Image
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Identity, get_transformation

import st_gchb
from st_gchb._errors import InputError, MissingFileError, STGCHBError, StoreError
from st_gchb.io import _write_elements as _store

XY = ("x", "y")
# Turned by a quarter, mirrored, scaled and shifted.
PLACED = Affine([[0, -0.4, 900], [-0.4, 0, 700], [0, 0, 1]], XY, XY)
TILES = {"um_per_px": 1.0, "spacing_um": 60.0, "grid": "square"}


@pytest.fixture(scope="session")
def pixels(tissue):
    return tissue.uns["spatial"]["S3"]["images"]["hires"]


def slide_data(pixels, *names: str) -> SpatialData:
    """Bare slides, each with its tiles and a coordinate system of its own."""
    sdata = SpatialData()
    for name in names:
        sdata.images[f"{name}_he"] = Image2DModel.parse(
            np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations={f"at_{name}": PLACED}
        )
        st_gchb.pp.tile_tissue(sdata, name=name, image=f"{name}_he", **TILES)
    return sdata


@pytest.fixture
def stored(pixels, tmp_path):
    """A slide in a store, its tiles in memory alone."""
    path = tmp_path / "slide.zarr"
    sdata = slide_data(pixels, "tiles")
    SpatialData(images=dict(sdata.images)).write(path)
    sdata.path = path
    return sdata


def assert_equal(first, second):
    """The same bit for bit."""
    assert first.shape == second.shape
    np.testing.assert_array_equal(first.X, second.X)
    for kind in ("layers", "obsm"):
        one, other = getattr(first, kind), getattr(second, kind)
        assert set(one) == set(other)
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype
    for frame, other in ((first.obs, second.obs), (first.var, second.var)):
        pd.testing.assert_frame_equal(frame, other, check_categorical=False, check_index_type=False)
    assert set(first.uns["st_gchb"]) == set(second.uns["st_gchb"])
    for key, value in first.uns["st_gchb"].items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(second.uns["st_gchb"][key]))


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
@pytest.mark.parametrize("options", [{"return_neighbors": True}, {"layer": "all_genes"}])
def test_an_anndata_comes_back_from_a_file(model, query, tmp_path, form, options):
    prediction = model.predict(query, **options)
    path = tmp_path / f"pred.{form}"
    getattr(prediction, f"write_{form}")(path)
    read = getattr(anndata, f"read_{form}")(path)
    reference = prediction.uns["st_gchb"].pop("reference", None)
    if reference is not None:
        pd.testing.assert_frame_equal(reference, read.uns["st_gchb"].pop("reference"), check_categorical=False)
    assert_equal(prediction, read)
    image, same = (one.uns["spatial"]["S3"]["images"]["hires"] for one in (prediction, read))
    np.testing.assert_array_equal(image, same)


def test_the_result_is_written_with_the_shapes_that_it_annotates(model, stored):
    prediction = model.predict(stored, write=True)
    read = spatialdata.read_zarr(stored.path)
    assert {name for _, name, _ in read.gen_elements()} == {"tiles_he", "tiles", "st_gchb"}
    assert_equal(stored["st_gchb"], read["st_gchb"])
    np.testing.assert_array_equal(prediction.layers["st_gchb"], read["st_gchb"].layers["st_gchb"])
    for name in ("tiles", "tiles_he"):
        (placed,) = get_transformation(read[name], get_all=True).values()
        np.testing.assert_array_equal(placed.to_affine_matrix(XY, XY), PLACED.matrix)
    # What was read back is a query that is answered the same, and the answer replaces the earlier one.
    again = model.predict(read, write=True, layer="all_genes")
    assert spatialdata.read_zarr(stored.path)["st_gchb"].shape == again.shape


def test_sdata_write_gives_the_same(model, pixels, tmp_path):
    sdata = slide_data(pixels, "tiles")
    model.predict(sdata)
    st_gchb.pp.rasterize(sdata, sdata["st_gchb"].var_names[:2].tolist())
    sdata.write(tmp_path / "s.zarr")
    read = spatialdata.read_zarr(tmp_path / "s.zarr")
    assert_equal(sdata["st_gchb"], read["st_gchb"])
    np.testing.assert_array_equal(sdata["tiles_raster"].values, read["tiles_raster"].values)
    assert read["tiles_raster"].coords["c"].values.tolist() == sdata["st_gchb"].var_names[:2].tolist()
    for name in ("tiles", "tiles_raster"):
        matrices = [get_transformation(one[name], "at_tiles").to_affine_matrix(XY, XY) for one in (sdata, read)]
        np.testing.assert_array_equal(*matrices)


def test_several_slides_in_one_object(model, pixels, tmp_path):
    sdata = slide_data(pixels, "a", "b")
    sdata.write(tmp_path / "s.zarr")
    # One table for both: a row says which region it belongs to.
    both = anndata.concat([sdata["a_table"], sdata["b_table"]], merge="same")
    both.obs_names_make_unique()
    both.obs["region"] = both.obs["region"].astype("category")
    sdata.tables["both"] = spatialdata.models.TableModel.parse(
        both, region=["a", "b"], region_key="region", instance_key="instance_id"
    )
    prediction = model.predict(sdata, table="both", um_per_px=1.0, write=True)
    read = spatialdata.read_zarr(sdata.path)
    assert_equal(sdata["st_gchb"], read["st_gchb"])
    halves = [prediction.layers["st_gchb"][prediction.obs["region"] == name] for name in "ab"]
    np.testing.assert_allclose(*halves, rtol=1e-5, atol=1e-6)
    assert st_gchb.pp.rasterize(sdata, "st_gchb_confidence") == ["a_raster", "b_raster"]
    assert list(get_transformation(sdata["b_raster"], get_all=True)) == ["at_b"]


def test_a_result_for_each_slide(model, pixels, caplog):
    sdata = slide_data(pixels, "a", "b")
    first = model.predict(sdata, table="a_table", key_added="of_a")
    second = model.predict(sdata, table="b_table", key_added="of_b")
    assert {"of_a", "of_b"} < set(sdata.tables)
    np.testing.assert_allclose(first.layers["st_gchb"], second.layers["st_gchb"], rtol=1e-5, atol=1e-6)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    model.predict(sdata, table="b_table", key_added="of_a")
    assert "prediction of ['a'] and is replaced" in caplog.text


def test_a_full_disk_leaves_the_result_in_memory(model, stored, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_store, "_write", full)
    with pytest.raises(StoreError, match=r"shapes/tiles, tables/st_gchb could not.*No space left") as caught:
        model.predict(stored, write=True)
    monkeypatch.undo()
    assert set(spatialdata.read_zarr(stored.path).tables) == set()
    # What the message says works.
    call = str(caught.value).split("(")[1].split(")")[0]
    assert call.startswith("st_gchb.io.write_elements")
    st_gchb.io.write_elements(stored, ["tiles", "st_gchb"], overwrite=True)
    assert_equal(stored["st_gchb"], spatialdata.read_zarr(stored.path)["st_gchb"])


def unbacked(sdata):
    sdata.path = None


def gone(sdata):
    sdata.path = sdata.path.with_name("gone.zarr")


def foreign(sdata):
    sdata.tables["st_gchb"] = sdata["tiles_table"].copy()


def other_kind(sdata):
    sdata.images["st_gchb"] = sdata["tiles_he"]


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (unbacked, {"write": True}, InputError, "not backed"),
        (gone, {"write": True}, MissingFileError, "gone.zarr"),
        (foreign, {}, InputError, "table 'st_gchb' already"),
        (other_kind, {}, InputError, "another element called 'st_gchb'"),
        (None, {"key_added": "tiles_table"}, InputError, "table 'tiles_table' already"),
        (None, {"key_added": "a/b"}, InputError, "'a/b': expected letters"),
        (None, {"key_added": "tiles_he", "write": True}, InputError, "another element"),
    ],
)
def test_a_result_with_nowhere_to_go_is_refused_before_work_begins(
    model, stored, unchanged, monkeypatch, spoil, options, error, message
):
    if spoil:
        spoil(stored)
    monkeypatch.setattr("st_gchb.model._stgchb.prepare_query", None)
    with unchanged(stored), pytest.raises(error, match=message) as caught:
        model.predict(stored, **options)
    assert isinstance(caught.value, STGCHBError)


@pytest.mark.parametrize("options", [{"write": True}, {"key_added": "mine"}])
def test_an_anndata_has_no_store(model, query, options):
    with pytest.raises(InputError, match=r"for SpatialData.*write_h5ad"):
        model.predict(query, **options)


def test_a_result_of_fewer_rows_than_shapes(model, stored):
    """Tiles that could not be read are left out: the table annotates the others."""
    result = model.predict(stored)
    st_gchb.pp.write_table(stored, result[3:].copy())
    st_gchb.io.write_elements(stored, ["tiles", "st_gchb"])
    read = spatialdata.read_zarr(stored.path)
    assert read["st_gchb"].n_obs == len(read["tiles"]) - 3
    (name,) = st_gchb.pp.rasterize(read, "st_gchb_confidence", fill=np.nan, px_per_tile=1)
    assert np.isfinite(read[name].values).sum() == result.n_obs - 3


def test_from_a_slide_to_maps(model, pixels, tmp_path):
    """The lines of the docs, from a bare image."""
    path = tmp_path / "my slide.png"
    Image.fromarray(pixels).save(path)
    query = st_gchb.pp.tile_tissue(path, **TILES)
    prediction = model.predict(query)
    gene = prediction.var_names[0]
    sdata = st_gchb.pp.to_spatialdata(prediction, [gene, "st_gchb_confidence"])
    assert {name for _, name, _ in sdata.gen_elements()} == {"my_slide_image", "my_slide", "my_slide_raster", "st_gchb"}
    np.testing.assert_array_equal(np.moveaxis(sdata["my_slide_image"].values, 0, -1), pixels)
    # Tiles of 60 px are drawn as 4 x 4 px.
    first = query.obs[["array_col", "array_row"]].min().to_numpy() * 60
    column, row = np.floor((query.obsm["spatial"] - first) / 15).astype(int).T
    values = sdata["my_slide_raster"].values[:, row, column]
    np.testing.assert_array_equal(values[0], prediction.layers["st_gchb"][:, 0])
    np.testing.assert_allclose(values[1], prediction.obs["st_gchb_confidence"], rtol=1e-6)
    sdata.write(tmp_path / "s.zarr")
    assert_equal(sdata["st_gchb"], spatialdata.read_zarr(tmp_path / "s.zarr")["st_gchb"])
    assert get_transformation(sdata["my_slide"], "global") == Identity()


def test_it_is_drawn_over_the_slide(model, stored, tmp_path):
    """What was read back is drawn by spatialdata-plot: high values are bright in viridis, glass is left alone."""
    pytest.importorskip("spatialdata_plot")
    import matplotlib.pyplot as plt

    model.predict(stored, write=True)
    read = spatialdata.read_zarr(stored.path)
    gene = read["st_gchb"].var_names[0]
    st_gchb.pp.rasterize(read, gene)
    look = {"table_name": "st_gchb", "table_layer": "st_gchb", "cmap": "viridis"}
    drawn = {
        "nothing": lambda plot: plot,
        "shapes": lambda plot: plot.pl.render_shapes("tiles", color=gene, **look),
        "raster": lambda plot: plot.pl.render_images("tiles_raster", channel=gene),
    }
    centers = spatialdata.get_centroids(read["tiles"], coordinate_system="at_tiles").compute()
    images = {}
    for name, add in drawn.items():
        figure, ax = plt.subplots(figsize=(5, 5), dpi=80)
        add(read.pl.render_images("tiles_he")).pl.show(ax=ax, coordinate_systems="at_tiles", colorbar=False)
        if name == "raster":
            ax.images[-1].set_cmap(st_gchb.pl.transparent_cmap())
        ax.set(xlim=(570, 900), ylim=(700, 320))
        figure.canvas.draw()
        images[name] = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)
        x, y = ax.transData.transform(centers.to_numpy()).T.astype(int)
        where = len(images[name]) - 1 - y, x
    table = read["st_gchb"]
    values = table[table.obs.set_index("instance_id").index.get_indexer(centers.index)].layers["st_gchb"][:, 0]
    for name in ("shapes", "raster"):
        green = images[name][where][:, 1]
        assert np.corrcoef(green, values)[0, 1] > 0.9, name
    changed = (np.abs(images["raster"] - images["nothing"]) > 20).any(axis=-1)
    around = np.zeros_like(changed)
    reach = 12
    for y, x in zip(*where, strict=True):
        around[y - reach : y + reach, x - reach : x + reach] = True
    inside = slice(60, 340), slice(60, 340)
    assert (changed & ~around)[inside].mean() < 0.005


def test_a_result_that_lies_in_a_file_is_laid_out_too(model, query, tmp_path):
    prediction = model.predict(query)
    prediction.write_h5ad(tmp_path / "prediction.h5ad")
    backed = anndata.read_h5ad(tmp_path / "prediction.h5ad", backed="r")
    found, expected = (st_gchb.pp.to_spatialdata(one) for one in (backed, prediction))
    np.testing.assert_array_equal(found["st_gchb"].layers["st_gchb"], expected["st_gchb"].layers["st_gchb"])
    assert not found["st_gchb"].isbacked
