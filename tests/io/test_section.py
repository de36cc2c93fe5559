"""Sections from disk: every format that is read, and the same after a round trip."""

from __future__ import annotations

import json
import logging

import anndata
import numpy as np
import pandas as pd
import pytest
import spatialdata
import spatialdata_io
import tifffile
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData
from spatialdata.transformations import Affine, Identity, Sequence, get_transformation, set_transformation

import st_gchb
from st_gchb.io import open_image, read_section
from st_gchb.io.images import as_element
from st_gchb.pp import resolve

from .conftest import (
    DIAMETER,
    GENES,
    PITCH,
    SIDE,
    counts_of,
    he_image,
    write_legacy,
    write_visium,
    write_visium_hd,
)

PLACES = ["pxl_col_in_fullres", "pxl_row_in_fullres"]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The full-resolution image, tiled, in two levels, without a word about its pixels."""
    path = tmp_path_factory.mktemp("image") / "full.tif"
    write_levels(path, he_image())
    return path


def write_levels(path, pixels):
    with tifffile.TiffWriter(path) as writer:
        options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib"}
        writer.write(pixels, subifds=1, **options)
        writer.write(pixels[::2, ::2].copy(), subfiletype=1, **options)


def pixels_of(element):
    image = open_image(element)
    return image.read(0, 0, image.shape_px[0], 0, image.shape_px[1])


VISIUM = {
    "v1": {"version": 1},
    "v2": {"version": 2},
    "cytassist": {"version": 2, "cytassist": True},
    "named files": {"version": 2, "prefix": "V1_Brain_"},
}


@pytest.mark.parametrize("where", ["sample", "sample/outs"])
@pytest.mark.parametrize("kind", VISIUM)
def test_visium(tmp_path, full, kind, where):
    under = write_visium(tmp_path / "sample/outs", **VISIUM[kind])
    sdata = read_section(tmp_path / where, image=full)
    assert set(sdata.images) == {"sample_full_image", "sample_hires_image", "sample_lowres_image"}
    np.testing.assert_array_equal(pixels_of(sdata.images["sample_full_image"]), he_image())
    table = sdata["table"]
    assert table.obs_names.tolist() == under.index.tolist()
    assert table.var_names.tolist() == GENES
    np.testing.assert_array_equal(table.X.toarray(), counts_of(len(under)))
    found = resolve(sdata)
    np.testing.assert_array_equal(found.adata.obsm["spatial"], under[PLACES])
    (only,) = found.slices()
    assert only.image.name == "image element 'sample_full_image'"
    np.testing.assert_array_equal(only.image.read(1, 0, SIDE, 0, SIDE), he_image()[::2, ::2])
    assert only.um_per_px == pytest.approx(100 / PITCH, rel=0.01)


def test_without_the_full_image_the_hires_image_is_taken(tmp_path, caplog):
    under = write_visium(tmp_path / "s")
    with caplog.at_level(logging.INFO, "st_gchb"):
        found = resolve(read_section(tmp_path / "s", name="left half"))
    assert "no full-resolution image" in caplog.text
    assert "the finest is taken: 'left_half_hires_image'" in caplog.text
    np.testing.assert_allclose(found.adata.obsm["spatial"], under[PLACES] / 4)
    (only,) = found.slices()
    assert only.um_per_px == pytest.approx(4 * 100 / PITCH, rel=0.01)


def test_an_image_in_the_folder_is_found(tmp_path, full):
    write_visium(tmp_path / "s")
    (tmp_path / "s/V1_tissue_image.tif").write_bytes(full.read_bytes())
    assert "s_full_image" in read_section(tmp_path / "s").images
    (tmp_path / "s/V2_tissue_image.tif").write_bytes(full.read_bytes())
    with pytest.raises(ValueError, match=r"several.*V1_tissue.*V2_tissue.*image="):
        read_section(tmp_path / "s")


@pytest.mark.parametrize("where", ["sample", "sample/outs", "sample/outs/binned_outputs"])
def test_visium_hd(tmp_path, full, where):
    write_visium_hd(tmp_path / "sample/outs")
    sdata = read_section(tmp_path / where, image=full)
    assert list(sdata.tables) == ["square_008um"]
    assert len(sdata.images) == 3
    np.testing.assert_array_equal(pixels_of(sdata.images["sample_full_image"]), he_image())
    positions = pd.read_parquet(
        tmp_path / "sample/outs/binned_outputs/square_008um/spatial/tissue_positions.parquet"
    ).set_index("barcode")
    found = resolve(sdata)
    np.testing.assert_allclose(found.adata.obsm["spatial"], positions.loc[found.adata.obs_names, PLACES])
    (only,) = found.slices()
    assert only.um_per_px == 2.0


def test_visium_hd_by_the_folder_of_its_bins(tmp_path, full):
    write_visium_hd(tmp_path / "sample/outs", prefix="D1_")
    sdata = read_section(tmp_path / "sample/outs/binned_outputs/square_016um")
    assert list(sdata.shapes) == ["D1_square_016um"]
    assert sorted(sdata.images) == ["D1_hires_image", "D1_lowres_image"]
    assert resolve(sdata).slices()[0].um_per_px == 8.0


def test_visium_hd_as_spatialdata_io_makes_it(tmp_path):
    """It keeps no size of a pixel; the bins' name and their side in px give it."""
    write_visium_hd(tmp_path / "outs", bins=(8,))
    for squares in (True, False):
        sdata = spatialdata_io.visium_hd(tmp_path / "outs", "d", bins_as_squares=squares, load_segmentations_only=False)
        assert resolve(sdata).slices()[0].um_per_px == pytest.approx(2.0 / 0.25)


