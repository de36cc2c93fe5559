"""Query positions on a bare slide: where they lie, what the query holds, and what is refused."""

from __future__ import annotations

import anndata
import dask.array as da
import geopandas as gpd
import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import assume, example, given, settings, strategies as st
from PIL import Image
from scipy.spatial import cKDTree
from shapely.geometry import LineString, MultiPolygon, Polygon, box

import st_gchb
from st_gchb._errors import CoordinateError, ImageError, InputError, MissingFileError, ScaleError, TissueError
from st_gchb.io import open_image
from st_gchb.pp import Tissue, find_tissue, slices_of, tile_tissue
from st_gchb.pp.tissue import lay_grid, tissue_share

KINDS = st.sampled_from(["hex", "square"])
# Blank: with a mask of one's own, pixels do not matter.
BLANK = np.full((120, 160, 3), 240, dtype=np.uint8)


@pytest.fixture(scope="module")
def section():
    """Pixels of a synthetic section, 1 µm each."""
    adata = st_gchb.datasets.synthetic_tissue(1, n_rows=8, n_cols=8, n_genes=20, seed=3)
    return adata.uns["spatial"]["S1"]["images"]["hires"]


@settings(max_examples=100, deadline=None)
@given(KINDS, st.floats(2, 40), st.tuples(*[st.floats(0, 200)] * 4))
def test_a_grid_covers_its_bounds_at_the_spacing_asked_for(kind, spacing, numbers):
    left, top = numbers[:2]
    right, bottom = left + numbers[2], top + numbers[3]
    grid = lay_grid(kind, spacing, (left, top, right, bottom))
    x, y = grid.centers_px.T
    assert ((x >= left) & (x <= right) & (y >= top) & (y <= bottom)).all()
    assert len({*zip(grid.rows, grid.cols, strict=True)}) == len(grid)
    tree = cKDTree(grid.centers_px) if len(grid) else None
    if len(grid) > 1:
        distance = tree.query(grid.centers_px, k=2)[0][:, 1]
        assert (distance > 0.999 * spacing).all()
    # No place of the bounds, off their rim, is farther from a position than the grid's widest gap.
    places = np.random.default_rng(0).uniform((left, top), (right, bottom), (50, 2))
    inner = ((places > (left + spacing, top + spacing)) & (places < (right - spacing, bottom - spacing))).all(axis=1)
    if inner.any():
        assert tree.query(places[inner])[0].max() <= spacing / np.sqrt(3 if kind == "hex" else 2) + 1e-6


@settings(max_examples=50, deadline=None)
@given(KINDS, st.floats(3, 30), st.tuples(*[st.floats(0, 150)] * 4))
def test_a_part_of_the_slide_has_the_positions_of_the_whole(kind, spacing, numbers):
    left, right = sorted(numbers[:2])
    top, bottom = sorted(numbers[2:])
    whole, part = lay_grid(kind, spacing, (0, 0, 150, 150)), lay_grid(kind, spacing, (left, top, right, bottom))
    x, y = whole.centers_px.T
    expected = whole.pick((x >= left) & (x <= right) & (y >= top) & (y <= bottom))
    for name in ("centers_px", "rows", "cols"):
        np.testing.assert_array_equal(getattr(part, name), getattr(expected, name))


def test_a_hexagonal_grid_is_numbered_as_visium_does():
    grid = lay_grid("hex", 10, (0, 0, 40, 30))
    assert grid.rows.tolist()[:8] == [0, 0, 0, 0, 1, 1, 1, 1][: len(grid.rows[:8])]
    assert ((grid.rows + grid.cols) % 2 == 0).all()
    steps = np.column_stack([grid.cols * 5.0 + 5.0, (grid.rows + 0.5) * 10 * np.sqrt(0.75)])
    np.testing.assert_allclose(grid.centers_px, steps)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.5, 20), st.integers(0, 2**31), st.floats(-30, 200))
def test_points_are_looked_up(h, w, downsample, seed, start):
    rng = np.random.default_rng(seed)
    tissue = Tissue(rng.random((h, w)) < 0.5, downsample, 1.0)
    points = start + rng.random((20, 2)) * 50
    for (x, y), answer in zip(points, tissue.at(points), strict=True):
        inside = 0 <= x / downsample < w and 0 <= y / downsample < h
        assert answer == (inside and tissue.mask[int(y / downsample), int(x / downsample)])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(8, 60), st.tuples(st.floats(-20, 180), st.floats(-20, 180)))
