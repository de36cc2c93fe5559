"""The stain of a slide in a few numbers, and maps that move the colors of patches from one stain to another."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from skimage.color import rgb_from_hed
from torch import Tensor

from st_gchb._arguments import PixelSize, checked
from st_gchb._compat import squidpy_stain
from st_gchb._errors import InputError, StainError
from st_gchb.io import open_image
from st_gchb.pp.spots import Slice
from st_gchb.pp.tissue import find_tissue

StainMethod = Literal["macenko", "vahadane", "reinhard"]

_NUMBERS = {"macenko": 8, "vahadane": 8, "reinhard": 6}
_VERSION = 1
"""To be raised whenever the same stain and target come to another map: part of the key of cached features."""
_FEWEST_PX = 200
"""Pixels of tissue from which a stain can be told."""
_JITTER = 1.4
"""The amount of a dye is multiplied or divided by this at most."""
_WHITE = math.log(256.0)

# Cone responses, and the axes of lightness and color of their logarithms (Ruderman et al. 1998, Reinhard et al. 2001).
_CONES = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_AXES = np.diag([1 / 3**0.5, 1 / 6**0.5, 1 / 2**0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])

Matrix = npt.NDArray[np.float64]


@checked
@dataclass(frozen=True)
class Stain:
    """The stain of a slide, to which others can be normalized.

    Parameters
    ----------
    method
        ``"macenko"`` or ``"vahadane"``: the colors of hematoxylin and eosin and how much of each there is.
        ``"reinhard"``: mean and spread of lightness and color.
    numbers
        Optical densities of hematoxylin and of eosin in R, G, B, each of length 1, and the 99 % quantiles of their
        amounts (8 numbers); for ``"reinhard"`` three means and three standard deviations.

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
    """A map of colors, affine in the logarithm of what a basis of colors sees.

    Of the pixels ``x`` it makes ``basis^-1 (exp(matrix log(basis x + 1) + offset) - 1)``.

    Parameters
    ----------
    basis, matrix
        ``(3, 3)``.
    offset
        ``(3,)``.
    """

    basis: Matrix
    matrix: Matrix
    offset: Matrix

    def __call__(self, patches: Tensor) -> Tensor:
        """Recolor patches, ``(b, 3, h, w)`` uint8 on any device."""
        basis, back, matrix, offset = (
            torch.as_tensor(values, dtype=torch.float32, device=patches.device)
            for values in (self.basis, np.linalg.inv(self.basis), self.matrix, self.offset)
        )
        seen = torch.log1p(torch.einsum("ij,bjhw->bihw", basis, patches.float()))
        moved = torch.expm1(torch.einsum("ij,bjhw->bihw", matrix, seen) + offset.view(1, 3, 1, 1))
        return torch.einsum("ij,bjhw->bihw", back, moved).round().clamp(0, 255).to(torch.uint8)


@checked
def fit_stain(image: Any, *, method: StainMethod = "macenko", um_per_px: PixelSize | None = None) -> Stain:
    """Measure the stain of a slide on the tissue of a picture of low resolution.

    The fit is squidpy's ``fit_stain_reference``.

    Parameters
    ----------
    image
        As :func:`st_gchb.io.open_image` takes it.
    method
        ``"macenko"`` or ``"vahadane"`` separate hematoxylin and eosin, ``"reinhard"`` describes colors as a whole.
    um_per_px
        Size of a pixel of the finest level, µm, where the file does not say so.

    Returns
    -------
    Stain
        To be passed to :func:`embed_patches` as ``stain_norm``.

    Raises
    ------
    StainError
        No tissue was found, or its colors are not those of hematoxylin and eosin.
    ScaleError
        The size of a pixel is not known, so tissue cannot be found.
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
            f"{slide.name}: found {int(found.mask.sum())} px of tissue in a picture of {found.um_per_px:.3g} µm per "
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
    # As the files hold them: a stain that was stored is the stain that was used.
    return Stain(method, tuple(float(np.float32(number)) for number in numbers))


def normalizing(source: Stain, target: Stain) -> Recolor:
    """Get the map from one stain to another of the same method."""
    numbers, aims = np.array(source.numbers), np.array(target.numbers)
    if source.method == "reinhard":
        axes, back = _AXES, np.linalg.inv(_AXES)
        scale = np.diag(aims[3:] / np.maximum(numbers[3:], 1e-6))
        return Recolor(_CONES, back @ scale @ axes, back @ (aims[:3] - scale @ numbers[:3]))
    ratio = np.append(aims[6:] / np.maximum(numbers[6:], 1e-6), 1.0)
    return _of_densities(_dyes(aims) @ np.diag(ratio) @ np.linalg.inv(_dyes(numbers)))


def restained(factors: Sequence[float]) -> Recolor:
    """Get the map that multiplies the amounts of hematoxylin, eosin and the rest by factors.

    Examples
    --------
    >>> import torch
    >>> from st_gchb.pp._stain_normalization import restained
    >>> restained([1.0, 1.0, 1.0])(torch.full((1, 3, 1, 1), 90, dtype=torch.uint8)).flatten().tolist()
    [90, 90, 90]
    """
    dyes = np.asarray(rgb_from_hed, dtype=np.float64).T
    return _of_densities(dyes @ np.diag(np.asarray(factors, dtype=np.float64)) @ np.linalg.inv(dyes))


def jitter_factors(name: str, version: int, seed: int) -> tuple[float, ...]:
    """Draw how much more or less of each dye a slice has in a version, whatever the order of the slices."""
    rng = np.random.default_rng([seed, version, zlib.crc32(name.encode())])
    return tuple(np.exp(rng.uniform(-math.log(_JITTER), math.log(_JITTER), 3)).tolist())


@dataclass(frozen=True, eq=False)
class Restain:
    """What is done to the colors of a slice's patches before the encoder.

    Parameters
    ----------
    target
        Stain to which the slice is normalized.
    factors
        Amounts of the dyes, relative to what they are after that.
    """

    target: Stain | None = None
    factors: tuple[float, ...] | None = None

    @property
    def identity(self) -> list[Any]:
        """What tells the colors from those of any other treatment: part of the key of cached features."""
        target = None if self.target is None else [self.target.method, *self.target.numbers]
        return [_VERSION, target, None if self.factors is None else list(self.factors)]

    def maps(self, slide: Slice) -> list[Recolor]:
        """Fit the maps that patches go through; errors as :func:`fit_stain`."""
        maps = []
        if self.target is not None:
            maps.append(normalizing(stain_of(slide, self.target.method), self.target))
        if self.factors is not None:
            maps.append(restained(self.factors))
        return maps


def stain_of(slide: Slice, method: StainMethod) -> Stain:
    """Measure the stain of a slice's whole image, whichever spots it has; errors as :func:`fit_stain`."""
    return fit_stain(slide.image, method=method, um_per_px=slide.um_per_px)


def _of_densities(matrix: Matrix) -> Recolor:
    """Turn a map of optical densities, ``log(256 / (x + 1))``, into one of logarithms."""
    return Recolor(np.eye(3), matrix, _WHITE * (1.0 - matrix.sum(1)))


def _dyes(numbers: Matrix) -> Matrix:
    """Hematoxylin, eosin, and what is neither, in the columns."""
    hematoxylin, eosin = numbers[:3], numbers[3:6]
    rest = np.cross(hematoxylin, eosin)
    return np.column_stack([hematoxylin, eosin, rest / np.linalg.norm(rest)])
