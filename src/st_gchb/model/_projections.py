"""Linear projections of features to principal components, and the range of the reference's patch features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from st_gchb._components import components_of_few, of_few_spots, principal_components

_ROWS = 4096
"""Number of spots that are projected at once."""

_APPEARANCE = 32
"""Number of components of the patch features in which a query is compared with the reference's range."""

_PER_COMPONENT = 4
"""Fewest training spots per component: with as many components as spots, the last components have no variance and no
residual is left, so that every query would be infinitely far away, or none."""

_LEAST_REST = 0.02
"""Lower limit of the mean distance from the components' space, as a share of the mean distance from the center."""

_VARIES = 1e-3
"""Features whose standard deviation is below this share of the median one are switched off: division by it would only
amplify noise."""

_ROUNDING = 1e-6
"""The same limit as a share of the feature's own mean; rounding to float32 causes a tenth of it."""

_LEAST = 1e-30
"""Standard deviation up to which a feature does not vary: the inverse of a smaller one may not be a float32."""

_REAL = 1e-8
"""Variance of a component, as a share of the largest, up to which it is due to rounding."""


@dataclass(frozen=True)
class LinearProjection:
    """Affine projection ``(x - offset) @ matrix``, or ``(x - offset) * matrix`` if ``matrix`` has one dimension."""

    offset: np.ndarray
    matrix: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Project features to components, ``(n, n_out)``, float32."""

        def part(rows: slice) -> np.ndarray:
            centered = x[rows] - self.offset
            return np.asarray(centered * self.matrix if self.matrix.ndim == 1 else centered @ self.matrix)

        return by_rows(part, len(x), self.matrix.shape[-1])


class StandardFeatures:
    """Features of the training spots with mean 0 and standard deviation 1, for projections that are fitted on them.

    What several projections need is computed once.

    Parameters
    ----------
    x
        Features, ``(n_spots, n_features)``.
    """

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        self.offset = x.mean(0, dtype=np.float64)
        self.inverse = _inverse(self.offset, x.std(0, dtype=np.float64))

    @classmethod
    def of(cls, x: np.ndarray | StandardFeatures) -> StandardFeatures:
        """Standardize features, unless they are already."""
        return x if isinstance(x, StandardFeatures) else cls(x)

    @cached_property
    def values(self) -> np.ndarray:
        """Standardized features, ``(n_spots, n_features)``, float64."""
        values = self.x - self.offset
        values *= self.inverse
        return values

    @cached_property
    def inner(self) -> np.ndarray:
        """Inner products of the spots' standardized features, ``(n_spots, n_spots)``, float64."""
        return np.asarray(self.values @ self.values.T)


