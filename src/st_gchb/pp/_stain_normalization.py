"""Stain normalization: estimate the stain of a slide, and map the colors of patches from one stain to another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from st_gchb._arguments import PixelSize, checked
from st_gchb._compat import squidpy_stain
from st_gchb._errors import InputError, StainError
from st_gchb._options import StainMethod
from st_gchb.io import open_image
from st_gchb.pp.spots import Slice
from st_gchb.pp.tissue import find_tissue

_NUMBERS = {"macenko": 8, "vahadane": 8, "reinhard": 6}
_VERSION = 1
"""Part of the key of cached features; increased whenever a stain and its target give another color map."""
_FEWEST_PX = 200
"""Minimum number of tissue pixels from which a stain is estimated."""
_WHITE = math.log(256.0)

# Cone responses, and axes of lightness and color of their logarithms (Ruderman et al. 1998, Reinhard et al. 2001).
_CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_AXES = np.diag([1 / 3**0.5, 1 / 6**0.5, 1 / 2**0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])

Matrix = npt.NDArray[np.float64]


@checked
@dataclass(frozen=True)
class Stain:
    """Stain of a slide, to which other slides can be normalized.

    Parameters
    ----------
    method
        ``"macenko"`` or ``"vahadane"``: colors and amounts of hematoxylin and eosin. ``"reinhard"``: mean and standard
        deviation of lightness and color.
    numbers
        Optical densities of hematoxylin and of eosin in R, G and B, as vectors of length 1, and the 99 % quantiles of
        their amounts (8 numbers); for ``"reinhard"`` three means and three standard deviations.

    Examples
    --------
    >>> from st_gchb.pp import Stain
    >>> Stain("reinhard", (8.6, -0.1, 0.0, 0.5, 0.05, 0.02)).method
    'reinhard'
    """

    method: StainMethod
    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.numbers) != _NUMBERS[self.method] or not np.isfinite(self.numbers).all():
            raise InputError(
                f"a {self.method!r} stain of {len(self.numbers)} numbers, {self.numbers}; expected "
                f"{_NUMBERS[self.method]} finite ones, as pp.fit_stain gives them."
            )


@dataclass(frozen=True, eq=False)
class Recolor:
    """Color map that is affine in the logarithm of linear combinations of the channels.

    A pixel ``x`` becomes ``basis^-1 (exp(matrix log(basis x + 1) + offset) - 1)``.

    Parameters
    ----------
    basis
        Linear combinations of R, G and B, ``(3, 3)``.
    matrix, offset
        The affine map of their logarithms, ``(3, 3)`` and ``(3,)``.
    """

    basis: Matrix
    matrix: Matrix
    offset: Matrix

    def __call__(self, patches: Tensor) -> Tensor:
        """Apply the map to patches, ``(n, 3, height, width)`` uint8 on any device."""
        basis, back, matrix, offset = (
            torch.as_tensor(values, dtype=torch.float32, device=patches.device)
            for values in (self.basis, np.linalg.inv(self.basis), self.matrix, self.offset)
        )
        seen = torch.log1p(torch.einsum("ij,bjhw->bihw", basis, patches.float()))
        moved = torch.expm1(torch.einsum("ij,bjhw->bihw", matrix, seen) + offset.view(1, 3, 1, 1))
        return torch.einsum("ij,bjhw->bihw", back, moved).round().clamp(0, 255).to(torch.uint8)


@checked
def fit_stain(image: Any, *, method: StainMethod = "macenko", um_per_px: PixelSize | None = None) -> Stain:
    """Estimate the stain of a slide from the tissue on a thumbnail, with squidpy's ``fit_stain_reference``.

    Parameters
    ----------
    image
        Image, as in :func:`st_gchb.io.open_image`.
    method
        ``"macenko"`` or ``"vahadane"`` separate hematoxylin and eosin; ``"reinhard"`` describes the colors as a
        whole.
    um_per_px
        Size of a pixel of the finest level, µm, if the file does not record it.

    Returns
    -------
    Stain
        The stain, which :func:`embed_patches` takes as ``stain_norm``.

    Raises
    ------
    StainError
        The slide has no tissue, or its colors are not those of hematoxylin and eosin.
    ScaleError
        The size of a pixel is not known, and tissue cannot be detected without it.
    InputError
        ``method`` is unknown.

    Examples
    --------
    >>> import st_gchb
    >>> slide = st_gchb.datasets.synthetic_tissue(1, n_rows=8, n_cols=8, n_genes=20).uns["spatial"]["S1"]
    >>> st_gchb.pp.fit_stain(slide["images"]["hires"], um_per_px=1.0).method
    'macenko'
    """
    slide = open_image(image, um_per_px)
    found = find_tissue(slide)
    if found.thumbnail is None or found.mask.sum() < _FEWEST_PX:
        raise StainError(
            f"{slide.name}: found {int(found.mask.sum())} px of tissue in an image of {found.um_per_px:.3g} µm per "
            f"px; expected at least {_FEWEST_PX} to tell the stain by. Look at pp.find_tissue's mask: is it H&E?"
        )
    try:
        numbers = squidpy_stain(found.thumbnail, found.mask, method)
    except RuntimeError as error:
        reason = str(error).removeprefix("[slide] ").rstrip(".")
        raise StainError(
            f"{slide.name}: its colors are not those of hematoxylin and eosin ({reason}). Leave the slide out, or "
            "work without stain_norm."
        ) from error
    # Rounded to float32, as files store them, so that a stored stain equals the one that was applied.
    return Stain(method, tuple(float(np.float32(number)) for number in numbers))


def normalizing(source: Stain, target: Stain) -> Recolor:
    """Compute the color map from one stain to another one of the same method."""
    numbers, aims = np.array(source.numbers), np.array(target.numbers)
    if source.method == "reinhard":
        axes, back = _AXES, np.linalg.inv(_AXES)
        scale = np.diag(aims[3:] / np.maximum(numbers[3:], 1e-6))
        return Recolor(_CONES, back @ scale @ axes, back @ (aims[:3] - scale @ numbers[:3]))
    ratio = np.append(aims[6:] / np.maximum(numbers[6:], 1e-6), 1.0)
    return _of_densities(_dyes(aims) @ np.diag(ratio) @ np.linalg.inv(_dyes(numbers)))


def stain_of(slide: Slice, method: StainMethod) -> Stain:
    """Estimate the stain of the whole image of a slice, independent of its spots; errors as in :func:`fit_stain`."""
    return fit_stain(slide.image, method=method, um_per_px=slide.um_per_px)


def stain_record(stain: Stain) -> list[Any]:
    """Return the part of the key of cached features that identifies normalization to a stain."""
    # The last entry was for the amounts of the dyes; it stays, so that the keys of existing caches remain valid.
    return [_VERSION, [stain.method, *stain.numbers], None]


def _of_densities(matrix: Matrix) -> Recolor:
    """Convert a linear map of optical densities, ``log(256 / (x + 1))``, to a color map."""
    return Recolor(np.eye(3), matrix, _WHITE * (1.0 - matrix.sum(1)))


def _dyes(numbers: Matrix) -> Matrix:
    """Return optical densities of hematoxylin, eosin and a third, orthogonal component as columns, ``(3, 3)``."""
    hematoxylin, eosin = numbers[:3], numbers[3:6]
    rest = np.cross(hematoxylin, eosin)
    return np.column_stack([hematoxylin, eosin, rest / np.linalg.norm(rest)])
