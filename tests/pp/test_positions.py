"""Where spots are: positions in whatever form, on, beside and far from their image, in px, µm and mm."""

import re

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, strategies as st
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel

import st_gchb
from st_gchb.errors import CoordinateError
from st_gchb.io import spot_centers
from st_gchb.pp import slices_of
from st_gchb.pp.spots import check_fit, check_positions

XY = np.array([[10.0, 20.0], [30.0, 45.0], [50.0, 61.0]])


def holding(stored):
    adata = AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(len(XY))]))
    adata.obsm["spatial"] = stored
    return adata


def frame(columns, values=XY):
    return pd.DataFrame(values, index=[f"s{i}" for i in range(len(XY))], columns=columns)


def hexagonal(pitch, n=12):
    rows, columns = np.mgrid[0:n, 0:n]
    return np.column_stack([(1 + columns + rows % 2 / 2).ravel() * pitch, (1 + rows).ravel() * pitch * 3**0.5 / 2])


@pytest.mark.parametrize(
    "columns",
    [
        ("y", "x"),
        ("row", "col"),
        ("pxl_row_in_fullres", "pxl_col_in_fullres"),
        ("imagerow", "imagecol"),
        ("Y_px", "X_px"),
    ],
)
def test_named_columns_are_read_by_their_names(columns):
    np.testing.assert_array_equal(spot_centers(holding(frame(columns, XY[:, ::-1]))), XY)
    np.testing.assert_array_equal(spot_centers(holding(frame(columns[::-1]))), XY)


@pytest.mark.parametrize("columns", [("0", "1"), ("spatial_1", "spatial_2"), ("first", "second")])
def test_names_that_say_nothing_leave_the_order(columns):
    np.testing.assert_array_equal(spot_centers(holding(frame(columns))), XY)


def test_the_columns_of_a_table_of_spots_are_found_among_others():
    names = ["in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    table = np.column_stack([np.ones(3), [1, 2, 3], [4, 5, 6], XY[:, 1], XY[:, 0]])
    np.testing.assert_array_equal(spot_centers(holding(frame(names, table))), XY)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (("array_row", "array_col"), "Name them 'x' and 'y'"),
        (("x", "x1_col"), "Name them 'x' and 'y'"),
        (("y", "other"), "Name them 'x' and 'y'"),
        (("x_um", "y_um"), "in um by their names"),
        (("x_mm", "y_mm"), "in mm by their names"),
    ],
)
def test_names_that_contradict_x_and_y_are_refused(columns, told):
    with pytest.raises(CoordinateError, match=told):
        spot_centers(holding(frame(columns)))


@given(
    st.permutations(["x", "y", "array_row", "total_counts"]), st.sampled_from(["{}", "{}_px", "pixel_{}", "{}_coord"])
)
def test_the_order_of_named_columns_is_of_no_account(order, form):
    values = {"x": XY[:, 0], "y": XY[:, 1], "array_row": np.zeros(3), "total_counts": np.ones(3)}
    names = {"x": form.format("x"), "y": form.format("y")}
    stored = pd.DataFrame({names.get(name, name): values[name] for name in order}, index=["s0", "s1", "s2"])
    np.testing.assert_array_equal(spot_centers(holding(stored)), XY)


@pytest.mark.parametrize(
    "same", [XY.astype(object), XY.astype(int), XY.astype(">f8"), np.asfortranarray(XY), XY.astype(np.float16)]
)
def test_numbers_of_any_kind_are_positions(same):
    np.testing.assert_array_equal(spot_centers(holding(same)), XY)


@pytest.mark.parametrize(
    "stored",
    [
        XY.astype(str),
        XY.astype(str).astype(object),
        XY > 20,
        XY + 1j,
        XY.astype("datetime64[s]"),
        sparse.csr_matrix(XY),
    ],
    ids=["text", "objects of text", "truth", "complex", "dates", "sparse"],
)
def test_what_is_no_table_of_real_numbers_is_refused(stored):
    with pytest.raises(CoordinateError, match="no numbers|sparse"):
        spot_centers(holding(stored))


def test_coarse_floats_and_a_third_axis_are_refused():
    with pytest.raises(CoordinateError, match="float16"):
        spot_centers(holding((XY * 100).astype(np.float16)))
    with pytest.raises(CoordinateError, match="third axis"):
        spot_centers(holding(np.column_stack([XY, np.zeros(3)])))


