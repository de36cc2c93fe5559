"""Approximate search with FAISS for references of a million spots and more; the recall of the index is measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from st_gchb._errors import MissingExtraError
from st_gchb._logging import logger
from st_gchb.retrieval._exact import nearest

TARGET_RECALL = 0.965
"""Share of the exact neighbors that the index is tuned to find."""
_CANDIDATES = 2
"""Candidates per requested neighbor whose similarity is computed exactly."""
_SAMPLE = 400
"""Number of queries on which the index is tuned; its recall is measured on as many others."""
_TRAINING_SPOTS = 50
"""Keys per list from which the centers of the lists are computed."""
_ROWS = 64
"""Queries whose candidates are ranked at a time."""
_BITS = 4
_SEED = 0
"""Seed of the clustering and of the sampled keys and queries."""


def has_faiss() -> bool:
    """Return True if FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


@dataclass(frozen=True)
class SearchIndex:
    """Inverted file index with product quantization (FAISS's IVFPQ), and its measured recall.

    Keys are stored in lists around centers, with 4 bits for each coordinate of the difference between a key and the
    center of its list. A query is compared with the codes in its nearest lists. Twice as many candidates as requested
    are found in this way and ranked by their exact similarity. The index is stored as plain arrays, from which FAISS's
    own index is rebuilt.

    Parameters
    ----------
    keys
        L2-normalized embeddings, ``(n_reference, d)``.
    centers
        Centers of the lists, ``(n_lists, d)``.
    codebook
        Values for which the codes stand, ``(d, 16)``.
    codes
        List and code of each key in FAISS's format, ``(n_reference, n_bytes)``, uint8.
    n_probe
        Number of lists that are searched for a query.
    k
        Number of neighbors for which ``n_probe`` was tuned.
    recall
        Share of the ``k`` nearest spots that the index finds, measured on queries that were not used for tuning.
    """

    keys: np.ndarray
    centers: np.ndarray
    codebook: np.ndarray
    codes: np.ndarray
    n_probe: int
    k: int
    recall: float

    @classmethod
    def build(cls, keys: np.ndarray, queries: np.ndarray, k: int) -> SearchIndex:
        """Build the index of some keys, and tune the number of lists that are searched for a query.

        Parameters
        ----------
        keys
            L2-normalized embeddings, ``(n_reference, d)``.
        queries
            Embeddings like those of future queries, ``(n, d)``: the embeddings of the reference's own patches.
        k
            Number of neighbors.

        Returns
        -------
        SearchIndex
            The tuned index.

        Raises
        ------
        MissingExtraError
            FAISS is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> from st_gchb.retrieval import SearchIndex
        >>> keys = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
        >>> keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        >>> index = SearchIndex.build(keys, keys[:200], k=5)
        >>> int(index.search(keys[:1], 5)[0][0, 0])
        0
        """
        faiss = _faiss()
        keys = np.ascontiguousarray(keys, dtype=np.float32)
        rng = np.random.default_rng(_SEED)
        n_lists = 2 ** round(np.log2(2 * np.sqrt(len(keys))))
        drawn = keys[np.sort(rng.permutation(len(keys))[: _TRAINING_SPOTS * n_lists])]
        means = faiss.Kmeans(
            keys.shape[1], n_lists, niter=8, seed=_SEED, spherical=True, min_points_per_centroid=1,
            max_points_per_centroid=_TRAINING_SPOTS,
        )  # fmt: skip
        with _threads(faiss):
            means.train(drawn)
            empty = _empty(faiss, means.centroids)
            empty.train(drawn)
            codes = np.concatenate([empty.sa_encode(part) for part in np.array_split(keys, -(-len(keys) // 2**16))])
        codebook = faiss.vector_to_array(empty.pq.centroids).reshape(keys.shape[1], -1).copy()
        made = cls(keys, means.centroids.copy(), codebook, codes, 1, k, 0.0)
        return made.tuned(queries, k)

    def tuned(self, queries: np.ndarray, k: int) -> SearchIndex:
        """Return the index with ``n_probe`` tuned for ``k`` neighbors; parameters as in :meth:`build`."""
        rng = np.random.default_rng(_SEED)
        drawn = queries[np.sort(rng.permutation(len(queries))[: 2 * _SAMPLE])]
        exact = nearest(drawn, self.keys, k)[0]
        for_choice, for_measure = np.arange(len(drawn)) % 2 == 0, np.arange(len(drawn)) % 2 == 1
        for n_probe in _steps(len(self.centers)):
            made = replace(self, n_probe=n_probe, k=k)
            made.__dict__["_index"] = self._index
            found = made.search(drawn, k)[0]
            if n_probe == len(self.centers) or overlap(found[for_choice], exact[for_choice]) >= TARGET_RECALL:
                break
        object.__setattr__(made, "recall", overlap(found[for_measure], exact[for_measure]))
        logger.info(
            "Search index: %d of %d lists are probed; recall %.3f of the %d nearest.",
            *(made.n_probe, len(made.centers), made.recall, k),
        )
        return made

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the approximately most similar keys of each query.

        Parameters
        ----------
        query
            L2-normalized embeddings, ``(n_query, d)``.
        k
            Number of keys per query.

        Returns
        -------
        tuple[numpy.ndarray, numpy.ndarray]
            Rows of the keys, most similar first, and their exact similarities, each ``(n_query, k)``.
        """
        query = np.ascontiguousarray(query, dtype=np.float32)
        faiss = _faiss()
        n_candidates = min(_CANDIDATES * k, len(self.keys))
        ids, similarity = np.empty((len(query), k), np.int64), np.empty((len(query), k), np.float32)
        keys = torch.from_numpy(self.keys)
        with _threads(faiss):
            parameters = faiss.SearchParametersIVF(nprobe=self.n_probe)
            for start in range(0, len(query), 1024):
                part = query[start : start + 1024]
                found = self._index.search(part, n_candidates, params=parameters)[1]
                for first in range(0, len(part), _ROWS):
                    rows = slice(start + first, start + first + _ROWS)
                    ids[rows], similarity[rows] = _ranked(query[rows], keys, found[first : first + _ROWS], k)
        # The lists of a query in a sparse region may hold fewer than k keys: such a query is searched exactly.
        few = np.flatnonzero(np.isneginf(similarity).any(1))
        if len(few):
            ids[few], similarity[few] = nearest(query[few], self.keys, k)
        return ids, similarity

    @cached_property
    def _index(self) -> Any:
        """The index of FAISS, rebuilt from the arrays."""
        faiss = _faiss()
        plain = _empty(faiss, self.centers)
        faiss.copy_array_to_vector(self.codebook.ravel(), plain.pq.centroids)
        plain.is_trained = True
        plain.add_sa_codes(self.codes, np.arange(len(self.keys)))
        # The fast-scan layout compares the codes of 32 keys with one instruction.
        return faiss.IndexIVFPQFastScan(plain)


def overlap(found: np.ndarray, exact: np.ndarray) -> float:
    """Compute the share of exact neighbors that were found, averaged over the rows, both ``(n_query, k)``."""
    return float(np.mean([np.isin(want, have).mean() for have, want in zip(found, exact, strict=True)]))


def _ranked(query: np.ndarray, keys: torch.Tensor, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rank candidates by exact similarity and return the best ``k``; -1 marks a missing candidate."""
    candidates = torch.from_numpy(found)
    near = keys[candidates.clamp_min(0)]
    similarity = torch.bmm(near, torch.from_numpy(query)[:, :, None])[..., 0]
    similarity[candidates < 0] = -torch.inf
    top = similarity.topk(k)
    return candidates.gather(1, top.indices).numpy(), top.values.numpy()


def _steps(n_lists: int) -> list[int]:
    """List the numbers of lists to try, each a fifth larger than the one before."""
    steps = [1]
    while steps[-1] < n_lists:
        steps.append(min(n_lists, max(steps[-1] + 1, steps[-1] * 6 // 5)))
    return steps


def _empty(faiss: Any, centers: np.ndarray) -> Any:
    """Make a FAISS index with lists around ``centers`` that holds no keys."""
    n_lists, width = centers.shape
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(centers)
    return faiss.IndexIVFPQ(quantizer, width, n_lists, width, _BITS, faiss.METRIC_INNER_PRODUCT)


def require_faiss() -> None:
    """Check that FAISS is installed.

    Raises
    ------
    MissingExtraError
        FAISS is not installed.
    """
    if not has_faiss():
        raise MissingExtraError(
            "The search index needs FAISS, which is not installed. Run pip install 'st-gchb[faiss]', or pass "
            "search='exact'."
        )


def _faiss() -> Any:
    require_faiss()
    import faiss

    return faiss


@contextmanager
def _threads(faiss: Any) -> Iterator[None]:
    """Run FAISS on as many threads as torch uses."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
