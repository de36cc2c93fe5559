"""Validation and array operations that all metrics share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from st_gchb._errors import InputError

Matrix: TypeAlias = Any
"""Expression, ``(n_spots, n_genes)``: numpy array, scipy sparse matrix or array, or data frame of genes."""


def _is_sparse(values: Matrix) -> bool:
    return bool(sparse.issparse(values))


def check_matrix(values: Matrix, name: str) -> Matrix:
    """Validate that ``values`` is a matrix of finite numbers, ``(n_spots, n_genes)``.

    Parameters
    ----------
    values
        The matrix.
    name
        Name of the argument in error messages.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csc_matrix
        The same values; sparse input becomes CSC, from which columns (genes) can be sliced efficiently.

    Raises
    ------
    InputError
        The matrix is not two-dimensional or not numeric, has fewer than two spots or no gene, or holds NaN or infinite
        values.
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
    """Validate both matrices, and that they hold the same spots and genes.

    Returns
    -------
    tuple
        Both matrices as :func:`check_matrix` returns them.

    Raises
    ------
    InputError
        One of them is no matrix of finite numbers, or they differ in spots or genes.
    """
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
    """Return the names of the genes: ``genes`` if given, else the columns of a data frame.

    Raises
    ------
    InputError
        The genes have no names, the number of names differs from that of columns, or a name occurs more than once.
    """
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
    """Return columns ``start`` to ``stop`` as a dense float64 array, ``(n_spots, stop - start)``."""
    block = matrix[:, start:stop]
    if _is_sparse(matrix):
        block = block.toarray()
    return np.asarray(block, dtype=np.float64)


def is_constant(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Find the columns that hold a single value, ``(n_genes,)``.

    A range below one millionth of the largest absolute value is taken for a rounding error of float32 (such as the
    same mean computed twice); a correlation with it would be noise.
    """
    low, high = values.min(axis=0), values.max(axis=0)
    return np.asarray(high - low <= 1e-6 * np.maximum(np.abs(low), np.abs(high)))


def correlate_columns(
    a: NDArray[np.float64], b: NDArray[np.float64], constant: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Compute the Pearson correlation of the columns of ``a`` and ``b``, ``(n_genes,)``; 0 where ``constant``."""
    a = a - a.mean(axis=0)
    b = b - b.mean(axis=0)
    norm = np.sqrt(np.einsum("sg,sg->g", a, a) * np.einsum("sg,sg->g", b, b))
    r = np.einsum("sg,sg->g", a, b) / np.where(constant | (norm == 0), 1.0, norm)
    return np.where(constant | (norm == 0), 0.0, np.clip(r, -1.0, 1.0))