def test_legacy(tmp_path):
    spots = write_legacy(tmp_path / "st")
    adata = read_section(tmp_path / "st")
    np.testing.assert_array_equal(adata.obsm["spatial"], spots[["pixel_x", "pixel_y"]])
    np.testing.assert_array_equal(adata.X.toarray(), counts_of(len(spots)))
    assert set(adata.obs["slice"]) == {"A1"}
    factors = adata.uns["spatial"]["A1"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(200 / 60)
    assert factors["spot_diameter_fullres"] == pytest.approx(30)
    (only,) = st_gchb.pp.slices_of(adata)
    assert only.image.name.endswith("A1.jpg")
    write_legacy(tmp_path / "st", "A2")
    assert set(read_section(tmp_path / "st", name="A2").obs["slice"]) == {"A2"}
    with pytest.raises(ValueError, match=r"more than one table of counts .*: A1\.tsv\.gz, A2\.tsv\.gz.*name="):
        read_section(tmp_path / "st")


@pytest.mark.tissue
def test_legacy_is_the_data_set(her2st_path):
    adata, expected = read_section(her2st_path, name="C3"), st_gchb.datasets.her2st(["C3"], path=her2st_path)
    np.testing.assert_array_equal(adata.obsm["spatial"], expected.obsm["spatial"])
    assert adata.obs_names.tolist() == expected.obs_names.tolist()
    np.testing.assert_array_equal(adata.X.toarray(), expected.X.toarray())
    sizes = [one.uns["spatial"]["C3"]["scalefactors"]["microns_per_pixel"] for one in (adata, expected)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def assert_equal_tables(first: AnnData, second: AnnData):
    assert first.obs_names.tolist() == second.obs_names.tolist()
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    np.testing.assert_array_equal(first.obsm["spatial"], second.obsm["spatial"])


@pytest.mark.parametrize("kind", ["visium", "hd"])
def test_round_trip_of_spatialdata(tmp_path, full, kind):
    (write_visium if kind == "visium" else write_visium_hd)(tmp_path / "s")
    sdata = read_section(tmp_path / "s", image=full)
    sdata.write(tmp_path / "s.zarr")
    again = read_section(tmp_path / "s.zarr")
    assert isinstance(again, SpatialData)
    for name in sdata.images:
        np.testing.assert_array_equal(pixels_of(sdata.images[name]), pixels_of(again.images[name]))
    assert len(open_image(again.images["s_full_image"]).levels) == 2
    first, second = resolve(sdata), resolve(again)
    assert_equal_tables(first.adata, second.adata)
    assert first.slices()[0].um_per_px == second.slices()[0].um_per_px
    # And once more, from what was read.
    again.write(tmp_path / "t.zarr")
    assert_equal_tables(resolve(read_section(tmp_path / "t.zarr")).adata, first.adata)


def test_round_trip_of_anndata(tmp_path, full):
    write_legacy(tmp_path / "st")
    adata = read_section(tmp_path / "st")
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for path in (tmp_path / "a.h5ad", tmp_path / "a.zarr"):
        again = read_section(path)
        assert_equal_tables(adata, again)
        first, second = st_gchb.pp.slices_of(adata)[0], st_gchb.pp.slices_of(again)[0]
        assert first.um_per_px == second.um_per_px
        np.testing.assert_array_equal(first.image.read(0, 0, SIDE, 0, SIDE), second.image.read(0, 0, SIDE, 0, SIDE))


def test_name_image_and_size_of_an_anndata(tmp_path, full):
    places = np.random.default_rng(0).uniform(50, 400, (9, 2))
    AnnData(np.ones((9, 2), np.float32), obsm={"spatial": places}).write_h5ad(tmp_path / "a.h5ad")
    adata = read_section(tmp_path / "a.h5ad", name="left", image=full, um_per_px=0.5)
    (only,) = st_gchb.pp.slices_of(adata)
    assert (only.name, only.um_per_px, only.image.name) == ("left", 0.5, str(full))
    adata.write_h5ad(tmp_path / "b.h5ad")
    assert st_gchb.pp.slices_of(read_section(tmp_path / "b.h5ad"))[0].um_per_px == 0.5


def test_the_callers_size_of_a_pixel_is_believed_and_kept(tmp_path, full, caplog):
    write_visium_hd(tmp_path / "hd")
    sdata = read_section(tmp_path / "hd", image=full, um_per_px=0.5)
    assert "0.5 µm (um_per_px= of the caller)" in caplog.text
    assert "2 µm (scalefactors_json.json" in caplog.text
    assert resolve(sdata).slices()[0].um_per_px == 0.5
    sdata.write(tmp_path / "s.zarr")
    assert resolve(read_section(tmp_path / "s.zarr")).slices()[0].um_per_px == 0.5
    assert resolve(read_section(tmp_path / "s.zarr", um_per_px=0.7)).slices()[0].um_per_px == 0.7


def test_the_size_that_the_image_file_says_is_kept(tmp_path):
    write_visium(tmp_path / "s")
    tifffile.imwrite(tmp_path / "f.tif", he_image(), photometric="rgb", resolution=(4000, 4000), resolutionunit=3)
    assert resolve(read_section(tmp_path / "s", image=tmp_path / "f.tif")).slices()[0].um_per_px == 2.5


@pytest.mark.parametrize("name", ["he.jpg", "he.png", "he.svs"])
def test_a_full_image_of_any_format(tmp_path, name):
    write_visium(tmp_path / "s")
    if name.endswith("svs"):
        tifffile.imwrite(tmp_path / name, he_image(), photometric="rgb", tile=(64, 64), description="Aperio|MPP = 2.5")
    else:
        Image.fromarray(he_image()).save(tmp_path / name)
    sdata = read_section(tmp_path / "s", image=tmp_path / name)
    np.testing.assert_array_equal(
        pixels_of(sdata.images["s_full_image"]), open_image(tmp_path / name).read(0, 0, SIDE, 0, SIDE)
    )


def test_a_section_that_is_turned_and_flipped(tmp_path, full):
    """Spots and images are moved together: patches stay where they are."""
    under = write_visium(tmp_path / "s")
    sdata = read_section(tmp_path / "s", image=full)
    turn = Affine([[0, -1, 900], [-1, 0, 15], [0, 0, 1]], ("x", "y"), ("x", "y"))
    for element in [*sdata.images.values(), *sdata.shapes.values()]:
        known = get_transformation(element, get_all=True)
        set_transformation(element, {"turned": Sequence([known["s"], turn])}, set_all=True)
    np.testing.assert_allclose(resolve(sdata).adata.obsm["spatial"], under[PLACES], atol=1e-6)


def test_pixels_of_the_full_image_are_not_read_before_they_are_needed(tmp_path, full, monkeypatch):
    write_visium(tmp_path / "s")
    read = []
    original = st_gchb.io.SlideImage.read
    monkeypatch.setattr(
        st_gchb.io.SlideImage, "read", lambda self, *window: read.append(self.name) or original(self, *window)
    )
    sdata = read_section(tmp_path / "s", image=full)
    assert str(full) not in read
    sdata.images["s_full_image"]["scale0"]["image"][:, :9, :9].compute()
    assert str(full) in read


def test_an_element_is_read_in_chunks(tmp_path):
    large = he_image(2300)
    write_levels(tmp_path / "large.tif", large)
    element = as_element(open_image(tmp_path / "large.tif"), {"global": Identity()})
    scales = [element[f"scale{i}"]["image"] for i in range(2)]
    assert scales[0].data.chunks == ((3,), (2048, 252), (2048, 252))
    assert scales[1].data.chunks == ((3,), (1150,), (1150,))
    for scale, pixels in zip(scales, (large, large[::2, ::2]), strict=True):
        np.testing.assert_array_equal(scale.transpose("y", "x", "c").to_numpy(), pixels)
    # Pixels of a coarse scale lie in the middle of those of the finest that they stand for.
    assert scales[1].coords["x"].values[:2].tolist() == [1.0, 3.0]


def test_factors_are_kept(tmp_path):
    write_visium(tmp_path / "s")
    library = read_section(tmp_path / "s")["table"].uns["spatial"]["s"]
    factors = json.loads((tmp_path / "s/spatial/scalefactors_json.json").read_text())
    assert library["scalefactors"] == factors
    assert factors["spot_diameter_fullres"] == DIAMETER


def test_anndata_needs_no_reader_of_ours(tmp_path):
    """What is read without arguments is the object itself."""
    adata = AnnData(np.ones((3, 2), np.float32), uns={"note": "x"})
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = read_section(tmp_path / "a.h5ad")
    assert again.uns == {"note": "x"}
    assert anndata.read_h5ad(tmp_path / "a.h5ad").shape == again.shape


def test_a_store_of_any_name_is_seen_by_its_content(tmp_path):
    write_visium(tmp_path / "s")
    read_section(tmp_path / "s").write(tmp_path / "store")
    assert isinstance(read_section(tmp_path / "store"), spatialdata.SpatialData)
    AnnData(np.ones((3, 2), np.float32)).write_h5ad(tmp_path / "table.bin")
    assert read_section(tmp_path / "table.bin").shape == (3, 2)
