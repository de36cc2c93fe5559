"""SpatialData: transformations obeyed, rows matched by id, answers written back."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata
from anndata import AnnData
from hypothesis import given, settings, strategies as st
from scipy.sparse import csr_matrix
from shapely.geometry import box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import (
    Affine,
    Identity,
    Scale,
    Sequence,
    Translation,
    get_transformation,
    set_transformation,
)

from st_gchb._errors import CoordinateError, ImageError, InputError, MissingKeyError, SliceError
from st_gchb.pp import embed_patches, resolve, write_table

RGB = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
N = 25
CENTERS = np.random.default_rng(1).integers(20, 280, (N, 2)).astype(float)
XY = ("x", "y")


def image_element(transformation=None, scale_factors=None, rgb=RGB, system="global"):
    return Image2DModel.parse(
        np.moveaxis(rgb, -1, 0),
        dims=("c", "y", "x"),
        scale_factors=scale_factors,
        transformations={system: transformation or Identity()},
    )


def applied(transformation, points):
    matrix = transformation.to_affine_matrix(XY, XY)
    return (np.column_stack([points, np.ones(len(points))]) @ matrix.T)[:, :2]


def inverse_applied(transformation, points):
    matrix = np.linalg.inv(transformation.to_affine_matrix(XY, XY))
    return (np.column_stack([points, np.ones(len(points))]) @ matrix.T)[:, :2]


def sample(of_image=None, of_spots=None, scale_factors=None, seed=0, region="spots", system="global"):
    """Make a sample whose spots come out at CENTERS of the image, in another order than the table's rows."""
    of_image, of_spots = of_image or Identity(), of_spots or Identity()
    own = inverse_applied(of_spots, applied(of_image, CENTERS))
    order = np.random.default_rng(seed).permutation(N)
    ids = np.array([f"id{i}" for i in range(N)])
    shapes = ShapesModel.parse(
        own[order], geometry=0, radius=10.0, index=ids[order], transformations={system: of_spots}
    )
    obs = pd.DataFrame({"region": pd.Categorical([region] * N), "spot": ids}, index=[f"row{i}" for i in range(N)])
    table = AnnData(csr_matrix(np.arange(N * 3, dtype=np.float32).reshape(N, 3)), obs=obs)
    table = TableModel.parse(table, region=region, region_key="region", instance_key="spot")
    images = {"he": image_element(of_image, scale_factors, system=system)}
    return SpatialData(images=images, shapes={region: shapes}, tables={"table": table})


TRANSFORMATIONS = {
    "identity": Identity(),
    "scale": Scale([2.5, 2.5], XY),
    "two scales": Scale([2.0, 0.5], XY),
    "shift": Translation([-300.0, 77.0], XY),
    "quarter turn": Affine([[0, -1, 40], [1, 0, 5], [0, 0, 1]], XY, XY),
    "flip": Affine([[-1, 0, 400], [0, 1, 0], [0, 0, 1]], XY, XY),
    "oblique": Affine([[0.8, -0.6, 12], [0.6, 0.8, -7], [0, 0, 1]], XY, XY),
    "sequence": Sequence(
        [Scale([3.0, 3.0], XY), Translation([5.0, 6.0], XY), Affine([[0, 1, 0], [1, 0, 0], [0, 0, 1]], XY, XY)]
    ),
}


@pytest.mark.parametrize("of_spots", TRANSFORMATIONS)
@pytest.mark.parametrize("of_image", ["identity", "two scales", "oblique", "sequence"])
def test_transformations_are_obeyed_and_rows_matched_by_id(of_image, of_spots):
    sdata = sample(TRANSFORMATIONS[of_image], TRANSFORMATIONS[of_spots])
    found = resolve(sdata)
    np.testing.assert_allclose(found.adata.obsm["spatial"], CENTERS, atol=1e-8)
    assert found.adata.obs_names.tolist() == sdata["table"].obs_names.tolist()


