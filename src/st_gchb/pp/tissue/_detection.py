"""Tissue detection: a mask of the stained tissue on an H&E slide, from its color and texture at low resolution.

:func:`find_stained` classifies pixels as tissue, ink or gray; :func:`find_tissue` applies it to a whole slide and
cleans the mask.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold, threshold_otsu
from skimage.morphology import disk, isotropic_closing, isotropic_opening

from st_gchb._advice import Fix, advise
from st_gchb._arguments import Area, Micrometers, PixelSize, checked
from st_gchb._compat import squidpy_tissue
from st_gchb._errors import ScaleError
from st_gchb._options import DEFAULT_TISSUE, TissueMethod
from st_gchb.io import SlideImage, open_image
from st_gchb.io.images import shrink

Mask = npt.NDArray[np.bool_]
Field = npt.NDArray[np.float32]

_WINDOW_UM = 40.0
"""Side of the window in which color and texture are measured, µm: a few cells."""
_SMOOTH = 0.01
"""Largest standard deviation of optical density within a window of bare glass."""
_BLACK = 60
"""Gray level up to which smooth areas are padding around the scan; glass is brighter."""
_THRESHOLDS = (0.018, 0.025)
"""Bounds of the threshold on the score of a pixel: above the scores of clean glass, below those of pale tissue."""
_HYSTERESIS = 1.5
_SCORE_FLOOR = 0.003
"""Offset added before the logarithm, so that noise below it does not dominate Otsu's threshold."""
_GRAY, _PALE = 0.4, 0.3
"""A pixel whose excess of green over blue absorption is below the first fraction of its green absorption is gray
(fiducials, shadows), if its optical density is below the second value."""
_INK_SEEN = 0.3
"""Optical density above which the color of ink can be distinguished from that of tissue."""
_INK_BLUE, _INK_BLUE_BROAD = 0.25, 0.19
"""Relative excess of red over green absorption of blue and green ink, within a window and within one of twice its side;
hematoxylin has almost none."""
_INK_GRAY = 0.85
"""Ratio of least to most absorbed channel above which a dark pixel is gray; H&E transmits blue."""
_INK_DARK = 1.5
"""Mean optical density around a pixel above which it is solid ink, of any color; tissue does not reach it."""
_INK_REACH_UM = 100.0
"""Distance up to which a stroke of ink is extended through pixels that may be its fringe, µm."""
_INK_MARGIN_UM = 25.0


@dataclass(frozen=True, eq=False)
class Stained:
    """Classes of the pixels of a low-resolution image of a slide.

    Parameters
    ----------
    tissue
        Mask of tissue, ``(h, w)``, before cleaning.
    gray
        Mask of pixels with the texture of tissue but no clear color, ``(h, w)``: fiducials, shadows, bleached tissue.
    ink
        Mask of ink and gray dirt, ``(h, w)``.
    """

    tissue: Mask
    gray: Mask
    ink: Mask


def find_stained(pixels: npt.NDArray[np.uint8], um_per_px: float) -> Stained:
    """Classify pixels as stained tissue, gray or ink by their color and texture.

    Both dyes of H&E absorb green more than blue, unlike glass, dust, gray fiducials and the shadows of edges. Tissue is
    textured, unlike smears of dye on the glass. The score of a pixel is the geometric mean of these two quantities, in
    optical density, so that pale tissue is found if it has texture.

    Parameters
    ----------
    pixels
        RGB image, ``(h, w, 3)``.
    um_per_px
        Size of a pixel, µm.

    Returns
    -------
    Stained
        Masks of tissue, gray and ink.
    """
    window = max(3, length_px(_WINDOW_UM, um_per_px, pixels.shape) | 1)
    light = np.maximum(pixels, 1).astype(np.float32)
    green = np.log(255.0 / light[..., 1])
    density = np.log(np.maximum(glass_color(pixels, deviation(green, window)), 1.0) / light).astype(np.float32)
    purple = density[..., 1] - density[..., 2]
    score = np.sqrt(np.maximum(mean_of(purple, window), 0.0) * deviation(purple, window))
    wide = 2 * window + 1
    depth = mean_of(density[..., 1], wide)
    gray = (mean_of(purple, wide) < _GRAY * depth) & (depth < _PALE)
    threshold = _log_otsu(np.where(gray, 0, score), *_THRESHOLDS)
    tissue = apply_hysteresis_threshold(np.where(gray, 0, score), threshold, _HYSTERESIS * threshold)
    return Stained(tissue.astype(bool), gray & (score > threshold), _find_ink(density, window, um_per_px))


def length_px(um: float, um_per_px: float, shape: tuple[int, ...]) -> int:
    """Convert a length to whole px, at most the longer side of the image.

    A longer window would change no result, only the running time.

    Examples
    --------
    >>> from st_gchb.pp.tissue._detection import length_px
    >>> length_px(25.0, 8.0, (90, 70)), length_px(25.0, 1e-30, (90, 70))
    (3, 90)
    """
    return round(min(um / um_per_px, max(shape[:2])))


