"""Ridge regression on the patch features of a spot and its neighbors, which is blended with retrieval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

_BLOCK_VALUES = 2**25
"""Number of values of a table that are held densely at a time: 256 MiB of float64."""


_BLOCK_ROWS = 2**16
"""Number of reference spots whose inputs are held in double precision at a time."""


@dataclass(frozen=True)
class FittedRidgeHead:
    """Fitted ridge regression: coefficients, ``(n_inputs, n_columns)``, and the means of inputs and targets."""

    coefficients: np.ndarray
    center: np.ndarray
    mean: np.ndarray

    def predict(self, query: np.ndarray) -> np.ndarray:
        """Predict from the inputs of query spots, ``(n_query, n_inputs)``; returns ``(n_query, n_columns)`` float32."""
        found: np.ndarray = (query.astype(np.float64) - self.center) @ self.coefficients + self.mean
        return found.astype(np.float32)


@dataclass(frozen=True)
class RidgeHead:
    """Ridge regression from the inputs of the reference to any of its tables.

    Parameters
    ----------
    inputs
        Components of the reference's context features, ``(n_reference, n_inputs)``.
    penalty
        Ridge penalty as a share of the inputs' total variance, per spot.
    """

    inputs: np.ndarray
    penalty: float

    def fit(self, y: sparse.csr_matrix | np.ndarray) -> FittedRidgeHead:
        """Fit the regression to a table of the reference, ``(n_reference, n_columns)``."""
        x = self.inputs
        center, mean = x.mean(0, dtype=np.float64), np.asarray(y.mean(axis=0)).ravel()
        gram = np.zeros((x.shape[1], x.shape[1]))
        product = np.zeros((x.shape[1], y.shape[1]))
        for start in range(0, len(x), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            part = x[rows].astype(np.float64) - center
            gram += part.T @ part
            # X centered makes X'(Y - mean) = X'Y, so the table may stay sparse.
            product += np.asarray((y[rows].T @ part).T)
        ridge = self.penalty * np.trace(gram)
        return FittedRidgeHead(np.linalg.solve(gram + max(ridge, 1e-12) * np.eye(len(gram)), product), center, mean)

    def held_out_correlation(self, target: sparse.csr_matrix, folds: Sequence[np.ndarray]) -> np.ndarray:
        """Compute the cross-validated correlation between predicted and measured values of each column of a table.

        Parameters
        ----------
        target
            Any table of the reference, ``(n_reference, n_columns)``.
        folds
            Rows of the parts of the reference that are held out in turn, such as its slices.

        Returns
        -------
        numpy.ndarray
            Pearson correlation within the parts, pooled over them, ``(n_columns,)``; 0 for a constant column.
        """
        rest = np.setdiff1d(np.arange(len(self.inputs)), np.concatenate(folds))
        parts = [self._part(rows) for rows in (*folds, rest)]
        solved = [self._without(part, parts) for part in parts[:-1]]
        values, width = target.tocsc(), max(16, _BLOCK_VALUES // max(len(self.inputs), 1))
        found = []
        for start in range(0, target.shape[1], width):
            columns = values[:, start : start + width].tocsr()
            products = [self._product(part.rows, columns) for part in parts]
            product, total = (np.sum(one, axis=0) for one in zip(*products, strict=True))
            sums = np.zeros((3, columns.shape[1]))
            for part, (own, own_total), (inverse, center) in zip(parts, products, solved, strict=False):
                coefficients = inverse @ (product - own - np.outer(center, total - own_total))
                mean = own_total / max(len(part.rows), 1)
                for rows in _blocks(part.rows):
                    predicted = (self._centered(rows) - part.mean) @ coefficients
                    measured = columns[rows].toarray() - mean
                    sums += [(predicted * measured).sum(0), (predicted**2).sum(0), (measured**2).sum(0)]
            found.append(sums[0] / np.sqrt(np.maximum(sums[1] * sums[2], 1e-24)))
        return np.concatenate(found) if found else np.zeros(0)

    @cached_property
    def _shift(self) -> np.ndarray:
        mean: np.ndarray = self.inputs.mean(0, dtype=np.float64)
        return mean

    def _centered(self, rows: np.ndarray) -> np.ndarray:
        """Return the inputs of some spots in double precision, centered on the mean of all spots for precision."""
        return self.inputs[rows].astype(np.float64) - self._shift

    def _part(self, rows: np.ndarray) -> _Part:
        width = self.inputs.shape[1]
        total, gram = np.zeros(width), np.zeros((width, width))
        for some in _blocks(rows):
            x = self._centered(some)
            total += x.sum(0)
            gram += x.T @ x
        return _Part(rows, total, gram)

    def _product(self, rows: np.ndarray, columns: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        """Compute X'Y of some spots, ``(n_inputs, n_columns)``, and the column sums of Y."""
        product, total = np.zeros((self.inputs.shape[1], columns.shape[1])), np.zeros(columns.shape[1])
        for some in _blocks(rows):
            y = columns[some].toarray().astype(np.float64)
            product += self._centered(some).T @ y
            total += y.sum(0)
        return product, total

    def _without(self, left_out: _Part, parts: Sequence[_Part]) -> tuple[np.ndarray, np.ndarray]:
        """Compute the inverse of the penalized Gram matrix of the other parts, and their mean."""
        others = [part for part in parts if part is not left_out]
        n = sum(len(part.rows) for part in others)
        center: np.ndarray = np.sum([part.total for part in others], axis=0) / n
        gram = np.sum([part.gram for part in others], axis=0) - n * np.outer(center, center)
        ridge = max(self.penalty * np.trace(gram), 1e-12)
        return np.linalg.inv(gram + ridge * np.eye(len(gram))), center


@dataclass(frozen=True, eq=False)
class _Part:
    """Some spots of the reference, with the sums of their inputs and of their outer products."""

    rows: np.ndarray
    total: np.ndarray
    gram: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        mean: np.ndarray = self.total / max(len(self.rows), 1)
        return mean


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Iterate over rows in blocks of bounded size."""
    for start in range(0, len(rows), _BLOCK_ROWS):
        yield rows[start : start + _BLOCK_ROWS]
