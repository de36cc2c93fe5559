"""Algorithm 1 of the paper: the most similar reference spots of a query, and the weighted mean of their values."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import sparse

from st_gchb._arguments import Count, Temperature, checked
from st_gchb._errors import InputError
from st_gchb._options import DEFAULT_WEIGHTING, Search, Weighting
from st_gchb._versions import working_threads
from st_gchb.retrieval._exact import nearest
from st_gchb.retrieval._faiss import SearchIndex, require_faiss

_REFERENCE_ROWS = 2**17
"""Reference spots whose values are read from a table at a time."""
_VALUES = 2**19
"""Values of a table that are dense in memory at a time, by each thread: 2 MiB of float32, which stay in its cache while
the queries refer to them in no order."""
_COLUMNS = 16
"""Columns that are taken at a time at least, of a larger table: a line of the cache."""


@checked
def weighted_mean(neighbors: Neighbors, values: sparse.csr_matrix) -> np.ndarray:
    """Average the values of the retrieved reference spots, the last step of Algorithm 1 of the paper.

    Only the rows to which the queries refer are read, some columns at a time, so that memory does not grow with the
    reference. Columns are shared among as many threads as torch has.

    Parameters
    ----------
    neighbors
        Reference spots retrieved for each query spot, with their weights.
    values
        A table of the reference, ``(n_reference, n_columns)``.

    Returns
    -------
    numpy.ndarray
        Weighted means, ``(n_query, n_columns)``, float32.

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
    with ThreadPoolExecutor(working_threads(), "st_gchb-mean") as threads:
        for start in range(0, n_query, at_once):
            part = slice(start, start + at_once)
            rows, place = np.unique(neighbors.ids[part], return_inverse=True)
            own = values[rows].tocsc()
            ends = np.arange(0, place.size + 1, k)
            chosen = (neighbors.weights[part].ravel(), place.ravel(), ends)
            weights = sparse.csr_matrix(chosen, (len(ends) - 1, len(rows)))
            width = max(_COLUMNS, _VALUES // max(len(rows), 1))
            columns = [slice(first, first + width) for first in range(0, values.shape[1], width)]
            list(threads.map(partial(_average, weights, own, result[part]), columns))
    return result


def _average(weights: sparse.csr_matrix, values: sparse.csc_matrix, result: np.ndarray, columns: slice) -> None:
    """Write the weighted means of some columns to a result of all, ``(n_query, n_columns)``."""
    result[:, columns] = weights @ values[:, columns].toarray()


@dataclass(frozen=True)
class Neighbors:
    """Reference spots retrieved for each query spot.

    Parameters
    ----------
    ids
        Rows of the reference bank, most similar first, ``(n_query, k)``.
    similarity
        Cosine similarity of the embeddings, ``(n_query, k)``.
    weights
        Weight of each reference spot in the retrieved mean, ``(n_query, k)``; each row sums to 1.
    """

    ids: np.ndarray
    similarity: np.ndarray
    weights: np.ndarray

    def subset(self, rows: np.ndarray) -> Neighbors:
        """Take those of some query spots."""
        return Neighbors(self.ids[rows], self.similarity[rows], self.weights[rows])


@checked
def check_search(n_reference: int, k: Count, weighting: Weighting, search: Search = "auto") -> None:
    """Check that a search is possible.

    Parameters
    ----------
    n_reference
        Number of reference spots.
    k, weighting
        As in :func:`find_neighbors`.
    search
        Search method, as in :func:`index_for`.

    Raises
    ------
    InputError
        There are fewer reference spots than ``k``, or the weighting or the search method is unknown.
    MissingExtraError
        The index is requested and FAISS is not installed.
    """
    if not 1 <= k <= n_reference:
        raise InputError(f"k={k}, but the reference has {n_reference} spots. Pass a k between 1 and {n_reference}.")
    if search == "index":
        require_faiss()


@checked
def find_neighbors(
    query: np.ndarray,
    keys: np.ndarray,
    *,
    k: Count,
    weighting: Weighting = DEFAULT_WEIGHTING,
    temperature: Temperature = 0.1,
    index: SearchIndex | None = None,
    device: torch.device | str = "cpu",
) -> Neighbors:
    """Find the k most similar reference spots of each query spot, Algorithm 1 of the paper.

    Parameters
    ----------
    query, keys
        L2-normalized embeddings, ``(n_query, d)`` and ``(n_reference, d)``.
    k
        Number of reference spots per query spot.
    weighting
        ``"mean"``: the plain mean of the paper; ``"softmax"``: weights exp(similarity / temperature), normalized.
    temperature
        Temperature of the softmax.
    index
        Index of the keys for approximate search; None compares each query with all keys.
    device
        Torch device on which an exact search computes similarities.

    Returns
    -------
    Neighbors
        Rows of ``keys``, their similarities and weights, each ``(n_query, k)``.

    Raises
    ------
    InputError
        There are fewer keys than ``k``, or the weighting is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> found = find_neighbors(np.eye(2), np.eye(2), k=1)
    >>> found.ids.tolist()
    [[0], [1]]
    """
    check_search(len(keys), k, weighting)
    found, similarity = nearest(query, keys, k, device) if index is None else index.search(query, k)
    return Neighbors(found, similarity, _weights(similarity, weighting, temperature))


def _weights(similarity: np.ndarray, weighting: Weighting, temperature: float) -> np.ndarray:
    if weighting == "mean":
        return np.full_like(similarity, 1.0 / similarity.shape[1])
    scores = np.exp((similarity - similarity.max(axis=1, keepdims=True, initial=-np.inf)) / temperature)
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32)
