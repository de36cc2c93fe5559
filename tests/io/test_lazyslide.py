"""Tiles, features and expression of LazySlide's stores, and predictions that go back into them."""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata
from anndata import AnnData
from hypothesis import given, settings, strategies as st
from PIL import Image
from spatialdata.models import ShapesModel

import st_gchb
from lazyslide_stores import (
    GENES,
    edit,
    prediction_for,
    properties_of,
    read_store,
    spec_of,
    table_of,
    tiles_of,
    write_store,
)
from st_gchb._errors import (
    CoordinateError,
    EncoderError,
    ExpressionError,
    ImageError,
    InputError,
    MissingFileError,
    MissingKeyError,
    ScaleError,
    SliceError,
    StaleError,
    STGCHBError,
    StoreError,
)
from st_gchb.io import _write_elements as _elements, read_lazyslide, read_section, write_lazyslide

SIDE = 40
UM = 2.0


def slide_pixels(height: int = 360, width: int = 480) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(150, 250, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def tables(tiles: geopandas.GeoDataFrame) -> dict[str, AnnData]:
    rng = np.random.default_rng(1)
    features = rng.random((len(tiles), 5)).astype(np.float32)
    measured = tiles.iloc[10:]
    counts = rng.poisson(4.0, (len(measured), 3)).astype(np.float32)
    expression = table_of(measured, counts, GENES)
    expression.obs["patient"] = "P7"
    return {"resnet50_tiles": table_of(tiles, features), "counts": expression}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("made"), slide_pixels(), UM, SIDE, tables, n_skipped=3)


@pytest.fixture
def store(made, tmp_path):
    """A copy of slide and store that a test may damage."""
    shutil.copytree(made.parent, tmp_path / "slides")
    return tmp_path / "slides" / made.name


