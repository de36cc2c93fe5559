"""Fixed input maps: features to components, and what is seen of a patch and its surroundings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA

_ROWS = 4096
"""Spots that are mapped at once."""

_APPEARANCE = 32
"""Components of the patch features in which a query is compared with the reference's range."""

_PER_COMPONENT = 4
"""Training spots for each of these components at least: of as many components as spots, the last have no variance
and nothing is left outside of them, so that every query would lie infinitely far away, or none."""

_LEAST_REST = 0.02
"""Least distance from the components' space that is expected of a patch, as a share of its whole distance."""

_VARIES = 1e-3
"""What varies by less than this share of the features' median deviation says nothing: it would be divided by it."""

_ROUNDING = 1e-6
"""The same, as a share of the feature's own mean: numbers of 32 bits differ by a tenth of it by rounding."""

_REAL = 1e-8
"""Variance of a component, as a share of the largest, up to which it is rounding."""

SPOTS_OF_DOUBT = 20
"""Spots at which a slice's mean features weigh as much as the training slices' mean."""


@dataclass(frozen=True)
class FixedMap:
    """An affine map, ``(x - offset) @ matrix``, or ``(x - offset) * matrix`` where ``matrix`` has one dimension."""

    offset: np.ndarray
    matrix: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Components, ``(n, n_out)``, float32."""

        def part(rows: slice) -> np.ndarray:
            centred = x[rows] - self.offset
            return np.asarray(centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix)

        return _by_rows(part, len(x), self.matrix.shape[-1])


def fit_map(x: np.ndarray, n_components: int | None, *, whitening: float, seed: int) -> FixedMap:
    """Standardise each feature, then principal components; fitted on training spots alone.

    Parameters
    ----------
    x
        Features of the training spots, ``(n_spots, n_features)``.
    n_components
        Number of components; ``None`` only standardises.
    whitening
        0 keeps each component's variance, 1 makes them all equal, between is a power of it. Where it is not 0, the
        components' mean variance is 1.
    seed
        Seed of the solver.
    """
    offset = x.mean(0, dtype=np.float64)
    inverse = _inverse(offset, x.std(0, dtype=np.float64))
    if n_components is None:
        return FixedMap(offset.astype(np.float32), inverse.astype(np.float32))
    width = min(n_components, x.shape[1], len(x) - 1)
    solver = "randomized" if width < min(x.shape) // 2 else "full"
    matrix, variance = _principal((x - offset) * inverse, width, solver, seed)
    if whitening:
        weight = np.zeros_like(variance)
        real = variance > _REAL * variance.max(initial=0.0)
        np.power(variance, -whitening / 2, out=weight, where=real)
        matrix = matrix * weight / np.sqrt((np.maximum(variance, 1e-12) ** (1 - whitening)).mean())
    return FixedMap(offset.astype(np.float32), (inverse[:, None] * matrix).astype(np.float32))


def _inverse(offset: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """One over the deviation of each feature; 0 for what hardly varies, which is switched off."""
    known = scale > _ROUNDING * np.abs(offset)
    typical = float(np.median(scale[known])) if known.any() else 0.0
    result = np.zeros_like(scale)
    np.divide(1.0, scale, out=result, where=known & (scale > _VARIES * typical))
    return result


def _principal(x: np.ndarray, width: int, solver: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions ``(n_features, width)`` and their variances; zeros where nothing varies."""
    if not x.any():
        return np.zeros((x.shape[1], width)), np.zeros(width)
    pca = PCA(width, svd_solver=solver, random_state=seed).fit(x)
    return pca.components_.T, pca.explained_variance_


