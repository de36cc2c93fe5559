"""Ceiling of the correlation with measured expression that counting noise leaves, and the share of it reached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from st_gchb._arguments import Count, Seed, checked
from st_gchb._errors import InputError, MissingKeyError
from st_gchb._options import THINNING_REPEATS, TOP_GENES
from st_gchb.metrics._arrays import Matrix
from st_gchb.metrics._summary import top_genes
from st_gchb.metrics._thinning import CERTAIN, Block, Floats, HalfTransform, blocks, check_counts, compare_halves

_GROUP = 50
"""Number of uncertain genes that share a ceiling."""


@checked
def noise_ceiling(
    counts: Matrix,
    genes: Sequence[str] | None = None,
    *,
    totals: Any | None = None,
    n_repeats: Count = THINNING_REPEATS,
    seed: Seed = 0,
) -> pd.DataFrame:
    r"""Estimate the correlation with measured expression that a perfect prediction of each gene would reach.

    Counts are random draws of the expected counts of each spot. A perfect prediction of a gene is the expectation of
    its log-normalized value given the expected counts; no prediction that knows the tissue, but not the draw, has a
    higher correlation with the measured values over the spots.

    Parameters
    ----------
    counts
        Raw counts of the spots of one slice, ``(n_spots, n_genes)``: array, sparse matrix or data frame.
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

        - ``ceiling``: the correlation, 0 to 1, which uncertain genes of similar expression share; 0 for a gene without
          counts or with one value in all spots;
        - ``reliability``: estimate of the squared ceiling from this gene alone. It is not clipped: noise makes it
          negative for genes with little signal, and larger than 1 for some with few spots;
        - ``standard_error`` of the reliability, over spots;
        - ``half_correlation``: correlation of the two halves, mean over repeats;
        - ``uncertain``: True where the reliability is not two standard errors above 0, and for genes of ceiling 0.

    Raises
    ------
    ExpressionError
        ``counts`` holds negative, fractional, NaN or infinite values, such as log-normalized or depth-corrected ones,
        or a spot without counts.
    InputError
        There are fewer than two spots, or names or totals do not fit the counts.

    Warns
    -----
    A warning is logged for whole numbers with nearly equal totals in all spots, as a correction for depth leaves them:
    their noise is not that of counts.

    Notes
    -----
    Log-normalized is log1p of counts per 10,000 over all genes of a spot. Each count is split by fair coins into halves
    a and b, which are transformed so that their mean over all splits is the log-normalized value y of the whole count.
    Their noise is independent, so that their covariance over spots is the variance of the expectation of y, and

    .. math:: \text{reliability} = \frac{\overline{\operatorname{cov}(a, b)}}{\operatorname{var}(y)}, \qquad
        \text{ceiling} = \sqrt{\text{reliability}}.

    The Spearman-Brown formula on plainly log-normalized halves is too high by about a tenth where the spots' totals
    vary as much as on real tissue: halves share the dependence of log1p on depth, which is stronger in them than in
    the whole counts.

    An uncertain gene has no square root of its own: clipping negative reliabilities at 0 while positive ones by chance
    stay would bias means over genes. Uncertain genes share the square root of their mean reliability, negative ones
    included, in groups of 50 of similar mean expression. That is no statement about the single gene, but means over
    genes need it, and are far too high over certain genes alone. On simulated tissue with known rates, means over all
    genes, over the 50 most variable and over the 50 most expressed ones are mostly within 5 % with 600 spots and more,
    and within 10 % with 200. Where depth is the same everywhere and many genes have no signal at all, the mean over
    all of them is too high, by up to 10 % with a fifth of such genes and 25 % with a half.

    Depth is part of what is expected of a spot. A prediction that knows the composition of a spot and not its depth,
    log1p of the true rate per 10,000, stays below this ceiling where depth varies. Variation between spots other than
    counting noise is taken for signal.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.metrics import noise_ceiling
    >>> rng = np.random.default_rng(0)
    >>> totals = rng.integers(2000, 9000, 200)
    >>> rates = np.column_stack([np.linspace(1, 9, 200), np.full(200, 20.0)]) * totals[:, None] / 5000
    >>> table = noise_ceiling(rng.poisson(rates), ["graded", "even"], totals=totals)
    >>> table["uncertain"].to_dict()
    {'graded': False, 'even': True}
    >>> bool(table.loc["graded", "ceiling"] > 0.6)
    True
    """
    checked_counts = check_counts(counts, genes, totals)
    transform = HalfTransform(checked_counts.totals)
    parts = [_measure(block, transform, n_repeats) for block in blocks(checked_counts, seed)]
    frame = pd.DataFrame(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, index=checked_counts.genes
    )
    varies, level = frame.pop("varies").to_numpy(), frame.pop("mean").to_numpy()
    reliability = frame["reliability"].to_numpy()
    uncertain = ~varies | (reliability <= CERTAIN * frame["standard_error"].to_numpy())
    ceiling = np.sqrt(np.where(uncertain, 0.0, np.minimum(reliability, 1.0)))
    shared = uncertain & varies
    ceiling[shared] = np.minimum(_pooled(reliability[shared], level[shared]), 1.0)
    frame.insert(0, "ceiling", ceiling)
    return frame.assign(uncertain=uncertain)


def _measure(block: Block, transform: HalfTransform, n_repeats: int) -> dict[str, NDArray]:
    """Compute the statistics of a block's genes from their halves."""
    whole = transform.whole(block.rows, block.values)
    mean = block.per_gene(whole) / block.shape[0]
    variance = block.per_gene(whole**2) / block.shape[0] - mean**2
    # A range of rounding errors is no variance: a gene with one value in all spots has none.
    varies = variance > 1e-12 * np.maximum(mean, 1e-12) ** 2
    covariance, error, spread = compare_halves(block, transform, n_repeats)
    variance, spread = np.where(varies, variance, 1.0), np.where(varies & (spread > 0), spread, 1.0)
    return {
        "reliability": np.where(varies, covariance / variance, 0.0),
        "standard_error": np.where(varies, error / variance, 0.0),
        "half_correlation": np.where(varies, np.clip(covariance / spread, -1.0, 1.0), 0.0),
        "varies": varies,
        "mean": mean,
    }


