"""Patches against plain slicing, and against spatialdata's own reader."""

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.dataloader import ImageTilesDataset
from spatialdata.models import Image2DModel, ShapesModel

from st_gchb._errors import ScaleError
from st_gchb.io import SlideImage, open_image
from st_gchb.pp import Slice, read_patches
from st_gchb.pp import _patches as module
from st_gchb.pp._patches import choose_level, mirrored, windows

RGB = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)


def patches_of(image, centers, side, out, batch_size=64):
    centers = np.asarray(centers, dtype=float)
    slide = Slice("a", np.arange(len(centers)), centers, image)
    result = np.zeros((len(centers), out, out, 3), dtype=np.uint8)
    seen = np.zeros(len(centers), dtype=int)
    for rows, patches in read_patches(slide, side, out, batch_size):
        assert len(rows) <= batch_size
        result[rows] = patches
        seen[rows] += 1
    assert (seen == 1).all()
    return result


@settings(deadline=None)
@given(
    centers=st.lists(st.tuples(st.floats(0, 150), st.floats(0, 120)), min_size=1, max_size=12),
    side=st.integers(1, 60),
    batch_size=st.integers(1, 5),
    block=st.sampled_from([7, 40, 2048]),
)
def test_windows_are_those_of_plain_slicing_on_a_mirrored_slide(centers, side, batch_size, block):
    pad = 100
    padded = np.pad(RGB, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    found = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_PX", block)
        found = patches_of(open_image(RGB), centers, side, side, batch_size)
    for (x, y), patch_found in zip(centers, found, strict=True):
        x0, y0 = (int(np.floor(np.round(v - side / 2, 6) + 0.5)) + pad for v in (x, y))
        np.testing.assert_array_equal(patch_found, padded[y0 : y0 + side, x0 : x0 + side])


@given(size=st.integers(1, 9), start=st.integers(-40, 40))
def test_mirroring_is_that_of_numpy(size, start):
    axis = np.arange(size)
    padded = np.pad(axis, 60, mode="reflect") if size > 1 else np.zeros(121, dtype=int)
    indices = np.arange(start, start + 10)
    np.testing.assert_array_equal(mirrored(indices, size), padded[indices + 60])


@given(x=st.floats(0, 1e5), side=st.floats(1, 500), error=st.floats(-1e-8, 1e-8))
def test_errors_of_the_last_bits_do_not_move_a_window_on_a_half(x, side, error):
    x = round(x)
    first, _ = windows(np.array([[x, x]], dtype=float), round(side), 1.0)
    second, _ = windows(np.array([[x + error, x - error]], dtype=float), round(side), 1.0)
    np.testing.assert_array_equal(first, second)


def test_the_centre_pixel_is_the_images():
    patch = patches_of(open_image(RGB), [[70, 50]], 21, 21)[0]
    # An odd window around the corner between four pixels leans to the lower right one.
    np.testing.assert_array_equal(patch[10, 10], RGB[50, 70])


def test_patches_are_those_of_spatialdatas_reader():
    rng = np.random.default_rng(1)
    centers = rng.integers(20, 100, (8, 2))
    shapes = ShapesModel.parse(centers.astype(float), geometry=0, radius=5)
    image = Image2DModel.parse(np.moveaxis(RGB, -1, 0), dims=("c", "y", "x"))
    sdata = SpatialData(images={"he": image}, shapes={"spots": shapes})
    oracle = ImageTilesDataset(
        sdata,
        regions_to_images={"spots": "he"},
        regions_to_coordinate_systems={"spots": "global"},
        tile_dim_in_units=32,
        rasterize=True,
        rasterize_kwargs={"target_width": 32},
        transform=lambda tile: np.moveaxis(np.asarray(next(iter(tile.images.values())).data), 0, -1),
    )
    found = patches_of(open_image(image), centers, 32, 32)
    for i in range(len(centers)):
        np.testing.assert_array_equal(found[i], oracle[i])


def test_resampling_keeps_the_whole_patch():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None] * 2, (100, 100, 3)).copy()
    smaller = patches_of(open_image(ramp), [[50, 50]], 80, 20)[0]
    larger = patches_of(open_image(ramp), [[50, 50]], 80, 160)[0]
    expected = ramp[10:90, 10:90].reshape(20, 4, 20, 4, 3).mean((1, 3))
    assert np.abs(smaller[2:-2, 2:-2].astype(float) - expected[2:-2, 2:-2]).max() <= 1
    assert larger[0, 0, 0] == ramp[10, 10, 0]
    assert larger[-1, -1, 0] == ramp[89, 89, 0]


