"""Slide formats of others, registered and opened like the package's own."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from st_gchb._errors import ArgumentError, DamageError, ImageError, InputError
from st_gchb.io import READERS, SlideImage, open_image, register_reader

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _none_is_left():
    yield
    READERS.clear()


def open_npy(path):
    return SlideImage([np.load(path, mmap_mode="r")], [1.0], um_per_px=0.5)


@pytest.fixture
def npy(tmp_path):
    np.save(tmp_path / "slide.npy", PIXELS)
    return tmp_path / "slide.npy"


def test_a_file_is_opened_by_its_suffix(npy):
    with pytest.raises(ImageError, match="no image that can be read"):
        open_image(npy)
    assert register_reader("numpy", suffixes=".npy")(open_npy) is open_npy
    image = open_image(str(npy))
    np.testing.assert_array_equal(image.read(0, 5, 70, 10, 20), PIXELS[5:, 10:20])
    assert (image.name, image.um_per_px) == (str(npy), 0.5)
    assert open_image(npy, um_per_px=0.25).um_per_px == 0.25


@pytest.mark.parametrize("name", ["a.NPY", "a.other", "a.raw.npz"])
def test_suffixes_of_either_case_and_of_two_parts(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    register_reader("several", suffixes=[".npy", ".Other", ".raw.npz"])(lambda path: SlideImage([PIXELS], [1.0]))
    assert open_image(tmp_path / name).shape_px == (60, 80)
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ImageError):
        open_image(tmp_path / "a.npz")


def test_suffix_and_check_have_to_agree(tmp_path):
    register_reader("mine", suffixes=".png", check=lambda path: path.read_bytes().startswith(b"MINE"))(
        lambda path: SlideImage([PIXELS[:10]], [1.0])
    )
    (tmp_path / "mine.png").write_bytes(b"MINE")
    Image.fromarray(PIXELS).save(tmp_path / "other.png")
    assert open_image(tmp_path / "mine.png").shape_px == (10, 80)
    assert open_image(tmp_path / "other.png").shape_px == (60, 80)


def test_a_check_alone_opens_a_folder(tmp_path):
    register_reader("folder", check=lambda path: (path / "slide.npy").is_file())(
        lambda path: open_npy(path / "slide.npy")
    )
    (tmp_path / "slide").mkdir()
    with pytest.raises(ImageError, match="found a folder"):
        open_image(tmp_path / "slide")
    np.save(tmp_path / "slide" / "slide.npy", PIXELS)
    assert open_image(tmp_path / "slide").shape_px == (60, 80)


def test_a_taken_name_is_refused_and_replaced_on_request(npy):
    register_reader("numpy", suffixes=".npy")(open_npy)
    with pytest.raises(ArgumentError, match="'numpy' is registered already.*overwrite=True"):
        register_reader("numpy", suffixes=".npy")
    assert open_image(npy).shape_px == (60, 80)
    register_reader("numpy", suffixes=".npy", overwrite=True)(lambda path: SlideImage([PIXELS[:7]], [1.0]))
    assert open_image(npy).shape_px == (7, 80)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "neither suffixes nor a check"),
        ({"suffixes": []}, "neither suffixes nor a check"),
        ({"suffixes": "npy"}, "suffixes='npy'; expected endings with their dot"),
        ({"suffixes": ["."]}, "expected endings with their dot"),
        ({"suffixes": [3]}, "expected text"),
        ({"check": "yes"}, "check='yes'; expected a function"),
        ({"suffixes": ".npy", "overwrite": 1}, "overwrite=1; expected True or False"),
        ({"suffixes": ".npy", "name": "  "}, "expected a name"),
    ],
)
def test_bad_registrations(options, match):
    with pytest.raises(ArgumentError, match=match):
        register_reader(**{"name": "mine"} | options)
    with pytest.raises(ArgumentError, match="found a int; expected a function"):
        register_reader("mine", suffixes=".npy")(3)
    assert not READERS


class Level:
    """A level that gives what it is told to."""

    def __init__(self, shape=(60, 80, 3), gives=None):
        self.shape, self.gives = shape, gives

    def __getitem__(self, window):
        return PIXELS[window] if self.gives is None else self.gives(window)


BAD = {
    "no image": (lambda path: PIXELS, "returned a ndarray; expected a st_gchb.io.SlideImage"),
    "nothing": (lambda path: None, "returned a NoneType"),
    "no levels": (lambda path: SlideImage([], []), "0 levels and 0 downsamples"),
    "a downsample too many": (lambda path: SlideImage([PIXELS], [1.0, 2.0]), "1 levels and 2 downsamples"),
    "gray": (lambda path: SlideImage([PIXELS[..., 0]], [1.0]), "level 0: found an image of shape .60, 80.*gray"),
    "RGBA": (lambda path: SlideImage([Level((60, 80, 4))], [1.0]), "transparency"),
    "no pixels": (lambda path: SlideImage([Level((0, 80, 3))], [1.0]), "no pixels"),
    "no shape": (lambda path: SlideImage([object()], [1.0]), "level 0: found a object; expected shape"),
    "coarsest first": (lambda path: SlideImage([PIXELS[::2], PIXELS], [2.0, 1.0]), r"\[2.0, 1.0\]; expected 1.0 first"),
    "an error": (lambda path: {}["header"], "cannot be read .KeyError: 'header'"),
}


@pytest.mark.parametrize("name", BAD)
def test_readers_that_return_no_slide(npy, name):
    opens, match = BAD[name]
    register_reader("mine", suffixes=".npy")(opens)
    with pytest.raises(ImageError, match=match) as caught:
        open_image(npy)
    assert "'mine'" in str(caught.value)
    assert str(npy) in str(caught.value)


def test_a_check_that_fails_is_told_with_its_reader(npy):
    register_reader("mine", check=lambda path: path.read_text()[0] == "x")(open_npy)
    with pytest.raises(ImageError, match="the check of the reader 'mine' cannot be read .UnicodeDecodeError"):
        open_image(npy)


@pytest.mark.parametrize(
    ("gives", "match"),
    [
        (lambda window: PIXELS, r"window of shape \(60, 80, 3\); expected \(10, 20, 3\)"),
        (lambda window: PIXELS[window][..., 0], r"window of shape \(10, 20\)"),
        (lambda window: PIXELS[window] / 255, "float64 pixels; expected uint8"),
    ],
)
def test_levels_that_give_other_windows(npy, gives, match):
    register_reader("mine", suffixes=".npy")(lambda path: SlideImage([Level(gives=gives)], [1.0]))
    with pytest.raises(InputError, match=match):
        open_image(npy).read(0, 10, 20, 10, 30)


def test_damage_is_kept_to_its_chunk(npy):
    def gives(window):
        if window[1].stop > 40:
            raise DamageError("torn")
        return PIXELS[window]

    level = Level(gives=gives)
    level.chunks = (60, 40)
    register_reader("mine", suffixes=".npy")(lambda path: SlideImage([level], [1.0]))
    pixels, lost = open_image(npy).read_chunks(0, (0, 60, 0, 80))
    assert [box for box, _ in lost] == [(0, 60, 40, 80)]
    np.testing.assert_array_equal(pixels[:, :40], PIXELS[:, :40])
