"""Exact search for the most similar keys of each query, in blocks of bounded memory."""

from __future__ import annotations

import numpy as np
import torch

from st_gchb._errors import InputError

_QUERIES, _KEYS = 1024, 2**15
"""Queries and keys per block of similarities: 128 MiB of float32."""
_GROUP = 64
"""Columns per group; the columns of a group are inspected only if their maximum is high enough."""


def nearest(
    query: np.ndarray, keys: np.ndarray, k: int, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Find the keys that are most similar to each query, and their similarities.

    Similarities are computed in blocks that are large in both directions, which makes the matrix product fast. Of each
    block, only the values above the k-th best so far are merged into the result.

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
    ids, similarity = np.empty((len(query), k), np.int64), np.empty((len(query), k), np.float32)
    for start in range(0, len(query), _QUERIES):
        part = torch.as_tensor(query[start : start + _QUERIES], dtype=torch.float32, device=device)
        best = torch.full((len(part), k), -torch.inf, device=device)
        rows = torch.zeros((len(part), k), dtype=torch.int64, device=device)
        for first in range(0, len(bank), _KEYS):
            block = part @ bank[first : first + _KEYS].T
            values, found = _best(block, k) if first < k else _better(block, best[:, -1])
            values, order = torch.cat([best, values], dim=1).topk(k, dim=1)
            best, rows = values, torch.cat([rows, found + first], dim=1).gather(1, order)
        ids[start : start + _QUERIES] = rows.cpu().numpy()
        similarity[start : start + _QUERIES] = best.cpu().numpy()
    return ids, similarity


def _best(block: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the ``k`` largest values of each row and their columns."""
    top = block.topk(min(k, block.shape[1]), dim=1)
    return top.values, top.indices


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
