"""Expression of the training slices: normalization, panel and PCA as one fitted object."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypeAlias

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from sklearn.decomposition import PCA

from st_gchb._compat import named_layers, torch_threads_kept
from st_gchb._constants import TARGET_SUM
from st_gchb._counts import Remedy, check_expression, tell_depth
from st_gchb._errors import ExpressionError, InputError, MissingKeyError
from st_gchb._genes import check_genes, tell_genes
from st_gchb._logging import logger
from st_gchb._matrices import matrix_of

Matrix: TypeAlias = Any
"""``(n_spots, n_genes)``: whatever :func:`~st_gchb._matrices.matrix_of` reads."""

DENSE_BYTES = 2**30
"""Expression of the panel up to this size, as float64, is made dense: 67,108 spots with 2,000 genes."""


@dataclass(frozen=True)
class ExpressionRule:
    """What was fitted on the training slices, and is applied to every other slice.

    Parameters
    ----------
    genes
        The panel, ``(n_genes,)``.
    log_normalized
        Whether expression is handed over as log-normalized values instead of counts.
    offset
        Mean of the panel over the training spots, ``(n_genes,)``.
    matrix
        Components of the PCA divided by their common scale, ``(n_genes, n_components)``.
    variance
        Variance of the panel over the training spots, ``(n_genes,)``.
    """

    genes: pd.Index
    log_normalized: bool
    offset: np.ndarray
    matrix: np.ndarray
    variance: np.ndarray


def read_expression(adata: ad.AnnData, layer: str | None, *, log_normalized: bool, remedy: Remedy) -> Matrix:
    """Expression of an AnnData in memory, numpy or CSR, ``(n_spots, n_genes)``; not to be written to.

    It holds what it is said to hold, of genes alone.

    Raises
    ------
    MissingKeyError
        There is no such layer, or ``X`` is empty.
    ExpressionError
        It holds no counts (or no log-normalized values), or of other things than genes.
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
    """Warn of what is counted beside genes of one genome, and of counts that look corrected for depth."""
    tell_genes(adata.var, column_totals(matrix), layer_name(layer))
    if not log_normalized:
        tell_depth(matrix, layer_name(layer))


def column_totals(matrix: Matrix) -> np.ndarray:
    """Sum of each column, ``(n_columns,)``."""
    return np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel()


def layer_name(layer: str | None) -> str:
    """What a layer is called in messages."""
    return "X" if layer is None else f"layers[{layer!r}]"


def as_csr(matrix: Matrix) -> sparse.csr_matrix:
    """Expression as CSR float32, ``(n_spots, n_genes)``; a copy that may be changed."""
    return sparse.csr_matrix(matrix_of(matrix, "expression", ExpressionError), dtype=np.float32, copy=True)


def log_normalize(matrix: Matrix, *, log_normalized: bool) -> sparse.csr_matrix:
    """Log1p of counts per 10^4, over all genes of the table, CSR ``(n_spots, n_genes)``."""
    csr = as_csr(matrix)
    if log_normalized:
        return csr
    totals = np.asarray(csr.sum(axis=1), dtype=np.float64).ravel()
    scale = (TARGET_SUM / totals).astype(np.float32)
    csr.data = np.log1p(csr.data * np.repeat(scale, np.diff(csr.indptr)))
    return csr


