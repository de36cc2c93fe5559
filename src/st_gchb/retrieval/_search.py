"""The nearest reference spots, and the weights of their average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import sparse

from st_gchb._arguments import Count, Temperature, checked
from st_gchb._errors import InputError
from st_gchb.retrieval._exact import nearest
from st_gchb.retrieval._index import SearchIndex, require_faiss

Weighting = Literal["softmax", "mean"]

Search = Literal["auto", "exact", "index"]


@dataclass(frozen=True)
class Neighbors:
    """The reference spots behind each query spot.

    Parameters
    ----------
    ids
        Rows of the bank, most similar first, ``(n_query, k)``.
    similarity
        Cosine similarity of the embeddings, ``(n_query, k)``.
    weights
        Share of each reference spot in the retrieved average; each row sums to 1.
    """

    ids: np.ndarray
    similarity: np.ndarray
    weights: np.ndarray

    def matrix(self, n_reference: int) -> sparse.csr_matrix:
        """Weights as a sparse matrix, ``(n_query, n_reference)``: prediction = matrix @ expression."""
        n_query, k = self.ids.shape
        indptr = np.arange(0, n_query * k + 1, k)
        return sparse.csr_matrix((self.weights.ravel(), self.ids.ravel(), indptr), shape=(n_query, n_reference))


@checked
def check_search(n_reference: int, k: Count, weighting: Weighting, search: Search = "auto") -> None:
    """Refuse a search that cannot be made.

    Raises
    ------
    InputError
        If there are fewer reference spots than ``k``, or the weighting or the way to search is unknown.
    MissingExtraError
        If the index is asked for, and FAISS is not installed.
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
    weighting: Weighting = "softmax",
    temperature: Temperature = 0.1,
    allowed: np.ndarray | None = None,
    index: SearchIndex | None = None,
    device: torch.device | str = "cpu",
) -> Neighbors:
    """Find the k most similar reference spots, Algorithm 1 of the paper, in pieces of bounded size.

    Parameters
    ----------
    query, keys
        L2-normalised embeddings, ``(n_query, d)`` and ``(n_reference, d)``.
    k
        Number of reference spots per query spot.
    weighting
        ``"mean"``: the paper's plain average; ``"softmax"``: weights exp(similarity / temperature), normalised.
    temperature
        For ``"softmax"``.
    allowed
        Mask of the keys that may be found, ``(n_reference,)``; by default all.
    index
        Index of the keys, to look nearly all of them up instead of comparing all; not with ``allowed``.
    device
        Where similarities are computed, without an index.

    Raises
    ------
    InputError
        If there are fewer keys than ``k``, or the weighting is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> found = find_neighbors(np.eye(2), np.eye(2), k=1)
    >>> found.ids.tolist()
    [[0], [1]]
    """
    n_allowed = len(keys) if allowed is None else int(np.count_nonzero(allowed))
    check_search(n_allowed, k, weighting)
    if index is not None and allowed is None:
        found, similarity = index.search(query, k)
    elif allowed is None:
        found, similarity = nearest(query, keys, k, device)
    else:
        rows = np.flatnonzero(allowed)
        found, similarity = nearest(query, keys[rows], k, device)
        found = rows[found]
    return Neighbors(found, similarity, _weights(similarity, weighting, temperature))


def _weights(similarity: np.ndarray, weighting: Weighting, temperature: float) -> np.ndarray:
    if weighting == "mean":
        return np.full_like(similarity, 1.0 / similarity.shape[1])
    scores = np.exp((similarity - similarity.max(axis=1, keepdims=True, initial=-np.inf)) / temperature)
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32)
