"""Subgraphs of the spot graph: spots with their halo, edges between spots, blocks of a slice, shares of a device."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from st_gchb.nn import Part


def with_halo(adjacency: sparse.csr_matrix, rows: np.ndarray, n_hops: int) -> np.ndarray:
    """Extend spots by their halo, the neighbors within some hops.

    Parameters
    ----------
    adjacency
        Spot graph, ``(n_spots, n_spots)``.
    rows
        Spots to represent, ``(n_rows,)``.
    n_hops
        Number of hops over which their representation depends on the graph.

    Returns
    -------
    numpy.ndarray
        ``rows``, then the halo hop by hop, ``(n_nodes,)``.

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
    """Find the edges of the graph with both ends among ``nodes``.

    The cost grows with the nodes and their edges alone. Indexing the columns of a sparse matrix instead costs time
    proportional to all columns, which in every step would make an epoch quadratic in the number of spots.

    Parameters
    ----------
    adjacency
        Spot graph, ``(n_spots, n_spots)``.
    nodes
        Rows of the spots, ``(n_nodes,)``.

    Returns
    -------
    numpy.ndarray
        Edges as positions in ``nodes``, ``(2, n_edges)``.
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
    """Cut spots into compact blocks of nearly equal size, by recursive bisection along the longer side.

    Parameters
    ----------
    coordinates
        Spot centers, ``(n_spots, 2)``.
    size
        Largest number of spots in a block.

    Returns
    -------
    list[numpy.ndarray]
        Rows of each block, ascending; a single block if there are at most ``size`` spots.
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
        # Spots of an array share coordinates; ties are broken by row, so that the blocks are reproducible.
        order = rows[np.lexsort((rows, side.round(3)))]
        waiting += [(order[cut:], n_blocks - half), (order[:cut], half)]
    return blocks


def share_of(edge_index: np.ndarray, n_nodes: int, inner: np.ndarray, n_hops: int, device: int, n_devices: int) -> Part:
    """Assign one of several devices an even share of the inner nodes of a step, with their halo.

    Parameters
    ----------
    edge_index
        Edges of the step, ``(2, n_edges)``.
    n_nodes
        Number of nodes of the step.
    inner
        Inner nodes, in an order that keeps neighbors close together, so that the halos are small.
    n_hops
        Number of hops over which a representation depends on the graph.
    device, n_devices
        Rank of the device and number of devices.

    Returns
    -------
    Part
        The nodes that the device encodes.
    """
    own = np.array_split(inner, n_devices)[device]
    graph = sparse.csr_matrix((np.ones(edge_index.shape[1], np.float32), edge_index), shape=(n_nodes, n_nodes))
    nodes = with_halo(graph, own, n_hops)
    edges = edges_between(graph, nodes)
    return Part(torch.from_numpy(nodes.astype(np.int64)), torch.from_numpy(edges), len(own), n_nodes, n_devices)