def _inverse(offset: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Compute the inverse standard deviation of each feature; 0 switches off features that hardly vary."""
    known = scale > np.maximum(_ROUNDING * np.abs(offset), _LEAST)
    typical = float(np.median(scale[known])) if known.any() else 0.0
    result = np.zeros_like(scale)
    np.divide(1.0, scale, out=result, where=known & (scale > _VARIES * typical))
    return result


def fit_map(
    x: np.ndarray | StandardFeatures,
    n_components: int | None,
    *,
    whitening: float,
    seed: int,
    parts: list[slice] | None = None,
    dtype: type[np.floating] = np.float64,
) -> LinearProjection:
    """Fit a standardization of each feature, followed by a projection to principal components, on training spots.

    Parameters
    ----------
    x
        Features of the training spots, ``(n_spots, n_features)``, or context features of one or several rings.
        Projections that are fitted on the same features share what is given as :class:`StandardFeatures`.
    n_components
        Number of components; ``None`` only standardizes.
    whitening
        Exponent of whitening: 0 keeps each component's variance, 1 makes all variances equal. If it is not 0, the mean
        variance of the components is 1.
    seed
        Seed of the solver.
    parts
        Columns of each encoder and patch size among the features; None for one of each. With several, each part gets
        the same total variance, so that an encoder of few features counts as much as one of many.
    dtype
        Type of the standardized features of many spots, of which the components are computed; with float32 they take
        half the time. Those of few spots are float64.
    """
    features = StandardFeatures.of(x)
    x, offset, inverse = features.x, features.offset, _balanced(features.inverse, parts)
    if n_components is None:
        return LinearProjection(offset.astype(np.float32), inverse.astype(np.float32))
    width = min(n_components, x.shape[1], len(x) - 1)
    if inverse is features.inverse and of_few_spots(x.shape, width):
        matrix, variance = components_of_few(features.values, features.inner, width, seed)
    else:
        standard = x - offset.astype(dtype)
        standard *= inverse.astype(dtype)
        matrix, variance = principal_components(standard, width, seed, copy=False)
    if whitening:
        weight = np.zeros_like(variance)
        real = variance > _REAL * variance.max(initial=0.0)
        np.power(variance, -whitening / 2, out=weight, where=real)
        matrix = matrix * weight / np.sqrt((np.maximum(variance, 1e-12) ** (1 - whitening)).mean())
    return LinearProjection(offset.astype(np.float32), (inverse[:, None] * matrix).astype(np.float32))


def _balanced(inverse: np.ndarray, parts: list[slice] | None) -> np.ndarray:
    """Scale inverse standard deviations so that all parts have the same total variance, and features 1 on average."""
    if parts is None or len(parts) == 1:
        return inverse
    # One row for each ring of neighbors. The variance of a standardized feature is 1, or 0 if it is switched off.
    result = inverse.reshape(-1, parts[-1].stop).copy()
    n_varying = np.array([np.count_nonzero(result[:, part]) for part in parts])
    mean = n_varying.sum() / max(np.count_nonzero(n_varying), 1)
    for part, n in zip(parts, n_varying, strict=True):
        result[:, part] *= np.sqrt(mean / max(n, 1))
    return result.ravel()


@dataclass(frozen=True)
class FeatureSpace:
    """Range of the reference's patch features, in which the position of a patch and its distance are measured.

    Parameters
    ----------
    offset, inverse
        Mean and inverse standard deviation of the training spots' features, ``(n_features,)``, the latter times the
        scale of the feature's part.
    components
        Principal directions, ``(n_features, n_components)``.
    scale
        Inverse standard deviations of the components, over the root of their number, ``(n_components,)``.
    rest
        Inverse of the training spots' mean distance from the components' space, over the same root, ``(1,)``; the
        distance of a patch is multiplied by it.
    """

    offset: np.ndarray
    inverse: np.ndarray
    components: np.ndarray
    scale: np.ndarray
    rest: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Compute whitened components and, as last column, the distance from their space, ``(n, n_components + 1)``.

        A stain that the reference lacks shifts patches in directions in which the reference does not vary, which the
        components alone would not show.
        """
        weight = np.sqrt(len(self.scale)) * self.rest

        def part(rows: slice) -> np.ndarray:
            standard = (x[rows] - self.offset) * self.inverse
            inside = standard @ self.components
            outside = np.linalg.norm(standard - inside @ self.components.T, axis=1, keepdims=True)
            return np.hstack([inside * self.scale, outside * weight])

        return by_rows(part, len(x), len(self.scale) + 1)


def fit_appearance(x: np.ndarray, seed: int, parts: list[slice] | None = None) -> FeatureSpace:
    """Fit a :class:`FeatureSpace` on the features of the training spots, ``(n_spots, n_features)``, in these parts."""
    plain = fit_map(x, None, whitening=0.0, seed=seed, parts=parts)
    standard = plain(x)
    width = max(1, min(_APPEARANCE, len(x) // _PER_COMPONENT, x.shape[1]))
    components, variance = principal_components(standard, width, seed, solver="auto")
    real = variance > _REAL * variance.max(initial=0.0)
    components, variance = components[:, real], variance[real]
    outside = np.linalg.norm(standard - (standard @ components) @ components.T, axis=1).mean()
    whole = np.linalg.norm(standard, axis=1).mean()
    rest = 1.0 / max(outside, _LEAST_REST * whole, np.finfo(np.float32).tiny)
    # Distances are averaged over components, since calibration folds have fewer spots and possibly fewer components.
    mean = 1.0 / np.sqrt(max(len(variance), 1))
    arrays = (plain.offset, plain.matrix, components, mean / np.sqrt(variance), np.array([mean * rest]))
    # Same memory layout as after loading a saved model: another order of summation changes the last digit.
    return FeatureSpace(*(np.ascontiguousarray(array, dtype=np.float32) for array in arrays))


def by_rows(part: Callable[[slice], np.ndarray], n_rows: int, width: int) -> np.ndarray:
    """Compute a result ``(n_rows, width)``, float32, in blocks of rows, to keep intermediate arrays small."""
    result = np.empty((n_rows, width), dtype=np.float32)
    for start in range(0, n_rows, _ROWS):
        rows = slice(start, min(start + _ROWS, n_rows))
        result[rows] = part(rows)
    return result
