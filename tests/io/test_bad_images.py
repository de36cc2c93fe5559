"""Images that are no 8-bit RGB: a typed error with the line that mends it."""

from pathlib import Path

import dask.array
import h5py
import numpy as np
import pytest
import tifffile
import torch
import xarray
from PIL import Image
from spatialdata.models import Image2DModel

from st_gchb._errors import ImageError, InputError, MissingFileError, ScaleError
from st_gchb.io import SlideImage, open_image
from st_gchb.io.images import thumbnail_of

RGB = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)

ARRAYS = {
    "16-bit": (RGB.astype(np.uint16) * 256, "img_as_ubyte"),
    "signed": (RGB.astype(np.int64), "astype"),
    "gray": (RGB[..., 0], "gray"),
    "one channel": (RGB[..., :1], "gray"),
    "RGBA": (np.dstack([RGB, RGB[..., 0]]), r"image\[\.\.\., :3\]"),
    "channels first": (np.moveaxis(RGB, -1, 0), "np.moveaxis"),
    "many channels": (np.concatenate([RGB] * 4, axis=-1), "12 channels"),
    "float in 0 to 255": (RGB.astype(np.float32), "astype"),
    "float with NaN": (np.full((4, 4, 3), np.nan), "NaN"),
    "a stack": (RGB[None], "plane"),
    "empty": (RGB[:0], "no pixels"),
    "text": (np.full((4, 4, 3), "x"), "uint8"),
    "lazy 16-bit": (dask.array.from_array(RGB.astype(np.uint16)), "img_as_ubyte"),
    "lazy channels first": (dask.array.from_array(np.moveaxis(RGB, -1, 0)), "np.moveaxis"),
    "element with 4 channels": (
        Image2DModel.parse(np.dstack([RGB, RGB[..., 0]]), dims=("y", "x", "c"), c_coords=["r", "g", "b", "a"]),
        "RGBA",
    ),
    "element, 16-bit": (Image2DModel.parse(RGB.astype(np.uint16), dims=("y", "x", "c")), "img_as_ubyte"),
    "element with planes": (xarray.DataArray(RGB[None], dims=("z", "y", "x", "c")), "isel"),
    "element with other axes": (xarray.DataArray(RGB, dims=("a", "b", "c")), "dimensions"),
    "element, gray": (xarray.DataArray(RGB[..., 0], dims=("y", "x")), "gray"),
    "element with colors of another name": (xarray.DataArray(RGB, dims=("y", "x", "k")), r"rename\(\{'k': 'c'\}\)"),
    "element with planes and colors": (xarray.DataArray(RGB[:, :, None], dims=("y", "x", "z", "channels")), "isel"),
    "masked": (np.ma.masked_less(RGB, 9), r"image\.filled"),
    "bool": (RGB > 99, "uint8"),
    "objects": (RGB.astype(object), "uint8"),
    "a tensor with channels first": (torch.from_numpy(np.moveaxis(RGB, -1, 0).copy()), r"permute\(1, 2, 0\)"),
    "a sparse tensor": (torch.zeros(4, 4, 3, dtype=torch.uint8).to_sparse(), "numpy"),
    "a tensor, 16-bit floats": (torch.zeros(4, 4, 3, dtype=torch.bfloat16), "numpy"),
    "dask of unknown shape": (dask.array.from_array(RGB)[dask.array.from_array(RGB[:, 0, 0]) > 9], "chunk_sizes"),
    "a gray Pillow image": (Image.fromarray(RGB[..., 0]), "gray"),
    "a Pillow image with transparency": (Image.fromarray(RGB).convert("RGBA"), r"image\.convert"),
    "an empty Pillow image": (Image.new("RGB", (0, 4)), "no pixels"),
    "a list": ([[1, 2]], "list"),
    "nothing": (None, "NoneType"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    source, advice = ARRAYS[name]
    with pytest.raises(ImageError, match=advice) as caught:
        open_image(source, name="slice C2")
    assert "slice C2" in str(caught.value)
    assert any(words in str(caught.value) for words in ("expected", "taken in 0 to 1", "8-bit RGB"))


FOLLOWED = {
    "channels first": lambda image: np.moveaxis(image, 0, -1)[..., :3],
    "lazy channels first": lambda image: np.moveaxis(image, 0, -1)[..., :3],
    "a tensor with channels first": lambda image: image.permute(1, 2, 0)[..., :3],
    "RGBA": lambda image: image[..., :3],
    "a stack": lambda image: image[0],
    "float in 0 to 255": lambda image: image.astype("uint8"),
    "signed": lambda image: image.astype("uint8"),
    "element with colors of another name": lambda image: image.rename({"k": "c"}),
    "element with planes and colors": lambda image: image.isel(z=0),
    "a Pillow image with transparency": lambda image: image.convert("RGB"),
    "dask of unknown shape": lambda image: image.compute_chunk_sizes()[:0:-1][::-1],
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_following_the_advice_works(name):
    source, _ = ARRAYS[name]
    image = open_image(FOLLOWED[name](source))
    if not name.startswith("dask"):
        np.testing.assert_array_equal(image.read(0, 0, 64, 0, 80), RGB)


def test_a_closed_file_of_arrays(tmp_path):
    with h5py.File(tmp_path / "he.h5", "w") as file:
        pixels = file.create_dataset("image", data=RGB, chunks=(32, 32, 3))
        image = open_image(pixels)
        np.testing.assert_array_equal(image.read(0, 5, 60, 7, 80), RGB[5:60, 7:80])
    with pytest.raises(ImageError, match="slice C2"):
        open_image(pixels, name="slice C2")
    with pytest.raises(ImageError, match="decoded"):
        image.read(0, 0, 9, 0, 9)


def test_paths_of_every_kind(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "he.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("~/he.png", Path("~/he.png"), str(tmp_path / "he.png")):
        np.testing.assert_array_equal(open_image(source).read(0, 0, 64, 0, 80), RGB)
    for source in ("x" * 5000, "\0", "\ud7ff\udfff", "no/such\nfile.tif"):
        with pytest.raises((ImageError, MissingFileError)) as caught:
            open_image(source)
        assert len(str(caught.value)) < 6000
    with pytest.raises(ImageError, match="Download the image"):
        open_image("https://example.org/he.tif")


def test_an_image_that_does_not_fit_into_memory_is_not_decoded(tmp_path, monkeypatch):
    from st_gchb.io.images import _validation as checks

    Image.fromarray(RGB).save(tmp_path / "he.jpg")
    tifffile.imwrite(tmp_path / "one.tif", RGB, photometric="rgb", compression="zlib", rowsperstrip=64)
    monkeypatch.setattr(checks, "free_bytes", lambda: 1000)
    for name in ("he.jpg", "one.tif"):
        image = open_image(tmp_path / name)
        with pytest.raises(ImageError, match=rf"{name}.*memory are free.*tiled TIFF"):
            image.read(0, 0, 1, 0, 1)


@pytest.mark.parametrize("name", ["he.png", "he.jpg"])
def test_limits_of_pillow_do_not_stop_slides(tmp_path, name, monkeypatch):
    """Neither the number of pixels, nor the size of notes in a PNG; what is cut short stays an error."""
    from PIL import ImageFile, PngImagePlugin

    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "x" * 100, zip=True)
    options = {"pnginfo": notes} if name == "he.png" else {}
    Image.fromarray(RGB).save(tmp_path / name, **options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    image = open_image(tmp_path / name)
    assert image.read(0, 0, 64, 0, 80).shape == RGB.shape
    assert thumbnail_of(image, 40)[0].shape == (32, 40, 3)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-200])
    image.release()
    with pytest.raises(ImageError, match=name):
        image.read(0, 0, 64, 0, 80)


class Level:
    """A level of any shape, whose pixels are not read."""

    def __init__(self, shape):
        self.shape = shape

    def __getitem__(self, window):
        raise AssertionError("pixels were read")


HALF = RGB[::2, ::2]
BAD_LEVELS = {
    "no levels": ([], [], "found 0 levels and 0 downsamples; expected one downsample for each of at least one level"),
    "a downsample too few": ([RGB, HALF], [1.0], "found 2 levels and 1 downsamples"),
    "an array for a list": (RGB, [1.0], r"levels is a ndarray; expected a list .*SlideImage\(\[image\], \[1.0\]\)"),
    "nothing": (None, [1.0], "levels is a NoneType"),
    "text": ("RGB", [1.0], "levels is a str"),
    "a number for a list": ([RGB], 1.0, "downsamples is a float; expected a list"),
    "a path": (["slide.tif"], [1.0], "level 0: found a str; expected shape"),
    "a list of rows": ([RGB.tolist()], [1.0], "level 0: found a list; expected shape"),
    "a number": ([RGB, 7], [1.0, 2.0], "level 1: found a int; expected shape"),
    "a gray level": ([RGB, HALF[..., 0]], [1.0, 2.0], r"level 1: found an image of shape \(32, 40\).*gray"),
    "channels first": ([np.moveaxis(RGB, -1, 0)], [1.0], "level 0: .*channels come first"),
    "no pixels": ([RGB[:0]], [1.0], "level 0: .*no pixels"),
    "a shape of parts of px": ([Level((64.5, 80, 3))], [1.0], r"level 0: found the shape \(64.5, 80, 3\).*whole px"),
    "a shape of NaN": ([Level((np.nan, 80, 3))], [1.0], "level 0: found the shape .*whole px"),
    "a shape below 0": ([Level((-64, 80, 3))], [1.0], "level 0: found the shape .*whole px"),
    "no first of 1": ([RGB, HALF], [2.0, 4.0], r"found downsamples \[2.0, 4.0\]; expected 1.0 first"),
    "downsamples that decrease": ([RGB, HALF], [1.0, 0.5], r"found downsamples \[1.0, 0.5\]; .*finest level first"),
    "a downsample of 0": ([RGB, HALF], [1.0, 0.0], r"found downsamples \[1.0, 0.0\]; expected numbers of 1 or more"),
    "a downsample of NaN": ([RGB, HALF], [1.0, np.nan], "expected numbers of 1 or more"),
    "an infinite downsample": ([RGB, HALF], [1.0, np.inf], "expected numbers of 1 or more"),
    "a whole number beyond floats": ([RGB, HALF], [1, 10**400], "expected numbers of 1 or more"),
    "a downsample as text": ([RGB, HALF], [1.0, "2"], "expected numbers of 1 or more"),
    "no downsample": ([RGB, HALF], [1.0, None], "expected numbers of 1 or more"),
    "the coarsest first": ([HALF, RGB], [1.0, 2.0], r"level 1 has 64 x 80 px, the first 32 x 40; .*finest level first"),
    "a level that is turned": ([RGB, np.zeros((40, 96, 3), np.uint8)], [1.0, 1.5], "level 1 has 40 x 96 px"),
    "a quarter for a half": ([RGB, RGB[::4, ::4]], [1.0, 2.0], "level 1 has 16 rows; expected about 32, since .* is 2"),
}


@pytest.mark.parametrize("name", BAD_LEVELS)
def test_a_slide_image_made_by_hand_of_levels_that_are_none(name):
    levels, downsamples, match = BAD_LEVELS[name]
    with pytest.raises(ImageError, match=match) as caught:
        SlideImage(levels, downsamples, name="biopsy")
    assert str(caught.value).startswith("biopsy")
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("um_per_px", [0.0, -0.5, np.nan, np.inf, "half", [0.5, 0.5], {}])
def test_a_slide_image_made_by_hand_with_a_size_that_is_none(um_per_px):
    with pytest.raises(ScaleError, match="biopsy: um_per_px is .*; expected a positive number"):
        SlideImage([RGB], [1.0], um_per_px=um_per_px, name="biopsy")


def test_levels_that_go_together_are_taken_without_reading_them():
    """Sides are rounded down or up, and some scanners fill the last tiles up."""
    shapes = [(64, 80, 3), (32, 40, 3), (21, 27, 3), (32, 32, 3)]
    slide = SlideImage([Level(shape) for shape in shapes], (1, np.float32(2), 3.0, 16.0), um_per_px="0.5")
    assert [slide.level_shape(level) for level in range(4)] == [shape[:2] for shape in shapes]
    assert slide.um_per_px == 0.5


def tiff_of(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


FILES = {
    "16.tif": (tiff_of(RGB.astype(np.uint16), photometric="rgb"), "img_as_ubyte"),
    "gray.tif": (tiff_of(RGB[..., 0]), "gray"),
    "rgba.tif": (tiff_of(np.dstack([RGB, RGB[..., 0]]), photometric="rgb", extrasamples=["unassalpha"]), "RGBA"),
    "float.tif": (tiff_of(RGB.astype(np.float32), photometric="rgb"), "float32"),
    "gray.png": (lambda path: Image.fromarray(RGB[..., 0]).save(path), "gray"),
    "rgba.png": (lambda path: Image.fromarray(RGB).convert("RGBA").save(path), "convert"),
    "palette.png": (lambda path: Image.fromarray(RGB).convert("P").save(path), "convert"),
    "16 gray.png": (lambda path: Image.fromarray(RGB[..., 0].astype(np.uint16)).save(path), "8 bits"),
    "cmyk.jpg": (lambda path: Image.fromarray(RGB).convert("CMYK").save(path), "convert"),
    "text.jpg": (lambda path: path.write_text("not an image"), "damaged"),
    "empty.jpg": (lambda path: path.write_bytes(b""), "damaged"),
    "header.tif": (lambda path: path.write_bytes(b"II*\0\x08\0\0\0"), "damaged|incomplete"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    write, advice = FILES[name]
    write(tmp_path / name)
    with pytest.raises(ImageError, match=advice) as caught:
        open_image(tmp_path / name)
    assert name in str(caught.value)


def test_16_bit_rgb_png_is_not_cut_in_silence(tmp_path):
    import imagecodecs

    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(RGB.astype(np.uint16) * 257))
    with pytest.raises(ImageError, match="8 bits"):
        open_image(tmp_path / "deep.png")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.tif"):
        open_image(tmp_path / "nowhere.tif")
    with pytest.raises(ImageError, match="folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("name", ["he.jpg", "he.png", "he.tif", "zip.tif", "tiles.tif"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_file_names_itself(tmp_path, name, share):
    path = tmp_path / name
    if name.endswith("tif"):
        compression = None if name == "he.tif" else "zlib"
        tile = (32, 32) if name == "tiles.tif" else None
        tifffile.imwrite(path, RGB, photometric="rgb", compression=compression, tile=tile)
    else:
        Image.fromarray(RGB).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ImageError, match="damaged|cut short|incomplete") as caught:
        open_image(path).read(0, 0, 64, 0, 80)
    assert name in str(caught.value)


def test_damage_inside_a_tiff_is_told_when_it_is_decoded(tmp_path):
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="zlib", tile=(32, 32))
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[2]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(path).read(0, 0, 64, 0, 80)


def test_a_tiff_cut_short_is_told_before_anything_is_decoded(tmp_path):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="zlib", tile=(32, 32))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match="cut short"):
        open_image(path)
