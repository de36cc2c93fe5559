"""Choice among variants by inner cross-validation, in which the held-out slice has no part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from st_gchb.errors import InputError, SliceError
from st_gchb.evaluate import evaluate, evaluate_fold, leave_one_out
from studies._study import seeds_of
from studies._variants import Variant, candidates

logger = logging.getLogger("st_gchb.studies")

CRITERION = ("AG", "HVG", "HEG")


@dataclass(frozen=True)
class Choice:
    """Variants chosen by inner cross-validation, and their scores on the held-out slices.

    Parameters
    ----------
    inner
        One row per held-out slice and candidate: mean of AG, HVG and HEG over the training slices, each left out once
        (``score``), and the three themselves.
    outer
        One row per held-out slice and seed: the candidate chosen for it (``variant``) and its measures on that slice.
    """

    inner: pd.DataFrame
    outer: pd.DataFrame

    def ranking(self) -> pd.DataFrame:
        """Rank candidates by mean inner score over the held-out slices, and count how often each was chosen."""
        table = self.inner.groupby("variant", sort=False)[["score", *CRITERION]].mean()
        chosen = self.outer.drop_duplicates("fold")["variant"].value_counts()
        return table.assign(chosen=chosen.reindex(table.index, fill_value=0)).sort_values("score", ascending=False)


def choose(
    adata: AnnData,
    variants: Sequence[Variant] | None = None,
    *,
    n_top_genes: int = 1000,
    seeds: Sequence[int] | None = None,
    slice_key: str = "slice",
    features_key: str = "X_patch",
    runs_dir: str | Path | None = None,
    device: str = "auto",
) -> Choice:
    """Choose a variant for each slice on the other slices alone, and score it on this slice.

    The other slices are left out one by one, with panel, scaling and PCA from those that remain; the variant with the
    best mean of AG, HVG and HEG is trained on all of them and meets the held-out slice once.

    Parameters
    ----------
    adata
        Raw counts in ``X``, patch features in ``obsm``, at least three slices.
    variants
        Variants to choose from; by default :func:`candidates`.
    n_top_genes, seeds, slice_key, features_key, device
        Same as for :func:`~st_gchb.evaluate.evaluate`; inner rounds use the first seed.
    runs_dir
        Folder of finished runs.

    Returns
    -------
    Choice
        Inner scores of all candidates, and scores of the chosen ones.

    Raises
    ------
    SliceError
        There are fewer than three slices, so that none would remain to train on.
    InputError
        There are no variants, or one of them has features of its own.
    """
    offered = candidates() if variants is None else list(variants)
    if not offered or any(variant.features for variant in offered):
        raise InputError(f"Found {len(offered)} variants; expected at least one, and none with features of its own.")
    seeds = seeds_of(seeds)
    folds = leave_one_out(adata, slice_key=slice_key)
    if len(folds) < 3:
        raise SliceError(f"obs[{slice_key!r}] holds {len(folds)} slices; choosing on the training slices needs 3.")
    methods = {variant.name: variant.method for variant in offered}
    rest: dict[str, Any] = {
        "slice_key": slice_key,
        "features_key": features_key,
        "runs_dir": runs_dir,
        "device": device,
    }
    inner, outer = [], []
    for fold in folds:
        training = adata[fold.train].copy()
        logger.info("Choosing for %s among %d candidates on the other slices.", fold.name, len(methods))
        found = evaluate(training, methods=methods, n_top_genes=n_top_genes, seeds=seeds[:1], **rest)
        means = found.scores.groupby("method", sort=False)[list(CRITERION)].mean()
        means = means.assign(score=means.mean(axis=1))
        best = str(means["score"].idxmax())
        inner.append(means.rename_axis("variant").reset_index().assign(fold=fold.name))
        result = evaluate_fold(
            adata,
            fold.name,
            methods={best: methods[best]},
            n_top_genes=n_top_genes,
            seeds=seeds,
            **rest,
        )
        outer.append(result.scores.rename(columns={"method": "variant"}))
    return Choice(pd.concat(inner, ignore_index=True), pd.concat(outer, ignore_index=True))
