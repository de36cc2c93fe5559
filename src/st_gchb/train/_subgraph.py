"""Cut-outs of the spot graph: the halo of some spots, the edges between them, and blocks of a large slice."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from st_gchb.nn import Part


def with_halo(adjacency: sparse.csr_matrix, rows: np.ndarray, n_hops: int) -> np.ndarray:
    """Spots and all that lie within some hops of them, ``(n_nodes,)``: ``rows`` first, then the halo hop by hop.

    Parameters
    ----------
    adjacency
        Spot graph, ``(n_spots, n_spots)``.
    rows
        Spots whose representation is wanted.
    n_hops
        Hops that it depends on.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> path = sparse.diags([np.ones(4), np.ones(4)], [-1, 1], format="csr")
    >>> with_halo(path, np.array([4]), 2).tolist()
    [4, 3, 2]
    """
    nodes = newest = np.asarray(rows)
    for _ in range(n_hops):
        newest = np.setdiff1d(adjacency[newest].indices, nodes)
        nodes = np.concatenate([nodes, newest])
    return nodes


def edges_between(adjacency: sparse.csr_matrix, nodes: np.ndarray) -> np.ndarray:
    """Edges of the graph with both ends among ``nodes``, by their place there, ``(2, n_edges)``.

    The cost is that of the nodes and their edges. Columns of a sparse matrix are cut out at the cost of all columns,
    which in every step would make an epoch quadratic in the number of spots.
    """
    nodes = np.asarray(nodes, dtype=np.int64)
    first = adjacency.indptr[nodes].astype(np.int64)
    count = adjacency.indptr[nodes + 1] - first
    before = np.concatenate([[0], np.cumsum(count)])
    source = np.repeat(np.arange(len(nodes)), count)
    neighbor = adjacency.indices[np.repeat(first - before[:-1], count) + np.arange(before[-1])]
    order = np.argsort(nodes, kind="stable")
    place = np.searchsorted(nodes[order], neighbor)
    place[place == len(nodes)] = 0
    inside = nodes[order][place] == neighbor if len(nodes) else np.zeros(0, dtype=bool)
    return np.stack([source[inside], order[place[inside]]])


def spatial_blocks(coordinates: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut spots into compact blocks of nearly the same number, by halving along the longer side.

    Parameters
    ----------
    coordinates
        Spot centers, ``(n_spots, 2)``.
    size
        Spots of a block at most.

    Returns
    -------
    Rows of each block, ascending; one block where there are no more spots than ``size``.
    """
    blocks: list[np.ndarray] = []
    waiting = [(np.arange(len(coordinates)), max(1, -(-len(coordinates) // size)))]
    while waiting:
        rows, n_blocks = waiting.pop()
        if n_blocks == 1:
            blocks.append(np.sort(rows))
            continue
        own = coordinates[rows]
        side = own[:, int(np.argmax(np.ptp(own, axis=0)))]
        half = n_blocks // 2
        cut = -(-len(rows) * half // n_blocks)
        # Spots of an array share coordinates: among equals the row decides, not the sorting.
        order = rows[np.lexsort((rows, side.round(3)))]
        waiting += [(order[cut:], n_blocks - half), (order[:cut], half)]
    return blocks


def share_of(edge_index: np.ndarray, n_nodes: int, inner: np.ndarray, n_hops: int, device: int, n_devices: int) -> Part:
    """What one of several devices encodes of a step: an even share of the inner nodes, and their halo.

    Parameters
    ----------
    edge_index
        Edges of the step, ``(2, n_edges)``.
    n_nodes
        Its nodes.
    inner
        Nodes that count, in an order in which neighbors lie close.
    n_hops
        Hops that a representation depends on.
    device, n_devices
        Which device of how many.
    """
    own = np.array_split(inner, n_devices)[device]
    graph = sparse.csr_matrix((np.ones(edge_index.shape[1], np.float32), edge_index), shape=(n_nodes, n_nodes))
    nodes = with_halo(graph, own, n_hops)
    edges = edges_between(graph, nodes)
    return Part(torch.from_numpy(nodes.astype(np.int64)), torch.from_numpy(edges), len(own), n_nodes, n_devices)