@dataclass(frozen=True)
class AppearanceMap:
    """Where a patch lies in the reference's range, and how far outside of it.

    Parameters
    ----------
    offset, inverse
        Mean and inverse standard deviation of the training spots' features, ``(n_features,)``.
    components
        Principal directions, ``(n_features, n_components)``.
    scale
        Inverse standard deviations of the components, over the root of their number, ``(n_components,)``.
    rest
        Inverse of the training spots' mean distance from the components' space, over the same root, ``(1,)``.
    """

    offset: np.ndarray
    inverse: np.ndarray
    components: np.ndarray
    scale: np.ndarray
    rest: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Whitened components, and last the distance from their space, ``(n, n_components + 1)``.

        A stain that the reference does not hold moves patches where its own patches never vary: components alone
        would not show it.
        """
        weight = np.sqrt(len(self.scale)) * self.rest

        def part(rows: slice) -> np.ndarray:
            standard = (x[rows] - self.offset) * self.inverse
            inside = standard @ self.components
            outside = np.linalg.norm(standard - inside @ self.components.T, axis=1, keepdims=True)
            return np.hstack([inside * self.scale, outside * weight])

        return _by_rows(part, len(x), len(self.scale) + 1)


def fit_appearance(x: np.ndarray, seed: int) -> AppearanceMap:
    """Fit an :class:`AppearanceMap` on the features of the training spots, ``(n_spots, n_features)``."""
    plain = fit_map(x, None, whitening=0.0, seed=seed)
    standard = plain(x)
    width = max(1, min(_APPEARANCE, len(x) // _PER_COMPONENT, x.shape[1]))
    components, variance = _principal(standard, width, "auto", seed)
    real = variance > _REAL * variance.max(initial=0.0)
    components, variance = components[:, real], variance[real]
    outside = np.linalg.norm(standard - (standard @ components) @ components.T, axis=1).mean()
    whole = np.linalg.norm(standard, axis=1).mean()
    rest = 1.0 / max(outside, _LEAST_REST * whole, np.finfo(np.float32).tiny)
    # Distances are means over the components: the folds that set the limit have fewer spots, and so fewer of them.
    mean = 1.0 / np.sqrt(max(len(variance), 1))
    arrays = (plain.offset, plain.matrix, components, mean / np.sqrt(variance), np.array([mean * rest]))
    # Laid out as they are when a saved model is loaded: sums in another order differ in the last digit.
    return AppearanceMap(*(np.ascontiguousarray(array, dtype=np.float32) for array in arrays))


@dataclass(frozen=True)
class ContextRule:
    """What is seen of a spot: its own features, and the mean features of the rings of neighbours around it.

    Parameters
    ----------
    n_rings
        Number of rings; 0 sees the spot alone.
    center
        Mean features of the training spots, ``(n_features,)``, where features are centred on their slice; ``None``
        where they are not. Slides differ in stain and scanner more than their spots do in tissue.
    """

    n_rings: int
    center: np.ndarray | None = None

    def __call__(self, features: np.ndarray, adjacency: sparse.csr_matrix, slices: np.ndarray) -> np.ndarray:
        """Context features, ``(n_spots, (n_rings + 1) * n_features)``.

        Parameters
        ----------
        features
            Patch features, ``(n_spots, n_features)``.
        adjacency
            Spot graph, ``(n_spots, n_spots)``.
        slices
            Slice of each spot, ``(n_spots,)``.
        """
        width = features.shape[1]
        # Filled in place: of a large slide this is by far the largest array.
        result = np.empty((len(features), (self.n_rings + 1) * width), dtype=np.float32)
        result[:, :width] = features if self.center is None else centered(features, slices, self.center)
        for start in range(0, self.n_rings * width, width):
            inner = result[:, start : start + width]
            result[:, start + width : start + 2 * width] = neighbor_mean(inner, adjacency)
        return result


def centered(features: np.ndarray, slices: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Features less the mean of their slice, ``(n_spots, n_features)``.

    A few spots say little of their slide's mean: it is drawn towards ``center``, half-way for a slice of 20
    spots.
    """
    result = np.array(features, dtype=np.float32)
    for name in np.unique(slices):
        rows = np.flatnonzero(slices == name)
        share = len(rows) / (len(rows) + SPOTS_OF_DOUBT)
        result[rows] -= (share * features[rows].mean(0, dtype=np.float64) + (1 - share) * center).astype(np.float32)
    return result


def neighbor_mean(features: np.ndarray, adjacency: sparse.csr_matrix) -> np.ndarray:
    """Mean of the neighbours' features, ``(n_spots, n_features)``; a spot without neighbours keeps its own."""
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    graph, dense = adjacency.tocsr(), np.ascontiguousarray(features)

    def part(rows: slice) -> np.ndarray:
        mean = (graph[rows] @ dense) / np.maximum(degree[rows], 1.0)[:, None]
        return np.where(degree[rows, None] > 0, mean, dense[rows])

    return _by_rows(part, len(features), features.shape[1])


def _by_rows(part: Callable[[slice], np.ndarray], n_rows: int, width: int) -> np.ndarray:
    """Rows of a result, ``(n_rows, width)`` float32, made some at a time: steps between are as large as the slide."""
    result = np.empty((n_rows, width), dtype=np.float32)
    for start in range(0, n_rows, _ROWS):
        rows = slice(start, min(start + _ROWS, n_rows))
        result[rows] = part(rows)
    return result
