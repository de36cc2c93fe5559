"""The whole way with LazySlide itself: its store is read, predictions go back, and its plots show them."""

from __future__ import annotations

from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pytest
import shapely
import tifffile
import torch
from PIL import Image

from lazyslide_stores import GENES, prediction_for
from st_gchb.io import read_lazyslide, write_lazyslide

UM, SIDE_PX = 0.5, 64


@pytest.fixture(scope="module")
def zs() -> ModuleType:
    return pytest.importorskip("lazyslide", reason="LazySlide is not installed (pip install 'lazyslide>=0.13')")


def colors(tiles: torch.Tensor) -> torch.Tensor:
    pixels = tiles.float()
    return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], dim=1)[:, :6]


def of_channels(tiles: torch.Tensor) -> torch.Tensor:
    # LazySlide gives channels last where a model brings no transform.
    return colors(tiles.permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def slide(zs, tmp_path_factory):
    """A slide of two resolutions, with tiles and features in the store beside it."""
    import wsidata

    coarse = np.random.default_rng(0).integers(120, 250, (12, 16, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((1280, 1024), Image.Resampling.BICUBIC))
    path = tmp_path_factory.mktemp("lazyslide") / "S1.tif"
    with tifffile.TiffWriter(path) as file:
        for level, step in enumerate((1, 4)):
            file.write(
                pixels[::step, ::step],
                tile=(256, 256),
                photometric="rgb",
                subfiletype=int(level > 0),
                resolution=(1e4 / UM / step,) * 2,
                resolutionunit="CENTIMETER",
            )
    wsi = zs.open_wsi(path)
    outline = shapely.Point(600, 500).buffer(450)
    wsidata.io.add_tissues(wsi, "tissues", [outline])
    zs.pp.tile_tissues(wsi, SIDE_PX, mpp=2 * UM)
    zs.tl.feature_extraction(wsi, of_channels, model_name="colors", pbar=False)
    wsi.write()
    wsi.close()
    return path


@pytest.fixture(scope="module")
def query(slide):
    return read_lazyslide(slide.with_suffix(".zarr"), features="colors")


@pytest.fixture
def wsi(zs, slide, query):
    """The slide with a prediction in its store, opened anew."""
    write_lazyslide(prediction_for(query), slide.with_suffix(".zarr"), overwrite=True)
    opened = zs.open_wsi(slide)
    yield opened
    opened.close()


def drawn(zs, wsi, color: str) -> np.ndarray:
    """Colors of the map that ``zs.pl.tiles`` draws over the slide."""
    figure, axes = plt.subplots()
    zs.pl.tiles(wsi, feature_key="st_gchb", color=color, ax=axes)
    figure.canvas.draw()
    maps = [np.asarray(image.get_array()) for image in axes.images]
    plt.close(figure)
    return maps[-1]


@pytest.mark.slow
def test_tiles_and_features_are_lazyslides(slide, wsi, query):
    tiles = wsi["tiles"]
    np.testing.assert_array_equal(query.obsm["spatial"], np.column_stack([tiles.centroid.x, tiles.centroid.y]))
    features = wsi.fetch.features_anndata("colors")
    np.testing.assert_array_equal(query.obsm["X_patch"], features.X)
    assert query.uns["X_patch"]["encoder"] == f"lazyslide:colors, {SIDE_PX} px"
    assert query.uns["X_patch"]["patch_um"] == SIDE_PX * 2 * UM
    assert query.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"] == 2 * SIDE_PX


@pytest.mark.slow
def test_lazyslide_fetches_the_prediction(wsi, query):
    pred = prediction_for(query)
    fetched = wsi.fetch.features_anndata("st_gchb")
    np.testing.assert_array_equal(fetched.X, pred.layers["st_gchb"])
    assert fetched.var_names.tolist() == GENES
    np.testing.assert_array_equal(wsi["st_gchb_tiles"].obs["st_gchb_outlier"], pred.obs["st_gchb_outlier"])


@pytest.mark.slow
@pytest.mark.parametrize("color", ["CD74", "st_gchb_confidence", "st_gchb_outlier"])
def test_its_plots_show_the_prediction(zs, wsi, color):
    shown = drawn(zs, wsi, color)
    assert len(np.unique(shown.reshape(-1, shown.shape[-1]), axis=0)) > (1 if color == "st_gchb_outlier" else 20)


@pytest.mark.slow
def test_tiles_without_a_prediction_are_left_blank(zs, slide, query):
    whole = query.n_obs
    write_lazyslide(prediction_for(query[: whole // 2].copy()), slide.with_suffix(".zarr"), overwrite=True)
    opened = zs.open_wsi(slide)
    half = (drawn(zs, opened, "CD74")[..., 3] > 0).sum()
    write_lazyslide(prediction_for(query), opened, overwrite=True)
    assert 0 < half < (drawn(zs, opened, "CD74")[..., 3] > 0).sum()
    assert (drawn(zs, opened, "st_gchb_outlier")[..., 3] > 0).any()
    opened.close()


@pytest.mark.slow
def test_the_object_that_is_open_keeps_the_prediction(zs, slide, query):
    opened = zs.open_wsi(slide)
    pred = prediction_for(read_lazyslide(opened, features="colors"), 5)
    write_lazyslide(pred, opened, name="second")
    opened.write()
    opened.close()
    again = zs.open_wsi(slide)
    np.testing.assert_array_equal(again.fetch.features_anndata("second").X, pred.layers["st_gchb"])
    again.close()