def content_of(folder: Path) -> dict[str, str]:
    files = (one for one in sorted(folder.rglob("*")) if one.is_file())
    return {str(one.relative_to(folder)): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


# ---- Tiles as query ----


def test_tiles_are_a_query(made):
    query = read_lazyslide(made)
    boxes = tiles_of((360, 480), SIDE, 3)
    np.testing.assert_array_equal(query.obsm["spatial"], np.column_stack([boxes.centroid.x, boxes.centroid.y]))
    assert query.obs["tile_id"].tolist() == boxes["tile_id"].tolist()
    assert query.obs["tissue_id"].tolist() == boxes["tissue_id"].tolist()
    assert query.obs["slice"].unique().tolist() == ["S1"]
    assert query.X is None
    (slide,) = st_gchb.pp.slices_of(query)
    assert (slide.name, slide.um_per_px, slide.image.shape_px) == ("S1", UM, (360, 480))
    library = query.uns["spatial"]["S1"]
    assert library["scalefactors"]["spot_diameter_fullres"] == SIDE
    assert library["metadata"]["lazyslide"] == {"tiles": "tiles", "width": SIDE, "height": SIDE, "mpp": UM}


def test_a_section_that_is_read_is_known_by_its_content(made):
    read = read_section(made, name="other", um_per_px=2.01)
    expected = read_lazyslide(made)
    np.testing.assert_array_equal(read.obsm["spatial"], expected.obsm["spatial"])
    assert read.obs["slice"].unique().tolist() == ["other"]
    assert read.uns["spatial"]["other"]["scalefactors"]["microns_per_pixel"] == 2.01


def test_a_spatialdata_with_images_of_its_own_stays_one(store):
    (store / "images/he").mkdir(parents=True)
    with pytest.raises(InputError, match="name='x' is for folders"):
        read_section(store, name="x")
    assert read_lazyslide(store).n_obs == 105


def test_patches_are_embedded_at_the_tiles(made):
    query = read_lazyslide(made)
    st_gchb.pp.embed_patches(query, encoder="texture", patch_um=80, n_views=1, cache=False)
    alone = AnnData(obsm={"spatial": query.obsm["spatial"]})
    st_gchb.pp.embed_patches(
        alone, encoder="texture", patch_um=80, n_views=1, cache=False, image=slide_pixels(), um_per_px=UM
    )
    np.testing.assert_array_equal(query.obsm["X_patch"], alone.obsm["X_patch"])


def test_tiles_of_a_coarser_resolution_lie_where_lazyslide_laid_them(tmp_path):
    path = write_store(tmp_path, slide_pixels(), UM, SIDE, downsample=2.5)
    query = read_lazyslide(path)
    assert query.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"] == SIDE
    record = query.uns["spatial"]["S1"]["metadata"]["lazyslide"]
    assert record == {"tiles": "tiles", "width": 16, "height": 16, "mpp": 5}


def test_tiles_are_as_wide_as_lazyslide_cut_them(store):
    edit(store, lambda attributes: attributes["tile_spec"]["tiles"].update(width=16, height=16, base_downsample=2.53))
    edit(store, lambda attributes: attributes["tile_spec"]["tiles"].update(mpp=2.53 * UM))
    assert read_lazyslide(store).uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"] == SIDE


def test_an_object_in_memory_is_read_like_its_store(made):
    query = read_lazyslide(read_store(made), features="resnet50")
    expected = read_lazyslide(made, features="resnet50")
    pd.testing.assert_frame_equal(query.obs, expected.obs)
    for key in ("spatial", "X_patch"):
        np.testing.assert_array_equal(query.obsm[key], expected.obsm[key])


def test_stores_of_the_earlier_format_are_read(store, tmp_path):
    from spatialdata._io.format import SpatialDataContainerFormatV01

    earlier = tmp_path / "slides" / "earlier.zarr"
    read_store(store).write(earlier, sdata_formats=[SpatialDataContainerFormatV01()])
    assert not (earlier / "zarr.json").exists()
    shutil.copy(store.with_suffix(".png"), earlier.with_suffix(".png"))
    np.testing.assert_array_equal(read_lazyslide(earlier).obsm["spatial"], read_lazyslide(store).obsm["spatial"])


def test_viewers_draw_tiles_as_squares(made, tmp_path):
    query = read_lazyslide(made)
    st_gchb.io.write_geojson(prediction_for(query), tmp_path / "a.geojson", "ERBB2")
    first = st_gchb.io.read_geojson(tmp_path / "a.geojson").iloc[0]
    assert first["object_type"] == "tile"
    assert first.geometry.equals(tiles_of((360, 480), SIDE, 3).geometry[0])


def test_a_store_is_a_query_of_the_command_line(made):
    query, where = st_gchb.cohort.read_query(made)
    np.testing.assert_array_equal(query.obsm["spatial"], read_lazyslide(made).obsm["spatial"])
    assert where == {"image": None, "um_per_px": None}


def test_the_object_itself_is_told_apart_from_other_spatialdata(made):
    sdata = read_store(made)
    for door in (st_gchb.pp.embed_patches, st_gchb.pp.resolve):
        with pytest.raises(ImageError, match=r"is a store of LazySlide.*st_gchb.io.read_lazyslide\(wsi\)"):
            door(sdata)


# ---- The slide ----


def test_the_slide_may_lie_elsewhere(store, tmp_path):
    moved = Path(shutil.move(store.with_suffix(".png"), tmp_path / "scan.png"))
    with pytest.raises(MissingFileError, match=r"no image S1\.\* of 360 x 480 px .* Pass image="):
        read_lazyslide(store)
    query = read_lazyslide(store, image=moved)
    assert st_gchb.pp.slices_of(query)[0].image.name == str(moved)
    # Features need no pixels.
    assert "X_patch" in read_lazyslide(store, features="resnet50").obsm


def test_another_slide_is_refused(store, tmp_path):
    Image.fromarray(slide_pixels(300, 480)).save(tmp_path / "other.png")
    with pytest.raises(InputError, match=r"the image is 300 x 480 px .* expected 360 x 480 px"):
        read_lazyslide(store, image=tmp_path / "other.png")
    shutil.copy(tmp_path / "other.png", store.with_suffix(".png"))
    with pytest.raises(InputError, match=r"the image is 300 x 480 px"):
        read_lazyslide(store)


def test_of_several_images_beside_the_store_the_slide_has_its_size(store):
    Image.fromarray(slide_pixels(90, 120)).save(store.with_suffix(".jpg"))
    assert st_gchb.pp.slices_of(read_lazyslide(store))[0].image.name.endswith("S1.png")
    Image.fromarray(slide_pixels()).save(store.with_suffix(".jpg"))
    with pytest.raises(InputError, match=r"\['S1.jpg', 'S1.png'\] may be its slide. Pass image= with one"):
        read_lazyslide(store)


def test_another_scene_needs_its_own_file(store):
    edit(store, lambda attributes: attributes["slide_properties"].update(scene=1, n_scenes=2))
    with pytest.raises(InputError, match="scene 1 of the slide's file"):
        read_lazyslide(store)
    assert read_lazyslide(store, image=store.with_suffix(".png")).n_obs == 105


def test_stores_of_scenes_are_named_like_their_slide(store):
    renamed = store.rename(store.with_name("S1.scene-0.zarr"))
    assert read_lazyslide(renamed).obs["slice"].unique().tolist() == ["S1"]


def test_a_slide_whose_name_has_points(store):
    store.with_suffix(".png").rename(store.with_name("S1.F6E9.png"))
    query = read_lazyslide(store.rename(store.with_name("S1.F6E9.zarr")))
    assert query.obs["slice"].unique().tolist() == ["S1"]
    assert st_gchb.pp.slices_of(query)[0].image.name.endswith("S1.F6E9.png")


# ---- The size of a pixel ----


def test_tiles_without_mpp_need_the_size_of_a_pixel(tmp_path):
    path = write_store(tmp_path, slide_pixels(), None, SIDE)
    with pytest.raises(ScaleError, match=r"attrs\['slide_properties'\]\['mpp'\] is empty.*Pass um_per_px="):
        read_lazyslide(path)
    query = read_lazyslide(path, um_per_px=0.5)
    assert query.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"] == 0.5
    # LazySlide keeps the resolution that was asked for there, and does not use it.
    edit(path, lambda attributes: attributes["tile_spec"]["tiles"].update(mpp=0.25))
    assert read_lazyslide(path, um_per_px=0.5).n_obs == 108


def test_a_size_that_changed_after_the_tiles_were_laid_is_refused(store):
    edit(store, lambda attributes: attributes["slide_properties"].update(mpp=0.5))
    with pytest.raises(ScaleError, match=r"has mpp 2 and tiles of 40 px, 40 px of the slide, so 2 µm per px.*mpp 0\.5"):
        read_lazyslide(store)
    assert read_lazyslide(store, um_per_px=0.5).n_obs == 105


@pytest.mark.parametrize("mpp", ["wide", -0.5, [0.5, 0.6], float("inf")])
def test_a_size_that_is_none_is_refused(store, mpp):
    edit(store, lambda attributes: attributes["slide_properties"].update(mpp=mpp))
    with pytest.raises(ScaleError, match="expected a positive number of µm"):
        read_lazyslide(store)


def test_the_caller_decides_with_a_warning(made, caplog):
    read_lazyslide(made, um_per_px=0.5)
    assert (
        "0.5 µm (um_per_px= of the caller) is taken, 2 µm (attrs['slide_properties']['mpp'] of the store) is not"
        in caplog.text
    )


# ---- Several sets, none, or not what they should be ----


def with_set(path: Path, key: str, frame: geopandas.GeoDataFrame, spec: dict | None) -> None:
    sdata = read_store(path)
    sdata.shapes[key] = ShapesModel.parse(frame)
    sdata.write_element(key)
    if spec is not None:
        edit(path, lambda attributes: attributes["tile_spec"].update({key: spec}))


def test_one_of_several_sets_is_named(store):
    with_set(store, "fine", tiles_of((360, 480), 20), spec_of(20, UM))
    with pytest.raises(InputError, match=r"has 2 sets of tiles. Pass tiles= with one of \['tiles', 'fine'\]"):
        read_lazyslide(store)
    assert read_lazyslide(store, tiles="fine").n_obs == 18 * 24
    with pytest.raises(MissingKeyError, match="there are no tiles 'coarse'; tiles= takes one of"):
        read_lazyslide(store, tiles="coarse")
    with pytest.raises(InputError, match="annotates 'tiles'; expected the tiles 'fine'"):
        read_lazyslide(store, tiles="fine", features="resnet50_tiles")


def test_sets_within_tiles_are_taken_by_name_alone(store):
    with_set(store, "tiles_dense", tiles_of((360, 480), 20), spec_of(20, UM))
    assert read_lazyslide(store).n_obs == 105
    assert read_lazyslide(store, tiles="tiles_dense").n_obs == 18 * 24


def test_no_tiles(store):
    shutil.rmtree(store / "shapes/tiles")
    edit(store, lambda attributes: attributes.pop("tile_spec"))
    with pytest.raises(InputError, match=r"has no tiles; its shapes are \['tissues'\]. Lay tiles in LazySlide"):
        read_lazyslide(store)


def test_tiles_without_specification(store):
    edit(store, lambda attributes: attributes.pop("tile_spec"))
    with pytest.raises(InputError, match=r"shapes/tiles has no entry in attrs\['tile_spec'\].*wsi.write_attrs"):
        read_lazyslide(store)


def test_a_specification_without_tiles(store):
    shutil.rmtree(store / "shapes/tiles")
    with pytest.raises(MissingKeyError, match=r"no tiles 'tiles'.*attrs\['tile_spec'\] has it, and shapes do not"):
        read_lazyslide(store, tiles="tiles")


def test_an_empty_set(store):
    frame = geopandas.read_parquet(store / "shapes/tiles/shapes.parquet")
    frame.iloc[:0].to_parquet(store / "shapes/tiles/shapes.parquet")
    with pytest.raises(SliceError, match="shapes/tiles holds no tiles"):
        read_lazyslide(store)


def test_a_newer_lazyslide(store):
    edit(store, lambda attributes: attributes["tile_spec"]["tiles"].update(rotation=45))
    with pytest.raises(InputError, match=r"fields that this version of st-gchb does not know, \['rotation'\]"):
        read_lazyslide(store)


def test_a_newer_format_of_stores(store):
    edit(store, lambda attributes: attributes["spatialdata_attrs"].update(version="9.0"))
    with pytest.raises(InputError, match=r"format '9.0'; this version of spatialdata reads .*Update it"):
        read_lazyslide(store)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"width": None}, MissingKeyError, r"has no \['width'\]"),
        ({"width": 0}, InputError, "width = '0'; expected a positive number"),
        ({"height": 40.5}, InputError, "'height': 40.5"),
        ({"base_level": 1}, InputError, "'base_level': 1"),
        ({"mpp": "nan"}, InputError, "mpp = 'nan'"),
        ({"base_downsample": -1}, InputError, "base_downsample = '-1'"),
        ({"width": 80, "height": 80}, InputError, r"the tiles are 40 x 40 px .* says 80 x 80 px"),
    ],
)
def test_a_specification_that_makes_no_sense(store, change, error, message):
    edit(store, lambda attributes: attributes["tile_spec"]["tiles"].update(change))
    with pytest.raises(error, match=message):
        read_lazyslide(store)


