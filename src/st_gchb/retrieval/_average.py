"""Weighted mean of the retrieved spots' values, for a reference of any size."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from st_gchb._arguments import checked
from st_gchb.retrieval._search import Neighbors

_REFERENCE_ROWS = 2**17
"""Reference spots whose values are taken out of a table at once."""
_VALUES = 2**25
"""Values of a table that are dense at once: 128 MiB of float32."""


@checked
def weighted_mean(neighbors: Neighbors, values: sparse.csr_matrix) -> np.ndarray:
    """Algorithm 1's average, ``(n_query, n_columns)``.

    Only the rows that some queries refer to are looked at, some columns at a time: memory does not grow with the
    reference.

    Parameters
    ----------
    neighbors
        The reference spots behind each query spot, and their weights.
    values
        A table of the reference, ``(n_reference, n_columns)``.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from st_gchb.retrieval import Neighbors, weighted_mean
    >>> two = Neighbors(np.array([[0, 2]]), np.ones((1, 2)), np.array([[0.5, 0.5]]))
    >>> weighted_mean(two, sparse.csr_matrix([[2.0], [9.0], [4.0]])).tolist()
    [[3.0]]
    """
    n_query, k = neighbors.ids.shape
    result = np.empty((n_query, values.shape[1]), dtype=np.float32)
    small = values.shape[0] <= _REFERENCE_ROWS
    at_once = max(1, n_query if small else _REFERENCE_ROWS // k)
    for start in range(0, n_query, at_once):
        part = slice(start, start + at_once)
        rows, place = np.unique(neighbors.ids[part], return_inverse=True)
        own = values[rows].tocsc()
        ends = np.arange(0, place.size + 1, k)
        weights = sparse.csr_matrix((neighbors.weights[part].ravel(), place.ravel(), ends), (len(ends) - 1, len(rows)))
        width = max(16, _VALUES // max(len(rows), 1))
        for first in range(0, values.shape[1], width):
            columns = slice(first, first + width)
            result[part, columns] = weights @ own[:, columns].toarray()
    return result
