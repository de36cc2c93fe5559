"""Expression of the training slices: reading and normalization, choice of the gene panel, and its fitted PCA."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._compat import named_layers, torch_threads_kept
from st_gchb._components import principal_components
from st_gchb._constants import TARGET_SUM
from st_gchb._counts import Remedy, check_expression, tell_depth
from st_gchb._errors import ExpressionError, InputError, MissingKeyError
from st_gchb._genes import check_genes, tell_genes
from st_gchb._logging import logger
from st_gchb._matrices import matrix_of

Matrix: TypeAlias = Any
"""Expression ``(n_spots, n_genes)``, of any type that :func:`~st_gchb._matrices.matrix_of` reads."""

DENSE_BYTES = 2**30
"""Largest size of the panel's expression, as float64, that is made dense: 67,108 spots with 2,000 genes."""


@dataclass(frozen=True)
class ExpressionRule:
    """Gene panel and PCA that were fitted on the training slices and apply to every other slice.

    Parameters
    ----------
    genes
        Names of the genes of the panel, ``(n_genes,)``.
    log_normalized
        Whether expression is supplied as log-normalized values instead of counts.
    offset
        Mean of each gene over the training spots, ``(n_genes,)``.
    matrix
        Components of the PCA divided by their common scale, ``(n_genes, n_components)``.
    """

    genes: pd.Index
    log_normalized: bool
    offset: np.ndarray
    matrix: np.ndarray


def read_expression(adata: ad.AnnData, layer: str | None, *, log_normalized: bool, remedy: Remedy) -> Matrix:
    """Read and validate the expression of an AnnData.

    Parameters
    ----------
    adata
        Object with expression.
    layer
        Layer that holds it; None for ``X``.
    log_normalized
        Whether log-normalized values are expected instead of counts.
    remedy
        Advice for error messages.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_matrix
        Expression in memory, ``(n_spots, n_genes)``. It may share memory with ``adata`` and must not be modified.

    Raises
    ------
    MissingKeyError
        There is no such layer, or ``X`` is None.
    ExpressionError
        The matrix does not hold counts (or log-normalized values), or has columns that are not genes.
    """
    if layer is not None and layer not in adata.layers:
        raise MissingKeyError(
            f"layers has no {layer!r}; found {list(named_layers(adata))}. Name the layer that holds the counts."
        )
    values, name = adata.X if layer is None else adata.layers[layer], layer_name(layer)
    if values is None:
        raise MissingKeyError(f"X is empty; expected expression, (n_spots, n_genes). {remedy.told()}")
    matrix = matrix_of(values, name, ExpressionError)
    check_expression(matrix, log_normalized=log_normalized, name=name, remedy=remedy)
    check_genes(adata.var, column_totals(matrix), name)
    return matrix


def tell_expression(adata: ad.AnnData, layer: str | None, matrix: Matrix, *, log_normalized: bool) -> None:
    """Warn of features other than genes of one genome, and of counts that look normalized for sequencing depth."""
    tell_genes(adata.var, column_totals(matrix), layer_name(layer))
    if not log_normalized:
        tell_depth(matrix, layer_name(layer))


def column_totals(matrix: Matrix) -> np.ndarray:
    """Sum each column, ``(n_columns,)``, float64."""
    return np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel()


def layer_name(layer: str | None) -> str:
    """Return the expression by which messages refer to a layer."""
    return "X" if layer is None else f"layers[{layer!r}]"


def as_csr(matrix: Matrix) -> sparse.csr_matrix:
    """Copy expression to a CSR matrix of float32, ``(n_spots, n_genes)``, which may be modified."""
    return sparse.csr_matrix(matrix_of(matrix, "expression", ExpressionError), dtype=np.float32, copy=True)


