"""Linear read-out beside retrieval: ridge regression on patch features and their neighbours' mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse


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
        x = self.inputs if allowed is None else self.inputs[allowed]
        y = target if allowed is None else target[np.flatnonzero(allowed)]
        x = x.astype(np.float64)
        centre, mean = x.mean(0), np.asarray(y.mean(axis=0)).ravel()
        x = x - centre
        gram = x.T @ x
        ridge = self.penalty * np.trace(gram)
        # X centred makes X'(Y - mean) = X'Y, so the table may stay sparse.
        coefficients = np.linalg.solve(gram + max(ridge, 1e-12) * np.eye(len(gram)), np.asarray((y.T @ x).T))
        return ((query.astype(np.float64) - centre) @ coefficients + mean).astype(np.float32)