@pytest.mark.parametrize("element", ["he", "spots"])
@pytest.mark.parametrize("door", [resolve, lambda sdata: embed_patches(sdata, encoder="texture", um_per_px=1.0)])
def test_elements_that_lie_nowhere_are_told(door, element):
    sdata = sample()
    sdata[element].attrs["transform"] = {"global": "identity"}
    with pytest.raises(InputError, match=f"transformation of '{element}' to 'global' is a str"):
        door(sdata)
    del sdata[element].attrs["transform"]
    with pytest.raises(InputError, match=f"'{element}' .* has no coordinate transformations.*set_transformation"):
        door(sdata)


@settings(max_examples=20, deadline=None)
@given(
    entries=st.tuples(*[st.floats(-3, 3, allow_subnormal=False) for _ in range(4)]).filter(
        lambda m: abs(m[0] * m[3] - m[1] * m[2]) > 0.05
    ),
    shift=st.tuples(st.floats(-1e4, 1e4, allow_subnormal=False), st.floats(-1e4, 1e4, allow_subnormal=False)),
)
def test_any_affine_map(entries, shift):
    a, b, c, d = entries
    affine = Affine([[a, b, shift[0]], [c, d, shift[1]], [0, 0, 1]], XY, XY)
    found = resolve(sample(of_spots=affine))
    np.testing.assert_allclose(found.adata.obsm["spatial"], CENTERS, atol=1e-5)


@pytest.mark.parametrize("scale_factors", [None, [2], [2, 2]])
@pytest.mark.parametrize("encoder", ["texture"])
def test_both_routes_give_the_same_features(scale_factors, encoder):
    sdata = sample(TRANSFORMATIONS["sequence"], TRANSFORMATIONS["oblique"], scale_factors)
    options = {"encoder": encoder, "patch_um": 60.0, "um_per_px": 1.0, "cache": False}
    assert embed_patches(sdata, **options) is None
    adata = AnnData(obsm={"spatial": CENTERS})
    embed_patches(adata, image=RGB, **options)
    np.testing.assert_allclose(sdata["table"].obsm["X_patch"], adata.obsm["X_patch"], rtol=1e-6, atol=1e-6)
    assert sdata["table"].uns["X_patch"]["encoder"] == encoder


def test_a_scale_of_the_image_that_was_taken_out_alone():
    pyramid = image_element(scale_factors=[2])
    half = pyramid["scale1"]["image"]
    sdata = sample()
    sdata.images["half"] = Image2DModel.parse(
        half.data.compute(), dims=("c", "y", "x"), transformations={"global": Scale([2.0, 2.0], XY)}
    )
    np.testing.assert_allclose(resolve(sdata, image="half").adata.obsm["spatial"], CENTERS / 2)


def test_the_light_copy_shares_matrices_and_leaves_the_table_alone():
    sdata = sample(of_spots=TRANSFORMATIONS["scale"])
    found = resolve(sdata, thumbnails=True)
    assert found.table is sdata["table"]
    assert np.shares_memory(found.adata.X.data, sdata["table"].X.data)
    assert not sdata["table"].obsm
    found.adata.obs["new"] = 1
    assert "new" not in sdata["table"].obs
    library = found.adata.uns["spatial"]["spots"]
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(50)
    assert library["images"]["hires"].shape == (300, 400, 3)
    assert found.slices()[0].um_per_px == pytest.approx(55 / 50)


def test_the_size_of_a_pixel_in_the_table_is_brought_to_the_images():
    sdata = sample(of_image=TRANSFORMATIONS["scale"])
    sdata["table"].uns["spatial"] = {"x": {"scalefactors": {"microns_per_pixel": 0.2}}}
    assert resolve(sdata).slices()[0].um_per_px == pytest.approx(0.5)


