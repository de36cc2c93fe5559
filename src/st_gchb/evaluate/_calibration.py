"""Reliability of the model's confidence and expected correlations, measured on held-out slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import spearmanr

from st_gchb._arguments import Pair, Seed, checked
from st_gchb._constants import Keys
from st_gchb._logging import track
from st_gchb._options import DEFAULT_HELD_OUT, DEFAULT_SPLIT, EVALUATION_GENES, HeldOut, Split
from st_gchb.evaluate._folds import hide_expression, split_folds
from st_gchb.evaluate._methods import trained
from st_gchb.evaluate._protocol import seeds_of
from st_gchb.metrics import pearson
from st_gchb.pp.expression import choose_panel, log_normalize


@dataclass(frozen=True)
class Reliability:
    """Confidence with error, and expected with observed correlation, on held-out slices.

    Parameters
    ----------
    spots
        One row per held-out spot and seed: ``fold``, ``seed``, ``spot``, ``confidence``, ``outlier`` and ``rmse``, the
        root mean squared error over the panel.
    genes
        One row per held-out slice, seed and gene: ``fold``, ``seed``, ``gene``, ``expected`` and ``pearson``, the
        expected and the observed Pearson correlation.
    """

    spots: pd.DataFrame
    genes: pd.DataFrame

    def summary(self) -> pd.DataFrame:
        """Summarize each held-out slice, as means over seeds.

        Returns
        -------
        pandas.DataFrame
            One row per held-out slice. ``spots`` is their number and ``outliers`` the share that is flagged;
            ``error_least`` and ``error_most`` are the mean errors of the least and the most confident third of spots,
            and ``less_error`` is the relative reduction from the first to the second; ``spearman_spots`` is the rank
            correlation of confidence with negative error, ``spearman_genes`` that of expected with observed
            correlation.
        """
        rows = []
        for (fold, seed), spots in self.spots.groupby(["fold", "seed"], sort=False):
            order = np.argsort(spots["confidence"].to_numpy(), kind="stable")
            third = max(1, len(order) // 3)
            error = spots["rmse"].to_numpy()[order]
            least, most = float(error[:third].mean()), float(error[-third:].mean())
            genes = self.genes[(self.genes["fold"] == fold) & (self.genes["seed"] == seed)]
            rows.append(
                {
                    "fold": fold,
                    "spots": len(order),
                    "outliers": float(spots["outlier"].mean()),
                    "error_least": least,
                    "error_most": most,
                    "less_error": 1.0 - most / least,
                    "spearman_spots": float(spearmanr(spots["confidence"], -spots["rmse"]).statistic),
                    "spearman_genes": float(spearmanr(genes["expected"], genes["pearson"]).statistic),
                }
            )
        return pd.DataFrame(rows).groupby("fold", sort=False).mean()


@checked
def reliability(
    adata: AnnData,
    *,
    split: Split = DEFAULT_SPLIT,
    by: HeldOut = DEFAULT_HELD_OUT,
    n_top_genes: Pair = EVALUATION_GENES,
    seeds: Sequence[Seed] | None = None,
    slice_key: str = Keys.SLICE,
    features_key: str = Keys.FEATURES,
    device: str = "auto",
) -> Reliability:
    """Leave each slice, patient or block out, predict it with the default preset, and compare confidence with error.

    Panel, model and calibration are fitted on the training spots alone.

    Parameters
    ----------
    adata
        Raw counts in ``X``, patch features in ``obsm``.
    split, by, n_top_genes, slice_key, features_key, device
        Same as for :func:`~st_gchb.evaluate.evaluate`.
    seeds
        Seeds; every slice or block is left out once per seed. By default once, with ``st_gchb.settings.seed``.

    Returns
    -------
    Reliability
        Errors and correlations of all held-out slices.

    Raises
    ------
    SliceError
        There is only one slice or patient, or slices are too small for blocks.

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.synthetic_tissue(2, n_rows=8, n_cols=8, n_genes=60)
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    >>> st_gchb.evaluate.reliability(adata, n_top_genes=50).summary().index.tolist()
    ['S1', 'S2']
    """
    spots, genes = [], []
    folds = split_folds(adata, split, by, slice_key=slice_key)
    runs = [(fold, seed) for fold in folds for seed in seeds_of(seeds, 1)]
    for fold, seed in track(runs, "Confidence"):
        train, test = adata[fold.train], adata[fold.test]
        log_train = log_normalize(train.X, log_normalized=False)
        columns = choose_panel(log_train, train.obs[slice_key].astype(str).to_numpy(), n_top_genes)
        where = {"slice_key": slice_key, "features_key": features_key}
        settings = {"panel": list(train.var_names[columns]), "seed": seed}
        with trained(train, where, settings, accelerator=device) as model:
            answer = model.predict(hide_expression(test, features_key), slice_key=slice_key)
        measured = log_normalize(test.X, log_normalized=False)
        truth = measured[:, test.var_names.get_indexer(answer.var_names)].toarray()
        predicted = np.asarray(answer.layers[Keys.LAYER])
        own = {"fold": fold.name, "seed": seed}
        spots.append(
            pd.DataFrame(
                {
                    "spot": answer.obs_names,
                    "confidence": answer.obs[Keys.CONFIDENCE].to_numpy(),
                    "outlier": answer.obs[Keys.OUTLIER].to_numpy(),
                    "rmse": np.sqrt(((truth - predicted) ** 2).mean(1)),
                }
            ).assign(**own)
        )
        expected = answer.var[Keys.EXPECTED_PCC].to_numpy()
        real = pearson(truth, predicted)
        genes.append(pd.DataFrame({"gene": answer.var_names, "expected": expected, "pearson": real}).assign(**own))
    return Reliability(pd.concat(spots, ignore_index=True), pd.concat(genes, ignore_index=True))
