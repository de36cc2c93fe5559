"""Tissue is found by its stain and texture; ink, dirt, fiducials, smears and holes are not."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import ndimage

from st_gchb._errors import ImageError, InputError, ScaleError
from st_gchb.io import SlideImage
from st_gchb.pp import find_tissue

UM = 4.0
SHAPE = (450, 600)
HEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.07, 0.99, 0.11])
GLASS = np.array([238.0, 234.0, 239.0])


def disc(y, x, radius_um, shape=SHAPE):
    """Pixels within a radius of a place, both µm."""
    rows, cols = (np.arange(side) * UM for side in shape)
    return (rows[:, None] - y) ** 2 + (cols[None] - x) ** 2 < radius_um**2


@functools.cache
def stained(shape, seed):
    """Optical density of H&E without a border: a ground of eosin, and nuclei."""
    rng = np.random.default_rng(seed)
    ground = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
    ground = 0.25 * np.clip(1 + 0.3 * ground / ground.std(), 0.2, None)
    nuclei = ndimage.gaussian_filter((rng.random(shape) < 0.15).astype(float), 0.8)
    return nuclei[..., None] * HEMATOXYLIN + ground[..., None] * EOSIN


def density(tissue, strength=1.0, seed=0):
    """Optical density of H&E where there is tissue."""
    return stained(tissue.shape, seed) * (strength * tissue)[..., None]


@functools.cache
def noise(shape, seed):
    return np.random.default_rng(seed).normal(0, 2, shape)


def he_image(absorbed, seed=1, glass=GLASS):
    """8-bit RGB of what the glass and an optical density let through."""
    return np.clip(glass * np.exp(-absorbed) + noise(absorbed.shape, seed), 0, 255).round().astype(np.uint8)


def stroke(color, where):
    """Optical density of ink of a color, its border soft."""
    cover = ndimage.gaussian_filter(where.astype(float), 3)
    return cover[..., None] * -np.log(np.asarray(color) / 255)


BLOB = disc(900, 1000, 650)
BORDER_UM = 50.0


def found(pixels, **options):
    """Mask in px of the image."""
    tissue = find_tissue(pixels, um_per_px=UM, **options)
    rows, cols = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    return tissue.at(np.stack([cols, rows], axis=-1) + 0.5)


@functools.cache
def off_the_border(content, shape):
    """Pixels within and outside of a mask that is given as bytes."""
    truth, steps = np.frombuffer(content, dtype=bool).reshape(shape), round(BORDER_UM / UM)
    inner = ndimage.binary_erosion(truth, iterations=steps, border_value=1)
    return inner, ~ndimage.binary_dilation(truth, iterations=steps)


def errors(mask, truth):
    """Shares of tissue that was missed and of glass that was taken for tissue, off the border."""
    inner, outer = off_the_border(truth.tobytes(), truth.shape)
    return float((~mask[inner]).mean()), float(mask[outer].mean())


@pytest.mark.parametrize("strength", [1.6, 1.0, 0.5, 0.3])
@pytest.mark.parametrize("glass", [GLASS, [175.0, 178.0, 176.0], [236.0, 219.0, 235.0], [255.0, 255.0, 255.0]])
def test_dark_and_pale_tissue_on_any_glass(strength, glass):
    pixels = he_image(density(BLOB, strength), glass=np.array(glass))
    missed, invented = errors(found(pixels), BLOB)
    assert missed < 0.01
    assert invented == 0


def test_overexposed_glass_beside_a_smooth_pool_of_stain():
    pool = disc(900, 1000, 300)
    absorbed = density(BLOB & ~pool) + pool[..., None] * np.array([0.1, 0.6, 0.2])
    pixels = he_image(absorbed, glass=np.array([290.0, 290.0, 290.0]))
    assert found(pixels)[BLOB & ~pool].mean() > 0.99


@pytest.mark.parametrize("border", [0, 255])
def test_what_a_scanner_puts_around_a_scan(border):
    pixels = he_image(density(BLOB), glass=np.array([236.0, 219.0, 235.0]))
    padded = np.pad(pixels, ((150, 200), (300, 100), (0, 0)), constant_values=border)
    missed, invented = errors(found(padded), np.pad(BLOB, ((150, 200), (300, 100))))
    assert missed < 0.01
    assert invented == 0


@pytest.mark.parametrize("pale", [1.0, 0.4])
def test_large_holes_stay_and_small_ones_are_filled(pale):
    large, small = disc(900, 800, 220), disc(1000, 1300, 50)
    pixels = he_image(density(BLOB & ~large & ~small, pale))
    mask = found(pixels)
    assert mask[small].all()
    assert not mask[ndimage.binary_erosion(large, iterations=10)].any()
    assert found(pixels, max_hole_um2=300_000)[large].all()


INKS = {
    "blue": (20, 40, 150),
    "light blue": (60, 80, 185),
    "green": (20, 120, 60),
    "light green": (90, 190, 110),
    "black": (25, 25, 28),
    "gray": (70, 68, 72),
    "navy": (25, 30, 90),
    "red": (200, 30, 40),
}


@pytest.mark.parametrize("ink", INKS)
def test_strokes_of_ink_are_no_tissue(ink):
    line = np.zeros(SHAPE, dtype=bool)
    line[100:160, 40:560] = True
    line[200:440, 480:560] = True
    pixels = he_image(density(BLOB) + stroke(INKS[ink], line))
    mask = found(pixels)
    assert not mask[line].any()
    away = BLOB & ~ndimage.binary_dilation(line, iterations=round(150 / UM))
    missed, invented = errors(mask, BLOB)
    assert mask[ndimage.binary_erosion(away, iterations=round(BORDER_UM / UM))].mean() > 0.99
    assert invented < 0.002


def test_a_small_dot_of_ink_on_tissue():
    dot = disc(900, 1000, 50)
    mask = found(he_image(density(BLOB) + stroke((20, 40, 150), dot)))
    assert not mask[dot].any()
    assert mask[BLOB & ~disc(900, 1000, 200)].mean() > 0.99


def rings():
    """A frame of gray, faintly blue rings, as printed around the capture area of a Visium slide."""
    where = np.zeros(SHAPE, dtype=bool)
    for y in range(60, 1800, 130):
        for x in (60, 190, 2210, 2340):
            where |= disc(y, x, 40) & ~disc(y, x, 22)
    return ndimage.gaussian_filter(where.astype(float), 0.7)[..., None] * np.array([0.40, 0.42, 0.29])


def blot():
    return (
        0.7 * np.exp(-((np.mgrid[:450, :600] - np.array([[[90]], [[430]]])) ** 2).sum(0) / 500)[..., None] * np.ones(3)
    )


def smear():
    return np.exp(-((np.mgrid[:450, :600] - np.array([[[225]], [[480]]])) ** 2).sum(0) / 9000)[..., None] * [
        0,
        0.1,
        0.05,
    ]


def specks():
    where = np.random.default_rng(3).random(SHAPE) < 0.0005
    return ndimage.binary_dilation(where)[..., None] * np.array([0.8, 0.9, 1.0])


def edge():
    where = np.zeros(SHAPE)
    where[:, :40] = 1
    return where[..., None] * np.array([0.9, 0.95, 0.95])


@pytest.mark.parametrize("thing", [rings, blot, smear, specks, edge])
def test_things_on_the_glass_are_no_tissue(thing):
    pixels = he_image(density(BLOB) + thing())
    missed, invented = errors(found(pixels), BLOB)
    assert missed < 0.01
    assert invented == 0
    assert find_tissue(he_image(np.zeros((*SHAPE, 3)) + thing()), um_per_px=UM).share == 0


def test_bleached_tissue_within_tissue():
    gray = density(BLOB)
    patch = disc(900, 1000, 200)
    gray[patch] = 0.6 * gray[patch].mean(axis=1, keepdims=True) * np.array([1.0, 1.0, 0.7])
    assert found(he_image(gray))[BLOB].mean() > 0.97


def test_small_pieces_are_left_out():
    piece = disc(300, 2100, 150)
    pixels = he_image(density(BLOB | piece))
    assert found(pixels)[piece].mean() > 0.9
    assert not found(pixels, min_area_um2=150_000)[piece].any()
    assert found(pixels, min_area_um2=150_000)[BLOB].mean() > 0.99


def test_tissue_that_fills_the_image():
    assert find_tissue(he_image(density(np.ones(SHAPE, dtype=bool))), um_per_px=UM).share > 0.99


@pytest.mark.parametrize("value", [0, 128, 255])
def test_nothing_is_found_on_an_empty_image(value):
    flat = np.full((200, 300, 3), value, dtype=np.uint8)
    assert find_tissue(flat, um_per_px=UM).share == 0
    noise = np.random.default_rng(0).normal(value, 5, (200, 300, 3)).clip(0, 255).astype(np.uint8)
    assert find_tissue(noise, um_per_px=UM).share == 0
    assert find_tissue(flat[:1, :1], um_per_px=UM).mask.shape == (1, 1)


def test_the_mask_has_a_known_scale():
    pixels = he_image(density(BLOB))
    tissue = find_tissue(pixels, um_per_px=UM, resolution_um=8.0)
    assert tissue.mask.shape == (225, 300) == tissue.thumbnail.shape[:2]
    assert (tissue.downsample, tissue.um_per_px) == (2.0, 8.0)
    assert find_tissue(pixels, um_per_px=30.0).downsample == 1.0


def test_a_pyramid_is_read_where_it_is_coarse():
    class Untouched:
        shape = (1800, 2400, 3)

        def __getitem__(self, window):
            raise AssertionError("the finest level was read")

    slide = SlideImage([Untouched(), he_image(density(BLOB))], [1.0, 4.0], um_per_px=UM / 4)
    tissue = find_tissue(slide)
    assert tissue.downsample == 8.0
    assert abs(tissue.share - BLOB.mean()) < 0.02


def test_other_methods():
    pixels = he_image(density(BLOB))
    assert find_tissue(pixels, um_per_px=UM, method="all").mask.all()
    assert abs(find_tissue(pixels, um_per_px=UM, method="squidpy").share - BLOB.mean()) < 0.05


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"um_per_px": None}, ScaleError, r"image array.*um_per_px="),
        ({"um_per_px": 0.0}, ScaleError, "positive"),
        ({"method": "otsu"}, InputError, r"'otsu'.*'stain', 'squidpy' or 'all'"),
        ({"resolution_um": -1.0}, InputError, "resolution_um"),
        ({"min_area_um2": float("nan")}, InputError, "min_area_um2"),
        ({"max_hole_um2": -1}, InputError, "max_hole_um2"),
        ({"image": np.zeros((5, 5), np.uint8)}, ImageError, "gray"),
    ],
)
def test_bad_input(options, error, message):
    options = {"image": np.zeros((5, 5, 3), np.uint8), "um_per_px": UM} | options
    with pytest.raises(error, match=message):
        find_tissue(options.pop("image"), **options)
