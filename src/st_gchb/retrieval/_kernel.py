"""Kernel ridge regression from the neighborhoods of spots to the leading components of their expression.

Its inputs are in parts, one for each encoder and patch size. Every part has a kernel of its own, which is the mean of
one or several, and the prediction is the mean of the parts' predictions. Its targets are principal components of the
panel, which leaves most of the counts' noise out of them. Any table of the reference is predicted from these components
by linear regression on the reference, so that a prediction stays a weighted sum of the reference's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve, eigh, solve_triangular

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function from the inputs of two sets of spots to the kernel of all pairs."""

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Ridge penalties from which that of each component is chosen; the kernel of a spot with itself is 1."""

N_POINTS, _POINT_SHARE, _MOST_POINTS = 1000, 0.1, 2000
"""Number of reference spots at which kernels are centered, of a reference that has more: a tenth of it, within these
limits."""

_CHOICE_SPOTS, _CHOICE_POINTS = 8000, 500
"""Largest number of reference spots on which ridges are chosen, and of points among them."""

_MEDIAN_SPOTS = 2000
"""Largest number of spots from whose distances the median is taken."""

_JITTER = 1e-8
"""Share of the diagonal added to the points' kernel matrix, which has no inverse where two spots look the same."""

_BLOCK_ROWS = 4096
"""Number of spots whose kernel with all points is held at a time: 64 MiB for 2,000 points."""


@dataclass(frozen=True, eq=False)
class KernelHead:
    r"""Fitted kernel ridge regression.

    The components of a spot with inputs :math:`x_{pj}` of kernel j of J in part p of P are

    .. math:: \hat z = \frac{1}{P} \sum_p k_p(x_p, C_p) \, A_p, \qquad
        k_p(x, c) = \frac{1}{J} \sum_j \exp(-s_{pj} \lVert x_j - c_j \rVert^2)

    with points :math:`C_p`, coefficients :math:`A_p`, and scales :math:`s_{pj} = 1 / m_{pj}^2` by the median distance
    :math:`m_{pj}` between reference spots.

    Parameters
    ----------
    points
        Inputs of the reference spots at which kernels are centered, ``(n_points, n_kernels * n_parts * n_inputs)``:
        first those of the first kernel of each part, then those of the second.
    scales
        Scale of each kernel, ``(n_kernels * n_parts,)``, in the same order.
    coefficients
        Coefficients, ``(n_parts, n_points, n_components)``.
    scores
        Components of the reference's expression, centered on its slice, ``(n_reference, n_components)``.
    """

    points: np.ndarray
    scales: np.ndarray
    coefficients: np.ndarray
    scores: np.ndarray

    def components(self, inputs: np.ndarray) -> np.ndarray:
        """Predict components of expression, ``(n_spots, n_components)``.

        Parameters
        ----------
        inputs
            Inputs of the spots, ``(n_spots, n_kernels * n_parts * n_inputs)``.
        """
        found = np.zeros((len(inputs), self.scores.shape[1]))
        kernels = _part_kernels(self.points.shape[1], self.scales, len(self.coefficients))
        for kernel, coefficients in zip(kernels, self.coefficients, strict=True):
            for rows in blocks(len(inputs)):
                found[rows] += kernel(inputs[rows], self.points) @ coefficients
        return found / len(self.coefficients)

    def loadings(self, table: sparse.csr_matrix) -> np.ndarray:
        """Regress a table of the reference on the components, ``(n_components, n_columns)``.

        For the panel these are the directions of its principal components.

        Parameters
        ----------
        table
            Any table of the reference, ``(n_reference, n_columns)``.
        """
        # The scores have mean 0 in each slice, so the table need not be centered and stays sparse.
        product = np.asarray((table.T @ self.scores).T)
        gram = self.scores.T @ self.scores
        return np.asarray(np.linalg.solve(_plus(gram, _JITTER * max(np.trace(gram), 1e-12)), product))


def fit_kernel_head(
    inputs: np.ndarray,
    n_parts: int,
    scores: np.ndarray,
    folds: Sequence[np.ndarray],
    seed: int,
    *,
    n_kernels: int = 1,
) -> KernelHead:
    """Fit kernel ridge regression, with the ridge of each component chosen by leaving out folds.

    Parameters
    ----------
    inputs
        Inputs of the reference spots, ``(n_reference, n_kernels * n_parts * n_inputs)``, in the order of
        :class:`KernelHead`.
    n_parts
        Number of parts of the inputs.
    scores
        Components of expression, as :func:`expression_scores` gives them, ``(n_reference, n_components)``.
    folds
        Rows of the parts of the reference that are held out in turn, such as its slices.
    seed
        Seed with which points are drawn from a large reference.
    n_kernels
        Number of kernels of each part.
    """
    rng = np.random.default_rng(seed)
    n_points = max(N_POINTS, min(int(_POINT_SHARE * len(inputs)), _MOST_POINTS))
    drawn = _draw(np.arange(len(inputs)), n_points, rng)
    scales = np.array([median_scale(inputs[:, own], rng) for own in _columns(inputs.shape[1], n_kernels * n_parts)])
    kernels = _part_kernels(inputs.shape[1], scales, n_parts)
    ridges = _choose_ridges(inputs, kernels, scores, folds, rng)
    coefficients = []
    for kernel in kernels:
        space = Landmarks.at(inputs[drawn], kernel)
        coefficients.append(space.coefficients(_solved(*space.sums(inputs, scores), ridges)))
    return KernelHead(inputs[drawn], scales, np.stack(coefficients), scores)