def test_border_patches_are_padded_and_never_empty():
    corners = [[0, 0], [150, 0], [0, 120], [150, 120], [-300, 500]]
    found = patches_of(open_image(np.maximum(RGB, 1)), corners, 64, 64)
    assert (found > 0).all()


def test_a_pyramids_coarser_level_is_read_where_it_oversamples(tmp_path):
    levels = [np.full((256 // f, 256 // f, 3), f, dtype=np.uint8) for f in (1, 2, 4)]
    image = SlideImage(levels, [1.0, 2.0, 4.0])
    for side, expected in ((64, 1), (128, 2), (256, 4)):
        assert (patches_of(image, [[128, 128]], side, 32) == expected).all()
    assert choose_level(image, 10, 224) == 0


def test_levels_agree_on_what_they_show(tmp_path):
    y, x = np.mgrid[0:512, 0:512]
    smooth = np.stack([x / 2, y / 2, (x + y) / 4], axis=-1).astype(np.uint8)
    coarse = smooth.reshape(256, 2, 256, 2, 3).mean((1, 3)).astype(np.uint8)
    centers = [[200.0, 300.0], [255.3, 128.9]]
    flat = patches_of(open_image(smooth), centers, 128, 32)
    pyramid = patches_of(SlideImage([smooth, coarse], [1.0, 2.0]), centers, 128, 32)
    assert np.abs(flat.astype(int) - pyramid).max() <= 2


class Counting:
    """An array that notes the area that is read from it."""

    def __init__(self, array):
        self.array, self.shape, self.area, self.largest = array, array.shape, 0, 0

    def __getitem__(self, window):
        part = self.array[window]
        self.area += part.shape[0] * part.shape[1]
        self.largest = max(self.largest, part.size)
        return part


def test_each_region_is_read_about_once_and_memory_is_bounded():
    level = Counting(np.zeros((6000, 6000, 3), dtype=np.uint8))
    y, x = np.mgrid[50:6000:50, 50:6000:50]
    centers = np.random.default_rng(0).permutation(np.column_stack([x.ravel(), y.ravel()]).astype(float))
    slide = Slice("a", np.arange(len(centers)), centers, SlideImage([level], [1.0]))
    assert sum(len(rows) for rows, _ in read_patches(slide, 48, 48, 256)) == len(centers)
    assert level.area < 1.6 * 6000 * 6000
    assert level.largest <= 3 * (2048 + 48) ** 2


def test_large_windows_are_not_all_held_at_once(monkeypatch):
    monkeypatch.setattr(module, "_CROP_PX", 100 * 100 * 2)
    held = []
    original = module._crop
    monkeypatch.setattr(module, "_crop", lambda *args: held.append(len(args[2])) or original(*args))
    patches_of(open_image(RGB), [[75, 60]] * 7, 100, 10)
    assert max(held) == 2


def test_every_reader_gives_the_same_patches(tmp_path):
    tifffile.imwrite(tmp_path / "t.tif", RGB, photometric="rgb", tile=(32, 32), compression="zlib")
    tifffile.imwrite(tmp_path / "s.tif", RGB, photometric="rgb", rowsperstrip=5, compression="zlib")
    element = Image2DModel.parse(np.moveaxis(RGB, -1, 0), dims=("c", "y", "x"), scale_factors=[2])
    centers = np.random.default_rng(0).uniform(0, 120, (20, 2))
    expected = patches_of(open_image(RGB), centers, 33.3, 24)
    for source in (tmp_path / "t.tif", tmp_path / "s.tif", element):
        np.testing.assert_array_equal(patches_of(open_image(source), centers, 33.3, 24), expected)


def test_a_patch_narrower_than_a_pixel_is_an_error():
    with pytest.raises(ScaleError, match="um_per_px"):
        patches_of(open_image(RGB), [[5, 5]], 0.4, 24)
