"""Metrics per gene: correlation and error over the spots of one slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from st_gchb._arguments import checked
from st_gchb.metrics._arrays import Matrix, check_genes, check_pair, correlate_columns, dense_block, is_constant

# Columns are processed in blocks, which keeps the dense float64 copies of a whole transcriptome small.
_BLOCK = 1024


@checked
def per_gene(truth: Matrix, prediction: Matrix, genes: Sequence[str] | None = None) -> pd.DataFrame:
    """Compare measured and predicted expression gene by gene, over the spots of one held-out slice.

    A gene that is constant in truth or prediction has no correlation. It counts as 0 and is flagged; no gene is
    dropped.

    Parameters
    ----------
    truth
        Measured log-normalized expression, ``(n_spots, n_genes)``: array, sparse matrix or data frame.
    prediction
        Predicted log-normalized expression of the same spots and genes, ``(n_spots, n_genes)``.
    genes
        Names of the genes, ``(n_genes,)``; by default the columns of a data frame among the two.

    Returns
    -------
    pandas.DataFrame
        One row per gene, with index ``gene`` and the columns ``pearson``, ``spearman`` (ties averaged), ``rmse``,
        ``mean_truth``, ``var_truth`` (both over spots, in log-normalized units) and ``constant`` (bool).

    Raises
    ------
    InputError
        The shapes differ, values are NaN or infinite, there are fewer than two spots, or the names of the genes are
        missing or not unique.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.metrics import per_gene
    >>> truth = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> frame = per_gene(truth, 2 * truth, ["ERBB2", "ACTB"])
    >>> frame["pearson"].to_dict()
    {'ERBB2': 1.0, 'ACTB': 0.0}
    >>> frame["constant"].to_dict()
    {'ERBB2': False, 'ACTB': True}
    """
    checked = check_pair(truth, prediction)
    names = check_genes(truth, prediction, genes)
    blocks = [_measure(*pair) for pair in _dense_pairs(*checked)]
    return pd.DataFrame({column: np.concatenate([b[column] for b in blocks]) for column in blocks[0]}, index=names)


@checked
def pearson(truth: Matrix, prediction: Matrix) -> NDArray[np.float64]:
    """Compute the Pearson correlation of each gene over spots, as in :func:`per_gene`.

    Parameters
    ----------
    truth, prediction
        Measured and predicted log-normalized expression, ``(n_spots, n_genes)``.

    Returns
    -------
    numpy.ndarray
        Correlations, ``(n_genes,)``; 0 for a gene that is constant in truth or prediction.

    Raises
    ------
    InputError
        The two are not finite matrices of the same shape, or have fewer than two spots.

    Examples
    --------
    >>> from st_gchb.metrics import pearson
    >>> pearson([[0, 1], [1, 1], [2, 1]], [[3, 0], [2, 1], [1, 2]]).round(6).tolist()
    [-1.0, 0.0]
    """
    return np.concatenate([_pearson(*pair) for pair in _dense_pairs(*check_pair(truth, prediction))])


def _dense_pairs(truth: Matrix, prediction: Matrix) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    for start in range(0, truth.shape[1], _BLOCK):
        yield dense_block(truth, start, start + _BLOCK), dense_block(prediction, start, start + _BLOCK)


def _pearson(truth: NDArray[np.float64], prediction: NDArray[np.float64]) -> NDArray[np.float64]:
    return correlate_columns(truth, prediction, is_constant(truth) | is_constant(prediction))


def _measure(truth: NDArray[np.float64], prediction: NDArray[np.float64]) -> dict[str, NDArray]:
    # Imported here: half of a second, for which a model that is loaded to predict would wait.
    from scipy.stats import rankdata

    constant = is_constant(truth) | is_constant(prediction)
    ranks = rankdata(truth, axis=0), rankdata(prediction, axis=0)
    return {
        "pearson": correlate_columns(truth, prediction, constant),
        "spearman": correlate_columns(*ranks, constant),
        "rmse": np.sqrt(np.mean((truth - prediction) ** 2, axis=0)),
        "mean_truth": truth.mean(axis=0),
        "var_truth": truth.var(axis=0),
        "constant": constant,
    }
