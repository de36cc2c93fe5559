"""TIFF files: which page is the slide, and headers that promise more than the file holds."""

from __future__ import annotations

import logging
import pickle
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings, strategies as st

from st_gchb._errors import DamageError, ImageError, STGCHBError
from st_gchb.io import open_image

RGB = np.random.default_rng(0).integers(0, 256, (280, 300, 3), dtype=np.uint8)
SMALL = RGB[::4, ::4].copy()
COMMON = {"photometric": "rgb", "metadata": None}
TILES = {**COMMON, "tile": (64, 64), "compression": "zlib"}
APERIO = "Aperio Image Library v11.2.1\r\n"


def whole(image):
    height, width = image.shape_px
    return image.read(0, 0, height, 0, width)


def entries(data, page=0):
    """Place of every entry of a page's header by tag, in a small classic file of little end first."""
    (place,) = struct.unpack_from("<I", data, 4)
    for _ in range(page):
        (count,) = struct.unpack_from("<H", data, place)
        (place,) = struct.unpack_from("<I", data, place + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", data, place)
    found = {struct.unpack_from("<H", data, place + 2 + 12 * i)[0]: place + 2 + 12 * i for i in range(count)}
    return {**found, "next": place + 2 + 12 * count}


def change(path, tag, value, page=0):
    """Set the value that lies in a header."""
    data = bytearray(path.read_bytes())
    place = entries(data, page)[tag]
    if tag == "next":
        struct.pack_into("<I", data, place, value)
    else:
        kind = struct.unpack_from("<H", data, place + 2)[0]
        struct.pack_into("<H" if kind == 3 else "<I", data, place + 8, value)
    path.write_bytes(data)


def write_thumbnail_first(path):
    with tifffile.TiffWriter(path) as writer:
        writer.write(SMALL, **COMMON, compression="zlib")
        writer.write(RGB, **TILES)
        writer.write(RGB[::2, ::2].copy(), **TILES)


def test_the_largest_page_is_the_slide_and_that_is_told(tmp_path, caplog):
    write_thumbnail_first(tmp_path / "he.tif")
    with caplog.at_level(logging.WARNING):
        image = open_image(tmp_path / "he.tif")
    np.testing.assert_array_equal(whole(image), RGB)
    assert list(image.downsamples) == [1, 2]
    assert "the first page is not the largest: page 1" in caplog.text
    assert "page 0 of (70, 75) px" in caplog.text


def test_features_of_the_thumbnail_are_not_taken_for_those_of_the_slide(tmp_path):
    from st_gchb._artifacts import sha256_of

    write_thumbnail_first(tmp_path / "he.tif")
    assert open_image(tmp_path / "he.tif").fingerprint() != sha256_of(tmp_path / "he.tif")


def write_with_label(path, aperio):
    """A label that is larger than the slide."""
    label = np.full((500, 600, 3), 9, dtype=np.uint8)
    words = f"{APERIO}label 600x500" if aperio else "label"
    with tifffile.TiffWriter(path) as writer:
        writer.write(RGB, **TILES, description="the slide")
        writer.write(label, **COMMON, description=words, compression="zlib")


@pytest.mark.parametrize("aperio", [True, False])
def test_a_label_is_never_the_slide(tmp_path, aperio, caplog):
    write_with_label(tmp_path / "he.tif", aperio)
    np.testing.assert_array_equal(whole(open_image(tmp_path / "he.tif")), RGB)
    assert caplog.text == ""
    tifffile.imwrite(tmp_path / "label.tif", RGB, **COMMON, description="Macro image")
    with pytest.raises(ImageError, match=r"only images beside the slide.*page 0 of \(280, 300\)"):
        open_image(tmp_path / "label.tif")


def test_the_largest_image_in_another_type_is_not_swapped_for_a_smaller_one(tmp_path):
    with tifffile.TiffWriter(tmp_path / "he.tif") as writer:
        writer.write(SMALL, **COMMON)
        writer.write(RGB.astype(np.uint16), **COMMON)
    with pytest.raises(ImageError, match=r"uint16.*largest image of the file.*page 0 of \(70, 75\)"):
        open_image(tmp_path / "he.tif")


def test_of_images_of_one_size_that_in_rgb_is_taken(tmp_path, caplog):
    with tifffile.TiffWriter(tmp_path / "he.tif") as writer:
        writer.write(RGB[..., 0].copy(), metadata=None, photometric="minisblack")
        writer.write(RGB, **COMMON)
    np.testing.assert_array_equal(whole(open_image(tmp_path / "he.tif")), RGB)
    assert "2 images are (280, 300) px" in caplog.text


LAYOUTS = {
    "tiles": TILES,
    "strips": {**COMMON, "rowsperstrip": 16, "compression": "zlib"},
    "plain strips": {**COMMON, "rowsperstrip": 16},
    "one strip": {**COMMON, "rowsperstrip": 280, "compression": "zlib"},
    "mapped": {**COMMON, "rowsperstrip": 280},
    "planes": {**TILES, "planarconfig": "separate"},
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("tag", "value"), [(257, 1304), (257, 30_000_000), (256, 700), (256, 2**31)])
def test_a_header_that_promises_more_than_the_file_holds(tmp_path, name, tag, value):
    """The part that is missing would be black."""
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, np.moveaxis(RGB, -1, 0) if name == "planes" else RGB, **LAYOUTS[name])
    change(path, tag, value)
    with pytest.raises(ImageError, match=r"he\.tif.*(damaged|incomplete|decoded|memory)"):
        whole(open_image(path))


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"tiles", "planes"}))
@pytest.mark.parametrize(("tag", "value"), [(257, 24), (256, 64)])
def test_a_header_that_promises_less_than_the_file_holds(tmp_path, name, tag, value):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **LAYOUTS[name])
    change(path, tag, value)
    with pytest.raises(ImageError, match=r"he\.tif.*damaged"):
        whole(open_image(path))