@pytest.mark.parametrize("side", ["left", "top", "right", "bottom"])
def test_one_rule_for_all_sides_and_with_or_without_a_table(side, caplog):
    size = 400
    base = np.array([[30 + 45 * (i % 8), 30 + 45 * (i // 8)] for i in range(64)], float)

    def beyond(px):
        spots, axis = base.copy(), 0 if side in ("left", "right") else 1
        spots[7, axis] = -px if side in ("left", "top") else size + px
        return spots

    check_fit(beyond(3), (size, size), "slide")
    assert "3 px outside" in caplog.text
    with pytest.raises(CoordinateError, match="far outside"):
        check_fit(beyond(120), (size, size), "slide")
    if side in ("left", "top"):
        check_positions(beyond(3))
        with pytest.raises(CoordinateError, match="negative for 1 of 64"):
            check_positions(beyond(120))


@pytest.mark.parametrize(("unit", "length"), [("µm", 1.0), ("mm", 1000.0)])
def test_positions_in_lengths_name_the_factor_that_makes_them_px(unit, length):
    um, size = 0.25, 4000
    px = np.random.default_rng(0).uniform(50, size - 50, (200, 2))
    with pytest.raises(CoordinateError, match=f"in {unit}") as caught:
        check_fit(px * um / length, (size, size), "slide", um_per_px=um)
    factor = float(re.search(r"obsm\['spatial'\] by ([\d.e+]+)", str(caught.value)).group(1))
    # Following the advice works.
    check_fit(px * um / length * factor, (size, size), "slide", um_per_px=um)


def test_visiums_array_in_um_is_seen_wherever_it_lies():
    um = 0.5
    centers = hexagonal(100 / um) + 2000
    check_fit(centers, (8000, 8000), "slide", {"spot_diameter_fullres": 55 / um}, um_per_px=um)
    with pytest.raises(CoordinateError, match=r"Visium's 100 µm"):
        check_fit(centers * um, (8000, 8000), "slide", {"spot_diameter_fullres": 55 / um}, um_per_px=um)


def test_spots_as_far_apart_as_they_are_wide_may_lie_in_a_corner(caplog):
    centers = hexagonal(50)
    check_fit(centers, (4000, 4000), "slide", {"spot_diameter_fullres": 30.0}, um_per_px=0.2)
    assert not caplog.text


def test_spots_in_one_pixel_are_no_positions():
    image = np.zeros((100, 100, 3), np.uint8)
    with pytest.raises(CoordinateError, match="within one pixel"):
        slices_of(holding(XY / 1e6), image=image, um_per_px=1.0)


def test_the_rim_is_the_same_from_embedding_to_prediction(caplog):
    reference = st_gchb.datasets.synthetic_tissue(1, n_rows=9, n_cols=9, n_genes=40)
    spots = np.array(reference.obsm["spatial"], float)
    spots[0, 0] = -3.0
    reference.obsm["spatial"] = spots
    st_gchb.pp.embed_patches(reference, encoder="texture", patch_um=150, n_views=1, cache=False)
    st_gchb.model.STGCHB.setup_anndata(reference)
    assert "outside the image" in caplog.text


def test_positions_that_were_seen_on_their_image_are_not_judged_without_it(tmp_path):
    """Spots in the corner of a large image: beside their own extent alone, one would lie too far beyond the rim."""
    reference = st_gchb.datasets.synthetic_tissue(1, n_rows=9, n_cols=10, n_genes=40)
    corner = np.array([[-40.0, 60], [60, 60], [160, 60], [10, 146], [110, 146], [60, 233]])
    query = reference[:6].copy()
    query.obsm["spatial"] = corner
    with pytest.raises(CoordinateError, match="negative for 1 of 6"):
        check_positions(corner)
    pixels = query.uns["spatial"]["S1"]["images"]["hires"]
    shapes = ShapesModel.parse(corner, geometry=0, radius=27.0)
    sdata = SpatialData(images={"he": Image2DModel.parse(pixels, dims=("y", "x", "c"))}, shapes={"spots": shapes})
    for adata in (reference, query):
        st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    st_gchb.model.STGCHB.setup_anndata(query)
    st_gchb.model.STGCHB.setup_anndata(reference)
    model = st_gchb.model.STGCHB(reference, n_top_genes=20)
    model.train(max_epochs=1, enable_progress_bar=False, accelerator="cpu", calibrate=False)
    expected = model.predict(query).layers["st_gchb"]
    bare = AnnData(obs=query.obs[[]], obsm={"spatial": corner}, uns={"spatial": query.uns["spatial"]})
    for one in (bare, sdata):
        found = model.predict(one, um_per_px=1.0)
        np.testing.assert_allclose(found.layers["st_gchb"], expected, atol=1e-4)
    model.save(tmp_path / "model")
    bare.write_h5ad(tmp_path / "bare.h5ad")
    report = st_gchb.cohort.predict_slides(tmp_path / "model", [tmp_path / "bare.h5ad"], tmp_path / "out")
    assert report["status"].tolist() == ["done"], report["message"].tolist()