def test_share_of_a_round_tile(seed, diameter, center):
    mask = np.zeros((40, 40), dtype=bool)
    mask[np.random.default_rng(seed).integers(5, 35) :] = True
    tissue = Tissue(mask, 4.0, 1.0)
    fine = np.stack(np.meshgrid(np.linspace(-1, 1, 101), np.linspace(-1, 1, 101)), axis=-1).reshape(-1, 2)
    fine = fine[(fine**2).sum(1) <= 1] * diameter / 2 + center
    np.testing.assert_allclose(tissue_share(tissue, np.array([center]), diameter), tissue.at(fine).mean(), atol=0.08)


@settings(max_examples=50, deadline=None)
@given(
    KINDS, st.floats(8, 60), st.integers(0, 2**31), st.floats(0.1, 1), st.lists(st.tuples(*[st.integers(-9, 170)] * 2))
)
@example("hex", 10.0, 0, 0.5, [])
def test_positions_lie_on_tissue_and_in_the_region_and_none_is_missing(kind, spacing_um, seed, least, corners):
    rng = np.random.default_rng(seed)
    mask = np.repeat(np.repeat(rng.random((6, 8)) < 0.5, 5, axis=0), 5, axis=1)
    roi = shapely.convex_hull(shapely.MultiPoint(corners)) if len(corners) > 2 else None
    slide = box(0, 0, 160, 120)
    assume(roi is None or roi.intersection(slide).area > 1)
    options = {"spacing_um": spacing_um, "um_per_px": 2.0, "grid": kind, "min_tissue": least}
    grid = lay_grid(kind, spacing_um / 2, (0, 0, 160, 120))
    share = tissue_share(Tissue(mask, 4.0, 8.0), grid.centers_px, spacing_um / 2)
    keep = share >= least
    if roi is not None:
        keep &= shapely.intersects_xy(roi.intersection(slide), *grid.centers_px.T)
    if not keep.any():
        with pytest.raises(TissueError):
            tile_tissue(BLANK, tissue=mask, roi=roi, **options)
        return
    query = tile_tissue(BLANK, tissue=mask, roi=roi, **options)
    np.testing.assert_allclose(query.obsm["spatial"], grid.centers_px[keep])
    np.testing.assert_allclose(query.obs["tissue_share"], share[keep])
    assert query.obs[["array_row", "array_col"]].to_numpy().tolist() == [
        *map(list, zip(grid.rows[keep], grid.cols[keep], strict=True))
    ]


def test_what_a_query_holds(section, tmp_path):
    path = tmp_path / "a.slide.png"
    Image.fromarray(section).save(path)
    query = tile_tissue(path, um_per_px=0.5, spacing_um=100)
    assert query.obs["slice"].unique().tolist() == ["a"]
    assert query.obs["tissue_share"].between(0.5, 1).all()
    assert query.obs_names.is_unique
    assert query.n_vars == 0
    library = query.uns["spatial"]["a"]
    assert library["metadata"] == {"source_image_path": str(path)}
    factors = library["scalefactors"]
    assert (factors["spot_diameter_fullres"], factors["microns_per_pixel"]) == (200.0, 0.5)
    thumbnail = library["images"]["hires"]
    assert thumbnail.dtype == np.uint8
    np.testing.assert_allclose(
        np.array(thumbnail.shape[:2]) / factors["tissue_hires_scalef"], section.shape[:2], rtol=0.02
    )
    assert query.uns["tiles"]["grid"] == "hex"
    query.write_h5ad(tmp_path / "q.h5ad")
    read = anndata.read_h5ad(tmp_path / "q.h5ad")
    np.testing.assert_array_equal(read.obsm["spatial"], query.obsm["spatial"])
    assert dict(read.uns["tiles"]) == query.uns["tiles"]
    (slide,) = slices_of(query)
    assert slide.um_per_px == 0.5
    assert slide.image.shape_px == section.shape[:2]


def test_every_source_gives_the_same_positions(section, tmp_path):
    expected = tile_tissue(section, um_per_px=1.0, name="s")
    tifffile.imwrite(tmp_path / "s.tif", section, resolution=(1e4, 1e4), resolutionunit="CENTIMETER", tile=(64, 64))
    lazy = da.from_array(section, chunks=(100, 100, 3))
    sources = [(tmp_path / "s.tif", None), (str(tmp_path / "s.tif"), None), (lazy, 1.0)]
    sources += [(open_image(section, 1.0), None), (open_image(lazy, 1.0), None), (section / np.float32(255), 1.0)]
    for source, um_per_px in sources:
        query = tile_tissue(source, um_per_px=um_per_px, name="s")
        assert query.obs.equals(expected.obs)
        np.testing.assert_array_equal(query.obsm["spatial"], expected.obsm["spatial"])
        # What is found again through the query alone is the full resolution.
        (slide,) = slices_of(query)
        np.testing.assert_array_equal(slide.image.read(0, 100, 200, 100, 200), section[100:200, 100:200])
        assert (slide.scale, slide.um_per_px) == (1.0, 1.0)