@pytest.mark.parametrize("name", ["tiles", "strips"])
@pytest.mark.parametrize("tag", ["offsets", "counts"])
def test_lists_of_places_that_are_too_short(tmp_path, name, tag):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **LAYOUTS[name])
    data = bytearray(path.read_bytes())
    code = {"tiles": {"offsets": 324, "counts": 325}, "strips": {"offsets": 273, "counts": 279}}[name][tag]
    place = entries(data)[code]
    (count,) = struct.unpack_from("<I", data, place + 4)
    for wrong in (count - 1, count - 5, 3):
        struct.pack_into("<I", data, place + 4, wrong)
        path.write_bytes(data)
        with pytest.raises(ImageError, match=rf"asks for {count} {name}"):
            open_image(path)


def places_of(path):
    """Places in the file of the list of tile offsets, and of the list of their sizes."""
    data = bytearray(path.read_bytes())
    found = entries(data)
    return data, *(struct.unpack_from("<I", data, found[tag] + 8)[0] for tag in (324, 325))


def test_tiles_that_were_never_written_are_white_and_told(tmp_path, caplog):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **TILES)
    data, offsets, counts = places_of(path)
    for list_at, width in ((offsets, 4), (counts, 4)):
        data[list_at + 7 * width : list_at + 8 * width] = bytes(width)
    path.write_bytes(data)
    with tifffile.TiffFile(path) as file:
        assert file.pages.first.databytecounts[7] == 0
    image = open_image(path)
    expected = RGB.copy()
    expected[64:128, 128:192] = 255
    np.testing.assert_array_equal(whole(image), expected)
    assert "1 of 25 tiles were never written" in caplog.text


def test_tiles_that_were_never_written_have_the_value_that_gdal_says(tmp_path):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **TILES, extratags=[(42113, 2, None, "7", True)])
    data, _, counts = places_of(path)
    data[counts : counts + 4] = bytes(4)
    path.write_bytes(data)
    assert (open_image(path).read(0, 0, 64, 0, 64) == 7).all()


def test_a_file_without_any_tile_and_tiles_that_lie_nowhere(tmp_path):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **TILES)
    data, offsets, counts = places_of(path)
    empty, nowhere = bytearray(data), bytearray(data)
    empty[counts : counts + 100] = bytes(100)
    path.write_bytes(empty)
    with pytest.raises(ImageError, match="none of its tiles was ever written"):
        open_image(path)
    nowhere[offsets : offsets + 4] = bytes(4)
    path.write_bytes(nowhere)
    with pytest.raises(ImageError, match="lie nowhere"):
        open_image(path)


def test_two_tiles_that_share_a_part_of_their_bytes(tmp_path):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **TILES)
    data, offsets, counts = places_of(path)
    first, size = (struct.unpack_from("<I", data, at)[0] for at in (offsets, counts))
    struct.pack_into("<I", data, offsets + 4, first + 10)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="share a part"):
        open_image(path)
    # The same bytes may stand for several tiles: glass looks alike.
    struct.pack_into("<I", data, offsets + 4, first)
    struct.pack_into("<I", data, counts + 4, size)
    path.write_bytes(data)
    pixels = whole(open_image(path))
    np.testing.assert_array_equal(pixels[:64, 64:128], RGB[:64, :64])


def test_pixels_that_lie_in_the_header(tmp_path):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **LAYOUTS["mapped"])
    change(path, 273, 65)
    with pytest.raises(ImageError, match="lie in the header"):
        open_image(path)


def test_tiles_that_hold_more_rows_than_the_header_says(tmp_path):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **{**TILES, "compression": "lzw"})
    change(path, 323, 63)
    with pytest.raises(ImageError, match=r"tiles of \(63, 64\) px"):
        whole(open_image(path))