_VALUES = st.none() | st.booleans() | st.floats() | st.integers(-3, 600) | st.text(max_size=3) | st.lists(st.just(1))
_FIELDS = st.sampled_from(sorted(spec_of(SIDE, UM)))


@settings(max_examples=80, deadline=None)
@given(spec=st.dictionaries(_FIELDS, _VALUES) | _VALUES, whole=st.booleans())
def test_any_specification_is_read_or_refused(made, spec, whole):
    stored = {**spec_of(SIDE, UM), **spec} if whole and isinstance(spec, dict) else spec
    if made not in _OPENED:
        _OPENED[made] = read_store(made)
    sdata = _OPENED[made]
    sdata.attrs["tile_spec"] = {"tiles": stored}
    told = ""
    try:
        assert read_lazyslide(sdata, um_per_px=UM, image=made.with_suffix(".png")).n_obs == 105
    except STGCHBError as error:
        told = str(error)
    assert not told or str(made) in told


_OPENED: dict[Path, spatialdata.SpatialData] = {}


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda frame: frame.assign(tile_id=0), CoordinateError, "the same id twice"),
        (lambda frame: frame.set_geometry([shapely.Polygon()] * len(frame)), CoordinateError, "have no outline"),
        (lambda frame: frame.set_geometry(frame.scale(2, 2)), InputError, "the tiles are 80 x 80 px"),
    ],
)
def test_tiles_that_are_none(store, spoil, error, message):
    file = store / "shapes/tiles/shapes.parquet"
    spoil(geopandas.read_parquet(file)).to_parquet(file)
    with pytest.raises(error, match=message):
        read_lazyslide(store)


