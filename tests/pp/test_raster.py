"""Maps that lie on the slide: each pixel shows the value of the tile that is there, whatever the transformation."""

from __future__ import annotations

import functools

import dask
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata
import tifffile
import xarray
from anndata import AnnData
from hypothesis import example, given, settings, strategies as st
from scipy.sparse import csr_matrix
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

from st_gchb._errors import InputError, MissingKeyError, STGCHBError
from st_gchb.io import open_image
from st_gchb.pp import rasterize, tile_tissue
from st_gchb.pp.export import image_element
from st_gchb.pp.tissue import lay_grid

XY = ("x", "y")
TURNED = Sequence([Scale([2.0, 3.0], XY), Affine([[0, -1, 40], [1, 0, 5], [0, 0, 1]], XY, XY)])
MIRRORED = Affine([[-0.5, 0, 300], [0, 0.5, 7], [0, 0, 1]], XY, XY)
OBLIQUE = Affine([[0.8, -0.6, 12], [0.6, 0.8, -7], [0, 0, 1]], XY, XY)


def tiled(grid="square", spacing=7.0, bounds=(20, 10, 90, 70), keep=None, transformations=None, seed=0):
    """Circles on a grid in some order, and a table that annotates them in another."""
    laid = lay_grid(grid, spacing, bounds)
    if keep is not None:
        laid = laid.pick(keep(len(laid)))
    rng = np.random.default_rng(seed)
    n, order = len(laid), rng.permutation(len(laid))
    ids = np.array([f"t{i}" for i in range(n)])
    shapes = ShapesModel.parse(
        laid.centers_px[order],
        geometry=0,
        radius=spacing / 2,
        index=ids[order],
        transformations=transformations or {"global": Identity()},
    )
    obs = pd.DataFrame(
        {"region": pd.Categorical(["tiles"] * n), "id": ids, "array_row": laid.rows, "array_col": laid.cols}, index=ids
    )
    obs["confidence"], obs["outlier"], obs["kind"] = rng.random(n), rng.random(n) < 0.5, "tumor"
    table = AnnData(rng.random((n, 3)).astype(np.float32), obs=obs, var=pd.DataFrame(index=["A", "B", "C"]))
    table.layers["st_gchb"] = table.X + 1
    table = TableModel.parse(table, region="tiles", region_key="region", instance_key="id")
    return SpatialData(shapes={"tiles": shapes}, tables={"st_gchb": table})


def value_at(sdata, image, points, system):
    """What an image shows at places of a coordinate system, (c, n); as spatialdata places it: px centers at 0.5."""
    matrix = get_transformation(sdata[image], system).to_affine_matrix(XY, XY)
    x, y, _ = np.linalg.solve(matrix, np.column_stack([points, np.ones(len(points))]).T)
    raster = sdata[image]
    places = {"x": xarray.DataArray(x, dims="n"), "y": xarray.DataArray(y, dims="n")}
    return raster.sel(places, method="nearest").values


def centers(sdata, system):
    """Centers of the tiles in a coordinate system, in the order of the table, (n, 2)."""
    own = shapely.get_coordinates(sdata["tiles"].loc[sdata["st_gchb"].obs["id"]].geometry)
    matrix = get_transformation(sdata["tiles"], system).to_affine_matrix(XY, XY)
    return own @ matrix[:2, :2].T + matrix[:2, 2]


SYSTEMS = {"global": OBLIQUE, "turned": TURNED, "mirrored": MIRRORED, "own": Identity()}


@functools.cache
def drawn(grid, px_per_tile):
    """A map that tests only look at."""
    sdata = tiled(grid, transformations=SYSTEMS)
    return sdata, rasterize(sdata, ["B", "confidence", "outlier"], px_per_tile=px_per_tile)


