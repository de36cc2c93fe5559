"""Binomial thinning of raw counts into two halves with independent noise, and the transform that log-normalizes a half.

Counts of a spot are Poisson draws of the expected counts there. Each count is split by fair coins into two halves,
which are Poisson draws of half the expectation and independent of one another: what two halves share is signal, what
they do not share is counting noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import binom

from st_gchb._counts import tell_depth, why_no_counts
from st_gchb._errors import ExpressionError, InputError
from st_gchb._matrices import matrix_of
from st_gchb.metrics._arrays import Matrix, check_genes, check_matrix

Floats = NDArray[np.float64]

TARGET = 1e4
"""Counts per spot to which the protocol normalizes."""

CERTAIN = 2.0
"""Standard errors by which the covariance of halves must exceed 0 for a gene to be certain."""

_BLOCK = 2**20
"""Largest number of stored counts that are split at a time, unless a single gene has more."""

_FITTED, _TABULATED = 40, 20
"""Largest half count for which the transform is fitted, and the largest one for which the fit is used: near the end of
the fit its values are poor, and the expansion for large counts is exact to a thousandth from 20 on."""

_RIDGE = 1e-2
"""Penalty of the fit. Without one, values for half counts of 3 and more alternate with growing amplitude where spots
have few counts; this one leaves a bias of at most 3 % there."""


@dataclass(frozen=True)
class Counts:
    """Validated raw counts.

    Parameters
    ----------
    matrix
        Counts, ``(n_spots, n_genes)``, dense or CSC.
    genes
        Names of the genes, ``(n_genes,)``.
    totals
        Counts of each spot over all of its genes, ``(n_spots,)``.
    """

    matrix: Any
    genes: pd.Index
    totals: Floats


def check_counts(counts: Matrix, genes: Any, totals: Any) -> Counts:
    """Validate raw counts, the names of the genes and the totals of the spots.

    Raises
    ------
    ExpressionError
        The values are negative, fractional, NaN or too large for counts, or a spot has no count.
    InputError
        The matrix has fewer than two spots, names do not fit it, or ``totals`` are not those of its spots.
    """
    matrix = matrix_of(counts, "counts", ExpressionError)
    reason = why_no_counts(matrix, "counts")
    if reason:
        raise ExpressionError(f"{reason} Pass raw counts: counting noise is only known of whole molecules.")
    matrix = check_matrix(matrix, "counts")
    if genes is None:
        genes = counts.columns if isinstance(counts, pd.DataFrame) else range(matrix.shape[1])
    names = check_genes(matrix, matrix, genes)
    sums = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    return Counts(matrix, names, _check_totals(sums, totals))


def _check_totals(sums: Floats, totals: Any) -> Floats:
    if totals is not None:
        try:
            given = np.asarray(totals, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"totals holds no numbers ({error}); expected one total for every spot") from error
        if given.shape != sums.shape or not np.isfinite(given).all() or (given != np.round(given)).any():
            raise InputError(
                f"totals has shape {given.shape}; expected whole numbers, {sums.shape}: the counts of each spot over "
                "all genes, such as adata.X.sum(axis=1)"
            )
        if (given < sums).any():
            raise InputError(
                f"totals are smaller than the sums of counts in {int((given < sums).sum()):,} spots; expected the "
                "counts of each spot over all genes, these included"
            )
        sums = given
    empty = np.flatnonzero(sums == 0)
    if len(empty):
        raise ExpressionError(
            f"counts has {len(empty):,} spots without a single count (first row: {empty[0]}), which cannot be "
            "normalized. Drop them, or pass totals= where counts holds some of the genes alone"
        )
    tell_depth(sums[:, None], "counts")
    return sums


@dataclass(frozen=True)
class Block:
    """Stored counts of some genes, each with its row and the place of its gene in the block.

    Parameters
    ----------
    rows, columns
        Spot and gene of each stored count, ``(n_stored,)``; genes count from the block's first one.
    values
        The counts, ``(n_stored,)``.
    shape
        Number of spots and of genes.
    seed
        Seeds of the generator that splits the counts.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    values: NDArray[np.int64]
    shape: tuple[int, int]
    seed: tuple[int, int]

    def per_gene(self, values: Floats) -> Floats:
        """Sum values of the stored counts over the spots, ``(n_genes,)``."""
        return np.asarray(np.bincount(self.columns, values, minlength=self.shape[1]), dtype=np.float64)

    def matrix(self, values: Floats) -> sparse.csr_matrix:
        """Return values of the stored counts as a matrix, ``(n_spots, n_genes)``."""
        return sparse.csr_matrix((values, (self.rows, self.columns)), shape=self.shape)

    def halves(self, transform: HalfTransform, n_repeats: int) -> Iterator[tuple[Floats, Floats]]:
        """Split the counts ``n_repeats`` times, and transform both halves; counts that are not stored give 0."""
        rng = np.random.default_rng(self.seed)
        for _ in range(n_repeats):
            half = rng.binomial(self.values, 0.5)
            yield transform(self.rows, half), transform(self.rows, self.values - half)