def expression_scores(panel: sparse.csr_matrix, slices: np.ndarray, n_components: int) -> np.ndarray:
    """Compute the leading principal components of expression that is centered on its slice.

    Parameters
    ----------
    panel
        Log-normalized expression, ``(n_spots, n_genes)``.
    slices
        Slice of each spot, ``(n_spots,)``.
    n_components
        Number of components; as many as genes at most.

    Returns
    -------
    numpy.ndarray
        ``(n_spots, n_components)``, by descending variance, with mean 0 in each slice.
    """
    numbers = np.unique(slices, return_inverse=True)[1]
    means = np.concatenate(
        [np.asarray(panel[numbers == n].mean(axis=0), dtype=np.float64) for n in range(numbers.max() + 1)]
    )
    directions = _principal_directions(panel, means, numbers, min(n_components, panel.shape[1]))
    # The sign of a component is arbitrary; a fixed one makes saved models comparable between machines.
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    return np.asarray(panel @ directions) - (means @ directions)[numbers]


def _principal_directions(panel: sparse.csr_matrix, means: np.ndarray, numbers: np.ndarray, n: int) -> np.ndarray:
    """Compute the leading directions of the panel less the means of its slices, ``(n_genes, n)``.

    From the spots' inner products where they are fewer than the genes, else from the genes' covariance, for which the
    panel stays sparse. Components without variance have the direction 0.
    """
    n_spots, n_genes = panel.shape
    if n_spots >= n_genes:
        sizes = np.bincount(numbers)
        covariance = (panel.T @ panel).toarray().astype(np.float64) - (means.T * sizes) @ means
        return np.asarray(eigh(covariance, subset_by_index=[n_genes - n, n_genes - 1])[1][:, ::-1])
    centered = panel.toarray().astype(np.float64) - means[numbers]
    first = max(n_spots - n, 0)
    variances, vectors = eigh(centered @ centered.T, subset_by_index=[first, n_spots - 1])
    directions = np.zeros((n_genes, n))
    for column, (variance, vector) in enumerate(zip(variances[::-1][:n], vectors.T[::-1][:n], strict=True)):
        if variance > _JITTER * variances[-1]:
            directions[:, column] = vector @ centered / np.sqrt(variance)
    return directions


