"""Several images of one slide: which is the same picture, and which is the finest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from shapely import Polygon

from st_gchb._errors import ImageError
from st_gchb.io import SlideImage, open_image

_OVERLAP = 0.9
"""Share of their union that images of one picture have in common."""
_COLOUR = 20.0
"""Mean colours that differ by more than this, of 255, are of different pictures."""
_WINDOWS, _WINDOW_PX = 8, 32


@dataclass(frozen=True, eq=False)
class Footprint:
    """What an image covers.

    Parameters
    ----------
    area
        Outline in a coordinate system.
    px
        Size of a pixel there.
    colour
        Mean colour of a sample of its pixels, ``(3,)``.
    """

    area: Polygon
    px: float
    colour: npt.NDArray[np.float64]


def footprint(element: Any, affine: npt.NDArray[np.float64]) -> Footprint | None:
    """Footprint of an image element by its affine matrix, 3 x 3; None for one that cannot be H&E."""
    try:
        image = open_image(element)
    except ImageError:
        return None
    height, width = image.shape_px
    corners = np.array([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]], dtype=np.float64)
    px = float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
    return Footprint(Polygon((corners @ affine.T)[:, :2]), px, _mean_colour(image))


def finest(footprints: Mapping[str, Footprint | None]) -> str | None:
    """Name of the finest of these images; None where they are no one picture at several resolutions."""
    images = {name: one for name, one in footprints.items() if one is not None}
    if not images:
        return None
    first, *others = sorted(images, key=lambda name: images[name].px)
    best = images[first]
    # Two different pictures of one place, such as two stains, often have pixels of one size.
    same = all(images[name].px > 1.01 * best.px and _alike(best, images[name]) for name in others)
    return first if same else None


def _alike(one: Footprint, other: Footprint) -> bool:
    union = one.area.union(other.area).area
    # Nothing is common to a picture without an extent, or one without an end.
    common = one.area.intersection(other.area).area / union if 0 < union < np.inf else 0.0
    return bool(common >= _OVERLAP and np.abs(one.colour - other.colour).max() <= _COLOUR)


def _mean_colour(image: SlideImage) -> npt.NDArray[np.float64]:
    """Mean colour of small windows, at the same places of every image, in its coarsest level."""
    level = len(image.levels) - 1
    height, width = image.level_shape(level)
    places = (np.arange(_WINDOWS) + 0.5) / _WINDOWS
    means = []
    for y in (places * height).astype(int) - _WINDOW_PX // 2:
        for x in (places * width).astype(int) - _WINDOW_PX // 2:
            means.append(image.read(level, y, y + _WINDOW_PX, x, x + _WINDOW_PX).reshape(-1, 3).mean(0))
    return np.asarray(np.mean(means, axis=0), dtype=np.float64)
