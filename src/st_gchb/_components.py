"""Principal components of a matrix, exact or estimated."""

from __future__ import annotations

from typing import Literal

import numpy as np

Solver = Literal["auto", "full", "randomized"]
"""How :class:`sklearn.decomposition.PCA` computes components."""

_FEW_SPOTS = 2048
"""Number of spots up to which components are computed from the spots' inner products, if features are more."""

_PER_DIRECTION = 18
"""Number of spots for each direction that is estimated, up to which their inner products pay."""

_SMALL = 500
"""Number of spots and of features up to which scikit-learn's ``"auto"`` computes all components exactly."""

_MOST = 0.8
"""Share of all components up to which ``"auto"`` estimates them."""

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
        Number of components, at most as many as features, and fewer than spots.
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
    if of_few_spots(x.shape, width):
        centered = np.subtract(x, x.mean(0, dtype=np.float64), dtype=np.float64)
        return components_of_few(centered, centered @ centered.T, width, seed, solver=solver)
    # Imported here, since a prediction takes the projections from the model and would wait for it.
    from sklearn.decomposition import PCA

    pca = PCA(width, svd_solver=solver or _by_share(x.shape, width), random_state=seed, copy=copy).fit(x)
    return np.ascontiguousarray(pca.components_.T), pca.explained_variance_


def _by_share(shape: tuple[int, ...], width: int) -> Solver:
    """Return the default solver: an estimate where fewer than half of the components are asked for."""
    return "randomized" if width < min(shape) // 2 else "full"


def of_few_spots(shape: tuple[int, ...], width: int) -> bool:
    """Return whether inner products of spots, of features ``(n_spots, n_features)``, are the shorter way to components.

    They are symmetric, so that half of the products is enough, and all that follows is of the size of spots alone. For
    few components of many spots, they would be more work than the products of an estimate.
    """
    n_spots, n_features = shape
    return n_spots < n_features and n_spots <= min(_FEW_SPOTS, _PER_DIRECTION * (width + _EXTRA))


def components_of_few(
    x: np.ndarray, inner: np.ndarray, width: int, seed: int, *, solver: Solver | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute principal directions ``(n_features, width)`` and their variances from inner products of spots.

    They are those of scikit-learn but for rounding. Directions in which nothing varies are zeros.

    Parameters
    ----------
    x
        Features with mean 0, ``(n_spots, n_features)``, fewer spots than features.
    inner
        Inner products ``x @ x.T``, ``(n_spots, n_spots)``.
    width, seed, solver
        As for :func:`principal_components`.
    """
    if solver == "auto":
        solver = "randomized" if max(x.shape) > _SMALL and width < _MOST * len(x) else "full"
    estimated = (solver or _by_share(x.shape, width)) == "randomized" and width + _EXTRA <= len(x)
    axes, squares = _estimated_axes(inner, width, seed) if estimated else _exact_axes(inner, width)
    found = x.T @ axes
    found *= np.sign(found[np.abs(found).argmax(0), np.arange(len(squares))])
    missing = width - len(squares)
    return np.pad(found, ((0, 0), (0, missing))), np.pad(squares / (len(x) - 1), (0, missing))


def _exact_axes(inner: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute axes A such that ``x.T @ A`` are unit directions, ``(n_spots, width)``, and their sums of squares."""
    from scipy import linalg

    squares, axes = linalg.eigh(inner, subset_by_index=[len(inner) - width, len(inner) - 1])
    squares, axes = squares[::-1], axes[:, ::-1]
    real = squares > max(_RANK * squares[0], 0.0)
    return axes[:, real] / np.sqrt(squares[real]), squares[real]


def _estimated_axes(inner: np.ndarray, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    r"""Estimate what :func:`_exact_axes` computes.

    The estimate is that of scikit-learn's randomized solver: of the span of :math:`X^T (X X^T)^n Q` for a random matrix
    Q, the directions in which X varies most.
    """
    # Imported here, since a prediction takes the projections from the model and would wait for it.
    from scipy import linalg
    from sklearn.utils import check_random_state

    span = check_random_state(seed).normal(size=(len(inner), width + _EXTRA))
    for _ in range(7 if width < 0.1 * len(inner) else 4):
        span, _ = linalg.lu(inner @ span, permute_l=True, check_finite=False)
    span, _ = linalg.qr(span, mode="economic", check_finite=False)
    image = inner @ span
    # Of the rows of ``span.T @ x``, inner products; scaled along their principal axes, rows are orthonormal.
    squares, axes = linalg.eigh(span.T @ image)
    real = squares > max(_RANK * squares[-1], 0.0)
    if not real.any():
        return np.zeros((len(inner), 0)), np.zeros(0)
    to_orthonormal = axes[:, real] / np.sqrt(squares[real])
    image = image @ to_orthonormal
    squares, axes = linalg.eigh(image.T @ image, check_finite=False)
    axes, squares = axes[:, ::-1][:, :width], squares[::-1][:width]
    return span @ (to_orthonormal @ axes), squares
