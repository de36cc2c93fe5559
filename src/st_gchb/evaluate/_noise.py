"""Counting noise in the measured expression of held-out spots: ceilings of the correlations, and Moran's I without it.

They belong to a fold and not to a method, so that they are computed once and added to runs that were stored earlier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._logging import logger
from st_gchb.evaluate._fold_data import graph_of
from st_gchb.evaluate._folds import Fold, hide_expression
from st_gchb.evaluate._protocol import Plan
from st_gchb.evaluate._run_cache import Run
from st_gchb.metrics import noise_ceiling, noise_free_agreement, noise_free_morans_i, share_of_ceiling, top_genes
from st_gchb.pp.expression import as_csr


@dataclass(frozen=True)
class Noise:
    """Counting noise of the held-out spots of a fold.

    Parameters
    ----------
    graph
        Spot graph of the held-out spots, ``(n_spots, n_spots)``.
    ceiling
        Ceilings of the panel's genes, as :func:`~st_gchb.metrics.noise_ceiling` returns them; None where counts are not
        normalized by the total of their spot, for which they are not defined.
    moran
        Moran's I of the panel's genes, as :func:`~st_gchb.metrics.noise_free_morans_i` returns it; None likewise.
    """

    graph: sparse.csr_matrix
    ceiling: pd.DataFrame | None = None
    moran: pd.DataFrame | None = None

    def row(self, run: Run) -> dict[str, float]:
        """Add to the measures of a run those that relate it to the noise."""
        # Runs of earlier versions hold an agreement with Moran's I of the noisy expression under this name.
        row = {name: value for name, value in run.row.items() if name != "Moran"}
        if self.ceiling is None or self.moran is None:
            return row
        row |= share_of_ceiling(run.genes, self.ceiling)
        nan = float("nan")
        found = {"mean_abs_difference": nan, "rank_correlation": nan, "n_genes": nan}
        if "morans_i" in run.genes:
            variable = top_genes(run.genes["var_truth"])
            found = noise_free_agreement(self.moran, run.genes["morans_i"], variable)
        return row | {
            "Moran_difference": found["mean_abs_difference"],
            "Moran_rank": found["rank_correlation"],
            "n_Moran": found["n_genes"],
        }

    def genes(self, run: Run) -> pd.DataFrame:
        """Add to the table of a run's genes their ceilings and Moran's I without noise."""
        own, order = run.genes, run.genes.index
        if self.ceiling is None or self.moran is None:
            return own
        return own.assign(
            morans_i=own.get("morans_i", float("nan")),
            noise_free_morans_i=self.moran.loc[order, "morans_i"],
            ceiling=self.ceiling.loc[order, "ceiling"],
            uncertain=self.ceiling.loc[order, "uncertain"],
        )


def noise_of(plan: Plan, fold: Fold) -> Noise:
    """Estimate the counting noise of the fold's held-out spots, for the genes of its panel."""
    spots = plan.adata[fold.test]
    graph = graph_of(hide_expression(spots, plan.protocol.features_key), plan.protocol)
    if not plan.protocol.normalize_total:
        return Noise(graph)
    counts = as_csr(spots.X)
    totals, panel = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel(), plan.panel(fold)
    counts = counts[:, plan.columns[fold.name]]
    moran = noise_free_morans_i(counts, graph, panel, totals=totals)
    return Noise(graph, noise_ceiling(counts, panel, totals=totals), moran)


def warn_of_old_runs(runs: list[Run]) -> None:
    """Warn about stored runs of an earlier version, which hold no Moran's I of the prediction."""
    old = sum("morans_i" not in run.genes for run in runs)
    if old:
        logger.warning(
            "%d of %d runs were stored by an earlier version, without Moran's I of the prediction: Moran_difference "
            "and Moran_rank are missing for them, and means leave them out. To make these runs again, pass "
            "overwrite=True (st-gchb evaluate --overwrite), or another runs_dir.",
            old,
            len(runs),
        )
