"""Every way in gives the same pixels."""

import dask.array
import numpy as np
import pytest
import tifffile
import xarray
import zarr
from hypothesis import example, given, strategies as st
from PIL import Image
from spatialdata.models import Image2DModel

from st_gchb._errors import ArgumentError, ScaleError
from st_gchb.io import SlideImage, open_image
from st_gchb.io.images import TiffLevel


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)


def whole(image, level=0):
    height, width = image.level_shape(level)
    return image.read(level, 0, height, 0, width)


WRITERS = {
    "plain.png": lambda path, rgb: Image.fromarray(rgb).save(path),
    "strips.tif": lambda path, rgb: tifffile.imwrite(path, rgb, photometric="rgb", rowsperstrip=16),
    "deflate_strips.tif": lambda path, rgb: tifffile.imwrite(
        path, rgb, photometric="rgb", rowsperstrip=16, compression="zlib"
    ),
    "one_strip.tif": lambda path, rgb: tifffile.imwrite(
        path, rgb, photometric="rgb", compression="zlib", rowsperstrip=300
    ),
    "tiles.tif": lambda path, rgb: tifffile.imwrite(path, rgb, photometric="rgb", tile=(64, 64), compression="zlib"),
    "big.tif": lambda path, rgb: tifffile.imwrite(path, rgb, photometric="rgb", tile=(64, 64), bigtiff=True),
    "planes.tif": lambda path, rgb: tifffile.imwrite(
        path, np.moveaxis(rgb, -1, 0), photometric="rgb", planarconfig="separate", compression="zlib", tile=(64, 64)
    ),
    "ome.ome.tif": lambda path, rgb: tifffile.imwrite(
        path, rgb, photometric="rgb", metadata={"axes": "YXS"}, tile=(64, 64)
    ),
    "bmp.bmp": lambda path, rgb: Image.fromarray(rgb).save(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_lossless_file_gives_its_pixels(tmp_path, pixels, name):
    WRITERS[name](tmp_path / name, pixels)
    image = open_image(tmp_path / name)
    assert image.shape_px == (300, 420)
    np.testing.assert_array_equal(image.read(0, 40, 190, 33, 260), pixels[40:190, 33:260])
    np.testing.assert_array_equal(whole(image), pixels)
    image.release()
    np.testing.assert_array_equal(image.read(0, 0, 5, 0, 5), pixels[:5, :5])


def test_arrays_and_elements_give_their_pixels(pixels):
    first = np.moveaxis(pixels, -1, 0)
    sources = [
        pixels,
        pixels.astype(np.float32) / 255,
        dask.array.from_array(pixels, chunks=(100, 100, 3)),
        zarr.array(pixels, chunks=(64, 64, 3)),
        Image2DModel.parse(first, dims=("c", "y", "x")),
        Image2DModel.parse(first, dims=("c", "y", "x"), scale_factors=[2, 2]),
        Image2DModel.parse(first[::-1], dims=("c", "y", "x"), c_coords=["b", "g", "r"]),
        xarray.DataArray(pixels, dims=("y", "x", "c")),
    ]
    for source in sources:
        np.testing.assert_array_equal(whole(open_image(source)), pixels)


def test_a_slide_image_is_passed_on(pixels):
    image = open_image(pixels)
    assert open_image(image) is image
    assert open_image(image, um_per_px=0.5).um_per_px == 0.5
    assert image.um_per_px is None


def test_a_jpeg_is_decoded_once_and_not_before_the_first_read(tmp_path, pixels, monkeypatch):
    Image.fromarray(pixels).save(tmp_path / "he.jpg", quality=95)
    decoded = []
    original = Image.Image.__array_interface__.fget
    monkeypatch.setattr(
        Image.Image, "__array_interface__", property(lambda self: decoded.append(self.size) or original(self))
    )
    image = open_image(tmp_path / "he.jpg")
    assert image.shape_px == (300, 420)
    image.fingerprint()
    assert decoded == []
    for start in range(0, 200, 50):
        image.read(0, start, start + 50, 0, 100)
    assert decoded == [(420, 300)]


def test_pillows_limit_for_images_does_not_stop_slides_and_is_put_back(tmp_path, pixels, monkeypatch):
    Image.fromarray(pixels).save(tmp_path / "he.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_image(tmp_path / "he.png").read(0, 0, 9, 0, 9).shape == (9, 9, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("subifds", [True, False])
def test_a_pyramid_has_its_levels(tmp_path, pixels, subifds):
    small = pixels[::2, ::2]
    with tifffile.TiffWriter(tmp_path / "p.ome.tif", ome=subifds) as writer:
        options = {"photometric": "rgb", "tile": (64, 64)}
        writer.write(pixels, subifds=1 if subifds else None, **options)
        writer.write(small, subfiletype=1, **options)
    image = open_image(tmp_path / "p.ome.tif")
    assert list(image.downsamples) == [1.0, 2.0]
    np.testing.assert_array_equal(whole(image, 1), small)


@pytest.mark.parametrize("mapped", [True, False])
def test_tiff_in_one_piece_is_not_decoded_for_each_window(tmp_path, pixels, monkeypatch, mapped):
    compression = None if mapped else "zlib"
    tifffile.imwrite(tmp_path / "one.tif", pixels, photometric="rgb", rowsperstrip=300, compression=compression)
    decoded = []
    original = TiffLevel._decode
    monkeypatch.setattr(TiffLevel, "_decode", lambda level, *box: decoded.append(box) or original(level, *box))
    image = open_image(tmp_path / "one.tif")
    for _ in range(3):
        np.testing.assert_array_equal(image.read(0, 10, 20, 30, 50), pixels[10:20, 30:50])
    assert len(decoded) == (0 if mapped else 1)
    assert image.levels[0].whole_bytes == (0 if mapped else pixels.size)


def test_a_mapped_file_is_let_go_after_each_window(tmp_path, pixels):
    """Pages of a mapping that stays open would count as the process's memory, all of the slide in the end."""
    tifffile.imwrite(tmp_path / "plain.tif", pixels, photometric="rgb")
    window = open_image(tmp_path / "plain.tif").read(0, 0, 50, 0, 50)
    assert not isinstance(window, np.memmap)
    assert window.base is None


def test_a_large_lazy_array_is_read_window_by_window(pixels):
    # The same picture again and again: 600 MB if they were held.
    image = open_image(dask.array.tile(dask.array.from_array(pixels, chunks=pixels.shape), (48, 34, 1)))
    np.testing.assert_array_equal(image.read(0, 10, 20, 30, 50), pixels[10:20, 30:50])
    np.testing.assert_array_equal(image.read(0, 290, 310, 410, 430), np.tile(pixels, (2, 2, 1))[290:310, 410:430])
    assert image.levels[0]._pixels is None


def test_strips_are_read_in_bands_and_tiles_in_squares(tmp_path):
    wide = np.zeros((64, 5000, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "strips.tif", wide, photometric="rgb", rowsperstrip=8, compression="zlib")
    tifffile.imwrite(tmp_path / "tiles.tif", wide, photometric="rgb", tile=(64, 64), compression="zlib")
    assert open_image(tmp_path / "strips.tif").pieces(0)[1].tolist() == [0, 5000]
    assert np.diff(open_image(tmp_path / "tiles.tif").pieces(0)[1]).max() == 1024


RESOLUTIONS = {
    "centimetre": ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
    "inch": ({"resolution": (25400, 25400), "resolutionunit": "INCH"}, 1.0),
    "a printer's": ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
    "aperio": ({"description": "Aperio Image Library v1|AppMag = 40|MPP = 0.2520", "software": "x"}, 0.252),
    "none": ({}, None),
}


@pytest.mark.parametrize("name", RESOLUTIONS)
def test_resolution_of_a_tiff(tmp_path, pixels, name):
    options, expected = RESOLUTIONS[name]
    tifffile.imwrite(tmp_path / "r.tif", pixels, photometric="rgb", metadata=None, **options)
    assert open_image(tmp_path / "r.tif").um_per_px == pytest.approx(expected)


def test_resolution_of_ome_and_of_the_caller(tmp_path, pixels):
    sizes = {"axes": "YXS", "PhysicalSizeX": 650.0, "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(tmp_path / "o.ome.tif", pixels, photometric="rgb", metadata=sizes)
    assert open_image(tmp_path / "o.ome.tif").um_per_px == pytest.approx(0.65)
    assert open_image(tmp_path / "o.ome.tif", um_per_px=0.3).um_per_px == 0.3
    with pytest.raises(ScaleError, match="positive"):
        open_image(pixels, um_per_px=-1)


def test_fingerprints_follow_the_content(tmp_path, pixels):
    other = pixels.copy()
    other[7, 7, 0] ^= 1
    assert open_image(pixels).fingerprint() == open_image(dask.array.from_array(pixels)).fingerprint()
    assert open_image(pixels).fingerprint() != open_image(other).fingerprint()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(other).save(tmp_path / "b.png")
    assert open_image(tmp_path / "a.png").fingerprint() != open_image(tmp_path / "b.png").fingerprint()
    image = open_image(other)
    before = image.fingerprint()
    other[0] = 0
    assert image.fingerprint() != before


@given(y=st.integers(-50, 60), x=st.integers(-50, 60), h=st.integers(0, 90), w=st.integers(0, 90))
def test_windows_are_clipped(y, x, h, w):
    rgb = np.arange(30 * 40 * 3, dtype=np.uint16).astype(np.uint8).reshape(30, 40, 3)
    expected = rgb[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)]
    np.testing.assert_array_equal(open_image(rgb).read(0, y, y + h, x, x + w), expected)


@example(h=1, w=90, size=5)
@given(h=st.integers(1, 90), w=st.integers(1, 90), size=st.integers(5, 100))
def test_thumbnails_fit_and_keep_the_mean(h, w, size):
    rgb = np.full((h, w, 3), 77, dtype=np.uint8)
    small, scale = open_image(rgb).thumbnail(size)
    assert (small == 77).all()
    assert 0 < max(small.shape[:2]) <= size
    assert 0 < scale <= 1


def test_thumbnails_take_the_coarsest_level_that_will_do():
    levels = [np.full((400 // f, 400 // f, 3), f, dtype=np.uint8) for f in (1, 2, 4)]
    small, scale = SlideImage(levels, [1.0, 2.0, 4.0]).thumbnail(150)
    assert (small == 2).all()
    assert small.shape == (100, 100, 3)
    assert scale == 0.25


@pytest.mark.parametrize("value", [None, "x", 2.5, True, [1], np.arange(3)], ids=repr)
def test_windows_that_are_no_whole_numbers(value):
    image = open_image(np.zeros((30, 40, 3), np.uint8))
    for name in ("level", "y0", "y1", "x0", "x1"):
        with pytest.raises(ArgumentError, match=f"SlideImage.read: {name}.*expected a whole number"):
            image.read(**{"level": 0, "y0": 0, "y1": 8, "x0": 0, "x1": 8, name: value})
    with pytest.raises(ArgumentError, match="SlideImage.thumbnail: max_px"):
        image.thumbnail(value)
