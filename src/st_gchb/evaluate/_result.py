"""What an evaluation gives: scores, per-gene measures, and the table over both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from anndata import AnnData


@dataclass
class Evaluation:
    """Results of an evaluation.

    Parameters
    ----------
    scores
        One row per fold, seed and method, with the measures of :func:`st_gchb.metrics.summary`.
    genes
        One row per fold, seed, method and gene.
    settings
        What was run.
    pictured
        Measured and predicted expression of one held-out slice by one method, for the figure.
    runs
        How many runs were made, and how many were taken from ``runs_dir``.
    """

    scores: pd.DataFrame
    genes: pd.DataFrame
    settings: dict[str, Any]
    pictured: AnnData | None = field(default=None)
    runs: dict[str, int] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Mean over folds; then mean and standard deviation over seeds, one row per method.

        Columns are pairs of measure and ``"mean"`` or ``"sd"``.
        """
        measures = [name for name in self.scores if name not in ("fold", "seed", "method")]
        by_seed = self.scores.groupby(["method", "seed"], sort=False)[measures].mean()
        table = by_seed.groupby("method", sort=False).agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
        return table.loc[list(dict.fromkeys(self.scores["method"]))]
