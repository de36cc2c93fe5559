"""Principal components of a matrix, exact or estimated."""

from __future__ import annotations

from typing import Literal

import numpy as np

Solver = Literal["auto", "full", "randomized"]
"""How :class:`sklearn.decomposition.PCA` computes components."""

_FEW_SPOTS = 2048
"""Number of spots up to which components are computed from the spots' inner products, if features are more."""

_SMALL = 500
"""Number of spots and of features up to which scikit-learn's ``"auto"`` computes components exactly."""

_EXTRA = 10
"""Number of directions that are estimated beyond the components asked for, as in scikit-learn."""

_RANK = 1e-13
"""Variance of a direction, as a share of the largest, up to which it is due to rounding of the inner products."""


def principal_components(
    x: np.ndarray, width: int, seed: int, *, solver: Solver | None = None, copy: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Compute principal directions ``(n_features, width)`` and their variances; zeros if nothing varies.

    The directions are in row-major order, in which they are loaded: a product is rounded according to the order.

    Parameters
    ----------
    x
        Features or genes of the training spots, ``(n_spots, n_features)``.
    width
        Number of components.
    seed
        Seed of the estimate.
    solver
        As for :class:`sklearn.decomposition.PCA`; by default, components are estimated where fewer than half are asked
        for.
    copy
        Whether the numbers in ``x`` are kept; else they may be overwritten.
    """
    # The first row alone shows it but for a table of zeros.
    if not (x[:1].any() or x.any()):
        return np.zeros((x.shape[1], width)), np.zeros(width)
    solver = solver or ("randomized" if width < min(x.shape) // 2 else "full")
    estimated = solver == "randomized" or (solver == "auto" and x.shape[1] > _SMALL)
    if estimated and of_few_spots(x.shape, width):
        centered = np.subtract(x, x.mean(0, dtype=np.float64), dtype=np.float64)
        return estimated_components(centered, centered @ centered.T, width, seed)
    # Imported here, since a prediction takes the projections from the model and would wait for it.
    from sklearn.decomposition import PCA

    pca = PCA(width, svd_solver=solver, random_state=seed, copy=copy).fit(x)
    return np.ascontiguousarray(pca.components_.T), pca.explained_variance_


def of_few_spots(shape: tuple[int, ...], width: int) -> bool:
    """Return whether inner products of spots, of features ``(n_spots, n_features)``, are the shorter way to components.

    They are symmetric, so that half of the products is enough, and each step of the estimate then takes next to
    nothing.
    """
    n_spots, n_features = shape
    return 2 * (width + _EXTRA) <= n_spots < n_features and n_spots <= _FEW_SPOTS


def estimated_components(x: np.ndarray, inner: np.ndarray, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Estimate principal directions ``(n_features, width)`` and their variances from inner products of spots.

    The estimate is that of scikit-learn's randomized solver but for rounding: of the span of :math:`X^T (X X^T)^n Q`
    for a random matrix Q, the directions in which X varies most.

    Parameters
    ----------
    x
        Features with mean 0, ``(n_spots, n_features)``.
    inner
        Inner products :math:`X X^T`, ``(n_spots, n_spots)``.
    width
        Number of components.
    seed
        Seed of Q.
    """
    # Imported here, since a prediction takes the projections from the model and would wait for it.
    from scipy import linalg
    from sklearn.utils import check_random_state

    span = check_random_state(seed).normal(size=(len(x), width + _EXTRA))
    for _ in range(7 if width < 0.1 * len(x) else 4):
        span, _ = linalg.lu(inner @ span, permute_l=True, check_finite=False)
    span, _ = linalg.qr(span, mode="economic", check_finite=False)
    image = inner @ span
    # Of the rows of ``span.T @ x``, inner products; scaled along their principal axes, rows are orthonormal.
    squares, axes = linalg.eigh(span.T @ image)
    real = squares > max(_RANK * squares[-1], 0.0)
    if not real.any():
        return np.zeros((x.shape[1], width)), np.zeros(width)
    to_orthonormal = axes[:, real] / np.sqrt(squares[real])
    image = image @ to_orthonormal
    squares, axes = linalg.eigh(image.T @ image, check_finite=False)
    axes, squares = axes[:, ::-1][:, :width], squares[::-1][:width]
    found = x.T @ (span @ (to_orthonormal @ axes))
    found *= np.sign(found[np.abs(found).argmax(0), np.arange(len(squares))])
    missing = width - len(squares)
    return np.pad(found, ((0, 0), (0, missing))), np.pad(squares / (len(x) - 1), (0, missing))