def test_two_regions_with_an_image_each():
    first, second = sample(region="a", system="one"), sample(region="b", system="two", seed=1)
    for name, sdata in (("a", first), ("b", second)):
        sdata["table"].obs_names = [f"{name}{i}" for i in range(N)]
    second.images["he2"] = image_element(rgb=255 - RGB, system="two")
    del second.images["he"]
    both = spatialdata.concatenate([first, second], concatenate_tables=True)
    found = resolve(both)
    assert found.slice_key == "region"
    slices = found.slices(um_per_px=1.0)
    assert [one.name for one in slices] == ["a", "b"]
    np.testing.assert_array_equal(slices[1].image.read(0, 0, 9, 0, 9), 255 - RGB[:9, :9])
    np.testing.assert_allclose(found.adata.obsm["spatial"], np.tile(CENTERS, (2, 1)))
    assert resolve(both, shapes="b").adata.n_obs == N
    with pytest.raises(InputError, match="copy=True"):
        embed_patches(both, shapes="b", encoder="texture", patch_um=150, um_per_px=1.0, cache=False)
    copied = embed_patches(both, shapes="b", encoder="texture", patch_um=150, um_per_px=1.0, cache=False, copy=True)
    assert copied.obsm["X_patch"].shape[0] == N
    assert not both["table"].obsm


def test_spots_without_a_table():
    sdata = sample()
    del sdata.tables["table"]
    found = resolve(sdata)
    order = [int(name.removeprefix("id")) for name in found.adata.obs_names]
    np.testing.assert_allclose(found.adata.obsm["spatial"], CENTERS[order])
    with pytest.raises(InputError, match="no table"):
        embed_patches(sdata, encoder="texture", patch_um=150, um_per_px=1.0)
    result = embed_patches(sdata, encoder="texture", patch_um=150, um_per_px=1.0, cache=False, copy=True)
    write_table(sdata, result, name="answer")
    assert sdata["answer"].obsm["X_patch"].shape == (N, 107)


def test_polygons_and_points_have_centers():
    sdata = sample()
    squares = gpd.GeoDataFrame(geometry=[box(x - 4, y - 4, x + 4, y + 4) for x, y in CENTERS])
    sdata.shapes["squares"] = ShapesModel.parse(squares, transformations={"global": Identity()})
    np.testing.assert_allclose(resolve(sdata, shapes="squares").adata.obsm["spatial"], CENTERS)
    sdata.points["dots"] = PointsModel.parse(CENTERS, transformations={"global": Identity()})
    np.testing.assert_allclose(resolve(sdata, shapes="dots").adata.obsm["spatial"], CENTERS)


def test_answers_come_back_from_a_file(tmp_path):
    sdata = sample()
    found = resolve(sdata)
    answer = found.adata[::-1].copy()
    answer.uns["st_gchb"] = {"k": 50}
    for _ in range(2):
        write_table(sdata, answer, region_key=found.region_key, instance_key=found.instance_key)
    sdata.write(tmp_path / "s.zarr")
    again = spatialdata.read_zarr(tmp_path / "s.zarr")
    assert again["st_gchb"].obs["spot"].tolist() == answer.obs["spot"].tolist()
    assert again["st_gchb"].uns["st_gchb"]["k"] == 50
    joined, _ = spatialdata.match_element_to_table(again, element_name="spots", table_name="st_gchb")
    assert len(joined["spots"]) == N
    # The package's own answer is no second source of spots.
    np.testing.assert_allclose(resolve(again).adata.obsm["spatial"], CENTERS)


def test_a_table_of_someone_else_is_not_replaced():
    sdata = sample()
    found = resolve(sdata).adata
    with pytest.raises(InputError, match="overwrite"):
        write_table(sdata, found, name="table", instance_key="spot")
    with pytest.raises(MissingKeyError, match="instance_id"):
        write_table(sdata, found)
    found.obs["region"] = "elsewhere"
    with pytest.raises(InputError, match="elsewhere"):
        write_table(sdata, found, instance_key="spot")
    assert set(sdata.tables) == {"table"}


def second_table(sdata):
    sdata.tables["other"] = sdata["table"].copy()


def second_image(sdata):
    sdata.images["other"] = image_element(rgb=RGB[::4, ::4], transformation=Scale([2.0, 2.0], XY))


