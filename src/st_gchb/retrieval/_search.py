"""Exact search of the nearest reference spots, and the weights of their average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy import sparse

from st_gchb._errors import InputError

Weighting = Literal["softmax", "mean"]

_CHUNK_VALUES = 2**25
"""Similarities held at once: 128 MiB of float32."""


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


def check_search(n_reference: int, k: int, weighting: str) -> None:
    """Refuse a search that cannot be made.

    Raises
    ------
    InputError
        If there are fewer reference spots than ``k``, or the weighting is unknown.
    """
    if weighting not in get_args(Weighting):
        raise InputError(f"weighting={weighting!r} is unknown; expected one of {list(get_args(Weighting))}.")
    if not 1 <= k <= n_reference:
        raise InputError(f"k={k}, but the reference has {n_reference} spots. Pass a k between 1 and {n_reference}.")


def find_neighbors(
    query: np.ndarray,
    keys: np.ndarray,
    *,
    k: int,
    weighting: Weighting = "softmax",
    temperature: float = 0.1,
    allowed: np.ndarray | None = None,
    device: torch.device | str = "cpu",
) -> Neighbors:
    """Find the k most similar reference spots, Algorithm 1 of the paper, in chunks of bounded size.

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
    device
        Where similarities are computed.

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
    rows = np.arange(len(keys)) if allowed is None else np.flatnonzero(allowed)
    check_search(len(rows), k, weighting)
    bank = torch.as_tensor(keys[rows] if allowed is not None else keys, dtype=torch.float32, device=device)
    chunk = max(1, _CHUNK_VALUES // len(bank))
    ids, similarity = [], []
    for start in range(0, len(query), chunk):
        part = torch.as_tensor(query[start : start + chunk], dtype=torch.float32, device=device)
        top = torch.topk(part @ bank.T, k, dim=1)
        similarity.append(top.values.cpu().numpy())
        ids.append(rows[top.indices.cpu().numpy()])
    values = np.concatenate(similarity) if similarity else np.empty((0, k), np.float32)
    found = np.concatenate(ids) if ids else np.empty((0, k), np.int64)
    return Neighbors(found, values, _weights(values, weighting, temperature))


def _weights(similarity: np.ndarray, weighting: Weighting, temperature: float) -> np.ndarray:
    if weighting == "mean":
        return np.full_like(similarity, 1.0 / similarity.shape[1])
    scores = np.exp((similarity - similarity.max(axis=1, keepdims=True, initial=-np.inf)) / temperature)
    return (scores / scores.sum(1, keepdims=True)).astype(np.float32)
