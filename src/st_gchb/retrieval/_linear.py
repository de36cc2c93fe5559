"""Linear read-out beside retrieval: ridge regression on patch features and their neighbours' mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

_BLOCK_VALUES = 2**25
"""Values of a table that are dense at once: 256 MiB of float64."""


_BLOCK_ROWS = 2**16
"""Reference spots whose inputs are in double precision at once."""


@dataclass(frozen=True)
class FittedReadout:
    """Coefficients of a linear read-out, ``(n_inputs, n_columns)``, and the means that they go with."""

    coefficients: np.ndarray
    centre: np.ndarray
    mean: np.ndarray

    def predict(self, query: np.ndarray) -> np.ndarray:
        """Predictions for inputs of query spots, ``(n_query, n_columns)``."""
        found: np.ndarray = (query.astype(np.float64) - self.centre) @ self.coefficients + self.mean
        return found.astype(np.float32)


@dataclass(frozen=True)
class LinearReadout:
    """Ridge regression, kept as its inputs so that any table of the reference can be its target.

    Parameters
    ----------
    inputs
        Components of the reference's context features, ``(n_reference, n_inputs)``.
    penalty
        Ridge penalty as a share of the inputs' total variance, per spot.
    """

    inputs: np.ndarray
    penalty: float

    def predict(
        self, query: np.ndarray, target: sparse.csr_matrix | np.ndarray, allowed: np.ndarray | None = None
    ) -> np.ndarray:
        """Predict a table of the reference for query spots.

        Parameters
        ----------
        query
            Inputs of the query spots, ``(n_query, n_inputs)``.
        target
            Any table of the reference, ``(n_reference, n_columns)``.
        allowed
            Mask of the reference spots that may be used; by default all.

        Returns
        -------
        Predictions, ``(n_query, n_columns)``.
        """
        return self.fit(target, allowed).predict(query)

    def fit(self, target: sparse.csr_matrix | np.ndarray, allowed: np.ndarray | None = None) -> FittedReadout:
        """Fit a table of the reference; arguments as of :meth:`predict`."""
        x = self.inputs if allowed is None else self.inputs[allowed]
        y = target if allowed is None else target[np.flatnonzero(allowed)]
        centre, mean = x.mean(0, dtype=np.float64), np.asarray(y.mean(axis=0)).ravel()
        gram = np.zeros((x.shape[1], x.shape[1]))
        product = np.zeros((x.shape[1], y.shape[1]))
        for start in range(0, len(x), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            part = x[rows].astype(np.float64) - centre
            gram += part.T @ part
            # X centred makes X'(Y - mean) = X'Y, so the table may stay sparse.
            product += np.asarray((y[rows].T @ part).T)
        ridge = self.penalty * np.trace(gram)
        return FittedReadout(np.linalg.solve(gram + max(ridge, 1e-12) * np.eye(len(gram)), product), centre, mean)

    def held_out_correlation(self, target: sparse.csr_matrix, folds: Sequence[np.ndarray]) -> np.ndarray:
        """How well each column of a table is predicted where the read-out was not fitted.

        Parameters
        ----------
        target
            Any table of the reference, ``(n_reference, n_columns)``.
        folds
            Rows of each part of the reference that is left out once, such as its slices.

        Returns
        -------
        Pearson correlation within the parts, pooled over them, ``(n_columns,)``; 0 for a constant column.
        """
        x = self.inputs.astype(np.float64)
        parts = [self._without(x, rows) for rows in folds]
        values, width = target.tocsc(), max(16, _BLOCK_VALUES // len(x))
        found = []
        for start in range(0, target.shape[1], width):
            y = values[:, start : start + width].toarray().astype(np.float64)
            product, total = x.T @ y, y.sum(0)
            sums = np.zeros((3, y.shape[1]))
            for rows, (inverse, centre) in zip(folds, parts, strict=True):
                own = y[rows]
                rest = product - x[rows].T @ own - np.outer(centre, total - own.sum(0))
                predicted = (x[rows] - x[rows].mean(0)) @ (inverse @ rest)
                own = own - own.mean(0)
                sums += [(predicted * own).sum(0), (predicted**2).sum(0), (own**2).sum(0)]
            found.append(sums[0] / np.sqrt(np.maximum(sums[1] * sums[2], 1e-24)))
        return np.concatenate(found) if found else np.zeros(0)

    def _without(self, x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse of the penalised Gram matrix of the other rows, and their mean."""
        rest = np.delete(x, rows, axis=0)
        centre = rest.mean(0)
        gram = (rest - centre).T @ (rest - centre)
        ridge = max(self.penalty * np.trace(gram), 1e-12)
        return np.linalg.inv(gram + ridge * np.eye(len(gram))), centre
