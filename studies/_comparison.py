"""Comparison of methods over data sets: ranks, and differences with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb.evaluate import Evaluation, Fold
from st_gchb.pp.expression import log_normalize

MEASURES = ("AG", "HVG", "HEG")
PRESETS = ("default", "kernel-head", "bleep", "paper")
"""Methods that are the package's own, and a part of it; the others are baselines."""
_TOP = 50
_CONSTANT = 1e-10
"""Variance, as a share of that of all spots, up to which a gene is constant in a draw."""


@dataclass(frozen=True)
class Compared:
    """Results of one data set.

    Parameters
    ----------
    result
        Its evaluation, with predictions.
    difference
        One row per measure: :func:`difference`.
    """

    result: Evaluation
    difference: pd.DataFrame

    def means(self) -> pd.DataFrame:
        """Return AG, HVG and HEG, mean over folds and seeds, one row per method."""
        return self.result.table()[list(MEASURES)].xs("mean", axis=1, level=1)


def strongest_baseline(result: Evaluation) -> str:
    """Return the baseline with the largest mean of AG, HVG and HEG."""
    means = result.table()[list(MEASURES)].xs("mean", axis=1, level=1).mean(axis=1)
    return str(means.drop([name for name in PRESETS if name in means]).idxmax())


def difference(
    result: Evaluation,
    adata: AnnData,
    folds: Sequence[Fold],
    *,
    method: str = "default",
    n_draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare a method with the strongest baseline, with a bootstrap interval over spots and slices.

    A draw takes folds, and within each of them spots, with replacement. Both methods see the same draws; correlations
    per gene are computed anew, HVG and HEG are means over the genes that are most variable and most expressed in all
    spots of the fold, and seeds are averaged.

    Parameters
    ----------
    result
        Evaluation with predictions of all runs.
    adata
        The data, with counts in ``X``.
    folds
        Folds of the evaluation, in its order.
    method
        Method that is compared.
    n_draws, seed
        Number of draws, and their seed.

    Returns
    -------
    pandas.DataFrame
        One row per measure: ``measure``, ``method``, ``baseline``, their values ``value`` and ``baseline_value``,
        ``difference`` and the limits ``low`` and ``high`` of its 95 % interval.
    """
    baseline, rng = strongest_baseline(result), np.random.default_rng(seed)
    log_values = log_normalize(adata.X, log_normalized=False)
    own: dict[str, list[np.ndarray]] = {name: [] for name in (method, baseline)}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in (method, baseline)}
    for fold in folds:
        genes = result.genes[result.genes["fold"] == fold.name].drop_duplicates("gene")
        truth = log_values[fold.test][:, adata.var_names.get_indexer(genes["gene"])].toarray()
        tops = {
            "AG": np.arange(len(genes)),
            "HVG": np.argsort(-genes["var_truth"].to_numpy(), kind="stable")[:_TOP],
            "HEG": np.argsort(-genes["mean_truth"].to_numpy(), kind="stable")[:_TOP],
        }
        once = np.ones((1, len(fold.test)))
        draws = rng.multinomial(len(fold.test), once[0] / len(fold.test), size=n_draws)
        for name in own:
            runs = [p for (where, who, _), p in result.predictions.items() if (where, who) == (fold.name, name)]
            for weights, kept in ((once, own[name]), (draws, drawn[name])):
                scores = np.mean([weighted_correlations(truth, p, weights) for p in runs], axis=0)
                kept.append(np.stack([scores[:, tops[measure]].mean(1) for measure in MEASURES]))
    values = {name: np.mean(kept, axis=0)[:, 0] for name, kept in own.items()}
    picks = rng.multinomial(len(folds), np.full(len(folds), 1 / len(folds)), size=n_draws) / len(folds)
    gaps = np.einsum("fmd,df->md", np.stack(drawn[method]) - np.stack(drawn[baseline]), picks)
    low, high = np.quantile(gaps, [0.025, 0.975], axis=1)
    return pd.DataFrame(
        {
            "measure": MEASURES,
            "method": method,
            "baseline": baseline,
            "value": values[method],
            "baseline_value": values[baseline],
            "difference": values[method] - values[baseline],
            "low": low,
            "high": high,
        }
    )


def weighted_correlations(truth: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute each gene's correlation over spots with weights, ``(n_draws, n_genes)``; 0 for constant genes.

    Parameters
    ----------
    truth, prediction
        Log-normalized expression, ``(n_spots, n_genes)``.
    weights
        Number of times that each spot was drawn, ``(n_draws, n_spots)``.
    """
    w = weights / weights.sum(1, keepdims=True)
    x, y = (values.astype(np.float64) - values.mean(0, dtype=np.float64) for values in (truth, prediction))
    mean_x, mean_y = w @ x, w @ y
    var_x, var_y = w @ x**2 - mean_x**2, w @ y**2 - mean_y**2
    covariance = w @ (x * y) - mean_x * mean_y
    varies = (var_x > _CONSTANT * x.var(0)) & (var_y > _CONSTANT * y.var(0))
    return np.where(varies, covariance / np.sqrt(np.where(varies, var_x * var_y, 1.0)), 0.0)


def overall(compared: Mapping[str, Compared]) -> pd.DataFrame:
    """Collect the measures of all data sets, and rank the methods.

    Returns
    -------
    pandas.DataFrame
        One row per method that all data sets have, by ascending ``mean rank``, which is over data sets and measures;
        further columns ``"<data set> <measure>"``.
    """
    columns = {f"{name} {measure}": one.means()[measure] for name, one in compared.items() for measure in MEASURES}
    table = pd.DataFrame(columns).dropna()
    table.insert(0, "mean rank", table.rank(ascending=False).mean(axis=1))
    return table.sort_values("mean rank", kind="stable").rename_axis("method")


def overall_markdown(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Format :func:`overall`: a row per data set, a column per method with AG, HVG and HEG; the best are bold."""
    lines = ["| tissue | " + " | ".join(table.index) + " |", "| --- |" + " --- |" * len(table)]
    for name, title in titles.items():
        values = table[[f"{name} {measure}" for measure in MEASURES]].round(3)
        best = values.max()
        cells = [
            " ".join(
                f"**{value:.3f}**" if value == top else f"{value:.3f}" for value, top in zip(row, best, strict=True)
            )
            for row in values.to_numpy()
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "| mean rank | " + " | ".join(f"{rank:.1f}" for rank in table["mean rank"]) + " |"])


def differences_markdown(compared: Mapping[str, Compared], titles: Mapping[str, str]) -> str:
    """Format the differences to the strongest baseline of each data set, with their intervals."""
    lines = [
        "| tissue | strongest baseline | " + " | ".join(MEASURES) + " |",
        "| --- | --- |" + " --- |" * len(MEASURES),
    ]
    for name, one in compared.items():
        rows = one.difference
        cells = [f"{row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f})" for row in rows.itertuples()]
        lines.append(f"| {titles[name]} | {rows['baseline'].iloc[0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
