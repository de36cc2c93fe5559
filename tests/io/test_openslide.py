"""Slides of scanners: through tifffile or OpenSlide, the pixels are the same."""

from __future__ import annotations

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings, strategies as st
from PIL import Image

from st_gchb._errors import DamageError, ImageError
from st_gchb.io import open_image
from st_gchb.io.images import OpenSlideLevel, TiffLevel, open_openslide, open_tiff, vendor_of

RGB = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
APERIO = "Aperio Image Library v11.2.1\r\n640x480 [0,0 640x480] (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.5"


def write_svs(path, compression="zlib", mpp=True):
    """The pages of Aperio's scanners: the slide, a thumbnail in strips, a level of the pyramid."""
    with tifffile.TiffWriter(path) as writer:
        tiles = {"photometric": "rgb", "tile": (64, 64), "compression": compression, "metadata": None}
        description = APERIO if mpp else APERIO.split("|MPP")[0]
        writer.write(RGB, description=description, **tiles)
        writer.write(RGB[::8, ::8].copy(), photometric="rgb", compression="zlib", description=APERIO, metadata=None)
        writer.write(RGB[::4, ::4].copy(), description=APERIO, **tiles)


@pytest.fixture(scope="module")
def svs(tmp_path_factory):
    path = tmp_path_factory.mktemp("svs") / "slide.svs"
    write_svs(path)
    return path


def test_aperio_is_read_by_tifffile(svs):
    assert vendor_of(svs) == "aperio"
    image = open_image(svs)
    assert all(isinstance(level, TiffLevel) for level in image.levels)
    assert image.um_per_px == 0.5
    assert list(image.downsamples) == [1.0, 4.0]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), level=st.integers(0, 1))
def test_both_readers_give_the_same_windows(svs, data, level):
    first, second = open_tiff(svs), open_openslide(svs)
    assert first.level_shape(level) == second.level_shape(level)
    height, width = first.level_shape(level)
    y, x = data.draw(st.integers(-9, height)), data.draw(st.integers(-9, width))
    window = (y, y + data.draw(st.integers(0, 150)), x, x + data.draw(st.integers(0, 150)))
    expected = (RGB, RGB[::4, ::4])[level][max(y, 0) : max(window[1], 0), max(x, 0) : max(window[3], 0)]
    np.testing.assert_array_equal(first.read(level, *window), expected)
    np.testing.assert_array_equal(second.read(level, *window), expected)
    for image in (first, second):
        image.release()


def test_jpeg_tiles_differ_by_rounding_alone(tmp_path):
    write_svs(tmp_path / "j.svs", compression="jpeg")
    pixels = [read(tmp_path / "j.svs").read(0, 0, 480, 0, 640).astype(int) for read in (open_tiff, open_openslide)]
    assert np.abs(pixels[0] - pixels[1]).max() <= 2


@pytest.mark.parametrize("mpp", [True, False])
def test_what_openslide_says_of_a_slide(tmp_path, mpp):
    write_svs(tmp_path / "s.svs", mpp=mpp)
    image = open_openslide(tmp_path / "s.svs")
    assert image.um_per_px == (0.5 if mpp else None)
    assert list(image.downsamples) == [1.0, 4.0]
    assert image.levels[0].path == tmp_path / "s.svs"
    assert image.levels[0].chunks == (64, 64)
    assert image.fingerprint() == open_openslide(tmp_path / "s.svs").fingerprint()
    np.testing.assert_array_equal(image.thumbnail(160)[0], RGB[::4, ::4])
    image.release()
    np.testing.assert_array_equal(image.read(0, 5, 9, 7, 9), RGB[5:9, 7:9])


def test_a_format_of_a_scanner_goes_to_openslide(svs, monkeypatch):
    """Some of these begin as a TIFF or a JPEG does, which then shows the label or a thumbnail."""
    for vendor in ("hamamatsu", "mirax", "leica", "ventana"):
        monkeypatch.setattr(openslide.OpenSlide, "detect_format", lambda path, vendor=vendor: vendor)
        image = open_image(svs)
        assert isinstance(image.levels[0], OpenSlideLevel)
        np.testing.assert_array_equal(image.read(1, 0, 120, 0, 160), RGB[::4, ::4])


def test_what_tifffile_cannot_decode_goes_to_openslide(svs, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tifffile.TIFF.DECOMPRESSORS), "__contains__", lambda self, key: key != 8)
    image = open_image(svs)
    assert isinstance(image.levels[0], OpenSlideLevel)
    np.testing.assert_array_equal(image.read(0, 0, 480, 0, 640), RGB)
    tifffile.imwrite(tmp_path / "plain.tif", RGB, photometric="rgb", compression="zlib", tile=(64, 64))
    assert vendor_of(tmp_path / "plain.tif") == "generic-tiff"
    np.testing.assert_array_equal(open_image(tmp_path / "plain.tif").read(0, 0, 480, 0, 640), RGB)


@pytest.mark.parametrize("name", ["plain.png", "plain.jpg", "strips.tif"])
def test_plain_images_do_not_go_to_openslide(tmp_path, name):
    Image.fromarray(RGB).save(tmp_path / name)
    assert vendor_of(tmp_path / name) is None
    assert not isinstance(open_image(tmp_path / name).levels[0], OpenSlideLevel)


def test_a_corrupt_tile_is_told_and_the_rest_is_read(tmp_path):
    path = tmp_path / "bad.svs"
    write_svs(path)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, size = page.dataoffsets[11], page.databytecounts[11]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    image = open_openslide(path)
    # Tile 11: the second row of ten, the second column.
    with pytest.raises(DamageError, match=r"bad\.svs.*cannot be decoded"):
        image.read(0, 70, 80, 70, 80)
    np.testing.assert_array_equal(image.read(0, 0, 64, 0, 640), RGB[:64])
    with pytest.raises(DamageError):
        image.read(0, 0, 480, 0, 640)


def test_a_slide_that_cannot_be_opened_names_itself(tmp_path, monkeypatch):
    path = tmp_path / "slide.ndpi"
    path.write_bytes(b"II*\0" + bytes(100))
    monkeypatch.setattr(openslide.OpenSlide, "detect_format", lambda path: "hamamatsu")
    with pytest.raises(ImageError, match=r"slide\.ndpi: the slide cannot be read"):
        open_image(path)


def test_where_a_scanner_took_no_image_there_is_background(svs, monkeypatch):
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[0] = [200, 100, 50, 255]
    rgba[1, 0] = [100, 100, 100, 51]
    monkeypatch.setattr(openslide.OpenSlide, "read_region", lambda *arguments: Image.fromarray(rgba))
    pixels = open_openslide(svs).read(0, 0, 2, 0, 3)
    assert (pixels[0] == [200, 100, 50]).all()
    assert (pixels[1, 0] == 224).all()
    assert (pixels[1, 1:] == 255).all()


@pytest.mark.tissue
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("boxes.tiff", (250, 300)),
        ("small.svs", (16, 16)),
        ("unopenable.tiff", "compression"),
        ("unreadable.svs", "decoded"),
    ],
)
def test_files_that_openslide_is_tested_with(reader_fixtures_path, name, found):
    path = reader_fixtures_path / "openslide_python" / name
    if isinstance(found, str):
        with pytest.raises(ImageError, match=rf"{name}.*{found}"):
            open_image(path).read(0, 0, 1, 0, 1)
    else:
        image = open_image(path)
        assert image.shape_px == found
        for level in range(len(image.levels)):
            assert image.read(level, 0, 999, 0, 999).shape == image.levels[level].shape
