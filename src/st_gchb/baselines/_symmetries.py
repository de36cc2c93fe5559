"""Symmetries of the square, by which patches are turned and mirrored: tissue has no preferred direction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

N_SYMMETRIES = 8
"""Number of symmetries of the square: four turns, with and without a reflection."""


def transformed(patches: Pixels, number: int) -> Pixels:
    """Apply one of the eight symmetries to patches.

    Parameters
    ----------
    patches
        Square patches, ``(n, px, px, 3)``.
    number
        Number of the symmetry, 0 to 7: quarter turns, which from 4 on follow a reflection. 0 changes nothing.

    Returns
    -------
    numpy.ndarray
        View of the patches, ``(n, px, px, 3)``.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.baselines import transformed
    >>> transformed(np.arange(4).reshape(1, 2, 2, 1), 4)[0, :, :, 0]
    array([[1, 0],
           [3, 2]])
    """
    reflected = patches[:, :, ::-1] if number >= N_SYMMETRIES // 2 else patches
    return np.rot90(reflected, number % 4, axes=(1, 2))


def randomly_transformed(patches: Pixels, rng: np.random.Generator) -> Pixels:
    """Apply to each patch a symmetry of its own, drawn uniformly, ``(n, px, px, 3)``."""
    result = np.empty_like(patches)
    numbers = rng.integers(N_SYMMETRIES, size=len(patches))
    for number in np.unique(numbers):
        own = numbers == number
        result[own] = transformed(patches[own], int(number))
    return result