def _pooled(reliability: Floats, level: Floats) -> Floats:
    """Compute the square root of the mean reliability in groups of genes of similar ``level``, for each gene."""
    result = np.zeros(len(reliability))
    for group in np.array_split(np.argsort(level, kind="stable"), max(1, round(len(level) / _GROUP))):
        if len(group):
            result[group] = np.sqrt(max(float(reliability[group].mean()), 0.0))
    return result


@checked
def share_of_ceiling(frame: pd.DataFrame, ceiling: pd.DataFrame, *, n_top: Count = TOP_GENES) -> dict[str, float]:
    """Compare the mean correlations of a prediction with the ceilings of the same genes.

    Parameters
    ----------
    frame
        Table that :func:`per_gene` returns.
    ceiling
        Table that :func:`noise_ceiling` returns for the counts of the same spots, with all genes of ``frame``.
    n_top
        Number of genes in HVG and HEG, as in :func:`summary`.

    Returns
    -------
    dict[str, float]
        For each of ``AG``, ``HVG`` and ``HEG``, with the genes of :func:`summary`: ``AG_ceiling``, the mean ceiling of
        these genes, and ``AG_share``, their mean Pearson correlation over it (NaN if the ceilings are 0 for all of
        them). Uncertain genes count as all others, with the ceiling that the table gives them; ``n_uncertain`` is
        their number in ``frame``.

    Raises
    ------
    MissingKeyError
        A column is absent, or ``ceiling`` lacks a gene.
    InputError
        A table names genes more than once, or there is no gene.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.metrics import noise_ceiling, per_gene, share_of_ceiling
    >>> rng = np.random.default_rng(0)
    >>> totals, genes = rng.integers(2000, 9000, 200), ["A", "B", "C"]
    >>> shares = np.linspace(1, 9, 200)[:, None] * np.ones(3) / 5000
    >>> counts = rng.poisson(shares * totals[:, None])
    >>> truth = np.log1p(counts / totals[:, None] * 1e4)
    >>> frame = per_gene(truth, np.log1p(shares * 1e4), genes)
    >>> row = share_of_ceiling(frame, noise_ceiling(counts, genes, totals=totals))
    >>> 0.8 < row["AG_share"] < 1.2
    True
    """
    for table, name, needed in (
        (frame, "per-gene table", ("pearson", "var_truth", "mean_truth")),
        (ceiling, "table of ceilings", ("ceiling", "uncertain")),
    ):
        absent = [column for column in needed if column not in table]
        if absent:
            raise MissingKeyError(f"the {name} lacks the columns {absent}; found {list(table.columns)}")
        if not len(table) or not table.index.is_unique:
            raise InputError(f"the {name} has no gene, or names genes more than once; pass that of one held-out slice")
    unknown = frame.index.difference(ceiling.index, sort=False)
    if len(unknown):
        raise MissingKeyError(
            f"the table of ceilings lacks {len(unknown):,} genes of the panel, such as {list(unknown[:3])}. "
            "Pass the counts of all of them to noise_ceiling"
        )
    ceiling = ceiling.loc[frame.index]
    groups = {
        "AG": frame.index,
        "HVG": top_genes(frame["var_truth"], n_top),
        "HEG": top_genes(frame["mean_truth"], n_top),
    }
    means = {name: float(ceiling["ceiling"][chosen].mean()) for name, chosen in groups.items()}
    reached = {name: float(frame["pearson"][chosen].mean()) for name, chosen in groups.items()}
    return (
        {f"{name}_ceiling": mean for name, mean in means.items()}
        | {f"{name}_share": reached[name] / mean if mean > 0 else float("nan") for name, mean in means.items()}
        | {"n_uncertain": int(ceiling["uncertain"].sum())}
    )