def unknown_id(sdata):
    sdata["table"].obs["spot"] = sdata["table"].obs["spot"].replace("id3", "id99")


def disagreeing_systems(sdata):
    set_transformation(sdata["he"], Identity(), "other")
    set_transformation(sdata["spots"], Scale([2.0, 2.0], XY), "other")


def no_common_system(sdata):
    set_transformation(sdata["spots"], {"alone": Identity()}, set_all=True)


def far_away(sdata):
    set_transformation(sdata["spots"], Scale([50.0, 50.0], XY), "global")


def singular(sdata):
    set_transformation(sdata["he"], Scale([0.0, 1.0], XY), "global")


def no_image(sdata):
    del sdata.images["he"]


def deep_image(sdata):
    sdata.images["he"] = Image2DModel.parse(np.zeros((3, 300, 400), np.uint16), dims=("c", "y", "x"))


def unannotated(sdata):
    table = sdata["table"].copy()
    table.uns.clear()
    sdata.tables["table"] = table


def extra_spots(sdata):
    sdata.shapes["extra"] = sdata["spots"].copy()


BAD = {
    "two tables": (second_table, {}, InputError, r"table=.*'table', 'other'|table="),
    "unknown table": (None, {"table": "no"}, MissingKeyError, r"\['table'\]"),
    "unannotated table": (unannotated, {}, InputError, "TableModel.parse"),
    "unannotated table, named": (unannotated, {"table": "table"}, InputError, "TableModel.parse"),
    "two images": (second_image, {}, InputError, "not one image.*image= with the name"),
    "unknown image": (None, {"image": "no"}, MissingKeyError, r"\['he'\]"),
    "image of another region": (None, {"image": {"x": "he"}}, MissingKeyError, "'spots'"),
    "image array": (None, {"image": RGB}, InputError, "Image2DModel"),
    "no image": (no_image, {}, ImageError, "Image2DModel"),
    "deep image": (deep_image, {}, ImageError, "uint16"),
    "unknown shapes": (None, {"shapes": "no"}, MissingKeyError, r"\['spots'\]"),
    "unknown id": (unknown_id, {}, CoordinateError, "'id99'"),
    "systems disagree": (disagreeing_systems, {}, InputError, "coordinate_system="),
    "no common system": (no_common_system, {}, InputError, "set_transformation"),
    "no common system, image named": (no_common_system, {"image": "he"}, InputError, "set_transformation"),
    "singular": (singular, {}, InputError, "inverted"),
    "far away": (far_away, {}, CoordinateError, "outside the image"),
    "table of other spots": (extra_spots, {"table": "table", "shapes": "extra"}, SliceError, "no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_and_changes_nothing(name):
    spoil, options, error, message = BAD[name]
    sdata = sample()
    if spoil:
        spoil(sdata)
    before = sdata["table"].copy()
    with pytest.raises(error, match=message):
        embed_patches(sdata, encoder="texture", patch_um=150, um_per_px=1.0, cache=False, **options)
    assert set(sdata["table"].obsm) == set(before.obsm)
    assert set(sdata["table"].uns) == set(before.uns)


def test_a_named_system_settles_a_disagreement():
    sdata = sample()
    disagreeing_systems(sdata)
    np.testing.assert_allclose(resolve(sdata, coordinate_system="other").adata.obsm["spatial"], CENTERS * 2)


def test_spatialdata_of_visium_is_not_confused_by_consistent_systems():
    sdata = sample()
    set_transformation(sdata["he"], Scale([0.1, 0.1], XY), "downscaled")
    set_transformation(sdata["spots"], Scale([0.1, 0.1], XY), "downscaled")
    np.testing.assert_allclose(resolve(sdata).adata.obsm["spatial"], CENTERS)


def resolutions(sdata, rgb=RGB, **systems):
    """Full, half and quarter resolution of one image, beside the image "he" or instead of it."""
    for name, step in (("full", 1), ("hires", 2), ("lowres", 4)):
        sdata.images[name] = image_element(rgb=rgb[::step, ::step], transformation=Scale([step, step], XY))
    return sdata


@pytest.mark.parametrize("order", [("full", "hires", "lowres"), ("lowres", "hires", "full"), ("lowres", "hires")])
def test_of_one_image_at_several_resolutions_the_finest_is_taken(order, caplog):
    sdata = resolutions(sample(of_spots=TRANSFORMATIONS["oblique"]))
    images = {name: sdata.images[name] for name in order}
    for name in list(sdata.images):
        del sdata.images[name]
    for name, element in images.items():
        sdata.images[name] = element
    finest = "full" if "full" in order else "hires"
    with caplog.at_level("INFO", "st_gchb"):
        found = resolve(sdata)
    assert f"the finest is taken: '{finest}'" in caplog.text
    np.testing.assert_allclose(found.adata.obsm["spatial"], CENTERS / (1 if finest == "full" else 2))
    np.testing.assert_allclose(resolve(sdata, image="lowres").adata.obsm["spatial"], CENTERS / 4)


def turned_all(sdata):
    for element in [*sdata.images.values(), *sdata.shapes.values()]:
        known = get_transformation(element)
        set_transformation(element, Sequence([known, TRANSFORMATIONS["flip"], TRANSFORMATIONS["quarter turn"]]))


def test_the_finest_of_images_that_are_turned_and_flipped():
    sdata = resolutions(sample())
    del sdata.images["he"]
    turned_all(sdata)
    found = resolve(sdata)
    np.testing.assert_allclose(found.adata.obsm["spatial"], CENTERS, atol=1e-8)


def other_stain(sdata):
    sdata.images["dark"] = image_element(rgb=RGB[::2, ::2] // 8, transformation=Scale([2.0, 2.0], XY))


def same_size(sdata):
    sdata.images["second"] = image_element(rgb=RGB)


def another_place(sdata):
    sdata.images["beside"] = image_element(
        rgb=RGB[::2, ::2], transformation=Sequence([Scale([2.0, 2.0], XY), Translation([200.0, 0.0], XY)])
    )


def a_part(sdata):
    sdata.images["part"] = image_element(rgb=RGB[:150])


@pytest.mark.parametrize("spoil", [other_stain, same_size, another_place, a_part])
def test_different_images_are_not_chosen_from(spoil):
    sdata = sample()
    spoil(sdata)
    with pytest.raises(InputError, match="2 images share.*not one image.*image="):
        resolve(sdata)
    assert resolve(sdata, image="he").adata.n_obs == N


def test_an_image_that_is_no_rgb_is_no_choice():
    sdata = sample()
    fluorescence = np.zeros((4, 600, 800), np.uint16)
    sdata.images["dapi"] = Image2DModel.parse(
        fluorescence, dims=("c", "y", "x"), transformations={"global": Scale([0.5, 0.5], XY)}
    )
    np.testing.assert_allclose(resolve(sdata).adata.obsm["spatial"], CENTERS)


def test_a_named_system_leaves_the_images_of_other_systems_out():
    sdata = sample()
    a_part(sdata)
    set_transformation(sdata["part"], {"own": Identity()}, set_all=True)
    set_transformation(sdata["spots"], Identity(), "own")
    np.testing.assert_allclose(resolve(sdata, coordinate_system="global").adata.obsm["spatial"], CENTERS)


def test_bins_are_as_wide_as_their_name_says():
    sdata = sample(region="d_square_008um")
    squares = gpd.GeoDataFrame(geometry=[box(x - 5, y - 5, x + 5, y + 5) for x, y in CENTERS])
    squares.index = [f"id{i}" for i in range(N)]
    assert resolve(sdata).slices()[0].um_per_px == pytest.approx(8 / 20)
    del sdata.shapes["d_square_008um"]
    sdata.shapes["d_square_008um"] = ShapesModel.parse(squares, transformations={"global": Identity()})
    assert resolve(sdata).slices()[0].um_per_px == pytest.approx(8 / 10)