def test_regions_of_interest_in_every_form(section):
    options = {"um_per_px": 1.0, "spacing_um": 60}
    left, right = box(200, 200, 500, 700), box(600, 200, 900, 700)
    corners = np.array(left.exterior.coords)
    one = tile_tissue(section, roi=left, **options)
    for form in (corners, corners.tolist(), [corners], [left], gpd.GeoSeries([left])):
        assert tile_tissue(section, roi=form, **options).obs.equals(one.obs)
    two = tile_tissue(section, roi=[left, np.array(right.exterior.coords)], **options)
    for form in (MultiPolygon([left, right]), gpd.GeoDataFrame(geometry=[left, right]), [right, left]):
        assert tile_tissue(section, roi=form, **options).obs.equals(two.obs)
    assert 0 < one.n_obs < two.n_obs < tile_tissue(section, **options).n_obs
    beyond = tile_tissue(section, roi=box(200, 200, 500, 9000), **options)
    assert beyond.obsm["spatial"][:, 1].max() < section.shape[0]


def test_tissue_of_ones_own(section):
    tissue = find_tissue(section, um_per_px=1.0)
    expected = tile_tissue(section, um_per_px=1.0)
    assert tile_tissue(section, um_per_px=1.0, tissue=tissue).obs.equals(expected.obs)
    mask = tile_tissue(section, um_per_px=1.0, tissue=tissue.mask)
    assert abs(mask.n_obs - expected.n_obs) <= 2
    assert mask.uns["spatial"]["slide"]["images"]["hires"].size > 0
    everywhere = tile_tissue(section, um_per_px=1.0, tissue="all", grid="square")
    assert everywhere.n_obs == (section.shape[0] // 100) * (section.shape[1] // 100)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"um_per_px": None}, ScaleError, r"image array.*not known.*um_per_px="),
        ({"spacing_um": 0}, InputError, "spacing_um=0"),
        ({"spacing_um": -5.0}, InputError, "spacing_um"),
        ({"spacing_um": "100"}, InputError, "spacing_um='100'"),
        ({"spacing_um": 1e-3}, InputError, r"positions.*spacing_um= with a larger distance"),
        ({"min_tissue": 0}, InputError, "min_tissue"),
        ({"min_tissue": 1.5}, InputError, "at most 1"),
        ({"grid": "hexagonal"}, InputError, "'hex' or 'square'"),
        ({"tissue": "otsu"}, InputError, "'stain', 'squidpy', 'all'"),
        ({"tissue": np.ones((12, 16))}, InputError, "labels > 0"),
        ({"tissue": np.ones((12, 12), dtype=bool)}, InputError, r"\(12, 12\).*whole slide"),
        ({"tissue": "stain"}, TissueError, r"no tissue found: 0.00% of the slide.*min_tissue=.*tissue='all'"),
        ({"roi": box(1, 1, 2, 2)}, TissueError, r"no tile in the region roi=.*spacing_um="),
        ({"roi": box(500, 0, 600, 90)}, CoordinateError, r"outside the slide: x from 500 to 600.*160 x 120 px"),
        ({"roi": [box(0, 0, 9, 9), box(-9, -9, -1, -1)]}, CoordinateError, "polygon 1 of roi="),
        ({"roi": Polygon([(0, 0), (50, 50), (60, 0), (0, 50)])}, InputError, r"Self-intersection.*make_valid"),
        ({"roi": LineString([(0, 0), (9, 9)])}, InputError, r"LineString.*shapely polygon"),
        ({"roi": "tumor"}, InputError, "roi= is a str"),
        ({"roi": 7}, InputError, "roi= is a int"),
        ({"roi": []}, InputError, "no polygon"),
        ({"roi": [(0, 0), (9, 9)]}, InputError, "at least 3 corners"),
        ({"roi": np.zeros((4, 3))}, InputError, r"\(4, 3\)"),
        ({"roi": [(0, 0), (9, np.nan), (9, 9)]}, InputError, "NaN"),
        ({"roi": [(0, 0), (5, 5), (9, 9)]}, InputError, "no area"),
        ({"source": "nowhere.svs"}, MissingFileError, "nowhere.svs"),
        ({"source": anndata.AnnData()}, ImageError, "AnnData"),
        ({"image": "he"}, InputError, "SpatialData"),
    ],
)
def test_bad_input(options, error, message):
    options = {"source": BLANK, "um_per_px": 1.0, "spacing_um": 20, "tissue": "all"} | options
    with pytest.raises(error, match=message):
        tile_tissue(options.pop("source"), **options)
