"""From a slide with H&E alone to a prediction, for AnnData and SpatialData."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import spatialdata
from PIL import Image
from shapely.geometry import Point, box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, get_table_keys
from spatialdata.transformations import Affine, Identity, Scale, Sequence, get_transformation

import st_gchb
from st_gchb._errors import CoordinateError, ImageError, InputError, MissingKeyError, ScaleError, TissueError

XY = ("x", "y")
# Scaled, turned by a right angle and shifted.
TURNED = Sequence([Scale([0.4, 0.4], XY), Affine([[0, -1, 900], [1, 0, 15], [0, 0, 1]], XY, XY)])


@pytest.fixture(scope="module")
def pixels(tissue):
    """Section S3 of the tissue that the model was trained on, 1 µm per px."""
    return tissue.uns["spatial"]["S3"]["images"]["hires"]


def element(pixels, transformations, scale_factors=None):
    array = np.moveaxis(pixels, -1, 0)
    return Image2DModel.parse(array, dims=("c", "y", "x"), scale_factors=scale_factors, transformations=transformations)


def slide(pixels, transformations=None, scale_factors=None):
    return SpatialData(images={"he": element(pixels, transformations or {"global": TURNED}, scale_factors)})


def test_three_lines_from_a_file_to_a_prediction(model, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "slide.png")
    query = st_gchb.pp.tile_tissue(tmp_path / "slide.png", um_per_px=1.0)
    prediction = model.predict(query)
    assert prediction.n_obs == query.n_obs > 40
    assert np.isfinite(prediction.layers["st_gchb"]).all()
    assert prediction.obs["tissue_share"].equals(query.obs["tissue_share"])
    assert prediction.uns["spatial"]["slide"]["images"]["hires"].ndim == 3
    np.testing.assert_array_equal(prediction.obsm["spatial"], query.obsm["spatial"])
    from_array = model.predict(st_gchb.pp.tile_tissue(pixels, um_per_px=1.0))
    np.testing.assert_array_equal(from_array.layers["st_gchb"], prediction.layers["st_gchb"])


def test_the_size_of_a_pixel_is_used(model, tissue, pixels):
    """A tile where a spot is gets the spot's patch: as wide in µm, at the place in px."""
    spots = tissue[tissue.obs["slice"] == "S3"]
    query = st_gchb.pp.tile_tissue(pixels, um_per_px=1.0)
    st_gchb.pp.embed_patches(query, encoder="texture", patch_um=150, n_views=1, cache=False)
    at = spots[:5].copy()
    for name in ("obsm", "uns"):
        getattr(at, name).pop("X_patch")
    at.obsm["spatial"] = query.obsm["spatial"][:5].copy()
    at.uns["spatial"] = {"S3": tissue.uns["spatial"]["S3"]}
    st_gchb.pp.embed_patches(at, encoder="texture", patch_um=150, n_views=1, cache=False)
    np.testing.assert_allclose(at.obsm["X_patch"], query.obsm["X_patch"][:5], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale_factors", [None, [2, 2]])
def test_spatialdata_gives_the_same_as_an_array(model, pixels, scale_factors, tmp_path):
    # Found once: the scales of a pyramid are not shrunk in quite the way in which a single one is.
    mask = st_gchb.pp.find_tissue(pixels, um_per_px=1.0)
    expected = model.predict(st_gchb.pp.tile_tissue(pixels, um_per_px=1.0, tissue=mask))
    sdata = slide(pixels, {"global": TURNED, "own": Identity()}, scale_factors)
    query = st_gchb.pp.tile_tissue(sdata, um_per_px=1.0, tissue=mask)
    assert query is sdata
    prediction = model.predict(query)
    np.testing.assert_allclose(prediction.obsm["spatial"], expected.obsm["spatial"], atol=1e-6)
    np.testing.assert_allclose(prediction.layers["st_gchb"], expected.layers["st_gchb"], atol=1e-5)
    sdata.write(tmp_path / "s.zarr")
    stored = spatialdata.read_zarr(tmp_path / "s.zarr")
    again = model.predict(stored, table="tiles_table")
    np.testing.assert_array_equal(again.layers["st_gchb"], prediction.layers["st_gchb"])
    np.testing.assert_array_equal(stored["st_gchb"].layers["st_gchb"], prediction.layers["st_gchb"])


def test_table_and_circles_belong_together(pixels, tmp_path):
    sdata = st_gchb.pp.tile_tissue(slide(pixels), um_per_px=1.0, spacing_um=80, name="grid")
    sdata.write(tmp_path / "s.zarr")
    for data in (sdata, spatialdata.read_zarr(tmp_path / "s.zarr")):
        table, circles = data["grid_table"], data["grid"]
        assert get_table_keys(table) == ("grid", "region", "instance_id")
        assert (circles["radius"] == 40).all()
        assert get_transformation(circles, get_all=True).keys() == {"global"}
        order = circles.index.get_indexer(table.obs["instance_id"])
        assert sorted(order) == list(range(len(circles)))
        centers = np.column_stack([circles.geometry.x, circles.geometry.y])[order]
        np.testing.assert_allclose(centers, table.obsm["spatial"])
        elements, joined = spatialdata.join_spatialelement_table(
            sdata=data, spatial_element_names="grid", table_name="grid_table", how="inner"
        )
        assert len(elements["grid"]) == joined.n_obs == table.n_obs
        assert {"array_row", "array_col", "tissue_share"} <= set(table.obs)
        assert table.uns["tiles"]["spacing_um"] == 80


def test_a_region_by_the_name_of_its_shapes(pixels):
    area = box(200, 200, 500, 700)
    other = Scale([0.1, 0.1], XY)
    # The same place in the annotation's own units, ten times finer than the coordinate system.
    matrix = np.linalg.inv(other.to_affine_matrix(XY, XY)) @ TURNED.to_affine_matrix(XY, XY)
    corners = np.column_stack([np.array(area.exterior.coords), np.ones(5)]) @ matrix.T
    frame = gpd.GeoDataFrame(geometry=[box(*corners[:, :2].min(0), *corners[:, :2].max(0))])
    sdata = slide(pixels)
    sdata.shapes["tumor"] = ShapesModel.parse(frame, transformations={"global": other})
    expected = st_gchb.pp.tile_tissue(pixels, um_per_px=1.0, roi=area, spacing_um=60)
    st_gchb.pp.tile_tissue(sdata, um_per_px=1.0, roi="tumor", spacing_um=60)
    np.testing.assert_allclose(sdata["tiles_table"].obsm["spatial"], expected.obsm["spatial"])
    assert expected.n_obs > 5


def test_tiles_are_replaced_where_asked_for(pixels):
    sdata = st_gchb.pp.tile_tissue(slide(pixels), um_per_px=1.0)
    first = sdata["tiles_table"].n_obs
    with pytest.raises(InputError, match=r"shapes 'tiles' already.*overwrite=True"):
        st_gchb.pp.tile_tissue(sdata, um_per_px=1.0, spacing_um=50)
    st_gchb.pp.tile_tissue(sdata, um_per_px=1.0, spacing_um=50, overwrite=True)
    assert len(sdata["tiles"]) == sdata["tiles_table"].n_obs > 3 * first


def test_a_slide_beside_measured_spots(model, pixels):
    """Several tables of positions: the one that is meant is named."""
    sdata = st_gchb.pp.tile_tissue(slide(pixels), um_per_px=1.0)
    st_gchb.pp.tile_tissue(sdata, um_per_px=1.0, grid="square", name="other")
    with pytest.raises(InputError, match="table="):
        model.predict(sdata)
    assert model.predict(sdata, table="other_table").n_obs == sdata["other_table"].n_obs
    get = get_table_keys(sdata["st_gchb"])[0]
    assert get in ("other", ["other"])


def two_images(sdata, pixels):
    sdata.images["second"] = element(pixels, {"global": Identity()})


def no_image(sdata, pixels):
    del sdata.images["he"]


def name_taken(sdata, pixels):
    sdata.images["tiles_table"] = element(pixels, {"global": Identity()})


def circles(sdata, pixels):
    frame = gpd.GeoDataFrame({"radius": [5.0]}, geometry=[Point(300, 300)])
    sdata.shapes["tumor"] = ShapesModel.parse(frame, transformations={"global": TURNED})


def elsewhere(sdata, pixels):
    frame = gpd.GeoDataFrame(geometry=[box(-90, -90, -9, -9)])
    sdata.shapes["tumor"] = ShapesModel.parse(frame, transformations={"global": TURNED})


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (None, {"um_per_px": None}, ScaleError, r"image element 'he'.*um_per_px="),
        (None, {"image": "hires"}, MissingKeyError, r"'hires'.*'he'"),
        (None, {"roi": "tumor"}, MissingKeyError, "'tumor'"),
        (None, {"roi": box(0, 0, 40, 40)}, TissueError, "no tissue found"),
        (None, {"name": "he"}, InputError, "another element called 'he'"),
        (two_images, {}, InputError, r"2 images.*image="),
        (no_image, {}, ImageError, "Image2DModel"),
        (name_taken, {}, InputError, "'tiles_table'"),
        (circles, {"roi": "tumor"}, InputError, r"'Point'.*polygons"),
        (elsewhere, {"roi": "tumor"}, CoordinateError, "outside the slide"),
    ],
)
def test_bad_spatialdata(pixels, unchanged, spoil, options, error, message):
    sdata = slide(pixels)
    if spoil:
        spoil(sdata, pixels)
    with unchanged(sdata), pytest.raises(error, match=message):
        st_gchb.pp.tile_tissue(sdata, **({"um_per_px": 1.0} | options))


def test_of_one_image_at_several_resolutions_the_finest_is_tiled(pixels):
    sdata = slide(pixels, {"global": Identity()})
    sdata.images["small"] = element(pixels[::4, ::4], {"global": Scale([4.0, 4.0], XY)})
    expected = st_gchb.pp.tile_tissue(slide(pixels, {"global": Identity()}), um_per_px=1.0)["tiles_table"]
    st_gchb.pp.tile_tissue(sdata, um_per_px=1.0)
    np.testing.assert_array_equal(sdata["tiles_table"].obsm["spatial"], expected.obsm["spatial"])
