"""Choose among variants by inner validation: the held-out slice has no part in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from anndata import AnnData

from st_gchb._arguments import Pair, Seed, checked
from st_gchb._constants import Keys
from st_gchb._errors import InputError, SliceError
from st_gchb._logging import logger
from st_gchb._matrices import in_memory
from st_gchb.evaluate._evaluate import evaluate, evaluate_fold
from st_gchb.evaluate._folds import leave_one_out
from st_gchb.evaluate._protocol import seeds_of
from st_gchb.evaluate._variants import Variant, candidates

CRITERION = ("AG", "HVG", "HEG")


@dataclass(frozen=True)
class Choice:
    """What inner validation chose, and how the choice did.

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
        """Candidates by their mean inner score over all held-out slices, best first, with how often each was chosen."""
        table = self.inner.groupby("variant", sort=False)[["score", *CRITERION]].mean()
        chosen = self.outer.drop_duplicates("fold")["variant"].value_counts()
        return table.assign(chosen=chosen.reindex(table.index, fill_value=0)).sort_values("score", ascending=False)


@checked
def choose(
    adata: AnnData,
    variants: Sequence[Variant] | None = None,
    *,
    n_top_genes: Pair = 1000,
    seeds: Sequence[Seed] | None = None,
    slice_key: str = Keys.SLICE,
    features_key: str = Keys.FEATURES,
    runs_dir: str | Path | None = None,
    device: str = "auto",
) -> Choice:
    """For each slice: choose a variant on the other slices alone, then score it on this one.

    The other slices are left out one by one, with panel, scaling and PCA from those that remain; the variant with the
    best mean of AG, HVG and HEG is trained on all of them and meets the held-out slice once.

    Parameters
    ----------
    adata
        Raw counts in ``X``, patch features in ``obsm``, at least three slices.
    variants
        What to choose from; by default :func:`candidates`.
    n_top_genes, seeds, slice_key, features_key, device
        As :func:`~st_gchb.evaluate.evaluate` takes them; the inner rounds use the first seed.
    runs_dir
        Where finished runs are kept.

    Raises
    ------
    SliceError
        If there are fewer than three slices: none would remain to train on.
    InputError
        If there is nothing to choose from.

    Examples
    --------
    >>> import st_gchb
    >>> from st_gchb.evaluate import Variant, choose
    >>> adata = st_gchb.datasets.synthetic_tissue(3, n_rows=8, n_cols=8, n_genes=60)
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", cache=False)
    >>> two = [Variant("short", {"max_epochs": 1}), Variant("longer", {"max_epochs": 2})]
    >>> len(choose(adata, two, n_top_genes=50, seeds=[0]).outer)
    3
    """
    offered = candidates() if variants is None else list(variants)
    if not offered or any(variant.features for variant in offered):
        raise InputError(f"Found {len(offered)} variants; expected at least one, and none with features of its own.")
    seeds = seeds_of(seeds, 3)
    folds = leave_one_out(adata, slice_key=slice_key)
    if len(folds) < 3:
        raise SliceError(f"obs[{slice_key!r}] holds {len(folds)} slices; choosing on the training slices needs 3.")
    methods = {variant.name: variant.method for variant in offered}
    rest = {"slice_key": slice_key, "features_key": features_key, "runs_dir": runs_dir, "device": device}
    inner, outer = [], []
    for fold in folds:
        training = in_memory(adata[fold.train])
        logger.info("Choosing for %s among %d candidates on the other slices.", fold.name, len(methods))
        found = evaluate(training, methods=methods, n_top_genes=n_top_genes, seeds=seeds[:1], **rest)  # type: ignore[arg-type]
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
            **rest,  # type: ignore[arg-type]
        )
        outer.append(result.scores.rename(columns={"method": "variant"}))
    return Choice(pd.concat(inner, ignore_index=True), pd.concat(outer, ignore_index=True))