@pytest.mark.parametrize("place", [10**6, 12, 2**32 - 1])
def test_a_list_of_pages_that_leads_nowhere(tmp_path, place):
    """Of a file with the thumbnail first the thumbnail would be left."""
    path = tmp_path / "he.tif"
    write_thumbnail_first(path)
    change(path, "next", place)
    with pytest.raises(ImageError, match=r"he\.tif"):
        open_image(path)


@pytest.mark.parametrize(
    ("value", "words"), [(0, "white is zero"), (3, "palette"), (5, "CMYK"), (6, "YCbCr"), (8, "CIELAB")]
)
def test_pixels_of_another_kind_are_not_taken_for_rgb(tmp_path, value, words):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **TILES)
    change(path, 262, value)
    with pytest.raises(ImageError, match=words):
        open_image(path)


def test_a_compression_that_is_not_known_is_told_when_it_is_opened(tmp_path):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **{**TILES, "tile": (16, 16)})
    change(path, 259, 52479)
    with pytest.raises(ImageError, match="52479"):
        open_image(path)


def test_what_tifffile_logs_comes_from_this_package(tmp_path, caplog):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **TILES)
    change(path, 296, 99)
    with caplog.at_level(logging.DEBUG):
        np.testing.assert_array_equal(whole(open_image(path)), RGB)
    assert {record.name for record in caplog.records} == {"st_gchb"}
    assert len(caplog.records) == 1
    assert "RESUNIT" in caplog.text


def test_a_level_can_be_sent_to_another_process(tmp_path):
    tifffile.imwrite(tmp_path / "he.tif", RGB, **TILES)
    image = open_image(tmp_path / "he.tif")
    whole(image)
    level = pickle.loads(pickle.dumps(image.levels[0]))
    np.testing.assert_array_equal(level[10:90, 20:99], RGB[10:90, 20:99])


def test_a_damaged_tile_is_told_and_the_others_are_read(tmp_path):
    path = tmp_path / "he.tif"
    tifffile.imwrite(path, RGB, **TILES)
    with tifffile.TiffFile(path) as file:
        start = file.pages.first.dataoffsets[6]
    data = bytearray(path.read_bytes())
    data[start : start + 30] = bytes(30)
    path.write_bytes(data)
    image = open_image(path)
    with pytest.raises(DamageError, match="cannot be decoded"):
        image.read(0, 0, 280, 0, 300)
    pixels, lost = image.read_chunks(0, (0, 280, 0, 300))
    assert [box for box, _ in lost] == [(64, 128, 64, 128)]
    expected = RGB.copy()
    expected[64:128, 64:128] = 0
    np.testing.assert_array_equal(pixels, expected)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiff")
    for name, options in LAYOUTS.items():
        pixels = np.moveaxis(RGB, -1, 0) if name == "planes" else RGB
        tifffile.imwrite(folder / f"{name}.tif", pixels, **{**options, "metadata": {}})
    write_thumbnail_first(folder / "thumbnail.tif")
    return folder


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from([*LAYOUTS, "thumbnail"]),
    entry=st.integers(0, 20),
    part=st.sampled_from(["tag", "type", "count", "value"]),
    value=st.one_of(st.integers(0, 70), st.sampled_from([255, 256, 279, 281, 32768, 65535, 2**31, 2**32 - 1])),
)
def test_one_wrong_number_in_a_header_is_told_or_changes_nothing(intact, name, entry, part, value):
    data = bytearray((intact / f"{name}.tif").read_bytes())
    places = [place for tag, place in entries(data, 1 if name == "thumbnail" else 0).items() if tag != "next"]
    place = places[entry % len(places)]
    offset, code = {"tag": (0, "<H"), "type": (2, "<H"), "count": (4, "<I"), "value": (8, "<I")}[part]
    struct.pack_into(code, data, place + offset, min(value, 65535) if code == "<H" else value)
    path = intact / "wrong.tif"
    path.write_bytes(data)
    told = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = told.append
    logger = logging.getLogger("st_gchb")
    logger.addHandler(handler)
    try:
        image = open_image(path)
        same = image.shape_px == RGB.shape[:2] and np.array_equal(whole(image), RGB)
    except STGCHBError as caught:
        error, same = caught, False
    else:
        error = None
    finally:
        logger.removeHandler(handler)
    if error is not None:
        assert "wrong.tif" in str(error)
    else:
        # Bits in another order (FillOrder) or differences of pixels (Predictor) may be meant, and plain pixels may
        # begin anywhere behind the directory (StripOffsets).
        meant = {266, 317, *([273] if name == "mapped" else [])} & {struct.unpack_from("<H", data, place)[0]}
        assert same or told or meant
