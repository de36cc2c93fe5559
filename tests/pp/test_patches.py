"""Patches against plain slicing, and against spatialdata's own reader."""

import re

import dask.array
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from spatialdata import SpatialData
from spatialdata.dataloader import ImageTilesDataset
from spatialdata.models import Image2DModel, ShapesModel
from torch.nn import functional

from st_gchb._compat import resample_into
from st_gchb._errors import ImageError, InputError, ScaleError
from st_gchb.io import SlideImage, open_image
from st_gchb.io.images import _chunks as io_chunks, chunk_edges
from st_gchb.pp import Slice, read_patches
from st_gchb.pp.patches import _window_plan as sweep, boxes_of, choose_level, mirrored, windows

RGB = np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8)


class Counted:
    """A level that notes how often each of its chunks is decoded, and the largest window that is asked for."""

    def __init__(self, array, chunks):
        self.array, self.shape, self.largest = array, array.shape, 0
        self.chunks = chunks
        self.edges = chunk_edges(chunks, array.shape[:2])
        self.times = np.zeros([len(edges) - 1 for edges in self.edges], dtype=int)

    def __getitem__(self, window):
        touched = []
        for edges, part in zip(self.edges, window, strict=True):
            assert {part.start, part.stop} <= set(edges.tolist()) or self.chunks is None, "part of a chunk is read"
            touched.append((edges[:-1] < part.stop) & (edges[1:] > part.start))
        self.times[np.ix_(*touched)] += 1
        pixels = self.array[window]
        self.largest = max(self.largest, pixels.size)
        return pixels


def least_memory(image, centers, side, batch_size, out=None):
    """The memory that the error asks for where there is too little."""
    with pytest.raises(InputError, match="memory_mb=") as caught:
        patches_of(image, centers, side, out or side, batch_size, 1e-6)
    return int(re.search(r"Pass memory_mb=(\d+)", str(caught.value)).group(1))


