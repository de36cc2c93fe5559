"""Checks that all measures share: two dense matrices of the same spots and genes, finite, named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from st_gchb._errors import InputError

Matrix: TypeAlias = Any
"""``(n_spots, n_genes)``: numpy array, scipy sparse matrix or array, or data frame with genes as columns."""


def _is_sparse(values: Matrix) -> bool:
    return bool(sparse.issparse(values))


def check_matrix(values: Matrix, name: str) -> Matrix:
    """Refuse what is no finite ``(n_spots, n_genes)`` matrix of numbers.

    Returns
    -------
    The same values as a numpy array, or as a CSC matrix where they were sparse, which slices well by gene.

    Raises
    ------
    InputError
        Not two-dimensional, not numeric, fewer than two spots, no gene, or values that are NaN or infinite.
    """
    try:
        matrix: Any = values.tocsc() if _is_sparse(values) else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} ({type(values).__name__}) is no matrix: {error}. Pass (n_spots, n_genes)") from error
    stored: Any = matrix.data if _is_sparse(values) else matrix
    if matrix.ndim != 2:
        raise InputError(f"{name} has shape {matrix.shape}; expected two dimensions, (n_spots, n_genes)")
    if matrix.dtype.kind not in "fiub":
        raise InputError(f"{name} holds {matrix.dtype}; expected numbers. Pass expression values, spots as rows")
    if matrix.shape[0] < 2 or matrix.shape[1] < 1:
        raise InputError(f"{name} has shape {matrix.shape}; at least two spots and one gene are needed")
    n_bad = int(stored.size - np.count_nonzero(np.isfinite(stored)))
    if n_bad:
        raise InputError(
            f"{name} holds {n_bad:,} values that are NaN or infinite; expected finite expression. "
            "Drop these spots or genes, or fill the values, before measuring"
        )
    return matrix


def check_pair(truth: Matrix, prediction: Matrix) -> tuple[Matrix, Matrix]:
    """Check both matrices and that they are of the same spots and genes."""
    if isinstance(truth, pd.DataFrame) and isinstance(prediction, pd.DataFrame):
        for axis, what in ((0, "rows (spots)"), (1, "columns (genes)")):
            if not truth.axes[axis].equals(prediction.axes[axis]):
                raise InputError(
                    f"truth and prediction are frames with different {what}, or the same in another order. "
                    "Match them by name first: prediction.loc[truth.index, truth.columns]"
                )
    checked = check_matrix(truth, "truth"), check_matrix(prediction, "prediction")
    if checked[0].shape != checked[1].shape:
        raise InputError(
            f"truth has shape {checked[0].shape} and prediction {checked[1].shape}; expected the same "
            "(n_spots, n_genes). Select the genes that both have, in one order"
        )
    return checked


def check_genes(truth: Matrix, prediction: Matrix, genes: Sequence[str] | None) -> pd.Index:
    """Names of the genes: those given, else the columns of a frame."""
    frames = [m for m in (truth, prediction) if isinstance(m, pd.DataFrame)]
    if genes is None and not frames:
        raise InputError("genes were not named: pass genes=, such as adata.var_names, or data frames")
    names = pd.Index(frames[0].columns if genes is None else genes, name="gene")
    n_genes = np.shape(truth)[1]
    if len(names) != n_genes:
        raise InputError(f"genes has {len(names):,} names and truth {n_genes:,} columns; expected one name a column")
    if not names.is_unique:
        twice = list(names[names.duplicated()].unique()[:5])
        raise InputError(f"genes are named more than once: {twice}. Make them unique: adata.var_names_make_unique()")
    return names


def dense_block(matrix: Matrix, start: int, stop: int) -> NDArray[np.float64]:
    """Columns ``start`` to ``stop`` as a dense float64 array, ``(n_spots, stop - start)``."""
    block = matrix[:, start:stop]
    if _is_sparse(matrix):
        block = block.toarray()
    return np.asarray(block, dtype=np.float64)


def is_constant(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which columns hold one value, ``(n_genes,)``.

    A spread under one millionth of the largest value is rounding of float32 (the same mean computed twice), and a
    correlation with it would be noise.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    return np.asarray(high - low <= 1e-6 * np.maximum(np.abs(low), np.abs(high)))


def correlate_columns(
    a: NDArray[np.float64], b: NDArray[np.float64], constant: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Pearson correlation of each column of ``a`` with the same column of ``b``; 0 where ``constant``."""
    a = a - a.mean(axis=0)
    b = b - b.mean(axis=0)
    norm = np.sqrt(np.einsum("sg,sg->g", a, a) * np.einsum("sg,sg->g", b, b))
    r = np.einsum("sg,sg->g", a, b) / np.where(constant | (norm == 0), 1.0, norm)
    return np.where(constant | (norm == 0), 0.0, np.clip(r, -1.0, 1.0))
