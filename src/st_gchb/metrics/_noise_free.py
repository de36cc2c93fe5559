"""Spatial patterns of measured expression without counting noise, and the agreement of a prediction's with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata

from st_gchb._arguments import Count, Seed, checked
from st_gchb._errors import InputError, MissingKeyError
from st_gchb._options import THINNING_REPEATS
from st_gchb.metrics._arrays import Matrix, correlate_columns, is_constant
from st_gchb.metrics._spatial import check_graph
from st_gchb.metrics._thinning import CERTAIN, Block, HalfTransform, blocks, check_counts, compare_halves


@checked
def noise_free_morans_i(
    counts: Matrix,
    adjacency: Any,
    genes: Sequence[str] | None = None,
    *,
    totals: Any | None = None,
    n_repeats: Count = THINNING_REPEATS,
    seed: Seed = 0,
) -> pd.DataFrame:
    r"""Estimate Moran's I that each gene's log-normalized expression would have without counting noise.

    Counting noise has no spatial pattern, so that it lowers Moran's I of measured expression; a prediction holds none.
    Moran's I of predictions is therefore to be compared with this value, not with :func:`morans_i` of the measured
    expression.

    Parameters
    ----------
    counts
        Raw counts of the spots, ``(n_spots, n_genes)``: array, sparse matrix or data frame.
    adjacency
        Weights of the spot graph, ``(n_spots, n_spots)``. Self-loops are ignored.
    genes
        Names of the genes, ``(n_genes,)``; by default the columns of a data frame, else numbers from 0.
    totals
        Counts of each spot over **all** genes, ``(n_spots,)``, where ``counts`` holds some of the genes alone. By
        default the sums of ``counts``.
    n_repeats
        Number of times that the counts are split into halves.
    seed
        Seed of the splits.

    Returns
    -------
    pandas.DataFrame
        One row per gene, with index ``gene`` and the columns

        - ``morans_i``: Moran's I without noise; NaN for uncertain genes. Above 1 is possible where there is little
          signal;
        - ``cross_covariance``: covariance of the two halves over spots, in squared log-normalized units;
        - ``standard_error`` of the cross-covariance, over spots;
        - ``uncertain``: True where the cross-covariance, by which the value is divided, is not two standard errors
          above 0; always for genes without counts.

    Raises
    ------
    ExpressionError
        ``counts`` holds negative, fractional, NaN or infinite values, or a spot without counts.
    GraphError
        The graph has another number of spots, no edge, or weights that are negative or not finite.
    InputError
        There are fewer than two spots, or names or totals do not fit the counts.

    Warns
    -----
    A warning is logged for whole numbers with nearly equal totals in all spots, as a correction for depth leaves them.

    Notes
    -----
    The counts are split into halves a and b, as for :func:`noise_ceiling`, whose noise is independent at one spot as
    between spots. The estimate is the cross-Moran of the halves over their cross-covariance,

    .. math:: I_g = \frac{n}{\sum_{ij} A_{ij}} \frac{\sum_{ij} A_{ij} \overline{(a_{ig} - \bar a_g)(b_{jg} - \bar b_g)}}
        {\sum_i \overline{(a_{ig} - \bar a_g)(b_{ig} - \bar b_g)}},

    with the mean over splits in numerator and denominator. The mean of a half's value over all splits is the value of
    the whole count, and spots are split independently, so that the numerator's mean over all splits is that of the
    measured expression: it is computed from the whole counts, and Moran's I of measured expression divided by this
    value is the gene's reliability.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.metrics import morans_i, noise_free_morans_i
    >>> line = np.eye(400, k=1) + np.eye(400, k=-1)
    >>> rng = np.random.default_rng(0)
    >>> totals = rng.integers(2000, 9000, 400)
    >>> counts = rng.poisson((4 + 3 * np.sin(np.arange(400) / 20)) * totals / 5000)[:, None]
    >>> measured = morans_i(np.log1p(counts / totals[:, None] * 1e4), line)[0]
    >>> table = noise_free_morans_i(counts, line, ["waves"], totals=totals)
    >>> bool(measured < 0.7), bool(table.loc["waves", "morans_i"] > 0.9)
    (True, True)
    """
    checked_counts = check_counts(counts, genes, totals)
    graph = check_graph(adjacency, len(checked_counts.totals))
    transform = HalfTransform(checked_counts.totals)
    parts = [_measure(block, transform, graph, n_repeats) for block in blocks(checked_counts, seed)]
    return pd.DataFrame(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, index=checked_counts.genes
    )


def _measure(block: Block, transform: HalfTransform, graph: sparse.csr_matrix, n_repeats: int) -> dict[str, NDArray]:
    """Compute the noise-free Moran's I of a block's genes."""
    covariance, error, _ = compare_halves(block, transform, n_repeats)
    whole = transform.whole(block.rows, block.values)
    mean = block.per_gene(whole) / block.shape[0]
    # The sum over edges of centered values, expanded so that counts that are not stored need no memory.
    matrix = block.matrix(whole)
    edges = np.asarray(matrix.multiply(graph @ matrix).sum(axis=0)).ravel()
    degree = np.asarray((graph + graph.T).sum(axis=1)).ravel()
    edges += mean**2 * graph.sum() - mean * block.per_gene(degree[block.rows] * whole)
    uncertain = ~(covariance > CERTAIN * error) | (mean == 0)
    return {
        "morans_i": np.where(uncertain, np.nan, edges / graph.sum() / np.where(uncertain, 1.0, covariance)),
        "cross_covariance": covariance,
        "standard_error": error,
        "uncertain": uncertain,
    }


@checked
def noise_free_agreement(
    measured: pd.DataFrame, predicted: Any, genes: Sequence[str] | None = None
) -> dict[str, float]:
    """Compare Moran's I of predicted expression with the noise-free Moran's I of the counts.

    Parameters
    ----------
    measured
        Table that :func:`noise_free_morans_i` returns.
    predicted
        Moran's I of the prediction (:func:`morans_i`): a series by gene, or values in the order of ``measured``.
    genes
        Genes to compare, such as the most variable ones; by default all of ``measured``.

    Returns
    -------
    dict[str, float]
        Over the genes that are not uncertain: ``mean_abs_difference``, ``rank_correlation`` (Spearman's; 0 if either is
        the same for all genes), and their number ``n_genes``; ``n_uncertain`` is the number of genes left out. Without
        any gene the difference is NaN, and with fewer than two the correlation.

    Raises
    ------
    MissingKeyError
        A column or a gene is absent.
    InputError
        The values do not fit the table, or are not finite.

    Examples
    --------
    >>> import pandas as pd
    >>> from st_gchb.metrics import noise_free_agreement
    >>> table = pd.DataFrame(
    ...     {"morans_i": [0.2, 0.4, float("nan")], "uncertain": [False, False, True]}, index=["A", "B", "C"]
    ... )
    >>> row = noise_free_agreement(table, [0.5, 0.5, 0.1])
    >>> round(row["mean_abs_difference"], 3), row["rank_correlation"], row["n_genes"], row["n_uncertain"]
    (0.2, 0.0, 2, 1)
    """
    absent = [name for name in ("morans_i", "uncertain") if name not in measured]
    if absent:
        raise MissingKeyError(f"the table of Moran's I lacks the columns {absent}; found {list(measured.columns)}")
    if not measured.index.is_unique:
        raise InputError("the table of Moran's I names genes more than once; pass that of one held-out slice")
    series = predicted if isinstance(predicted, pd.Series) else _by_position(predicted, measured.index)
    chosen = measured.index if genes is None else pd.Index(genes)
    for table, name in ((measured, "the table of Moran's I"), (series, "predicted")):
        unknown = chosen.difference(table.index, sort=False)
        if len(unknown):
            raise MissingKeyError(f"{name} lacks {len(unknown):,} genes, such as {list(unknown[:3])}")
    certain = chosen[~measured.loc[chosen, "uncertain"].to_numpy(dtype=bool)]
    pair = measured.loc[certain, "morans_i"].to_numpy(float)[:, None], series.loc[certain].to_numpy(float)[:, None]
    if not all(np.isfinite(values).all() for values in pair):
        raise InputError("Moran's I is NaN or infinite for a gene that is not uncertain; expected finite values")
    row = {"mean_abs_difference": float("nan"), "rank_correlation": float("nan")}
    if len(certain):
        row["mean_abs_difference"] = float(np.abs(pair[0] - pair[1]).mean())
    if len(certain) > 1:
        ranks = [rankdata(values, axis=0) for values in pair]
        row["rank_correlation"] = float(
            correlate_columns(ranks[0], ranks[1], is_constant(pair[0]) | is_constant(pair[1]))[0]
        )
    return row | {"n_genes": len(certain), "n_uncertain": len(chosen) - len(certain)}


def _by_position(values: Any, genes: pd.Index) -> pd.Series:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"predicted holds no numbers ({error}); expected Moran's I of every gene") from error
    if array.shape != (len(genes),):
        raise InputError(f"predicted has shape {array.shape} and the table {len(genes):,} genes; expected as many")
    return pd.Series(array, index=genes)
