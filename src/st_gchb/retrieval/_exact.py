"""Exact search for the most similar keys of each query, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from st_gchb._errors import InputError

_QUERIES, _KEYS = 1024, 2**15
"""Queries and keys per block of similarities: 128 MiB of float32."""
_IN_CACHE = 512, 2048
"""Queries and keys per block of distances, which are passed over several times: 8 MiB of float64."""
_GROUP = 64
"""Columns per group; the columns of a group are inspected only if their maximum is high enough."""
_AT_ONCE = 2**18
"""Values among which the largest of some rows are found at a time: 1 MiB, which stays in a core's cache."""


def nearest(
    query: np.ndarray, keys: np.ndarray, k: int, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Find the keys that are most similar to each query, and their similarities.

    Similarities are computed in blocks that are large in both directions, which makes the matrix product fast. Of each
    block, only the values above the k-th best so far are merged into the result. Keys of equal similarity are in the
    order in which :func:`torch.topk` returns them.

    Parameters
    ----------
    query, keys
        L2-normalized embeddings, ``(n_query, d)`` and ``(n_reference, d)``.
    k
        Number of keys per query, at most ``n_reference``.
    device
        Torch device on which similarities are computed.

    Returns
    -------
    tuple[numpy.ndarray, numpy.ndarray]
        Rows of the keys, most similar first, and their similarities, each ``(n_query, k)``.

    Raises
    ------
    InputError
        ``keys`` is no matrix of numbers, or ``device`` cannot be used.
    """
    try:
        bank = torch.as_tensor(keys, dtype=torch.float32, device=device)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"keys ({type(keys).__name__}) on device={device!r} cannot be used: {error}. Pass a matrix of numbers, "
            "(n_reference, d), and a device of torch, such as 'cpu'."
        ) from error
    return _most_similar(query, bank, k, lambda part, keys: part @ keys.T, sizes=(_QUERIES, _KEYS))


def nearest_distances(query: np.ndarray, keys: np.ndarray, k: int) -> np.ndarray:
    """Compute the Euclidean distances of each query to the nearest keys.

    Parameters
    ----------
    query, keys
        Rows of numbers, float32, ``(n_query, d)`` and ``(n_reference, d)``.
    k
        Number of keys per query, at most ``n_reference``.

    Returns
    -------
    numpy.ndarray
        Distances, nearest first, float32, ``(n_query, k)``.
    """

    def closeness(part: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
        # In double precision: squares of numbers far from 0 would leave few digits of a small difference.
        part, some = part.double(), some.double()
        block = torch.addmm(-some.square().sum(1), 2 * part, some.T)
        return torch.sub(block, part.square().sum(1)[:, None], out=torch.empty(block.shape))

    _, found = _most_similar(query, torch.as_tensor(keys, dtype=torch.float32), k, closeness, sizes=_IN_CACHE)
    distances: np.ndarray = np.sqrt(np.maximum(-found, 0))
    return distances


Similarity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Function of some queries and some keys that returns the similarity of each pair, ``(n_query, n_keys)``, float32."""


def _most_similar(
    query: np.ndarray, bank: torch.Tensor, k: int, similarity_of: Similarity, sizes: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Find the keys that are most similar to each query, block by block, as :func:`nearest` describes."""
    n_queries, n_keys = sizes
    ids, similarity = np.empty((len(query), k), np.int64), np.empty((len(query), k), np.float32)
    for start in range(0, len(query), n_queries):
        part = torch.as_tensor(query[start : start + n_queries], dtype=torch.float32, device=bank.device)
        best = torch.full((len(part), k), -torch.inf, device=bank.device)
        rows = torch.zeros((len(part), k), dtype=torch.int64, device=bank.device)
        for first in range(0, len(bank), n_keys):
            block = similarity_of(part, bank[first : first + n_keys])
            if first == 0 and k <= block.shape[1]:
                best, rows = _largest(block, k, first=True)
                continue
            values, found = _best(block, k) if first < k else _better(block, best[:, -1])
            best, order = _largest(torch.cat([best, values], dim=1), k)
            rows = torch.cat([rows, found + first], dim=1).gather(1, order)
        ids[start : start + n_queries] = rows.cpu().numpy()
        similarity[start : start + n_queries] = best.cpu().numpy()
    return ids, similarity


def _best(block: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the ``k`` largest values of each row and their columns."""
    top = block.topk(min(k, block.shape[1]), dim=1)
    return top.values, top.indices


def _largest(values: torch.Tensor, k: int, *, first: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the ``k`` largest values of each row and their columns, in descending order.

    On a CPU, numpy finds the k-th largest value and sorts those above it several times as fast as torch does. Where
    the values differ there is one result. Rows with equal values are left to torch, whose order of them depends on the
    whole row: with ``first``, they are selected once more, behind ``k`` empty places, as in a merge.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return _ordered_by_torch(values, k, first=first)
    n_rows, width = values.shape
    best, columns = np.empty((n_rows, k), np.float32), np.empty((n_rows, k), np.int64)
    tied = np.zeros(n_rows, dtype=bool)
    array, step = values.numpy(), max(1, _AT_ONCE // width)
    for start in range(0, n_rows, step):
        part = slice(start, start + step)
        tied[part] = _untied(array[part], k, best[part], columns[part])
    found = torch.from_numpy(best), torch.from_numpy(columns)
    if tied.any():
        rows = torch.from_numpy(np.flatnonzero(tied))
        for target, source in zip(found, _ordered_by_torch(values[rows], k, first=first), strict=True):
            target[rows] = source
    return found


def _untied(values: np.ndarray, k: int, best: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Write the ``k`` largest values of each row and their columns; returns the rows where the order is not unique."""
    n_rows, width = values.shape
    floor = np.partition(values, width - k, axis=1)[:, width - k, None]
    above = values >= floor
    hits: np.ndarray = np.flatnonzero(above)
    # More than k values where some equal the k-th, and fewer where there are NaN, which equal nothing.
    tied = np.zeros(n_rows, dtype=bool)
    if len(hits) != n_rows * k or (hits.reshape(n_rows, k)[:, [0, -1]] // width != np.arange(n_rows)[:, None]).any():
        tied = above.sum(1) != k
        hits = np.flatnonzero(above[~tied])
    some = np.ascontiguousarray(values) if not tied.any() else values[~tied]
    hits = hits.reshape(len(some), k)
    near = some.ravel()[hits]
    order = np.argsort(-near, axis=1)
    near = np.take_along_axis(near, order, axis=1)
    place = np.take_along_axis(hits, order, axis=1) - np.arange(len(some))[:, None] * width
    best[~tied], columns[~tied] = near, place
    tied[~tied] = (near[:, 1:] == near[:, :-1]).any(1)
    return tied


def _ordered_by_torch(values: torch.Tensor, k: int, *, first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the ``k`` largest values of each row and their columns with torch."""
    top = values.topk(k, dim=1)
    if not first:
        return top.values, top.indices
    again = torch.cat([torch.full_like(top.values, -torch.inf), top.values], dim=1).topk(k, dim=1)
    columns = torch.cat([torch.zeros_like(top.indices), top.indices], dim=1).gather(1, again.indices)
    return again.values, columns


def _better(block: torch.Tensor, floor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the values of each row above its floor and their columns, padded with -inf to the longest row.

    With ``k`` in the hundreds, a top-k selection over all values would take longer than the matrix product. The maximum
    of each group of columns shows which groups to inspect, and these are few once the floor is high.
    """
    n_rows, width = block.shape
    if width % _GROUP:
        block = torch.nn.functional.pad(block, (0, _GROUP - width % _GROUP), value=-torch.inf)
    groups = block.view(n_rows, -1, _GROUP)
    row, group = torch.nonzero(groups.amax(2) > floor[:, None], as_tuple=True)
    near = groups[row, group]
    hit, place = torch.nonzero(near > floor[row, None], as_tuple=True)
    row = row[hit]
    count = torch.bincount(row, minlength=n_rows)
    # Hits are ordered by row, so subtracting the number of hits in earlier rows gives each hit's index in its own row.
    turn = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    values = torch.full((n_rows, int(count.max())), -torch.inf, device=block.device)
    columns = torch.zeros(values.shape, dtype=torch.int64, device=block.device)
    values[row, turn] = near[hit, place]
    columns[row, turn] = group[hit] * _GROUP + place
    return values, columns