def test_tiles_that_were_moved_by_a_transformation(store):
    def turn(attributes):
        attributes["coordinateTransformations"][0]["type"] = "scale"

    edit(store / "shapes/tiles", turn)
    with pytest.raises(CoordinateError, match=r"have a transformation \(scale\)"):
        read_lazyslide(store)


@pytest.mark.parametrize("part", ["zarr.json", "shapes/tiles/shapes.parquet", "tables/resnet50_tiles/X/zarr.json"])
def test_what_is_damaged_is_named(store, part):
    (store / part).write_bytes((store / part).read_bytes()[:40])
    with pytest.raises(InputError, match=r"S1\.zarr.*cannot be read"):
        read_lazyslide(store, features="resnet50")


def test_what_is_no_store(store, tmp_path):
    with pytest.raises(MissingFileError, match="there is no such store"):
        read_lazyslide(tmp_path / "absent.zarr")
    with pytest.raises(InputError, match=r"S1.png is a file; expected the .zarr store .* Is it .*S1.zarr\?"):
        read_lazyslide(store.with_suffix(".png"))
    with pytest.raises(InputError, match="found no SpatialData store"):
        read_lazyslide(tmp_path)
    with pytest.raises(InputError, match="read_lazyslide: store=3"):
        read_lazyslide(3)