def log_normalize(matrix: Matrix, *, log_normalized: bool) -> sparse.csr_matrix:
    """Normalize counts to 10^4 per spot over all genes, and take log1p.

    Parameters
    ----------
    matrix
        Counts or log-normalized values, ``(n_spots, n_genes)``.
    log_normalized
        Whether ``matrix`` is already log-normalized; it is then only copied.

    Returns
    -------
    scipy.sparse.csr_matrix
        Log-normalized expression, ``(n_spots, n_genes)``, float32.
    """
    csr = as_csr(matrix)
    if log_normalized:
        return csr
    totals = np.asarray(csr.sum(axis=1), dtype=np.float64).ravel()
    scale = (TARGET_SUM / totals).astype(np.float32)
    csr.data = np.log1p(csr.data * np.repeat(scale, np.diff(csr.indptr)))
    return csr


def log_values_of(counts: Matrix, *, normalize_total: bool) -> sparse.csr_matrix:
    """Take log1p of counts, by default after :func:`log_normalize` has normalized them to 10^4 per spot.

    Parameters
    ----------
    counts
        Counts, ``(n_spots, n_genes)``.
    normalize_total
        Whether counts are normalized by the total of their spot; otherwise they are taken as they are.

    Returns
    -------
    scipy.sparse.csr_matrix
        Logarithms, ``(n_spots, n_genes)``, float32.
    """
    if normalize_total:
        return log_normalize(counts, log_normalized=False)
    csr = as_csr(counts)
    csr.data = np.log1p(csr.data)
    return csr


