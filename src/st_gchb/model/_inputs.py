"""Fixed input maps: features to components, and what is seen of a patch and its surroundings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA

_APPEARANCE = 32
"""Components of the patch features in which a query is compared with the reference's range."""

SPOTS_OF_DOUBT = 20
"""Spots at which a slice's mean features weigh as much as the training slices' mean."""


@dataclass(frozen=True)
class FixedMap:
    """An affine map, ``(x - offset) @ matrix``, or ``(x - offset) * matrix`` where ``matrix`` has one dimension."""

    offset: np.ndarray
    matrix: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Components, ``(n, n_out)``, float32."""
        centred = x - self.offset
        return (centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix).astype(np.float32)


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
    offset, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    # A feature that never changes says nothing: it is switched off instead of divided by zero.
    inverse = np.where(scale > 1e-6, 1.0 / np.maximum(scale, 1e-6), 0.0)
    if n_components is None:
        return FixedMap(offset.astype(np.float32), inverse.astype(np.float32))
    width = min(n_components, x.shape[1], len(x) - 1)
    solver = "randomized" if width < min(x.shape) // 2 else "full"
    pca = PCA(width, svd_solver=solver, random_state=seed).fit((x - offset) * inverse)
    matrix = pca.components_.T
    if whitening:
        variance = np.maximum(pca.explained_variance_, 1e-12)
        matrix = matrix * variance ** (-whitening / 2) / np.sqrt((variance ** (1 - whitening)).mean())
    return FixedMap(offset.astype(np.float32), (inverse[:, None] * matrix).astype(np.float32))


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
        Inverse standard deviations of the components, ``(n_components,)``.
    rest
        Inverse of the training spots' mean distance from the components' space, ``(1,)``.
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
        standard = (x - self.offset) * self.inverse
        inside = standard @ self.components
        outside = np.linalg.norm(standard - inside @ self.components.T, axis=1, keepdims=True)
        weight = np.sqrt(len(self.scale)) * self.rest
        return np.hstack([inside * self.scale, outside * weight]).astype(np.float32)


def fit_appearance(x: np.ndarray, seed: int) -> AppearanceMap:
    """Fit an :class:`AppearanceMap` on the features of the training spots, ``(n_spots, n_features)``."""
    plain = fit_map(x, None, whitening=0.0, seed=seed)
    standard = plain(x)
    pca = PCA(min(_APPEARANCE, *x.shape), random_state=seed).fit(standard)
    components = pca.components_.T
    outside = np.linalg.norm(standard - (standard @ components) @ components.T, axis=1).mean()
    scale = 1.0 / np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
    arrays = (plain.offset, plain.matrix, components, scale, np.array([1.0 / max(outside, 1e-6)]))
    return AppearanceMap(*(array.astype(np.float32) for array in arrays))


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
        own = features if self.center is None else centered(features, slices, self.center)
        rings = [own]
        for _ in range(self.n_rings):
            rings.append(neighbor_mean(rings[-1], adjacency))
        return np.hstack(rings).astype(np.float32)


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
    mean = (adjacency @ features) / np.maximum(degree, 1.0)[:, None]
    return np.where(degree[:, None] > 0, mean, features).astype(np.float32)
