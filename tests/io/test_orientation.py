"""An image is read upright, as viewers show it, however its pixels are stored."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageOps

from st_gchb._errors import ImageError
from st_gchb.io import open_image
from st_gchb.io.images import OpenSlideLevel, TurnedLevel, chunk_edges, thumbnail_of, turn, vendor_of

RGB = np.random.default_rng(0).integers(0, 256, (70, 103, 3), dtype=np.uint8)
SMALL = np.random.default_rng(1).integers(0, 256, (35, 51, 3), dtype=np.uint8)


def exif(tag):
    values = Image.Exif()
    values[274] = tag
    return values


def seen(pixels, tag):
    """Pixels as Pillow shows them, which is a second opinion."""
    image = Image.fromarray(pixels)
    image.getexif()[274] = tag
    return np.asarray(ImageOps.exif_transpose(image))


def write_png_tail(path, tag):
    """The tag behind the pixels, as some cameras and converters write it."""
    body = io.BytesIO()
    Image.fromarray(RGB).save(body, "png")
    tail = io.BytesIO()
    Image.fromarray(RGB).save(tail, "png", exif=exif(tag))
    data = tail.getvalue()
    start = data.index(b"eXIf") - 4
    chunk = data[start : start + 12 + int.from_bytes(data[start : start + 4], "big")]
    plain = body.getvalue()
    end = plain.rindex(b"IEND") - 4
    path.write_bytes(plain[:end] + chunk + plain[end:])


def tiff_writer(**options):
    def write(path, tag):
        tifffile.imwrite(path, RGB, photometric="rgb", extratags=[(274, 3, 1, tag, True)], **options)

    return write


def write_pyramid(path, tag):
    with tifffile.TiffWriter(path) as writer:
        common = {"photometric": "rgb", "tile": (32, 32), "compression": "zlib", "extratags": [(274, 3, 1, tag, True)]}
        writer.write(RGB, subifds=1, **common)
        writer.write(SMALL, subfiletype=1, **common)


WRITERS = {
    "he.png": lambda path, tag: Image.fromarray(RGB).save(path, exif=exif(tag)),
    "tail.png": write_png_tail,
    "he.webp": lambda path, tag: Image.fromarray(RGB).save(path, exif=exif(tag), lossless=True),
    "strips.tif": tiff_writer(rowsperstrip=16, compression="zlib"),
    "mapped.tif": tiff_writer(),
    "one.tif": tiff_writer(rowsperstrip=70, compression="zlib"),
    "tiles.tif": tiff_writer(tile=(32, 48), compression="zlib"),
    "big.tif": tiff_writer(tile=(32, 32), bigtiff=True, byteorder=">"),
    "pyramid.tif": write_pyramid,
}
TAGS = range(1, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("turned")
    for name, write in WRITERS.items():
        for tag in TAGS:
            write(made / f"{tag}.{name}", tag)
    return made


@pytest.mark.parametrize("tag", TAGS)
def test_turning_is_what_viewers_do(tag):
    np.testing.assert_array_equal(turn(RGB, tag), seen(RGB, tag))


@settings(deadline=None, max_examples=120)
@given(name=st.sampled_from(sorted(WRITERS)), tag=st.sampled_from(TAGS), data=st.data())
def test_windows_of_every_format_are_those_of_the_upright_image(folder, name, tag, data):
    image = open_image(folder / f"{tag}.{name}")
    expected = seen(RGB, tag)
    assert image.shape_px == expected.shape[:2]
    height, width = image.shape_px
    y, x = data.draw(st.integers(-5, height)), data.draw(st.integers(-5, width))
    window = (y, y + data.draw(st.integers(0, 80)), x, x + data.draw(st.integers(0, 80)))
    cut = expected[max(y, 0) : max(window[1], 0), max(x, 0) : max(window[3], 0)]
    np.testing.assert_array_equal(image.read(0, *window), cut)
    image.release()


@pytest.mark.parametrize("tag", TAGS)
def test_every_level_is_turned(folder, tag):
    image = open_image(folder / f"{tag}.pyramid.tif")
    assert len(image.levels) == 2
    expected = seen(SMALL, tag)
    np.testing.assert_array_equal(image.read(1, 0, 999, 0, 999), expected)
    assert image.downsamples[1] == image.shape_px[0] / expected.shape[0]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("name", ["he.png", "tiles.tif"])
def test_thumbnails_are_upright(folder, name, tag):
    image = open_image(folder / f"{tag}.{name}")
    small, scale = thumbnail_of(image, 103)
    assert scale == 1
    np.testing.assert_array_equal(small, seen(RGB, tag))
    np.testing.assert_array_equal(image.thumbnail(103)[0], seen(RGB, tag))


def test_a_jpeg_that_is_decoded_smaller_is_upright(tmp_path):
    smooth = np.asarray(Image.fromarray(RGB[:9, :7]).resize((640, 480), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / "he.jpg", exif=exif(6), quality=95)
    small, scale = thumbnail_of(open_image(tmp_path / "he.jpg"), 80)
    assert (small.shape, scale) == ((80, 60, 3), 0.125)
    expected = np.asarray(Image.fromarray(seen(smooth, 6)).resize((60, 80), Image.Resampling.BICUBIC))
    assert np.abs(small.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("tag", TAGS)
def test_chunks_are_turned_with_the_pixels(tag):
    class Stored:
        path, shape, chunks = None, (70, 103, 3), (32, 48)

        def __getitem__(self, window):
            return RGB[window]

    level = TurnedLevel(Stored(), tag)
    marks = np.zeros((70, 103, 3), dtype=np.uint8)
    rows, columns = chunk_edges((32, 48), (70, 103))
    marks[rows[1:-1]], marks[:, columns[1:-1]] = 1, 1
    turned = seen(marks, tag)
    for edges, axis in zip(chunk_edges(level.chunks, level.shape[:2]), (0, 1), strict=True):
        lines = set(np.flatnonzero(turned[..., 0].all(axis=1 - axis)))
        # A border lies before the px that is marked, or behind it where the axis was turned around.
        assert lines in ({*edges[1:-1]}, {*(edges[1:-1] - 1)})


def test_the_turn_is_told_and_the_upright_file_says_nothing(folder, caplog):
    with caplog.at_level(logging.WARNING):
        open_image(folder / "1.tiles.tif")
        open_image(folder / "1.he.png")
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        open_image(folder / "6.tiles.tif")
    assert "6.tiles.tif" in caplog.text
    assert "upright" in caplog.text


@pytest.mark.parametrize("name", ["he.png", "tiles.tif"])
def test_a_tag_that_says_nothing_is_told(tmp_path, name, caplog):
    WRITERS[name](tmp_path / name, 9)
    np.testing.assert_array_equal(open_image(tmp_path / name).read(0, 0, 70, 0, 103), RGB)
    assert "orientation tag holds 9" in caplog.text


def test_features_of_the_stored_image_are_not_taken_for_those_of_the_upright_one(folder):
    from st_gchb._artifacts import sha256_of

    for name in ("he.png", "tiles.tif"):
        assert open_image(folder / f"1.{name}").fingerprint() == sha256_of(folder / f"1.{name}")
        assert open_image(folder / f"6.{name}").fingerprint() != sha256_of(folder / f"6.{name}")


@pytest.mark.parametrize("tag", [1, 6])
def test_width_and_height_of_a_pixel_are_turned(tmp_path, tag, caplog):
    sizes = {"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}
    tiff_writer(**sizes)(tmp_path / "he.tif", tag)
    assert open_image(tmp_path / "he.tif").um_per_px == pytest.approx(0.5**0.5)
    assert ("0.5 µm wide and 1 µm high" if tag == 1 else "1 µm wide and 0.5 µm high") in caplog.text


@pytest.mark.parametrize("tag", [1, 3, 6])
def test_openslide_is_not_asked_for_turned_files(tmp_path, tag, monkeypatch):
    """It turns the tiles of some compressions one by one."""
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    path = tmp_path / "he.tif"
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib", "metadata": None}
    tifffile.imwrite(path, pixels, extratags=[(274, 3, 1, tag, True)], **options)
    monkeypatch.setattr(type(tifffile.TIFF.DECOMPRESSORS), "__contains__", lambda self, key: key != 8)
    assert vendor_of(path) == "generic-tiff"
    if tag == 1:
        assert isinstance(open_image(path).levels[0], OpenSlideLevel)
    else:
        with pytest.raises(ImageError, match="number 8.*JPEG or deflate"):
            open_image(path)


def test_a_pillow_image_is_upright_and_an_array_is_taken_as_it_is(folder):
    for tag in TAGS:
        with Image.open(folder / f"{tag}.he.png") as opened:
            image = open_image(opened)
        np.testing.assert_array_equal(image.read(0, 0, 999, 0, 999), seen(RGB, tag))
    stored = tifffile.imread(folder / "6.tiles.tif")
    np.testing.assert_array_equal(open_image(stored).read(0, 0, 999, 0, 999), RGB)


def test_a_png_that_ends_too_early_is_told_when_it_is_opened(folder, tmp_path):
    data = (folder / "1.he.png").read_bytes()
    # From one byte missing to the header alone.
    for length in (len(data) - 1, len(data) - 13, len(data) // 2, 40):
        (tmp_path / "cut.png").write_bytes(data[:length])
        with pytest.raises(ImageError, match=r"cut\.png.*(cut short|damaged)"):
            open_image(tmp_path / "cut.png")