def choose_panel(log_values: sparse.csr_matrix, genes: pd.Index, slices: np.ndarray, n_top_genes: int) -> np.ndarray:
    """Columns of the most variable genes over the slices given, in the table's order.

    scanpy's dispersion ranking with one batch per slice, among genes found in at least 10 spots (in at least 1 %
    of the spots where there are fewer than 1,000).
    """
    enough = min(10, max(2, log_values.shape[0] // 100))
    seen = np.flatnonzero(np.asarray((log_values > 0).sum(axis=0)).ravel() >= enough)
    if len(seen) < 2:
        raise ExpressionError(
            f"Only {len(seen)} genes are found in at least {enough} spots of the training slices: "
            "too few to choose a panel from. Check that the counts are those of these spots."
        )
    if not _varies(log_values[:, seen]):
        raise ExpressionError(
            f"All {len(seen)} genes have one value each in every spot of the training slices: there is nothing to "
            "learn. Check that the counts are those of these spots."
        )
    if len(seen) <= n_top_genes:
        if n_top_genes < log_values.shape[1]:
            logger.info("n_top_genes=%d, but %d genes are expressed: all of them are taken.", n_top_genes, len(seen))
        return seen
    names = pd.RangeIndex(len(slices)).astype(str)
    table = ad.AnnData(
        log_values[:, seen],
        obs=pd.DataFrame({"slice": pd.Categorical(slices.astype(str))}, index=names),
        var=pd.DataFrame(index=pd.RangeIndex(len(seen)).astype(str)),
    )
    # With a batch key, be it of one batch, scanpy breaks ties: the panel has exactly the size asked for.
    with torch_threads_kept():
        frame = sc.pp.highly_variable_genes(table, n_top_genes=n_top_genes, batch_key="slice", inplace=False)
    chosen = np.asarray(frame["highly_variable"].reindex(table.var_names))
    return seen[np.flatnonzero(chosen)]


def _varies(values: sparse.csr_matrix) -> bool:
    """Whether any column has two values."""
    return bool((values.max(axis=0) != values.min(axis=0)).nnz)


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
    """Choose the panel and fit its PCA on the training slices.

    Parameters
    ----------
    log_values
        Log-normalized expression of the training spots, ``(n_spots, n_all_genes)``.
    genes
        Names of the columns.
    slices
        Slice of each spot.
    n_top_genes
        Size of the panel.
    n_components
        Number of components; ``None`` keeps the genes themselves (the paper's ablation B).
    log_normalized
        Stored with the rule.
    seed
        Seed of the PCA's solver.
    panel
        Genes to take instead of the most variable ones.

    Raises
    ------
    MissingKeyError
        If a gene of ``panel`` is not in the table.
    """
    if panel is None:
        columns = choose_panel(log_values, genes, slices, n_top_genes)
    else:
        if not panel:
            raise InputError(
                "panel=[] names no gene. Name at least one, or leave panel out for the most variable ones."
            )
        twice = [gene for gene, n in Counter(panel).items() if n > 1]
        if twice:
            raise InputError(f"panel names {len(twice)} genes more than once: {twice[:5]}. Name each once.")
        missing = [gene for gene in panel if gene not in genes]
        if missing:
            raise MissingKeyError(
                f"{len(missing)} genes of the panel are not in var_names: {missing[:5]}. Take them out."
            )
        columns = genes.get_indexer(pd.Index(panel))
    dense, offset, variance = _moments(log_values[:, columns], seed)
    if n_components is None:
        matrix = np.eye(len(columns)) / max(float(dense.std()), 1e-8)
    else:
        width = min(n_components, len(columns), len(dense) - 1)
        pca = PCA(width, svd_solver="randomized" if width < min(dense.shape) // 2 else "full", random_state=seed).fit(
            dense
        )
        # One scale for all components keeps their relative weight, which says how much of the variance each holds.
        matrix = pca.components_.T / np.sqrt(max(float(pca.explained_variance_.mean()), 1e-12))
    return ExpressionRule(
        genes[columns], log_normalized, offset.astype(np.float32), matrix.astype(np.float32), variance
    )


def _moments(values: sparse.csr_matrix, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expression of the spots that PCA is fitted on, and mean and variance over all, float64.

    A table that is too large to be made dense is fitted on spots drawn with the seed.
    """
    n_spots, n_genes = values.shape
    if 8 * n_spots * n_genes <= DENSE_BYTES:
        dense: np.ndarray = values.toarray().astype(np.float64)
        return dense, dense.mean(0), dense.var(0)
    chosen = np.sort(np.random.default_rng(seed).permutation(n_spots)[: max(2, DENSE_BYTES // (16 * n_genes))])
    logger.info("PCA of expression is fitted on %d of %d spots, drawn with the model's seed.", len(chosen), n_spots)
    mean = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
    square = sparse.csr_matrix((values.data.astype(np.float64) ** 2, values.indices, values.indptr), values.shape)
    variance = np.maximum(np.asarray(square.mean(axis=0)).ravel() - mean**2, 0.0)
    return values[chosen].toarray().astype(np.float64), mean, variance