# ---- Features ----


@pytest.mark.parametrize("name", ["resnet50", "resnet50_tiles"])
def test_features_come_with_how_they_were_made(made, name):
    read = read_lazyslide(made, features=name)
    expected = tables(tiles_of((360, 480), SIDE, 3))["resnet50_tiles"].X
    np.testing.assert_array_equal(read.obsm["X_patch"], expected)
    (spec,) = st_gchb.pp.FeatureSet.from_uns(read.uns["X_patch"]).specs
    assert (spec.encoder, spec.patch_um, spec.n_features) == ("lazyslide:resnet50, 40 px", 80.0, 5)


def test_features_are_joined_by_the_id_of_the_tile(store):
    file = store / "shapes/tiles/shapes.parquet"
    before = read_lazyslide(store, features="resnet50")
    order = np.random.default_rng(0).permutation(before.n_obs)[:50]
    geopandas.read_parquet(file).iloc[order].to_parquet(file)
    after = read_lazyslide(store, features="resnet50")
    np.testing.assert_array_equal(after.obsm["X_patch"], before.obsm["X_patch"][order])
    np.testing.assert_array_equal(after.obsm["spatial"], before.obsm["spatial"][order])


def test_features_of_other_tiles_are_refused(store):
    file = store / "shapes/tiles/shapes.parquet"
    frame = geopandas.read_parquet(file)
    frame["tile_id"] += 4
    frame.to_parquet(file)
    with pytest.raises(StaleError, match=r"4 of 105 tiles have no row, first 105: the tiles were laid anew"):
        read_lazyslide(store, features="resnet50")


def test_features_need_square_tiles_of_a_known_size(store):
    edit(store, lambda attributes: attributes["slide_properties"].update(mpp=None))
    with pytest.raises(EncoderError, match=r"tiles of 40 x 40 px at mpp 2.0, on a slide of mpp None"):
        read_lazyslide(store, features="resnet50", um_per_px=UM)


