"""Images that are no 8-bit RGB: a typed error with the line that mends it."""

import dask.array
import numpy as np
import pytest
import tifffile
import xarray
from PIL import Image
from spatialdata.models import Image2DModel

from st_gchb._errors import ImageError, MissingFileError
from st_gchb.io import open_image

RGB = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)

ARRAYS = {
    "16-bit": (RGB.astype(np.uint16) * 256, "img_as_ubyte"),
    "signed": (RGB.astype(np.int64), "astype"),
    "grey": (RGB[..., 0], "grey"),
    "one channel": (RGB[..., :1], "grey"),
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
    "element, grey": (xarray.DataArray(RGB[..., 0], dims=("y", "x")), "grey"),
    "a list": ([[1, 2]], "list"),
    "nothing": (None, "NoneType"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name):
    source, advice = ARRAYS[name]
    with pytest.raises(ImageError, match=advice) as caught:
        open_image(source, name="slice C2")
    assert "slice C2" in str(caught.value)
    assert "expected" in str(caught.value) or "taken in 0 to 1" in str(caught.value)


def tiff_of(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


FILES = {
    "16.tif": (tiff_of(RGB.astype(np.uint16), photometric="rgb"), "img_as_ubyte"),
    "grey.tif": (tiff_of(RGB[..., 0]), "grey"),
    "rgba.tif": (tiff_of(np.dstack([RGB, RGB[..., 0]]), photometric="rgb", extrasamples=["unassalpha"]), "RGBA"),
    "float.tif": (tiff_of(RGB.astype(np.float32), photometric="rgb"), "float32"),
    "grey.png": (lambda path: Image.fromarray(RGB[..., 0]).save(path), "grey"),
    "rgba.png": (lambda path: Image.fromarray(RGB).convert("RGBA").save(path), "convert"),
    "palette.png": (lambda path: Image.fromarray(RGB).convert("P").save(path), "convert"),
    "16 grey.png": (lambda path: Image.fromarray(RGB[..., 0].astype(np.uint16)).save(path), "8 bits"),
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
