"""Sections in other stains, computed from the amounts of their dyes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from skimage.color import hed2rgb, rgb2hed, rgb_from_hed

_BROWN = 4.0
"""Amount of brown per amount of eosin. With less, the section would look like a pale hematoxylin stain."""

_STRIP = 512
"""Rows of an image that are recolored at a time, px."""


def recolored(image: np.ndarray) -> np.ndarray:
    """Replace the eosin of a section by diaminobenzidine, the brown of immunohistochemistry.

    Parameters
    ----------
    image
        H&E, uint8, ``(height, width, 3)``.

    Returns
    -------
    numpy.ndarray
        The section in hematoxylin and brown, uint8, ``(height, width, 3)``.
    """
    result = np.empty_like(image)
    for start in range(0, len(image), _STRIP):
        stains = rgb2hed(image[start : start + _STRIP])
        stains[..., 2] = _BROWN * stains[..., 1]
        stains[..., 1] = 0.0
        result[start : start + _STRIP] = np.round(255 * np.clip(hed2rgb(stains), 0, 1)).astype(np.uint8)
    return result


def restained(image: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """Multiply the amounts of hematoxylin, eosin and the third component of a section.

    Parameters
    ----------
    image
        H&E, uint8, ``(height, width, 3)``.
    factors
        Three factors.

    Returns
    -------
    numpy.ndarray
        The section with other amounts of its dyes, uint8, ``(height, width, 3)``.
    """
    dyes = np.asarray(rgb_from_hed, dtype=np.float64)
    change = np.linalg.inv(dyes) @ np.diag(np.asarray(factors, dtype=np.float64)) @ dyes
    result = np.empty_like(image)
    for start in range(0, len(image), _STRIP):
        density = np.log(256.0 / (image[start : start + _STRIP] + 1.0))
        pixels = 256.0 * np.exp(-density @ change) - 1.0
        result[start : start + _STRIP] = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return result
