"""Read-out: expression of query spots that were located in the joint embedding, by retrieval and the heads.

It is made for some spots at a time, so that memory does not grow with the number of spots times that of genes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee

from st_gchb._logging import track
from st_gchb._options import Search
from st_gchb.model._confidence import Calibration, calibration_folds, error_predictors
from st_gchb.model._query import Preprocessor
from st_gchb.model._settings import ModelSettings
from st_gchb.nn import STGCHBNetwork
from st_gchb.retrieval import Neighbors, ReferenceBank, ReferenceTable, RidgeHead, weighted_mean
from st_gchb.train import edges_between, with_halo

_BLOCK_BYTES = 1 << 26
"""Largest size of a table, bytes, that is made at once; a larger one is made for some spots at a time."""


@dataclass(frozen=True)
class TrainedParts:
    """Trained parts that a prediction needs, and the search method for the reference.

    Parameters
    ----------
    network, rules, bank, calibration, settings
        Network, rules of the reference, reference bank, calibration if there is one, and settings.
    search
        Method by which the reference is searched.
    origin
        Identity of the model: ``model_id``, ``preset`` and ``seed``; empty while it is trained.
    """

    network: STGCHBNetwork
    rules: Preprocessor
    bank: ReferenceBank
    calibration: Calibration | None
    settings: ModelSettings
    search: Search = "auto"
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Located:
    """Query spots in the joint embedding, and what the heads and the confidence take of them.

    Parameters
    ----------
    embedding
        Joint embedding of the patches, ``(n_query, n_embedding)``.
    neighbors
        Retrieved reference spots.
    distance
        Mean distance of each patch to the nearest reference patches, ``(n_query,)``.
    linear
        Inputs of the ridge head, ``(n_query, n_inputs)``; None if it has no share of the prediction.
    components
        Components of expression that the kernel head predicts, ``(n_query, n_components)``; None without such a head.
    """

    embedding: np.ndarray
    neighbors: Neighbors
    distance: np.ndarray
    linear: np.ndarray | None = None
    components: np.ndarray | None = None

    def subset(self, rows: np.ndarray) -> Located:
        """Take some of the spots."""
        linear, components = (None if part is None else part[rows] for part in (self.linear, self.components))
        return Located(self.embedding[rows], self.neighbors.subset(rows), self.distance[rows], linear, components)


@dataclass(frozen=True)
class Block:
    """Prediction of a table of the reference for some of the query spots.

    Parameters
    ----------
    rows
        Rows of the spots in the query, ``(n_rows,)``.
    retrieved
        Weighted mean of the retrieved spots, ``(n_rows, n_columns)``.
    values
        Prediction, ``(n_rows, n_columns)``.
    """

    rows: np.ndarray
    retrieved: np.ndarray
    values: np.ndarray

    def error_predictors(self, located: Located, table: ReferenceTable) -> np.ndarray:
        """Compute the predictors of the error of these spots, ``(n_rows, 4)``; ``located`` are all of the query."""
        here = located.subset(self.rows)
        return error_predictors(here.neighbors, self.retrieved, self.values, table, here.distance)


def read_out(p: TrainedParts, located: Located, table: ReferenceTable, adjacency: sparse.csr_matrix) -> Iterator[Block]:
    """Predict a table of the reference for all query spots, some of them at a time.

    Parameters
    ----------
    p
        Trained parts.
    located
        The query spots.
    table
        Table of the reference.
    adjacency
        Spot graph of the query.

    Yields
    ------
    Block
        Prediction of some spots; each spot is in one block. A table of up to 64 MB is one block, in the spots' order.
    """
    n_spots = adjacency.shape[0]
    n_blocks = -(-4 * n_spots * len(table.columns) // _BLOCK_BYTES)
    if n_blocks <= 1:
        yield _block(p, located, table, adjacency, np.arange(n_spots))
        return
    # Spots that are near one another in this order are near in the graph, so that blocks have few neighbors outside.
    order = reverse_cuthill_mckee(adjacency, symmetric_mode=True)
    for rows in track(np.array_split(order, n_blocks), "Prediction", delay=1.0):
        nodes = with_halo(adjacency, rows, 1 if p.settings.sharpening else 0)
        ends = edges_between(adjacency, nodes)
        near = sparse.csr_matrix((np.ones(ends.shape[1], np.float32), ends), shape=(len(nodes), len(nodes)))
        made = _block(p, located.subset(nodes), table, near, nodes)
        yield Block(rows, made.retrieved[: len(rows)], made.values[: len(rows)])


def _block(
    p: TrainedParts, located: Located, table: ReferenceTable, adjacency: sparse.csr_matrix, rows: np.ndarray
) -> Block:
    retrieved = weighted_mean(located.neighbors, table.values)
    return Block(rows, retrieved, blended(p, retrieved, located.linear, located.components, table, adjacency))


def blended(
    p: TrainedParts,
    retrieved: np.ndarray,
    inputs: np.ndarray | None,
    components: np.ndarray | None,
    table: ReferenceTable,
    adjacency: sparse.csr_matrix,
) -> np.ndarray:
    """Blend the weighted mean of the retrieved spots with the ridge head and the kernel head, ``(n_query, n_columns)``.

    The blend is sharpened by the setting of that name. Values are clipped to the reference's range of each column: for
    patches unlike any of the reference, the linear ridge head would extrapolate to impossible values.

    Parameters
    ----------
    p
        Trained parts.
    retrieved
        Weighted mean of the retrieved spots, ``(n_query, n_columns)``.
    inputs, components
        Inputs of the ridge head and components of expression predicted by the kernel head; None without the head.
    table
        Table of the reference that is predicted.
    adjacency
        Spot graph of the query.
    """
    if p.settings.ridge_weight and inputs is not None:
        head = RidgeHead(p.bank.linear, p.settings.ridge_penalty)
        share = _ridge_share(p, head, table)
        # Fitted once, since it is the same for every query.
        table.ridge_head = table.ridge_head or head.fit(table.values)
        retrieved = (1.0 - share) * retrieved + share * table.ridge_head.predict(inputs)
    kernel_head = p.bank.kernel_head
    if kernel_head is not None and components is not None:
        if table.kernel_loadings is None:
            table.kernel_loadings = kernel_head.loadings(table.values)
        weight = np.float32(p.settings.kernel_weight)
        expected = (table.mean + components @ table.kernel_loadings).astype(np.float32, copy=False)
        expected *= weight
        retrieved = (1.0 - weight) * retrieved
        retrieved += expected
    if p.settings.sharpening:
        retrieved = sharpened(retrieved, adjacency, p.settings.sharpening)
    bounded: np.ndarray = np.clip(retrieved, *table.bounds)
    return bounded


def sharpened(values: np.ndarray, adjacency: sparse.csr_matrix, share: float) -> np.ndarray:
    r"""Move the values of each spot away from the mean of its neighbors, ``(n_spots, n_columns)``.

    .. math:: v_i + s \, \Bigl( v_i - \frac{1}{|N(i)|} \sum_{j \in N(i)} v_j \Bigr)

    Parameters
    ----------
    values
        Values of the spots, ``(n_spots, n_columns)``.
    adjacency
        Spot graph; a spot without neighbors keeps its values.
    share
        Share s of the difference.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from st_gchb.model._read_out import sharpened
    >>> line = sparse.csr_matrix(np.eye(3, k=1) + np.eye(3, k=-1))
    >>> sharpened(np.array([[0.0], [4.0], [0.0]]), line, 0.25).ravel().tolist()
    [-1.0, 5.0, -1.0]
    """
    graph = (adjacency != 0).astype(values.dtype)
    degree = np.asarray(graph.sum(axis=1), dtype=values.dtype).ravel()
    # One table beside the values, in place: of a large slide each copy takes hundreds of MB.
    moved: np.ndarray = graph @ values
    np.divide(moved, degree[:, None], out=moved, where=degree[:, None] > 0)
    moved[degree == 0] = values[degree == 0]
    np.subtract(values, moved, out=moved)
    moved *= values.dtype.type(share)
    moved += values
    return moved


def _ridge_share(p: TrainedParts, head: RidgeHead, table: ReferenceTable) -> np.ndarray | np.float32:
    """Compute the share of the ridge head in each column, ``(n_columns,)``, from its correlation on held-out slices.

    For a gene that ridge regression predicts poorly, it would mostly add noise to the retrieved expression.
    """
    whole = np.float32(p.settings.ridge_weight)
    if not p.settings.ridge_full_at:
        return whole
    folds = calibration_folds(p.bank.slices, p.bank.origin[["x", "y"]].to_numpy())
    if table.held_out is None:
        table.held_out = head.held_out_correlation(table.values, folds)
    share: np.ndarray = whole * np.clip(table.held_out / p.settings.ridge_full_at, 0.0, 1.0).astype(np.float32)
    return share