def test_tables_that_are_not_there_or_hold_something_else(store):
    with pytest.raises(MissingKeyError, match=r"no table 'uni2' or 'uni2_tiles'; features= takes one of \['c"):
        read_lazyslide(store, features="uni2")
    with pytest.raises(ExpressionError, match="5 columns without names, features; expected expression"):
        read_lazyslide(store, expression="resnet50")
    write_lazyslide(prediction_for(read_lazyslide(store)), store)
    with pytest.raises(ExpressionError, match="holds a prediction of st-gchb; expected measured expression"):
        read_lazyslide(store, expression="st_gchb")
    with pytest.raises(EncoderError, match="holds a prediction of st-gchb; expected features"):
        read_lazyslide(store, features="st_gchb")


# ---- Expression ----


def test_tiles_with_expression_are_a_reference(made, caplog):
    with caplog.at_level(logging.INFO, "st_gchb"):
        reference = read_lazyslide(made, expression="counts", features="resnet50")
    assert "10 of 105 tiles have no row and are left out" in caplog.text
    stored = tables(tiles_of((360, 480), SIDE, 3))
    np.testing.assert_array_equal(reference.X, stored["counts"].X)
    assert reference.var_names.tolist() == GENES
    assert reference.obs["patient"].unique().tolist() == ["P7"]
    assert reference.obs["tile_id"].tolist() == list(range(10, 105))
    np.testing.assert_array_equal(reference.obsm["X_patch"], stored["resnet50_tiles"].X[10:])
    np.testing.assert_array_equal(reference.obsm["spatial"], read_lazyslide(made).obsm["spatial"][10:])


# ---- Predictions back ----


def test_a_prediction_becomes_a_table_of_the_tiles(store):
    before = content_of(store)
    query = read_lazyslide(store)
    pred = prediction_for(query)
    write_lazyslide(pred, store)
    table = read_store(store).tables["st_gchb_tiles"]
    np.testing.assert_array_equal(table.X, pred.layers["st_gchb"])
    assert table.var_names.tolist() == GENES
    assert table.obs["tile_id"].tolist() == query.obs["tile_id"].tolist()
    assert table.obs["library_id"].unique().tolist() == ["tiles"]
    for column in ("st_gchb_confidence", "st_gchb_outlier"):
        np.testing.assert_array_equal(table.obs[column], pred.obs[column])
    assert table.var["st_gchb_expected_pcc"].tolist() == [0.5, 0.4, 0.3]
    assert dict(table.uns["st_gchb"]) == {"version": "0.1", "k": 50}
    link = {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"}
    assert dict(table.uns["spatialdata_attrs"]) == link
    after = content_of(store)
    # The list of all elements is the only file that changes.
    assert {name for name in before if before[name] != after.get(name)} <= {"zarr.json"}
    assert {name.split("/")[1] for name in set(after) - set(before)} == {"st_gchb_tiles"}
    assert read_lazyslide(store, features="resnet50").n_obs == query.n_obs


def test_tiles_without_a_prediction_are_nan(store):
    query = read_lazyslide(store)
    rows = np.random.default_rng(3).permutation(query.n_obs)[:60]
    pred = prediction_for(query[rows].copy())
    write_lazyslide(pred, store, ["KRT19", "ERBB2"], name="some")
    table = read_store(store).tables["some_tiles"]
    assert table.obs["tile_id"].tolist() == query.obs["tile_id"].tolist()
    assert table.var_names.tolist() == ["KRT19", "ERBB2"]
    np.testing.assert_array_equal(table.X[rows], pred.layers["st_gchb"][:, [2, 0]])
    without = np.setdiff1d(np.arange(query.n_obs), rows)
    assert np.isnan(table.X[without]).all()
    flags = table.obs["st_gchb_outlier"].to_numpy()
    np.testing.assert_array_equal(flags[rows], pred.obs["st_gchb_outlier"].astype(np.float32))
    assert np.isnan(flags[without]).all()


def test_an_existing_table_is_replaced_on_request_alone(store):
    query = read_lazyslide(store)
    write_lazyslide(prediction_for(query), store)
    kept = content_of(store)
    with pytest.raises(InputError, match=r"a table 'st_gchb_tiles' already. Pass another name=, or overwrite=True"):
        write_lazyslide(prediction_for(query, 9), store)
    assert content_of(store) == kept
    write_lazyslide(prediction_for(query, 9), store, overwrite=True)
    table = read_store(store).tables["st_gchb_tiles"]
    np.testing.assert_array_equal(table.X, prediction_for(query, 9).layers["st_gchb"])


def test_a_failed_write_leaves_the_store_as_it_was(store, monkeypatch):
    pred = prediction_for(read_lazyslide(store))
    write_lazyslide(pred, store)
    before = content_of(store)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_elements, "exchange", full)
    with pytest.raises(StoreError, match="The store is as it was"):
        write_lazyslide(prediction_for(read_lazyslide(store), 9), store, overwrite=True)
    assert content_of(store) == before