def patches_of(image, centers, side, out, batch_size=64, memory_mb=512):
    centers = np.asarray(centers, dtype=float)
    slide = Slice("a", np.arange(len(centers)), centers, image)
    result = np.zeros((len(centers), out, out, 3), dtype=np.uint8)
    seen = np.zeros(len(centers), dtype=int)
    for rows, patches in read_patches(slide, side, out, batch_size, memory_mb):
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
    chunks=st.sampled_from([None, (7, 7), (1, 150), (40, 50), (120, 150), ((50, 70), (20, 30, 100))]),
    cell=st.sampled_from([5, 16, 512]),
    tight=st.booleans(),
)
def test_windows_are_those_of_plain_slicing_on_a_mirrored_slide(centers, side, batch_size, chunks, cell, tight):
    pad = 100
    padded = np.pad(RGB, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    image = SlideImage([Counted(RGB, chunks)], [1.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_CELL_PX", cell)
        patch.setattr(io_chunks, "PIECE_PX", 2 * cell)
        needed = least_memory(image, centers, side, batch_size) if tight else 512
        found = patches_of(image, centers, side, side, batch_size, needed)
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


def test_the_center_pixel_is_the_images():
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


def lattice(side, step):
    y, x = np.mgrid[step / 2 : side : step, step / 2 : side : step]
    return np.random.default_rng(0).permutation(np.column_stack([x.ravel(), y.ravel()]))


@pytest.mark.parametrize("chunks", [(64, 64), (1, 1500), (700, 700), (1500, 1500), ((100, 1400), (900, 600))])
def test_each_chunk_is_decoded_once(chunks):
    level = Counted(np.zeros((1500, 1500, 3), dtype=np.uint8), chunks)
    patches_of(SlideImage([level], [1.0]), lattice(1500, 50), 80, 20)
    assert (level.times == 1).all()


def test_only_what_is_needed_is_decoded():
    level = Counted(np.zeros((1024, 2048, 3), dtype=np.uint8), (64, 64))
    patches_of(SlideImage([level], [1.0]), [[130, 130], [1700, 100]], 40, 20)
    # The chunks of each window, and none between the two.
    assert level.times.sum() == 4 + 1
    assert level.times.max() == 1


@pytest.mark.parametrize(("memory_mb", "most"), [(64, 1.0), (3, 1.0), (1.6, 1.4)])
def test_decoded_pixels_stay_within_the_memory(watched_windows, memory_mb, most):
    """A slide of 27 MB: less memory is made do with by decoding the chunks between bands twice."""
    level = Counted(np.zeros((3000, 3000, 3), dtype=np.uint8), (128, 128))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_CELL_PX", 128)
        patch.setattr(io_chunks, "PIECE_PX", 256)
        patches_of(SlideImage([level], [1.0]), lattice(3000, 60), 100, 20, 16, memory_mb)
    assert 0 < max(band.peak_bytes for band in watched_windows) <= memory_mb * 1e6
    assert 1.0 <= level.times.mean() <= most
    assert level.times.min() == 1
    assert all(band.held_bytes == 0 and not band._cells for band in watched_windows)
    assert (len(watched_windows) > 1) == (most > 1)


def test_the_plan_is_what_is_held(watched_windows):
    level = Counted(np.zeros((2000, 1000, 3), dtype=np.uint8), (300, 200))
    image, centers = SlideImage([level], [1.0]), lattice(1000, 40)
    grid = sweep.Grid.of(image, 0)
    starts, side = windows(centers, 90, 1.0)
    _, _, peak = sweep.plan(boxes_of(starts, side, (2000, 1000)), grid, 10**9)
    patches_of(image, centers, 90, 20)
    (band,) = watched_windows
    assert 0.6 * peak < band.peak_bytes <= peak


@pytest.mark.parametrize("new", [(30, 50), (170, 90)])
def test_images_are_resampled_as_torch_does(new):
    images = np.random.default_rng(2).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    room = np.zeros((5, *new, 3), dtype=np.uint8)
    resample_into(images, room[1:4])
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = functional.interpolate(channels_first, size=new, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(room[1:4], expected.numpy())
    assert not room[[0, 4]].any()


def test_pieces_are_held_whole_where_they_fit(watched_windows):
    """Of least memory each piece is held in parts, of which windows that cross them are put together; pixels agree."""
    pixels = np.random.default_rng(1).integers(0, 256, (3000, 2000, 3), dtype=np.uint8)
    image, centers = SlideImage([Counted(pixels, (128, 128))], [1.0]), lattice(2000, 60)
    least = least_memory(image, centers, 90, 16)
    found = [patches_of(image, centers, 90, 90, 16, memory_mb) for memory_mb in (least, 512)]
    in_parts, whole = watched_windows
    assert in_parts._grid.shape > whole._grid.shape == tuple(len(edges) - 1 for edges in image.pieces(0))
    assert in_parts.peak_bytes < whole.peak_bytes
    assert in_parts.peak_bytes <= least * 1e6
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_plain_tiff_is_held_in_parts_too(watched_windows, tmp_path, compression):
    """Pixels that lie on the disk as they are are copied into memory like others."""
    rgb = np.zeros((3000, 2000, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "t.tif", rgb, photometric="rgb", rowsperstrip=16, compression=compression)
    patches_of(open_image(tmp_path / "t.tif"), lattice(2000, 60), 100, 20, 16, 14)
    assert 0 < max(band.peak_bytes for band in watched_windows) <= 14e6


def test_an_array_in_memory_is_not_copied(watched_windows):
    patches_of(open_image(np.zeros((3000, 2000, 3), dtype=np.uint8)), lattice(2000, 60), 100, 20, 16, 1.5)
    (band,) = watched_windows
    assert band._grid.free


def test_a_dense_grid_takes_no_more_than_a_sparse_one(watched_windows, monkeypatch):
    """Windows that overlap 36-fold are cut out a few at a time, from chunks that are decoded once."""
    cut = []
    resample = "st_gchb.pp.patches._size_batches.resample_into"
    monkeypatch.setattr(resample, lambda x, out: cut.append(x.nbytes) or resample_into(x, out))
    level = Counted(np.zeros((1200, 1200, 3), dtype=np.uint8), (128, 128))
    patches_of(SlideImage([level], [1.0]), lattice(1200, 15), 90, 20, 64, 8)
    assert (level.times == 1).all()
    assert max(cut) <= 8e6 / 8
    assert watched_windows[0].peak_bytes < 8e6


def test_too_little_memory_is_an_error_that_names_what_is_needed():
    image = SlideImage([Counted(RGB, (120, 150))], [1.0])
    with pytest.raises(InputError, match=r"120 x 150 px.*Pass memory_mb=\d+ or more, or a smaller batch_size"):
        patches_of(image, [[75, 60]], 40, 40, memory_mb=0.01)
    for wrong in (0, -1, float("nan"), "much"):
        with pytest.raises(InputError, match="memory_mb"):
            patches_of(image, [[75, 60]], 40, 40, memory_mb=wrong)


@settings(max_examples=15, deadline=None)
@given(side=st.integers(20, 900), out=st.integers(1, 200), batch_size=st.integers(1, 40), more=st.floats(0, 20))
def test_the_memory_that_the_error_names_is_enough_and_so_is_more(side, out, batch_size, more):
    image, centers = SlideImage([Counted(np.zeros((900, 900, 3), dtype=np.uint8), (100, 90))], [1.0]), lattice(900, 300)
    patches_of(image, centers, side, out, batch_size, least_memory(image, centers, side, batch_size, out) + more)


def test_a_file_that_is_decoded_whole_has_to_fit(tmp_path):
    Image.fromarray(np.zeros((1000, 1000, 3), dtype=np.uint8)).save(tmp_path / "he.jpg")
    with pytest.raises(ImageError, match=r"he\.jpg.*only be decoded whole.*3 MB.*tiled TIFF.*memory_mb="):
        patches_of(open_image(tmp_path / "he.jpg"), [[75, 60]], 40, 40, memory_mb=2)
    assert patches_of(open_image(tmp_path / "he.jpg"), [[75, 60]], 40, 40, memory_mb=20).any() == np.False_


def test_a_lazy_array_is_read_in_parts_where_it_is_too_large_to_be_kept():
    image = open_image(dask.array.zeros((2000, 2000, 3), dtype=np.uint8, chunks=(100, 100, 3)))
    assert image.levels[0].whole_bytes == 12_000_000
    patches_of(image, [[75, 60]], 40, 40, memory_mb=9)
    assert image.levels[0].whole_bytes == 0


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