def choose_panel(log_values: sparse.csr_matrix, slices: np.ndarray, n_top_genes: int) -> np.ndarray:
    """Choose the highly variable genes (HVGs) of the training slices.

    Genes are ranked by scanpy's dispersion with one batch per slice, among genes that are detected in at least 10
    spots (in at least 1 % of the spots if there are fewer than 1,000, but no fewer than 2).

    Parameters
    ----------
    log_values
        Log-normalized expression of the training spots, ``(n_spots, n_all_genes)``.
    slices
        Name of the slice of each spot, ``(n_spots,)``.
    n_top_genes
        Number of genes to choose.

    Returns
    -------
    numpy.ndarray
        Column numbers of the chosen genes, ascending; all detected genes if there are no more than ``n_top_genes``.

    Raises
    ------
    ExpressionError
        Fewer than two genes are detected, or none of them varies.
    """
    enough = min(10, max(2, log_values.shape[0] // 100))
    detected = np.asarray((log_values > 0).sum(axis=0)).ravel()
    seen = np.flatnonzero(detected >= enough)
    if len(seen) < 2:
        raise ExpressionError(
            f"Only {len(seen)} genes are found in at least {enough} spots of the training slices: "
            "too few to choose a panel from. Check that the counts are those of these spots."
        )
    # A gene that is not detected in every spot has at least two values.
    if detected[seen].min() == log_values.shape[0] and not _varies(log_values[:, seen]):
        raise ExpressionError(
            f"All {len(seen)} genes have one value each in every spot of the training slices: there is nothing to "
            "learn. Check that the counts are those of these spots."
        )
    if len(seen) <= n_top_genes:
        if n_top_genes < log_values.shape[1]:
            logger.info("n_top_genes=%d, but %d genes are expressed: all of them are taken.", n_top_genes, len(seen))
        return seen
    return seen[_most_variable(log_values[:, seen], slices.astype(str), n_top_genes)]


def _most_variable(log_values: sparse.csr_matrix, slices: np.ndarray, n_top_genes: int) -> np.ndarray:
    """Find the columns of the most variable genes by scanpy's dispersion, with one batch per slice, ascending."""
    table = ad.AnnData(
        log_values,
        obs=pd.DataFrame({"slice": pd.Categorical(slices)}, index=pd.RangeIndex(len(slices)).astype(str)),
        var=pd.DataFrame(index=pd.RangeIndex(log_values.shape[1]).astype(str)),
    )
    # With a batch key, even of a single batch, scanpy breaks ties, so that the panel has exactly n_top_genes genes.
    # Imported here, since prediction, which takes its panel from the model, would wait seconds for it.
    import scanpy as sc

    with torch_threads_kept():
        frame = sc.pp.highly_variable_genes(table, n_top_genes=n_top_genes, batch_key="slice", inplace=False)
    return np.flatnonzero(np.asarray(frame["highly_variable"].reindex(table.var_names)))


def _varies(values: sparse.csr_matrix) -> bool:
    """Return True if any column holds more than one value."""
    by_column = values.tocsc()
    return bool((by_column.max(axis=0) != by_column.min(axis=0)).nnz)


def check_panel(panel: list[str], genes: pd.Index) -> None:
    """Validate that a panel names genes of a table, each once.

    Raises
    ------
    InputError
        It is empty, or names a gene twice.
    MissingKeyError
        A gene is not in the table.
    """
    if not panel:
        raise InputError("panel=[] names no gene. Name at least one, or leave panel out for the most variable ones.")
    twice = [gene for gene, n in Counter(panel).items() if n > 1]
    if twice:
        raise InputError(f"panel names {len(twice)} genes more than once: {twice[:5]}. Name each once.")
    missing = [gene for gene in panel if gene not in genes]
    if missing:
        raise MissingKeyError(f"{len(missing)} genes of the panel are not in var_names: {missing[:5]}. Take them out.")


def fit_expression(
    log_values: sparse.csr_matrix,
    genes: pd.Index,
    slices: np.ndarray,
    *,
    n_top_genes: int,
    n_components: int | None,
    log_normalized: bool,
    seed: int,
    panel: list[str] | None = None,
) -> ExpressionRule:
    """Choose the gene panel and fit its PCA on the training slices.

    Parameters
    ----------
    log_values
        Log-normalized expression of the training spots, ``(n_spots, n_all_genes)``.
    genes
        Names of the columns.
    slices
        Name of the slice of each spot, ``(n_spots,)``.
    n_top_genes
        Number of HVGs in the panel.
    n_components
        Number of principal components; None keeps the genes themselves (the paper's ablation B).
    log_normalized
        Whether the reference was supplied as log-normalized values; stored in the result.
    seed
        Seed of the PCA's solver, and of the spots that are drawn from a large reference.
    panel
        Genes of the panel; None for the HVGs.

    Returns
    -------
    ExpressionRule
        Panel and PCA.

    Raises
    ------
    ExpressionError
        There are too few genes to choose from, or none of them varies.
    """
    if panel is None:
        columns = choose_panel(log_values, slices, n_top_genes)
    else:
        columns = genes.get_indexer(pd.Index(panel))
    dense, offset = _to_fit_on(log_values[:, columns], seed)
    if n_components is None:
        matrix = np.eye(len(columns)) / max(float(dense.std()), 1e-8)
    else:
        width = min(n_components, len(columns), len(dense) - 1)
        directions, variances = principal_components(dense, width, seed)
        # A single scale for all components preserves their relative weights, which reflect their explained variance.
        matrix = directions / np.sqrt(max(float(variances.mean()), 1e-12))
    return ExpressionRule(genes[columns], log_normalized, offset.astype(np.float32), matrix.astype(np.float32))


def _to_fit_on(values: sparse.csr_matrix, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean of each gene, and select the spots on which the PCA is fitted.

    Parameters
    ----------
    values
        Log-normalized expression of the panel, ``(n_spots, n_genes)``.
    seed
        Seed by which spots are drawn if the dense matrix would exceed :data:`DENSE_BYTES`.

    Returns
    -------
    dense
        Expression of all or of the drawn spots, ``(n, n_genes)``, float64.
    mean
        Mean over all spots, ``(n_genes,)``.
    """
    n_spots, n_genes = values.shape
    if 8 * n_spots * n_genes <= DENSE_BYTES:
        dense: np.ndarray = values.toarray().astype(np.float64)
        return dense, dense.mean(0)
    chosen = np.sort(np.random.default_rng(seed).permutation(n_spots)[: max(2, DENSE_BYTES // (16 * n_genes))])
    logger.info("PCA of expression is fitted on %d of %d spots, drawn with the model's seed.", len(chosen), n_spots)
    mean = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
    return values[chosen].toarray().astype(np.float64), mean