def test_the_object_in_memory_gets_the_table_too(store):
    sdata = read_store(store)
    write_lazyslide(prediction_for(read_lazyslide(sdata)), sdata)
    np.testing.assert_array_equal(sdata.tables["st_gchb_tiles"].X, read_store(store).tables["st_gchb_tiles"].X)
    sdata.path = None
    write_lazyslide(prediction_for(read_lazyslide(sdata, image=store.with_suffix(".png"))), sdata, name="kept")
    assert "kept_tiles" in sdata.tables
    assert "kept_tiles" not in read_store(store).tables


def test_tiles_that_differ_between_memory_and_disk_are_refused(store):
    sdata = read_store(store)
    del sdata.shapes["tiles"]
    sdata.shapes["tiles"] = ShapesModel.parse(tiles_of((360, 480), SIDE))
    pred = prediction_for(read_lazyslide(sdata))
    with pytest.raises(InputError, match=r"in memory are not those on disk. Write them first, wsi.write\(\)"):
        write_lazyslide(pred, sdata)
    assert "st_gchb_tiles" not in sdata.tables


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda pred: pred.obs.pop("tile_id"), MissingKeyError, "no column 'tile_id'.*io.read_lazyslide"),
        (lambda pred: pred.obs.update({"tile_id": pred.obs["tile_id"] + 1}), InputError, "105, which is no tile of"),
        (lambda pred: pred.obs.update({"tile_id": pred.obs["tile_id"] // 2}), InputError, "0 twice"),
        (lambda pred: pred.obsm.update(spatial=pred.obsm["spatial"] + 3), CoordinateError, "3 px from .*laid anew"),
        (lambda pred: pred.obsm.update(spatial=pred.obsm["spatial"] - 20), CoordinateError, "corners, as wsi.fetch"),
        (lambda pred: pred.layers.pop("st_gchb"), MissingKeyError, "no layer 'st_gchb'"),
    ],
)
def test_predictions_of_something_else_are_refused(store, spoil, error, message):
    pred = prediction_for(read_lazyslide(store))
    spoil(pred)
    before = content_of(store)
    with pytest.raises(error, match=message):
        write_lazyslide(pred, store)
    assert content_of(store) == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "a/b"}, InputError, "'a/b_tiles'"),
        ({"genes": ["ERBB3"]}, MissingKeyError, "no gene and no obs column 'ERBB3'"),
        ({"genes": ["st_gchb_confidence"]}, InputError, "expected genes alone"),
        ({"tiles": "fine"}, MissingKeyError, "no tiles 'fine'"),
        ({"slice": "S9"}, SliceError, "no slice 'S9'"),
    ],
)
def test_arguments_that_name_nothing(store, options, error, message):
    pred = prediction_for(read_lazyslide(store))
    with pytest.raises(error, match=message):
        write_lazyslide(pred, store, **options)


def test_of_several_slices_one_is_written(store, tmp_path):
    other = write_store(tmp_path / "b", slide_pixels(), UM, SIDE, name="S2")
    preds = [prediction_for(read_lazyslide(path)) for path in (store, other)]
    import anndata

    both = anndata.concat(preds, index_unique="_", uns_merge="unique")
    with pytest.raises(SliceError, match="2 slices"):
        write_lazyslide(both, other)
    write_lazyslide(both, other, slice="S2")
    np.testing.assert_array_equal(read_store(other).tables["st_gchb_tiles"].X, preds[1].layers["st_gchb"])
    assert properties_of((360, 480), UM)["shape"] == [360, 480]