def mean_of(values: Field, window: int) -> Field:
    """Compute the mean within a square window around each pixel, ``(h, w)``."""
    return ndimage.uniform_filter(values, window, mode="reflect")


def deviation(values: Field, window: int) -> Field:
    """Compute the standard deviation within a square window around each pixel, ``(h, w)``."""
    mean = mean_of(values, window)
    return np.sqrt(np.maximum(mean_of(values * values, window) - mean * mean, 0.0))


def glass_color(pixels: npt.NDArray[np.uint8], texture: Field) -> npt.NDArray[np.float64]:
    """Estimate the color of bare glass.

    It is the brightest common color of areas without texture. If tissue fills the image, it is the gray level of the
    brightest pixels.

    Parameters
    ----------
    pixels
        RGB image, ``(h, w, 3)``.
    texture
        Standard deviation of optical density around each pixel, ``(h, w)``.

    Returns
    -------
    numpy.ndarray
        Color, ``(3,)``, in 0 to 255.
    """
    flat = (texture < _SMOOTH) & (pixels.max(axis=2) > _BLACK)
    # Pure white is padding around the scan, unless almost all smooth pixels are white: then the glass is overexposed.
    bare = flat & (pixels < 255).any(axis=2)
    smooth = pixels[bare if bare.sum() > 0.2 * flat.sum() else flat]
    if len(smooth) < 0.01 * texture.size:
        return np.full(3, np.percentile(pixels.reshape(-1, 3), 99.5))
    brightness = smooth.mean(axis=1)
    counts = ndimage.uniform_filter1d(np.bincount(brightness.astype(np.int64), minlength=256).astype(float), 5)
    common = np.flatnonzero(counts >= 0.25 * counts.max())
    peak = _peak_before(counts, int(common[-1]))
    near = np.abs(brightness - peak) <= 4
    return np.asarray(np.median(smooth[near], axis=0), dtype=np.float64)


def _peak_before(counts: npt.NDArray[np.float64], start: int) -> int:
    """Find the first peak of the histogram at or below a gray level."""
    while start > 0 and counts[start - 1] >= counts[start]:
        start -= 1
    return start


def _log_otsu(score: Field, low: float, high: float) -> float:
    levels = np.log(score + _SCORE_FLOOR)
    if levels.max() - levels.min() < 1e-6:
        return high
    return float(np.clip(np.exp(threshold_otsu(levels)) - _SCORE_FLOOR, low, high))


def _find_ink(density: Field, window: int, um_per_px: float) -> Mask:
    """Find strokes of ink, including their fringes, ``(h, w)``."""
    red, green, blue = (mean_of(density[..., channel], window) for channel in range(3))
    most = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    broad_red, broad_green = (mean_of(density[..., channel], 2 * window + 1) for channel in (0, 1))
    bluish = (red - green > _INK_BLUE * green) | (broad_red - broad_green > _INK_BLUE_BROAD * broad_green)
    ink = (most > _INK_SEEN) & (bluish | (least > _INK_GRAY * most))
    ink |= np.maximum(broad_red, broad_green) > _INK_DARK
    if not ink.any():
        return ink
    # The color of a fading stroke approaches that of tissue, so looser criteria apply close to certain ink only.
    fringe = (most > 0.1) & ((red - green > 0.1 * green) | (least > 0.7 * most) | (most > 1.0))
    reach, margin = (max(1, length_px(um, um_per_px, ink.shape)) for um in (_INK_REACH_UM, _INK_MARGIN_UM))
    grown = ndimage.binary_dilation(ink, iterations=reach, mask=fringe | ink)
    return np.asarray(ndimage.binary_dilation(grown, disk(margin)), dtype=bool)


_LONGEST_PX = 3000
"""Longest side of the image in which tissue is detected, px."""
_GAP_UM = 25.0
"""Radius of the morphological closing, µm: gaps narrower than twice this count as tissue."""
_FRAGMENT_UM = 12.0


@dataclass(frozen=True, eq=False)
class Tissue:
    """A mask of tissue at a known scale.

    Parameters
    ----------
    mask
        Mask ``(h, w)``, True on tissue.
    downsample
        px of the slide's finest level per px of the mask.
    um_per_px
        Size of a px of the mask, µm.
    thumbnail
        Image in which the tissue was detected, ``(h, w, 3)`` uint8; None for a mask from another source.
    """

    mask: Mask
    downsample: float
    um_per_px: float
    thumbnail: npt.NDArray[np.uint8] | None = None

    @property
    def share(self) -> float:
        """Fraction of the slide that is tissue."""
        return float(self.mask.mean())

    def at(self, points_px: npt.NDArray[np.float64]) -> Mask:
        """Look up which points lie on tissue.

        Parameters
        ----------
        points_px
            Points ``(..., 2)`` as x, y in px of the slide's finest level.

        Returns
        -------
        numpy.ndarray
            Bool ``(...)``, True for points on tissue; False outside the slide.
        """
        height, width = self.mask.shape
        cells = np.floor(np.asarray(points_px) / self.downsample).astype(np.int64)
        x, y = cells[..., 0], cells[..., 1]
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        return inside & self.mask[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]


