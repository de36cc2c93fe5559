"""Slices, their images, the size of a pixel, and positions that do not fit."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, strategies as st
from PIL import Image

from st_gchb._errors import CoordinateError, ImageError, MissingFileError, MissingKeyError, ScaleError, SliceError
from st_gchb.pp import slices_of
from st_gchb.pp.spots import check_fit

RGB = np.random.default_rng(0).integers(0, 256, (1000, 1200, 3), dtype=np.uint8)
SMALL = RGB[::10, ::10]


def spots(n=30, factor=1.0, **columns):
    x, y = np.meshgrid(np.linspace(100, 1100, 6), np.linspace(100, 900, 5))
    centers = np.column_stack([x.ravel(), y.ravel()])[:n] * factor
    obs = pd.DataFrame(columns, index=[f"s{i}" for i in range(n)])
    return AnnData(obs=obs, obsm={"spatial": centers})


def library(images=None, path=None, **factors):
    metadata = {} if path is None else {"source_image_path": str(path)}
    return {"images": images or {}, "scalefactors": factors, "metadata": metadata}


def visium(adata, name="lib", images=None, **factors):
    known = {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 110.0, **factors}
    adata.uns["spatial"] = {name: library({"hires": SMALL} if images is None else images, **known)}
    return adata


def test_scanpys_visium_object_works_as_it_is():
    adata = visium(spots(), images={"hires": SMALL.astype(np.float32) / 255, "lowres": SMALL[::2, ::2]})
    (one,) = slices_of(adata)
    assert one.name == "lib"
    assert one.scale == 0.1
    np.testing.assert_allclose(one.centers_px, adata.obsm["spatial"] * 0.1)
    np.testing.assert_array_equal(one.image.read(0, 0, 100, 0, 120), SMALL)
    assert one.um_per_px == pytest.approx(55 / 110 / 0.1)


def test_the_image_key_and_the_image_go_before_what_is_found(tmp_path):
    path = tmp_path / "full.png"
    Image.fromarray(RGB).save(path)
    adata = visium(spots())
    adata.uns["spatial"]["lib"]["metadata"]["source_image_path"] = str(path)
    assert slices_of(adata)[0].image.name == str(path)
    assert slices_of(adata, image_key="hires")[0].image.shape_px == (100, 120)
    assert slices_of(adata, image=RGB)[0].image.shape_px == (1000, 1200)
    with pytest.raises(MissingKeyError, match=r"\['hires'\]"):
        slices_of(adata, image_key="lowres")


def test_a_full_resolution_image_that_moved_is_asked_for():
    adata = visium(spots())
    adata.uns["spatial"]["lib"]["metadata"]["source_image_path"] = "/nowhere/full.tif"
    with pytest.raises(MissingFileError, match=r"image=.*image_key='hires'"):
        slices_of(adata)


def test_no_image():
    with pytest.raises(ImageError, match="image="):
        slices_of(spots())
    adata = visium(spots())
    del adata.uns["spatial"]["lib"]["scalefactors"]["tissue_hires_scalef"]
    with pytest.raises(MissingKeyError, match="tissue_hires_scalef"):
        slices_of(adata)


@pytest.mark.parametrize("key", ["slice", "sample", None])
def test_several_slices_are_told_apart(key):
    column = key or "sample"
    adata = spots(**{column: ["b"] * 10 + ["a"] * 20, "group": ["x"] * 30})
    adata = adata[np.random.default_rng(0).permutation(30)].copy()
    adata.uns["spatial"] = {name: library({"fullres": RGB}) for name in ("a", "b")}
    found = slices_of(adata, slice_key=key)
    assert {one.name for one in found} == {"a", "b"}
    for one in found:
        assert (adata.obs[column].iloc[one.rows] == one.name).all()
        np.testing.assert_array_equal(one.centers_px, adata.obsm["spatial"][one.rows])


def test_the_layout_of_the_packages_own_data_sets_needs_no_key():
    adata = spots(slice=pd.Categorical(["a"] * 10 + ["b"] * 20), patient=["p"] * 30)
    adata.uns["spatial"] = {name: library({"fullres": RGB}, microns_per_pixel=0.5) for name in ("a", "b")}
    assert [one.name for one in slices_of(adata)] == ["a", "b"]


def test_slices_that_cannot_be_told_apart():
    adata = spots(sample=["a"] * 10 + ["b"] * 20, twin=["a"] * 15 + ["b"] * 15)
    adata.uns["spatial"] = {name: library({"fullres": RGB}) for name in ("a", "b")}
    with pytest.raises(SliceError, match=r"slice_key.*\['sample', 'twin'\]"):
        slices_of(adata)
    with pytest.raises(SliceError, match="no column 'nope'"):
        slices_of(adata, slice_key="nope")
    adata.obs["holes"] = [None] * 5 + ["a"] * 25
    with pytest.raises(SliceError, match="empty for 5 of 30"):
        slices_of(adata, slice_key="holes")
    with pytest.raises(SliceError, match="Pass a dict"):
        slices_of(adata, slice_key="sample", image=RGB)
    with pytest.raises(SliceError, match="no spots"):
        slices_of(adata[:0].copy(), slice_key="sample")


def test_images_by_slice():
    adata = spots(slice=["a"] * 10 + ["b"] * 20)
    other = RGB.copy()
    found = slices_of(adata, image={"a": RGB, "b": other}, um_per_px={"a": 0.5, "b": 0.25})
    assert [one.um_per_px for one in found] == [0.5, 0.25]
    with pytest.raises(ImageError, match="'b' has no image"):
        slices_of(adata, image={"a": RGB})


def test_the_size_of_a_pixel_and_its_order_of_sources():
    adata = visium(spots(), microns_per_pixel=0.7)
    assert slices_of(adata, image=RGB)[0].um_per_px == 0.7
    assert slices_of(adata)[0].um_per_px == pytest.approx(7)
    assert slices_of(adata, image=RGB, um_per_px=0.3)[0].um_per_px == 0.3
    assert slices_of(spots(), image=RGB)[0].um_per_px is None
    for bad in (0, -1, np.nan):
        with pytest.raises(ScaleError, match="positive"):
            slices_of(adata, um_per_px=bad)
    with pytest.raises(ScaleError, match="microns_per_pixel"):
        slices_of(visium(spots(), microns_per_pixel=0.0))


def change(key, value):
    def apply(adata):
        adata.obsm["spatial"] = adata.obsm["spatial"].astype(float)
        adata.obsm["spatial"][3, 0] = value

    return apply


BAD = {
    "absent": (lambda adata: adata.obsm.pop("spatial"), "absent"),
    "NaN": (change("spatial", np.nan), "NaN.*'s3'"),
    "infinite": (change("spatial", np.inf), "infinite"),
    "negative": (change("spatial", -500), r"far outside, first at \(-500"),
    "three columns": (lambda a: a.obsm.__setitem__("spatial", np.zeros((30, 3))), "shape"),
    "text": (lambda a: a.obsm.__setitem__("spatial", np.full((30, 2), "x")), "numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_coordinates(name):
    spoil, message = BAD[name]
    adata = spots()
    spoil(adata)
    with pytest.raises(CoordinateError, match=message):
        slices_of(adata, image=RGB)
    if name == "absent":
        with pytest.raises(KeyError):
            slices_of(adata, image=RGB)


def test_the_down_scaled_image_with_full_resolution_coordinates():
    adata = visium(spots())
    with pytest.raises(CoordinateError, match=r"0\.1 \(tissue_hires_scalef\).*image_key='hires'"):
        slices_of(adata, image=SMALL)
    with pytest.raises(CoordinateError, match=r"about 0\.1"):
        slices_of(spots(), image=SMALL)


def test_down_scaled_coordinates_with_the_full_resolution_image():
    adata = visium(spots(factor=0.1))
    with pytest.raises(CoordinateError, match=r"by 10 \(1 / tissue_hires_scalef\)"):
        slices_of(adata, image=RGB)
    with pytest.raises(CoordinateError, match=r"by 10 \(1 / tissue_hires_scalef\)"):
        slices_of(adata)


def test_a_few_spots_in_a_corner_are_no_error():
    adata = visium(spots())
    adata = adata[(adata.obsm["spatial"] < 350).all(axis=1)].copy()
    # Ten times as far apart they would fit the image, too: only their distance says that they are right.
    assert len(slices_of(adata, image=np.tile(RGB, (4, 4, 1)))[0].rows) == adata.n_obs


def test_exchanged_axes_and_foreign_images():
    adata = spots()
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1].copy()
    with pytest.raises(CoordinateError, match="exchanged"):
        slices_of(adata, image=RGB[:920])
    with pytest.raises(CoordinateError, match=r"1 of them lie far outside, first at \(120"):
        check_fit(np.array([[50.0, 50.0]] * 30 + [[120.0, 50.0]]), (100, 100), "one of 31 spots outside")


@given(factor=st.floats(1.3, 200))
def test_the_factor_that_is_named_makes_the_spots_fit(factor):
    centers = np.array([[10.0, 10.0], [900.0, 700.0], [300.0, 500.0]])
    with pytest.raises(CoordinateError) as caught:
        check_fit(centers * factor, (1000, 1000), "x")
    named = float(str(caught.value).split("about ")[1].split(" ")[0])
    assert (centers * factor * named).max() <= 1010
