"""The size of a pixel: who is believed, and the warning with both numbers where two disagree."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tifffile
from anndata import AnnData
from hypothesis import given, strategies as st

from st_gchb._errors import ScaleError
from st_gchb.io import Size, open_image, settle, spot_sizes, square_size, visium_pitch
from st_gchb.pp import slices_of, tile_tissue

RGB = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)


@pytest.fixture
def said(caplog):
    """Warnings of the package."""
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def hexagonal(pitch: float, rows: int = 8, columns: int = 8) -> np.ndarray:
    y, x = (axis.ravel() for axis in np.mgrid[0:rows, 0:columns])
    return np.column_stack([(x + y % 2 / 2) * pitch, y * pitch * 3**0.5 / 2]) + 20


def visium(centers: np.ndarray, **factors: float) -> AnnData:
    adata = AnnData(obsm={"spatial": centers})
    adata.uns["spatial"] = {"s": {"images": {"fullres": RGB}, "scalefactors": factors}}
    return adata


@given(sizes=st.lists(st.none() | st.floats(0.02, 20), min_size=1, max_size=4))
def test_the_first_that_knows_is_believed(sizes):
    known = [size for size in sizes if size is not None]
    found = settle([None if size is None else Size(size, "x") for size in sizes], "slide")
    assert found == (known[0] if known else None)


@pytest.mark.parametrize(
    ("first", "second", "slack", "warned"),
    [
        (1.0, 1.04, 1, 0),
        (1.0, 0.96, 1, 0),
        (1.0, 1.1, 1, 1),
        (1.0, 0.9, 1, 1),
        (1.2, 1.0, 1.27, 0),
        (1.4, 1.0, 1.27, 1),
    ],
)
def test_two_sources_that_disagree_are_told_with_both_numbers(said, first, second, slack, warned):
    settle([Size(first, "the caller"), Size(second, "the file", slack)], "slide 7")
    assert len(said()) == warned
    for message in said():
        assert all(part in message for part in ("slide 7", f"{first:.4g} µm", f"{second:.4g} µm", "the file"))


def test_a_caller_and_a_file(said, tmp_path):
    options = {"photometric": "rgb", "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", RGB, resolution=(20000, 20000), **options)
    assert open_image(tmp_path / "a.tif", um_per_px=0.51).um_per_px == 0.51
    assert not said()
    assert open_image(tmp_path / "a.tif", um_per_px=0.25).um_per_px == 0.25
    (message,) = said()
    assert "a.tif" in message
    assert "0.25 µm" in message
    assert "0.5 µm" in message


def test_two_statements_in_one_file(said, tmp_path):
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    options = {"photometric": "rgb", "resolutionunit": "CENTIMETER", "metadata": metadata}
    tifffile.imwrite(tmp_path / "a.ome.tif", RGB, resolution=(10000, 10000), **options)
    assert open_image(tmp_path / "a.ome.tif").um_per_px == 0.5
    (message,) = said()
    assert "OME" in message
    assert "1 µm (the TIFF's resolution)" in message


@pytest.mark.parametrize("how", ["tags", "ome"])
def test_pixels_that_are_not_square(said, tmp_path, how):
    options = {"resolution": (20000, 10000), "resolutionunit": "CENTIMETER", "metadata": None}
    if how == "ome":
        options = {"metadata": {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 1.0}}
    tifffile.imwrite(tmp_path / "a.ome.tif", RGB, photometric="rgb", **options)
    assert open_image(tmp_path / "a.ome.tif").um_per_px == pytest.approx(0.5**0.5)
    (message,) = said()
    assert "0.5 µm wide and 1 µm high" in message
    assert square_size(0.5, 0.501, "x", "y").um_per_px == pytest.approx(0.5005, abs=1e-6)
    assert len(said()) == 1


@pytest.mark.parametrize("text", ["MPP = 0..5", "MPP = ", "MPP = .", "MPP = 0"])
def test_metadata_that_hold_no_number_say_nothing(tmp_path, text):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, description=f"Aperio x|{text}")
    assert open_image(tmp_path / "a.tif").um_per_px is None


@given(pitch=st.floats(5, 2000), turn=st.floats(0, 6.3), width=st.floats(0.54, 0.71), seed=st.integers(0, 9))
def test_visium_spots_are_known_by_their_distance(pitch, turn, width, seed):
    centers = hexagonal(pitch) @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    centers += np.random.default_rng(seed).uniform(-0.005, 0.005, centers.shape) * pitch
    assert visium_pitch(centers, width * pitch) == pytest.approx(pitch, rel=0.01)


@pytest.mark.parametrize(
    ("centers", "diameter"),
    [
        (hexagonal(100)[:5], 55),
        (hexagonal(100)[::7], 55),
        (np.mgrid[0:9, 0:9].reshape(2, -1).T * 100.0, 55),
        (hexagonal(100), 100),
        (hexagonal(100), 20),
        (np.zeros((50, 2)), 55),
    ],
    ids=["few", "scattered", "square", "touching tiles", "far apart", "one place"],
)
def test_other_spots_are_not_taken_for_visiums(centers, diameter):
    assert visium_pitch(centers, diameter) is None


def test_the_distance_of_spots_goes_before_their_diameter(said):
    """Space Ranger 1 writes the diameter of spots of 70 µm: 27 % too small a pixel if they are taken for 55 µm."""
    assert slices_of(visium(hexagonal(100), spot_diameter_fullres=70.0))[0].um_per_px == pytest.approx(1.0)
    assert not said()
    alone = visium(hexagonal(100)[:5], spot_diameter_fullres=70.0)
    assert slices_of(alone)[0].um_per_px == pytest.approx(55 / 70)
    assert slices_of(alone, um_per_px=1.0)[0].um_per_px == 1.0
    assert not said()


def test_a_size_that_fits_no_spots_is_told(said):
    adata = visium(hexagonal(100), spot_diameter_fullres=55.0)
    assert slices_of(adata, um_per_px=0.5)[0].um_per_px == 0.5
    by_distance, by_diameter = said()
    assert "0.5 µm (um_per_px= of the caller)" in by_distance
    assert "1 µm (spots 100 px apart" in by_distance
    assert "1 µm (spots 55 px wide" in by_diameter


def test_the_file_goes_before_the_spots(said, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", resolution=(5000, 5000), resolutionunit="CENTIMETER")
    adata = visium(hexagonal(100), spot_diameter_fullres=55.0)
    assert slices_of(adata, image=tmp_path / "a.tif")[0].um_per_px == 2.0
    assert "2 µm (image file" in said()[0]
    adata.uns["spatial"]["s"]["scalefactors"]["microns_per_pixel"] = 1.0
    assert slices_of(adata, image=tmp_path / "a.tif")[0].um_per_px == 1.0


def test_spots_of_another_kind_are_not_compared_where_the_size_is_stored(said):
    """Tiles, bins and legacy spots have other diameters than Visium's."""
    adata = visium(hexagonal(100), spot_diameter_fullres=100.0, microns_per_pixel=0.4)
    assert slices_of(adata)[0].um_per_px == 0.4
    assert not said()
    assert spot_sizes({}, hexagonal(100), "x") == []


def test_the_size_is_asked_for_where_it_is_needed():
    with pytest.raises(ScaleError, match="um_per_px="):
        tile_tissue(RGB)
    with pytest.raises(ScaleError, match="positive"):
        slices_of(visium(hexagonal(100), spot_diameter_fullres=0.0))


@pytest.mark.tissue
@pytest.mark.parametrize("name", ["151673", "151669"])
def test_real_slices(dlpfc_path, name):
    """The data set's own rule, which knows the array, and the rule that sees positions alone."""
    import st_gchb

    adata = st_gchb.datasets.dlpfc_geometry(name, dlpfc_path)
    factors = adata.uns["spatial"][name]["scalefactors"]
    by_distance, by_diameter = spot_sizes(
        {"spot_diameter_fullres": factors["spot_diameter_fullres"]}, adata.obsm["spatial"], name
    )
    assert by_distance.um_per_px == pytest.approx(factors["microns_per_pixel"], rel=1e-3)
    assert by_diameter.um_per_px / by_distance.um_per_px == pytest.approx(0.787, abs=0.002)
