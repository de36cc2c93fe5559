"""OME-TIFF maps of genes: where they lie, what they hold at each scale, and what their metadata say."""

from __future__ import annotations

import errno
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData
from hypothesis import HealthCheck, given, settings, strategies as st

import st_gchb
from st_gchb._errors import ImageError, InputError, MissingKeyError, ScaleError, SliceError, StoreError
from st_gchb.io import open_image, write_ome_tiff

QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)


def tiles(grid: str = "square", n_genes: int = 3, height: int = 400, width: int = 520) -> AnnData:
    """A result as ``model.predict`` gives it, on tiles of 40 px on a slide of 0.5 µm per px."""
    slide = np.full((height, width, 3), 200, np.uint8)
    query = st_gchb.pp.tile_tissue(slide, um_per_px=0.5, spacing_um=20, tissue="all", grid=grid, name="S1")
    values = np.random.default_rng(0).random((query.n_obs, n_genes), dtype=np.float32)
    pred = AnnData(values, obs=query.obs.copy(), var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]))
    pred.obsm["spatial"] = query.obsm["spatial"]
    pred.uns["spatial"] = query.uns["spatial"]
    pred.layers["st_gchb"] = values + 1
    return pred


def read(path: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Scales of the one image of a file, and its Pixels element."""
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
        assert file.is_bigtiff
        assert len(file.series) == 1
        (series,) = file.series
        assert series.axes in ("CYX", "YX")
        page = series.pages[0]
        assert page.tilelength == page.tilewidth == 256
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        assert page.dtype == np.float32
        levels = [level.asarray() for level in series.levels]
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        assert file.pages.first.tags["XResolution"].value[0] > 0
    return [level.reshape(-1, *level.shape[-2:]) for level in levels], image


def written(data: Any, folder: Path, *args: Any, **options: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    write_ome_tiff(data, folder / "map.ome.tif", *args, **options)
    return read(folder / "map.ome.tif")


def channels(image: dict[str, Any]) -> list[str]:
    found = image["Pixels"]["Channel"]
    return [one["Name"] for one in (found if isinstance(found, list) else [found])]


def test_tiles_are_squares_at_their_place_on_the_slide(tmp_path):
    pred = tiles()
    (level,), image = written(pred, tmp_path, ["G2", "G0"], um_per_px=2.0)
    assert level.shape == (2, 100, 130)  # a pixel of the map is 4 px of the slide
    for x, y, row in zip(*pred.obsm["spatial"].T, range(pred.n_obs), strict=True):
        window = level[:, int(y - 20) // 4 : int(y + 20) // 4, int(x - 20) // 4 : int(x + 20) // 4]
        expected = pred.layers["st_gchb"][row, [2, 0]]
        np.testing.assert_array_equal(window, np.broadcast_to(expected[:, None, None], (2, 10, 10)))
    assert channels(image) == ["G2", "G0"]
    assert image["Name"] == "S1"
    pixels = image["Pixels"]
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (2.0, 2.0)
    assert (pixels["PhysicalSizeXUnit"], pixels["PhysicalSizeYUnit"]) == ("µm", "µm")
    assert (pixels["Type"], pixels["SizeC"], pixels["SizeX"], pixels["SizeY"]) == ("float", 2, 130, 100)


@pytest.mark.parametrize("suffix", [".ome.tif", ".ome.tiff", ".OME.TIF"])
def test_resolution_and_default_size_of_a_pixel(suffix, tmp_path):
    write_ome_tiff(tiles(), tmp_path / f"map{suffix}", "G1")
    with tifffile.TiffFile(tmp_path / f"map{suffix}") as file:
        page = file.pages.first
        numerator, denominator = page.tags["XResolution"].value
        assert page.tags["ResolutionUnit"].value == 3  # cm
        assert 1e4 * denominator / numerator == pytest.approx(20 / 8)


def test_where_there_is_no_tile_there_is_the_fill(tmp_path):
    pred = tiles()
    pred = pred[pred.obsm["spatial"][:, 0] > 100].copy()
    (level,), _ = written(pred, tmp_path, "G0", um_per_px=2.0)
    assert (level[0, :, :30] == 0).all()
    assert (level[0, :, 30:] >= 1).all()
    (level,), _ = written(pred, tmp_path, "G0", um_per_px=2.0, fill=-1)
    assert set(level[0, :, :30].ravel()) == {-1}
    (level,), _ = written(pred, tmp_path, "G0", um_per_px=2.0, fill=np.nan)
    assert np.isnan(level[0, :, :30]).all()


def nearest_by_hand(pred: AnnData, shape: tuple[int, int], step: float) -> np.ndarray:
    x, y = np.meshgrid(*((np.arange(n) + 0.5) * step for n in shape[::-1]))
    distance = np.hypot(x[..., None] - pred.obsm["spatial"][:, 0], y[..., None] - pred.obsm["spatial"][:, 1])
    found = distance.argmin(axis=-1)
    return np.where(distance.min(axis=-1) < 0.72 * 40, found, -1)


def test_elsewhere_each_pixel_has_the_value_of_the_nearest_position(tmp_path):
    pred = tiles("hex")
    (level,), _ = written(pred, tmp_path, "G1", um_per_px=1.7)
    index = nearest_by_hand(pred, level.shape[1:], 3.4)
    expected = np.append(pred.layers["st_gchb"][:, 1], 0)[index]
    assert (level[0] != expected).mean() < 0.01  # pixels halfway between two positions


def test_scales_are_means_of_what_shows_a_position(tmp_path):
    pred = tiles(height=1200, width=1000)
    pred = pred[np.random.default_rng(1).random(pred.n_obs) > 0.3].copy()
    pred.layers["st_gchb"][3, 1] = np.nan
    levels, _ = written(pred, tmp_path, ["G0", "G1"], um_per_px=0.9, fill=-5)
    assert [level.shape for level in levels] == [(2, 667, 556), (2, 334, 278), (2, 167, 139)]
    whole = np.where(levels[0] == -5, np.nan, levels[0])
    assert np.isnan(whole).any()
    for k, level in enumerate(levels[1:], 1):
        side = 2**k
        for _ in range(60):
            c, i, j = (np.random.default_rng(_ + 100 * k).integers(n) for n in level.shape)
            block = whole[c, i * side : (i + 1) * side, j * side : (j + 1) * side]
            expected = -5 if np.isnan(block).all() else np.nanmean(block)
            assert level[c, i, j] == pytest.approx(expected, rel=1e-6)


@QUICK
@given(
    height=st.integers(100, 700),
    width=st.integers(100, 700),
    um=st.floats(0.45, 12),
    band=st.sampled_from([1, 300, 5000, 2**20]),
)
def test_maps_of_any_size_are_whole_whatever_is_computed_at_once(height, width, um, band, tmp_path):
    pred = tiles(height=height, width=width, n_genes=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("st_gchb.io._write_ome_tiff._BAND", band)
        levels, _ = written(pred, tmp_path, ["G0", "G1"], um_per_px=um)
    step = um / 0.5
    assert levels[0].shape == (2, int(np.ceil(height / step)), int(np.ceil(width / step)))
    for k, level in enumerate(levels):
        assert level.shape == (2, -(-levels[0].shape[1] // 2**k), -(-levels[0].shape[2] // 2**k))
    assert max(levels[-1].shape) <= 256
    assert len(levels) == 1 or max(levels[-2].shape) > 256
    # A center on the rim lies beside the last pixel.
    inside = (pred.obsm["spatial"] < [width, height]).all(axis=1)
    assert inside.sum() >= 4
    x, y = (pred.obsm["spatial"][inside] / step).astype(int).T
    if um < 8:
        np.testing.assert_array_equal(levels[0][:, y, x].T, pred.layers["st_gchb"][inside])


def test_columns_of_obs_are_channels_and_names_are_escaped(tmp_path):
    pred = tiles()
    pred.var_names = ['<a & "b">', "µ-α", "HLA-A/B"]
    pred.obs["st_gchb_outlier"] = np.arange(pred.n_obs) % 2 == 0
    names = [*pred.var_names, "tissue_share", "st_gchb_outlier"]
    (level,), image = written(pred, tmp_path, names)
    assert channels(image) == names
    assert set(level[3].ravel()) == set(pred.obs["tissue_share"].astype(np.float32))
    assert set(level[4].ravel()) == {0.0, 1.0}


def test_the_size_of_the_slide_comes_from_its_image_or_the_positions(tmp_path):
    pred = tiles()
    entry = pred.uns["spatial"]["S1"]
    expected = written(pred, tmp_path, "G0", um_per_px=2.0)[0][0].shape
    assert written(pred, tmp_path, "G0", um_per_px=2.0, shape_px=(800, 100))[0][0].shape == (1, 200, 25)
    del entry["images"]["fullres"]
    assert written(pred, tmp_path, "G0", um_per_px=2.0)[0][0].shape == pytest.approx(expected, rel=0.03)
    entry["images"] = {}
    assert written(pred, tmp_path, "G0", um_per_px=2.0)[0][0].shape == expected  # tiles reach the rim
    tifffile.imwrite(tmp_path / "slide.tif", np.full((480, 640, 3), 200, np.uint8))
    entry["metadata"]["source_image_path"] = str(tmp_path / "slide.tif")
    assert written(pred, tmp_path, "G0", um_per_px=2.0)[0][0].shape == (1, 120, 160)


def test_a_table_of_a_spatialdata_is_written(tmp_path):
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel

    slide = Image2DModel.parse(np.full((3, 200, 260), 200, np.uint8), dims=("c", "y", "x"))
    sdata = SpatialData(images={"he": slide})
    st_gchb.pp.tile_tissue(sdata, um_per_px=0.5, spacing_um=20, tissue="all", grid="square")
    (level,), _ = written(sdata, tmp_path, "tissue_share", table="tiles_table", um_per_px=2.0, layer=None)
    assert set(level.ravel()) == set(sdata.tables["tiles_table"].obs["tissue_share"].astype(np.float32))


def test_a_map_is_no_slide(tmp_path):
    write_ome_tiff(tiles(), tmp_path / "map.ome.tif", ["G0", "G1"])
    with pytest.raises(ImageError, match="expected an 8-bit RGB image"):
        open_image(tmp_path / "map.ome.tif")


def bare() -> AnnData:
    pred = tiles()
    del pred.uns["spatial"]
    return pred


def two_slices() -> AnnData:
    pred = tiles()
    pred.obs["slice"] = np.where(pred.obsm["spatial"][:, 0] < 200, "S1", "S2")
    return pred


@pytest.mark.parametrize(
    ("data", "genes", "options", "error", "message"),
    [
        (tiles(), ["g1"], {}, MissingKeyError, r"nearest names are \['G1'"),
        (tiles(), ["G1", "G1"], {}, InputError, "more than once"),
        (tiles(), [], {}, InputError, "genes= is empty"),
        (tiles(), "slice", {}, InputError, "expected numbers"),
        (tiles(), "G1", {"layer": "none"}, MissingKeyError, "no layer 'none'"),
        (tiles(), "G1", {"um_per_px": 0.001}, InputError, "um_per_px= with a larger pixel"),
        (tiles(), "G1", {"um_per_px": -1}, ScaleError, "um_per_px"),
        (tiles(), "G1", {"shape_px": (0, 5)}, InputError, "shape_px"),
        (tiles()[:1].copy(), "G1", {}, InputError, "at least two"),
        (bare(), "G1", {}, ScaleError, "slide_um_per_px="),
        (two_slices(), "G1", {}, SliceError, "slice= with one of"),
        ([1], "G1", {}, InputError, "expected"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_left(data, genes, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        write_ome_tiff(data, tmp_path / "map.ome.tif", genes, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["map.tif", "map.ome", "map.ome.tif.gz", "ome.tif"])
def test_other_suffixes_are_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.ome\.tif"):
        write_ome_tiff(tiles(), tmp_path / name, "G0")


@pytest.mark.parametrize("where", ["index", "tiles"])
def test_a_full_disk_leaves_the_earlier_file(where, tmp_path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "map.ome.tif").write_text("earlier")
    if where == "tiles":
        monkeypatch.setattr(tifffile.FileHandle, "write", full)
    else:
        made = tempfile.TemporaryFile

        def almost(*args: Any, **options: Any) -> Any:
            class File:
                def __init__(self) -> None:
                    self.file = made(*args, **options)
                    self.write = full

                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *_: object) -> None:
                    self.file.close()

            return File()

        monkeypatch.setattr("st_gchb.io._write_ome_tiff.tempfile.TemporaryFile", almost)
    with pytest.raises(StoreError, match="No space left"):
        write_ome_tiff(tiles(), tmp_path / "map.ome.tif", "G0")
    assert [path.name for path in tmp_path.iterdir()] == ["map.ome.tif"]
    assert (tmp_path / "map.ome.tif").read_text() == "earlier"


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("st_gchb.io._write_ome_tiff._BAND", 2**18)
    pred = tiles()
    tracemalloc.start()
    write_ome_tiff(pred, tmp_path / "map.ome.tif", ["G0", "G1"], um_per_px=0.2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 260,000 pixels are computed at once, which takes 10 MB; a whole channel, 1,000 x 1,300 px, would be 5 MB more.
    assert peak < 11.5e6