@checked
def find_tissue(
    image: Any,
    *,
    um_per_px: PixelSize | None = None,
    method: TissueMethod = DEFAULT_TISSUE,
    resolution_um: Micrometers = 8.0,
    min_area_um2: Area = 40_000.0,
    max_hole_um2: Area = 20_000.0,
) -> Tissue:
    """Find the tissue of an H&E slide in an image of low resolution.

    Glass, smears of dye, dust, gray fiducials and ink are excluded, except for light red ink, which has the color of
    blood.

    Parameters
    ----------
    image
        Slide as :func:`st_gchb.io.open_image` takes it.
    um_per_px
        Size of a pixel of the finest level, µm, if the file does not state it.
    method
        ``"stain"``: by color and texture. ``"squidpy"``: squidpy's ``detect_tissue``, which thresholds brightness.
        ``"all"``: the whole slide.
    resolution_um
        Size of a pixel of the image in which tissue is detected, µm. It is coarser for slides whose image would be
        longer than 3,000 px, and for slides that are themselves coarser.
    min_area_um2
        Smallest area of a piece of tissue, µm².
    max_hole_um2
        Area below which holes count as tissue, µm².

    Returns
    -------
    Tissue
        Mask of the tissue, all False if there is none. Regions that cannot be decoded are excluded, with a warning.

    Raises
    ------
    ScaleError
        The size of a pixel is not known.
    ImageError, MissingFileError
        The image cannot be used.
    InputError
        An argument is not a positive number, or ``method`` is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.pp import find_tissue
    >>> slide = np.full((200, 200, 3), 240, dtype=np.uint8)
    >>> slide[50:150, 50:150] = np.random.default_rng(0).integers((120, 60, 130), (200, 140, 200), (100, 100, 3))
    >>> 0.2 < find_tissue(slide, um_per_px=8.0).share < 0.3
    True
    """
    slide = open_image(image, um_per_px)
    size = pixel_size(slide)
    # Bounded as a float before the conversion to int, which overflows for extremely fine resolutions.
    longest = max(1, math.ceil(min(_LONGEST_PX, max(slide.shape_px) * size / resolution_um)))
    pixels, scale, damaged = shrink(slide, longest)
    if isinstance(image, str | os.PathLike):
        slide.release()
    coarse = size / scale
    if method == "all":
        mask = np.ones(pixels.shape[:2], dtype=bool)
    elif method == "squidpy":
        mask = squidpy_tissue(pixels)
    else:
        mask = _clean(pixels, coarse, min_area_um2, max_hole_um2)
    # Cleaning may have filled regions that cannot be decoded from the tissue around them.
    mask = mask & ~damaged
    return Tissue(mask, 1.0 / scale, coarse, pixels)


def pixel_size(slide: SlideImage) -> float:
    """Return the size of a pixel of the finest level, µm.

    Raises
    ------
    ScaleError
        The size is not known.
    """
    if slide.um_per_px is None:
        raise ScaleError(
            f"{slide.name}: the size of a pixel is not known, so µm cannot be turned into px. "
            + advise(
                Fix(
                    "um_per_px",
                    why="with the size of a pixel of the full-resolution image in µm, as the scanner's software shows "
                    "it (a scan at 20x has about 0.5, at 40x about 0.25)",
                ),
                otherwise="Set uns['spatial'][slice]['scalefactors']['microns_per_pixel'] to it.",
            )
        )
    return slide.um_per_px


def _clean(pixels: npt.NDArray[np.uint8], um_per_px: float, min_area_um2: float, max_hole_um2: float) -> Mask:
    """Detect tissue and clean the mask: close gaps, remove small pieces and ink, fill holes."""
    found = find_stained(pixels, um_per_px)
    # Mirrored padding, so that the opening does not erode tissue that is cut by the edge of the image.
    longest = max(pixels.shape[:2])
    gap, fragment = (min(um / um_per_px, longest) for um in (_GAP_UM, _FRAGMENT_UM))
    pad = math.ceil(gap) + 1
    mask = np.pad(found.tissue & ~found.ink, pad, mode="symmetric")
    mask = isotropic_closing(mask, gap)
    mask = isotropic_opening(mask, fragment)[pad:-pad, pad:-pad]
    area_px = um_per_px**2
    mask = _fill_holes(mask, max_hole_um2 / area_px, found.gray) & ~found.ink
    pieces, sizes = _pieces(mask)
    return np.asarray((sizes >= min_area_um2 / area_px)[pieces] & mask, dtype=bool)


def _fill_holes(mask: Mask, area_px: float, gray: Mask) -> Mask:
    """Fill small holes, and holes that are mostly gray: bleached tissue surrounded by tissue."""
    pieces, sizes = _pieces(~mask)
    bleached = np.bincount(pieces.ravel(), weights=gray.ravel(), minlength=len(sizes)) > 0.5 * sizes
    return mask | ((sizes < area_px) | bleached)[pieces]


def _pieces(mask: Mask) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Label connected pieces of a mask, and count the px of each label."""
    pieces, n = ndimage.label(mask)
    return pieces, np.bincount(pieces.ravel(), minlength=n + 1)