def blocks(counts: Counts, seed: int) -> Iterator[Block]:
    """Cut the genes into blocks of bounded size, in their order."""
    n_spots, n_genes = counts.matrix.shape
    is_sparse = sparse.issparse(counts.matrix)
    stored = np.diff(counts.matrix.indptr) if is_sparse else np.count_nonzero(counts.matrix, axis=0)
    start = 0
    while start < n_genes:
        size = np.cumsum(stored[start:])
        stop = start + max(1, int(np.searchsorted(size, _BLOCK, side="right")))
        columnwise = sparse.csc_matrix(counts.matrix[:, start:stop])
        columnwise.eliminate_zeros()
        # Dense and sparse counts are split in the same order, so that they have the same halves.
        columnwise.sort_indices()
        part = columnwise.tocoo()
        rows, columns = (index.astype(np.intp) for index in (part.row, part.col))
        yield Block(rows, columns, part.data.astype(np.int64), (n_spots, stop - start), (seed, start))
        start = stop


class HalfTransform:
    r"""Log-normalization of half a count, whose mean over all ways to split a count is the value of the whole count.

    The plain value of a half, log1p of twice the half per 10,000, has another mean than the whole count where counts
    are small, by an amount that depends on the spot's total; halves would then share this dependence on depth, which
    the whole counts have to a lesser degree. For a spot with the total N, the transform h solves

    .. math:: \sum_k \binom{n}{k} 2^{-n} h(k) = \log(1 + 10^4 n / N) \qquad \text{for all } n

    in the sense of least squares with a small ridge penalty on the difference from the plain value, and by its
    expansion, :math:`\log(1 + 2ck) + c^2 k / (1 + 2ck)^2` with :math:`c = 10^4 / N`, for large k.

    Parameters
    ----------
    totals
        Counts of each spot over all genes, ``(n_spots,)``.
    """

    def __init__(self, totals: Floats) -> None:
        self.scale = TARGET / totals
        whole = np.log1p(self.scale[:, None] * np.arange(2 * _FITTED + 1))
        self.table = whole @ _doubling()[: _TABULATED + 1].T

    def __call__(self, rows: NDArray[np.intp], half: NDArray[np.int64]) -> Floats:
        """Transform half counts of the spots ``rows``."""
        values = np.asarray(self.table[rows, np.minimum(half, _TABULATED)])
        large = half > _TABULATED
        if large.any():
            c, k = self.scale[rows[large]], half[large]
            values[large] = np.log1p(2 * c * k) + k * (c / (1 + 2 * c * k)) ** 2
        return values

    def whole(self, rows: NDArray[np.intp], values: NDArray[np.int64]) -> Floats:
        """Log-normalize whole counts of the spots ``rows``."""
        return np.log1p(self.scale[rows] * values)


@lru_cache(maxsize=1)
def _doubling() -> Floats:
    """Compute the matrix that maps values of whole counts 0 to 2K to values of half counts 0 to K, ``(K + 1, 2K + 1)``.

    The value of a half count 0 is that of the whole count 0, so that sparse counts stay sparse.
    """
    n = np.arange(_FITTED + 1)
    split = binom.pmf(n[None, :], n[:, None], 0.5)
    whole, plain = np.zeros((2, _FITTED + 1, 2 * _FITTED + 1))
    whole[n, n] = plain[n, 2 * n] = 1.0
    from_one = split[:, 1:]
    penalty = _RIDGE * np.eye(_FITTED)
    plain[1:] += np.linalg.solve(from_one.T @ from_one + penalty, from_one.T @ (whole - split @ plain))
    return np.asarray(plain)


def compare_halves(block: Block, transform: HalfTransform, n_repeats: int) -> tuple[Floats, Floats, Floats]:
    """Compute the covariance of the two halves of each gene over spots.

    Parameters
    ----------
    block
        Counts of some genes.
    transform
        Log-normalization of halves.
    n_repeats
        Number of splits.

    Returns
    -------
    tuple
        Mean over splits of the covariance, its standard error over spots, and the mean variance of a half,
        ``(n_genes,)`` each.
    """
    n_spots, n_genes = block.shape
    products, of_zero, variance = np.zeros(len(block.values)), np.zeros(n_genes), np.zeros(n_genes)
    for a, b in block.halves(transform, n_repeats):
        mean_a, mean_b = block.per_gene(a) / n_spots, block.per_gene(b) / n_spots
        # Products of centered halves, (a - mean_a) (b - mean_b), without the last term. It is the same for all spots,
        # and all that there is of a count of 0.
        products += a * b - mean_a[block.columns] * b - mean_b[block.columns] * a
        of_zero += mean_a * mean_b
        variance += (block.per_gene(a**2 + b**2) / n_spots - mean_a**2 - mean_b**2) / 2
    of_zero /= n_repeats
    products = products / n_repeats + of_zero[block.columns]
    n_zero = n_spots - block.per_gene(np.ones(len(products)))
    mean = (block.per_gene(products) + n_zero * of_zero) / n_spots
    square = (block.per_gene(products**2) + n_zero * of_zero**2) / n_spots
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0) / n_spots), variance / n_repeats