def rbf(a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """Compute ``exp(-scale * squared distance)`` of all pairs, ``(n_a, n_b)`` float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    # In place, since memory for so large a matrix takes longer to get than its numbers to compute.
    twice = a @ b.T
    twice *= 2.0
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)
    squared -= twice
    np.maximum(squared, 0.0, out=squared)
    squared *= -scale
    return np.exp(squared, out=squared)


def _part_kernels(width: int, scales: np.ndarray, n_parts: int) -> list[Kernel]:
    """Return the kernel of each part, from the number of inputs and the scales of all kernels."""
    columns = _columns(width, len(scales))
    return [partial(_mean_rbf, columns=columns[p::n_parts], scales=scales[p::n_parts]) for p in range(n_parts)]


def _mean_rbf(a: np.ndarray, b: np.ndarray, columns: Sequence[slice], scales: np.ndarray) -> np.ndarray:
    """Compute the mean of the kernels of some columns each, ``(n_a, n_b)`` float64."""
    total = rbf(a[:, columns[0]], b[:, columns[0]], scales[0])
    for own, scale in zip(columns[1:], scales[1:], strict=True):
        total += rbf(a[:, own], b[:, own], scale)
    total /= len(columns)
    return total


def median_scale(x: np.ndarray, rng: np.random.Generator) -> float:
    """Compute 1 over the squared median distance between spots; 1 where all of them look the same."""
    few = x if len(x) <= _MEDIAN_SPOTS else x[rng.permutation(len(x))[:_MEDIAN_SPOTS]]
    few = few.astype(np.float64)
    pairs = np.triu_indices(len(few), 1)
    squared = ((few**2).sum(1)[:, None] + (few**2).sum(1) - 2.0 * (few @ few.T))[pairs]
    return 1.0 / (float(np.median(squared)) or 1.0) if len(squared) else 1.0


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Features of spots whose inner products are a kernel, or its Nyström approximation.

    With the kernel K and L L' = K(points, points), a spot's features are K(spot, points) L'^-1. Ridge regression on
    them is kernel ridge regression: exact where the points are all spots, and Nyström's where they are a part of them.

    Parameters
    ----------
    points
        Inputs at which the kernel is centered, ``(n_points, n_inputs)``.
    kernel
        Function from inputs ``(n_a, n_inputs)`` and ``(n_b, n_inputs)`` to the kernel of all pairs, ``(n_a, n_b)``.
    root
        Lower triangle L, ``(n_points, n_points)``.
    """

    points: np.ndarray
    kernel: Kernel
    root: np.ndarray

    @classmethod
    def at(cls, points: np.ndarray, kernel: Kernel) -> Landmarks:
        """Factorize the kernel of the points."""
        return cls(points, kernel, np.linalg.cholesky(_plus(kernel(points, points), _JITTER * len(points))))

    def features(self, x: np.ndarray) -> np.ndarray:
        """Compute features of spots with inputs ``(n_spots, n_inputs)``, as columns: ``(n_points, n_spots)``."""
        return np.asarray(solve_triangular(self.root, self.kernel(self.points, x), lower=True))

    def sums(self, x: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum outer products over spots: of the features, and of features with targets ``(n_spots, n_targets)``."""
        gram = np.zeros((len(self.points), len(self.points)))
        product = np.zeros((len(self.points), targets.shape[1]))
        for block in blocks(len(x)):
            features = self.features(x[block])
            gram += features @ features.T
            product += features @ targets[block]
        return gram, product

    def coefficients(self, weights: np.ndarray) -> np.ndarray:
        """Turn weights of features into coefficients of K(spot, points), both ``(n_points, n_targets)``."""
        # In row-major order, in which they are loaded: a product is rounded according to the order.
        return np.ascontiguousarray(solve_triangular(self.root, weights, lower=True, trans="T"))


def ridge_weights(gram: np.ndarray, product: np.ndarray, ridge: float) -> np.ndarray:
    """Solve ridge regression from sums of outer products, ``(n_features, n_targets)``."""
    # LAPACK works in column-major order: another one would be copied once more.
    return np.asarray(cho_solve(cho_factor(_plus(gram, ridge, order="F"), overwrite_a=True), product))


def _solved(gram: np.ndarray, product: np.ndarray, ridges: np.ndarray) -> np.ndarray:
    """Solve ridge regression with a ridge for each target, ``(n_features, n_targets)``."""
    weights = np.zeros_like(product)
    for ridge in np.unique(ridges):
        weights[:, ridges == ridge] = ridge_weights(gram, product[:, ridges == ridge], ridge)
    return weights


def _choose_ridges(
    inputs: np.ndarray,
    kernels: Sequence[Kernel],
    scores: np.ndarray,
    folds: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Choose the ridge of each component, ``(n_components,)``: that of the least error on the folds.

    The error is that of the mean over the parts. The mean error of a fold counts for nothing, since the level of a
    component on a slice says little of another slice's.
    """
    chosen = _draw(np.concatenate(folds), _CHOICE_SPOTS, rng)
    places = [np.flatnonzero(np.isin(chosen, rows)) for rows in folds]
    at, targets = _draw(np.arange(len(chosen)), _CHOICE_POINTS, rng), scores[chosen]
    predicted = np.zeros((len(RIDGES), *targets.shape))
    x = inputs[chosen]
    for kernel in kernels:
        features = Landmarks.at(x[at], kernel).features(x)
        gram, product = features @ features.T, features @ targets
        for rows in places:
            held, rest = features[:, rows].T, np.delete(features, rows, axis=1)
            if rest.shape[1] < len(rest):
                # With fewer spots than features, their inner products are the smaller matrix, to the same prediction.
                own = held @ rest, rest.T @ rest, np.delete(targets, rows, axis=0)
            else:
                own = held, gram - held.T @ held, product - held.T @ targets[rows]
            for number, ridge in enumerate(RIDGES):
                predicted[number, rows] += own[0] @ ridge_weights(*own[1:], ridge)
    errors = np.zeros((len(RIDGES), scores.shape[1]))
    for rows in places:
        error = predicted[:, rows] / len(kernels) - targets[rows]
        errors += error.var(axis=1) * len(rows) if len(rows) else 0.0
    return np.array(RIDGES)[errors.argmin(0)]


def _draw(rows: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Draw at most some of the rows, in ascending order."""
    return np.sort(rows if len(rows) <= most else rng.permutation(rows)[:most])


def _plus(matrix: np.ndarray, number: float, order: Literal["C", "F"] = "C") -> np.ndarray:
    """Copy a matrix, with a number added to its diagonal."""
    result = matrix.copy(order)
    result.flat[:: len(matrix) + 1] += number
    return result


def _columns(width: int, n_parts: int) -> list[slice]:
    """Columns of each part of inputs that have as many columns in each."""
    size = width // n_parts
    return [slice(start, start + size) for start in range(0, width, size)]


def blocks(n_rows: int) -> Iterator[slice]:
    """Iterate over rows in blocks of bounded size."""
    for start in range(0, n_rows, _BLOCK_ROWS):
        yield slice(start, start + _BLOCK_ROWS)
