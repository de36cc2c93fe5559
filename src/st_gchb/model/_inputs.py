"""Fixed input maps: features to components, and the context that the linear read-out sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA


@dataclass(frozen=True)
class FixedMap:
    """An affine map, ``(x - offset) @ matrix``, or ``(x - offset) * matrix`` where ``matrix`` has one dimension."""

    offset: np.ndarray
    matrix: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Components, ``(n, n_out)``, float32."""
        centred = x - self.offset
        return (centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix).astype(np.float32)


def fit_map(x: np.ndarray, n_components: int | None, *, whiten: bool, seed: int) -> FixedMap:
    """Standardise each feature, then principal components; fitted on training spots alone.

    Parameters
    ----------
    x
        Features of the training spots, ``(n_spots, n_features)``.
    n_components
        Number of components; ``None`` only standardises.
    whiten
        Give all components variance 1.
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
    pca = PCA(width, whiten=whiten, svd_solver=solver, random_state=seed).fit((x - offset) * inverse)
    matrix = pca.components_.T
    if whiten:
        matrix = matrix / np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
    return FixedMap(offset.astype(np.float32), (inverse[:, None] * matrix).astype(np.float32))


def neighbor_mean(features: np.ndarray, adjacency: sparse.csr_matrix) -> np.ndarray:
    """Mean of the neighbours' features, ``(n_spots, n_features)``; a spot without neighbours keeps its own."""
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    mean = (adjacency @ features) / np.maximum(degree, 1.0)[:, None]
    return np.where(degree[:, None] > 0, mean, features).astype(np.float32)


def context_features(features: np.ndarray, adjacency: sparse.csr_matrix) -> np.ndarray:
    """A spot's features and its neighbours' mean, ``(n_spots, 2 * n_features)``."""
    return np.hstack([features, neighbor_mean(features, adjacency)]).astype(np.float32)