# A pixel as wide as the distance of neighbors could show one of two in a hexagonal grid.
@pytest.mark.parametrize(("grid", "px_per_tile"), [("square", 1), ("square", 4), ("hex", 4)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_tile_shows_its_value_at_its_place(grid, px_per_tile, system):
    sdata, names = drawn(grid, px_per_tile)
    assert names == ["tiles_raster"]
    raster, table = sdata["tiles_raster"], sdata["st_gchb"]
    assert raster.dtype == np.float32
    assert raster.coords["c"].values.tolist() == ["B", "confidence", "outlier"]
    assert set(get_transformation(raster, get_all=True)) == set(SYSTEMS)
    expected = [table[:, "B"].layers["st_gchb"][:, 0], table.obs["confidence"], table.obs["outlier"]]
    np.testing.assert_array_equal(
        value_at(sdata, "tiles_raster", centers(sdata, system), system), np.asarray(expected, dtype=np.float32)
    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_tiles_lie_where_spatialdata_places_them(system):
    sdata, _ = drawn("square", 4)
    found = spatialdata.get_centroids(sdata["tiles"], coordinate_system=system).compute()
    np.testing.assert_allclose(centers(sdata, system), found.loc[sdata["st_gchb"].obs["id"]].to_numpy())


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_tile_covers_its_square(system):
    """Half a tile to each side, to the pixel: also what spatialdata says of the image's extent."""
    sdata, (name,) = drawn("square", 4)
    own = np.array([[point.x, point.y] for point in sdata["tiles"].loc[sdata["st_gchb"].obs["id"]].geometry])
    to_system = SYSTEMS[system].to_affine_matrix(XY, XY)
    for dx, dy in [(-3.4, -3.4), (3.4, 3.4), (3.4, -3.4), (-3.4, 3.4)]:
        points = np.column_stack([own + [dx, dy], np.ones(len(own))]) @ to_system.T
        found = value_at(sdata, name, points[:, :2], system)[0]
        np.testing.assert_array_equal(found, sdata["st_gchb"][:, "B"].layers["st_gchb"][:, 0])
    extent = spatialdata.get_extent(sdata[name], coordinate_system="own")
    low, high = own.min(axis=0) - 3.5, own.max(axis=0) + 3.5
    np.testing.assert_allclose([extent["x"], extent["y"]], np.column_stack([low, high]))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["square", "hex"]),
    st.integers(0, 2**31),
    st.floats(0.3, 1),
    st.floats(3, 30),
    st.floats(0, 6.28),
    st.booleans(),
)
def test_any_set_of_tiles_under_any_turn(grid, seed, share, spacing, angle, mirrored):
    rng = np.random.default_rng(seed)
    flip = -1 if mirrored else 1
    turn = Affine(
        [[np.cos(angle) * flip, -np.sin(angle), 5], [np.sin(angle) * flip, np.cos(angle), 9], [0, 0, 1]], XY, XY
    )
    bounds = (0, 0, 9 * spacing, 7 * spacing)
    sdata = tiled(grid, spacing, bounds, lambda n: rng.random(n) < share, {"global": turn}, seed)
    (name,) = rasterize(sdata, "A", fill=np.nan)
    expected = sdata["st_gchb"][:, "A"].layers["st_gchb"][:, 0]
    np.testing.assert_array_equal(value_at(sdata, name, centers(sdata, "global"), "global")[0], expected)
    assert set(np.unique(sdata[name].values[np.isfinite(sdata[name].values)])) <= set(expected)


def test_where_there_is_no_tile():
    hole = tiled(keep=lambda n: np.arange(n) % 7 != 3)
    for fill in (0.0, np.nan, -1):
        (name,) = rasterize(hole, "A", fill=fill, overwrite=True)
        values = hole[name].values
        empty = np.isnan(values) if np.isnan(fill) else values == fill
        assert (~empty).sum() == 16 * hole["st_gchb"].n_obs


def test_values_come_from_the_layer_that_is_named():
    sdata = tiled()
    table = sdata["st_gchb"]
    table.layers["sparse"] = csr_matrix(table.X)
    for layer, shift in (("st_gchb", 1), (None, 0), ("sparse", 0)):
        (name,) = rasterize(sdata, "A", layer=layer, overwrite=True)
        found = value_at(sdata, name, centers(sdata, "global"), "global")[0]
        np.testing.assert_allclose(found, table[:, "A"].X[:, 0] + shift)


def test_only_what_is_looked_at_is_laid_out():
    sdata = tiled(spacing=0.2, bounds=(0, 0, 60, 60))
    (name,) = rasterize(sdata, ["A", "B", "C"])
    data = sdata[name].data
    assert data.shape == (3, 1200, 1200)
    assert np.prod(data.chunksize) <= 1024**2
    with dask.config.set(scheduler="synchronous"):
        whole = data.compute()
    for part in (np.s_[1], np.s_[0, 7], np.s_[:, 5:90:3, 8], np.s_[2, -1, -1], np.s_[0:2, 1000:, ::500]):
        np.testing.assert_array_equal(data[part].compute(), whole[part])


def test_irregular_positions_are_drawn_by_the_nearest():
    sdata = tiled()
    rng = np.random.default_rng(1)
    moved = sdata["tiles"].copy()
    moved["geometry"] = [
        point.__class__(point.x + a, point.y + b)
        for point, (a, b) in zip(moved.geometry, rng.uniform(-1, 1, (len(moved), 2)), strict=True)
    ]
    sdata.shapes["tiles"] = moved
    (name,) = rasterize(sdata, "A", px_per_tile=8)
    found = value_at(sdata, name, centers(sdata, "global"), "global")[0]
    np.testing.assert_array_equal(found, sdata["st_gchb"][:, "A"].layers["st_gchb"][:, 0])


def test_over_the_tiles_of_a_slide():
    """With pp.tile_tissue: the raster lies on the image from which the tiles were made, in µm of its own."""
    slide = np.full((160, 240, 3), 200, np.uint8)
    placed = Sequence([Scale([0.5, 0.5], XY), Translation([3.0, 4.0], XY)])
    sdata = SpatialData(images={"he": Image2DModel.parse(np.moveaxis(slide, -1, 0), dims=("c", "y", "x"))})
    set_transformation(sdata["he"], placed)
    tile_tissue(sdata, um_per_px=0.5, spacing_um=5, grid="square", tissue="all")
    (name,) = rasterize(sdata, "tissue_share", table="tiles_table", layer=None)
    he, raster = (spatialdata.get_extent(sdata[one]) for one in ("he", name))
    assert he == {"x": (3.0, 123.0), "y": (4.0, 84.0)}
    np.testing.assert_allclose([raster["x"], raster["y"]], [he["x"], he["y"]])


def no_layer(sdata):
    del sdata["st_gchb"].layers["st_gchb"]


def gene_and_column(sdata):
    sdata["st_gchb"].obs["A"] = 1.0


def as_points(sdata):
    del sdata.shapes["tiles"]
    sdata.points["tiles"] = PointsModel.parse(np.zeros((3, 2)))


def other_ids(sdata):
    sdata["st_gchb"].obs["id"] = [f"x{i}" for i in range(sdata["st_gchb"].n_obs)]


def one_tile(sdata):
    sdata.tables["st_gchb"] = sdata["st_gchb"][:1].copy()


def unannotated(sdata):
    table = sdata["st_gchb"].copy()
    table.uns.clear()
    sdata.tables["st_gchb"] = table


def taken(sdata):
    sdata.images["tiles_raster"] = Image2DModel.parse(np.zeros((1, 5, 5)), dims=("c", "y", "x"))


def far_apart(sdata):
    sdata["st_gchb"].obs["array_row"] = 0
    points = sdata["tiles"].geometry.values
    sdata["tiles"].loc[:, "geometry"] = [
        points[0].__class__(1e6 * p.x if i == 0 else p.x, p.y * (1e6 if i == 1 else 1)) for i, p in enumerate(points)
    ]


@pytest.mark.parametrize(
    ("spoil", "options", "error", "message"),
    [
        (None, {"genes": "ERBB2"}, MissingKeyError, r"no gene and no obs column 'ERBB2'.*'A', 'B', 'C'.*\(3\)"),
        (None, {"genes": []}, InputError, "one name or more"),
        (None, {"genes": ["A", "A"]}, InputError, "each once"),
        (None, {"genes": "kind"}, InputError, "map needs numbers"),
        (None, {"table": "no"}, MissingKeyError, r"no table 'no'.*\['st_gchb'\].*model.predict"),
        (None, {"layer": "no"}, MissingKeyError, r"no layer 'no'.*\['st_gchb'\]"),
        (None, {"shapes": "no"}, MissingKeyError, r"shapes='no'.*\['tiles'\]"),
        (None, {"name": "a b"}, InputError, "'a b': expected letters"),
        (None, {"name": "tiles", "overwrite": True}, InputError, "another name=.$"),
        (None, {"fill": "0"}, InputError, "fill='0'"),
        (None, {"px_per_tile": 0}, InputError, "px_per_tile=0"),
        (None, {"px_per_tile": 2.5}, InputError, "px_per_tile=2.5"),
        (no_layer, {}, MissingKeyError, "no layer 'st_gchb'"),
        (gene_and_column, {}, InputError, "a gene and a column"),
        (as_points, {}, InputError, "no shapes element"),
        (other_ids, {}, InputError, "have no shape in 'tiles'"),
        (one_tile, {}, InputError, "at least two"),
        (unannotated, {}, InputError, "annotates no shapes"),
        (taken, {}, InputError, "'tiles_raster' already.*overwrite=True"),
        (far_apart, {}, InputError, "expected at most 5e.08 px"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(spoil, options, error, message):
    sdata = tiled()
    if spoil:
        spoil(sdata)
    before = {name: id(element) for _, name, element in sdata.gen_elements()}
    with pytest.raises(error, match=message) as caught:
        rasterize(sdata, **({"genes": "A"} | options))
    assert isinstance(caught.value, STGCHBError)
    assert {name: id(element) for _, name, element in sdata.gen_elements()} == before


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 40))
@example(1025, 1)
def test_a_slide_as_an_element_has_the_same_pixels(height, width):
    pixels = np.random.default_rng(height).integers(0, 255, (height, width, 3), dtype=np.uint8)
    element = image_element(open_image(pixels), {"global": Identity()})
    finest = element if hasattr(element, "data") else element["scale0"]["image"]
    np.testing.assert_array_equal(np.moveaxis(finest.values, 0, -1), pixels)
    parts = (np.s_[:, -1], np.s_[1, height // 2, :], np.s_[:, ::2, 0], np.s_[2, 0, -1])
    for part in parts:
        np.testing.assert_array_equal(finest.data[part].compute(), np.moveaxis(pixels, -1, 0)[part])


def test_a_pyramid_keeps_its_levels(tmp_path):
    rng = np.random.default_rng(0)
    levels = [rng.integers(0, 255, (512 // step, 768 // step, 3), dtype=np.uint8) for step in (1, 4)]
    with tifffile.TiffWriter(tmp_path / "p.tif") as tif:
        tif.write(levels[0], tile=(128, 128), subifds=0, photometric="rgb")
        tif.write(levels[1], tile=(128, 128), subfiletype=1, photometric="rgb")
    slide = open_image(tmp_path / "p.tif", 0.5)
    element = image_element(slide, {"global": TURNED})
    assert [element[f"scale{i}"]["image"].shape for i in range(2)] == [(3, 512, 768), (3, 128, 192)]
    np.testing.assert_array_equal(np.moveaxis(element["scale1"]["image"].values, 0, -1), levels[1])
    np.testing.assert_array_equal(element["scale1"]["x"].values[:2], [2.0, 6.0])
    sdata = SpatialData(images={"he": element})
    whole = {"x": (-1496.0, 40.0), "y": (5.0, 1541.0)}
    sdata.write(tmp_path / "s.zarr")
    read = spatialdata.read_zarr(tmp_path / "s.zarr")
    for one in (sdata, read):
        assert spatialdata.get_extent(one["he"])["y"] == whole["y"]
        for i in range(2):
            extent = spatialdata.get_extent(one["he"][f"scale{i}"]["image"])
            assert extent == spatialdata.get_extent(one["he"])
