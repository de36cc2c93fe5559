"""What is stained tissue in a small picture of a slide, and what is glass, ink or dirt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold, threshold_otsu
from skimage.morphology import disk

Mask = npt.NDArray[np.bool_]
Field = npt.NDArray[np.float32]

_WINDOW_UM = 40.0
"""Side of the window in which colour and texture are seen: a few cells."""
_SMOOTH = 0.01
"""Glass varies less than this within a window, in optical density."""
_BLACK = 60
"""No glass is as dark as this: it is what was put around a scan."""
_THRESHOLDS = (0.018, 0.025)
"""Bounds of the score from which on a pixel is tissue: above what clean glass has, below what pale tissue has."""
_HYSTERESIS = 1.5
_SCORE_FLOOR = 0.003
"""Scores below this are noise; keeps their logarithms from ruling the threshold."""
_GREY, _PALE = 0.4, 0.3
"""Of pale places, those where green is absorbed by less than this share more than blue are grey: fiducials, shadows."""
_INK_SEEN = 0.3
"""Optical density from which on a colour can be told from tissue's."""
_INK_BLUE, _INK_BLUE_BROAD = 0.25, 0.19
"""Blue and green ink absorb red by this share more than green, in a window or around it; hematoxylin hardly does."""
_INK_GREY = 0.85
"""Of grey things the least absorbed colour is absorbed by this share of the most absorbed; H&E lets blue pass."""
_INK_DARK = 1.5
"""Optical density that no tissue has on average around a window: solid ink of any colour."""
_INK_REACH_UM = 100.0
"""How far from where it is sure a stroke is followed through pixels that may be its fringe."""
_INK_MARGIN_UM = 25.0


@dataclass(frozen=True, eq=False)
class Stained:
    """Pixels of a small picture of a slide.

    Parameters
    ----------
    tissue
        ``(h, w)``; not cleaned.
    grey
        ``(h, w)``: as textured as tissue, but of no clear colour: fiducials, shadows, and bleached tissue.
    ink
        ``(h, w)``: strokes of ink, and grey dirt.
    """

    tissue: Mask
    grey: Mask
    ink: Mask


def find_stained(pixels: npt.NDArray[np.uint8], um_per_px: float) -> Stained:
    """Tell stained tissue by its colour and its texture.

    Both dyes of H&E absorb green more than blue, which glass, dust, grey fiducials and the shadows of edges do not;
    and tissue differs from place to place, which smears of dye on the glass do not. A pixel's score is the geometric
    mean of the two, in optical density, so that pale tissue counts where it has texture.

    Parameters
    ----------
    pixels
        ``(h, w, 3)``.
    um_per_px
        Size of a pixel, µm.

    Returns
    -------
    Stained
        Tissue, and ink.
    """
    window = max(3, length_px(_WINDOW_UM, um_per_px, pixels.shape) | 1)
    light = np.maximum(pixels, 1).astype(np.float32)
    green = np.log(255.0 / light[..., 1])
    density = np.log(np.maximum(glass_color(pixels, deviation(green, window)), 1.0) / light).astype(np.float32)
    purple = density[..., 1] - density[..., 2]
    score = np.sqrt(np.maximum(mean_of(purple, window), 0.0) * deviation(purple, window))
    wide = 2 * window + 1
    depth = mean_of(density[..., 1], wide)
    grey = (mean_of(purple, wide) < _GREY * depth) & (depth < _PALE)
    threshold = _log_otsu(np.where(grey, 0, score), *_THRESHOLDS)
    tissue = apply_hysteresis_threshold(np.where(grey, 0, score), threshold, _HYSTERESIS * threshold)
    return Stained(tissue.astype(bool), grey & (score > threshold), _find_ink(density, window, um_per_px))


def length_px(um: float, um_per_px: float, shape: tuple[int, ...]) -> int:
    """Length in whole px, no longer than a picture's longer side: beyond it nothing is changed but the time it takes.

    Examples
    --------
    >>> from st_gchb.pp._stained import length_px
    >>> length_px(25.0, 8.0, (90, 70)), length_px(25.0, 1e-30, (90, 70))
    (3, 90)
    """
    return round(min(um / um_per_px, max(shape[:2])))


def mean_of(values: Field, window: int) -> Field:
    """Mean within a square window around each pixel."""
    return ndimage.uniform_filter(values, window, mode="reflect")


def deviation(values: Field, window: int) -> Field:
    """Standard deviation within a square window around each pixel."""
    mean = mean_of(values, window)
    return np.sqrt(np.maximum(mean_of(values * values, window) - mean * mean, 0.0))


def glass_color(pixels: npt.NDArray[np.uint8], texture: Field) -> npt.NDArray[np.float64]:
    """Colour of bare glass, ``(3,)``: the brightest common colour of places without texture.

    Where tissue fills the picture, the brightest pixels, as grey, stand for it.
    """
    flat = (texture < _SMOOTH) & (pixels.max(axis=2) > _BLACK)
    # White that was put around a scan is no glass; where there is little else, it is overexposed glass.
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
    """Climb from the bright end of the histogram to the first peak."""
    while start > 0 and counts[start - 1] >= counts[start]:
        start -= 1
    return start


def _log_otsu(score: Field, low: float, high: float) -> float:
    levels = np.log(score + _SCORE_FLOOR)
    if levels.max() - levels.min() < 1e-6:
        return high
    return float(np.clip(np.exp(threshold_otsu(levels)) - _SCORE_FLOOR, low, high))


def _find_ink(density: Field, window: int, um_per_px: float) -> Mask:
    """Strokes of ink, with their fringes."""
    red, green, blue = (mean_of(density[..., channel], window) for channel in range(3))
    most = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    broad_red, broad_green = (mean_of(density[..., channel], 2 * window + 1) for channel in (0, 1))
    bluish = (red - green > _INK_BLUE * green) | (broad_red - broad_green > _INK_BLUE_BROAD * broad_green)
    ink = (most > _INK_SEEN) & (bluish | (least > _INK_GREY * most))
    ink |= np.maximum(broad_red, broad_green) > _INK_DARK
    if not ink.any():
        return ink
    # Where a stroke fades, its colour comes nearer to tissue's: there it is followed, but not far.
    fringe = (most > 0.1) & ((red - green > 0.1 * green) | (least > 0.7 * most) | (most > 1.0))
    reach, margin = (max(1, length_px(um, um_per_px, ink.shape)) for um in (_INK_REACH_UM, _INK_MARGIN_UM))
    grown = ndimage.binary_dilation(ink, iterations=reach, mask=fringe | ink)
    return np.asarray(ndimage.binary_dilation(grown, disk(margin)), dtype=bool)
