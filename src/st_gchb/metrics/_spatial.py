"""Spatial metrics: Moran's I of each gene, and its agreement between measured and predicted expression."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from st_gchb._arguments import checked
from st_gchb._errors import GraphError
from st_gchb.metrics._arrays import Matrix, check_matrix, check_pair, correlate_columns, dense_block, is_constant

_BLOCK = 1024


@checked
def morans_i(values: Matrix, adjacency: Any) -> NDArray[np.float64]:
    r"""Compute Moran's I of each gene over the spot graph.

    .. math:: I_g = \frac{n}{\sum_{ij} A_{ij}} \frac{\sum_{ij} A_{ij} z_{ig} z_{jg}}{\sum_i z_{ig}^2},
        \qquad z_{ig} = x_{ig} - \mu_g

    where µ is the mean of the gene. I is close to 1 for a gene that varies slowly over the tissue and close to 0 for
    one without spatial pattern. All genes are computed by one sparse product.

    Parameters
    ----------
    values
        Expression, ``(n_spots, n_genes)``: array, sparse matrix or data frame.
    adjacency
        Weights of the spot graph, ``(n_spots, n_spots)``, such as ``adata.obsp["spatial_connectivities"]``. Self-loops
        are ignored.

    Returns
    -------
    numpy.ndarray
        Moran's I, ``(n_genes,)``; 0 for a constant gene.

    Raises
    ------
    InputError
        ``values`` is no matrix of finite numbers.
    GraphError
        The graph has another number of spots, no edge, or weights that are negative or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.metrics import morans_i
    >>> line = np.eye(6, k=1) + np.eye(6, k=-1)
    >>> values = np.column_stack([np.arange(6.0), [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]])
    >>> morans_i(values, line).round(2).tolist()
    [0.6, -1.0]
    """
    matrix = check_matrix(values, "values")
    graph = check_graph(adjacency, matrix.shape[0])
    blocks = [
        _morans_block(dense_block(matrix, start, start + _BLOCK), graph) for start in range(0, matrix.shape[1], _BLOCK)
    ]
    return np.concatenate(blocks)


@checked
def morans_agreement(truth: Matrix, prediction: Matrix, adjacency: Any) -> dict[str, float]:
    """Compare the spatial patterns of measured and predicted expression by Moran's I.

    Parameters
    ----------
    truth, prediction
        Measured and predicted log-normalized expression, ``(n_spots, n_genes)``.
    adjacency
        Weights of the spot graph, ``(n_spots, n_spots)``.

    Returns
    -------
    dict[str, float]
        ``correlation``, the Pearson correlation over genes between measured and predicted Moran's I (0 if either is
        the same for all genes), and ``mean_abs_difference``, the mean over genes of their absolute difference.

    Raises
    ------
    InputError
        The two are not finite matrices of the same shape.
    GraphError
        The graph has another number of spots, no edge, or weights that are negative or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.metrics import morans_agreement
    >>> line = np.eye(6, k=1) + np.eye(6, k=-1)
    >>> values = np.random.default_rng(0).random((6, 4))
    >>> morans_agreement(values, values, line)["mean_abs_difference"]
    0.0
    """
    truth, prediction = check_pair(truth, prediction)
    measured, predicted = (morans_i(m, adjacency)[:, None] for m in (truth, prediction))
    r = correlate_columns(measured, predicted, is_constant(measured) | is_constant(predicted))
    return {"correlation": float(r[0]), "mean_abs_difference": float(np.abs(measured - predicted).mean())}


def check_graph(adjacency: Any, n_spots: int) -> sparse.csr_matrix:
    """Validate the weights of a spot graph, and copy them without self-loops.

    Raises
    ------
    GraphError
        The graph has another number of spots, no edge, or weights that are negative or not finite.
    """
    try:
        graph = sparse.csr_matrix(adjacency, dtype=np.float64, copy=True)
    except (TypeError, ValueError) as error:
        raise GraphError(
            f"adjacency ({type(adjacency).__name__}) is no matrix of numbers: {error}. Pass "
            "obsp['spatial_connectivities']"
        ) from error
    if graph.shape != (n_spots, n_spots):
        raise GraphError(
            f"adjacency has shape {graph.shape} and there are {n_spots:,} spots; expected ({n_spots}, {n_spots}). "
            "Pass obsp['spatial_connectivities'] of the same object"
        )
    if not np.isfinite(graph.data).all() or (graph.data < 0).any():
        raise GraphError("adjacency has weights that are negative or not finite; expected the weights of a spot graph")
    graph.setdiag(0.0)
    graph.eliminate_zeros()
    if graph.nnz == 0:
        raise GraphError("adjacency has no edge between two spots, so there is no neighbor to compare with")
    return graph


def _morans_block(values: NDArray[np.float64], graph: sparse.csr_matrix) -> NDArray[np.float64]:
    z = values - values.mean(axis=0)
    constant = is_constant(values)
    squares = np.einsum("sg,sg->g", z, z)
    products = np.einsum("sg,sg->g", z, graph @ z)
    i = len(values) / graph.sum() * products / np.where(constant, 1.0, squares)
    return np.where(constant, 0.0, i)
