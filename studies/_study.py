"""Ablation study: every variant of every question, evaluated by the same protocol."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

import st_gchb
from st_gchb.errors import InputError
from st_gchb.evaluate import evaluate
from st_gchb.pp import embed_patches
from studies._variants import STUDY, Variant

logger = logging.getLogger("st_gchb.studies")

MEASURES = ("AG", "HVG", "HEG", "n>0.3", "RMSE", "Moran_difference", "Moran_rank")


@dataclass(frozen=True)
class Study:
    """Scores of the variants of all questions.

    Parameters
    ----------
    scores
        One row per question, variant, fold and seed; the columns of :class:`~st_gchb.evaluate.Evaluation` with the
        ``method`` named ``variant``.
    settings
        Questions, encoder, panel size and seeds of the study.
    """

    scores: pd.DataFrame
    settings: dict[str, Any]

    def table(self, question: str) -> pd.DataFrame:
        """Average over folds, and return mean and standard deviation over seeds, one row per variant."""
        rows = self.scores[self.scores["question"] == question]
        by_seed = rows.groupby(["variant", "seed"], sort=False)[list(MEASURES)].mean()
        table = by_seed.groupby("variant", sort=False).agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
        return table.loc[list(dict.fromkeys(rows["variant"]))]


def study(
    adata: AnnData,
    questions: Sequence[str] | None = None,
    *,
    encoder: Any = "resnet50",
    n_top_genes: int = 1000,
    seeds: Sequence[int] | None = None,
    slice_key: str = "slice",
    runs_dir: str | Path | None = None,
    device: str = "auto",
    features: dict[str, Any] | None = None,
) -> Study:
    """Evaluate the variants of some questions by leave-one-slice-out cross-validation.

    Parameters
    ----------
    adata
        Raw counts in ``X``, positions and images of at least two slices. Patch features are added to it.
    questions
        Keys of :data:`STUDY`; by default all.
    encoder
        Encoder, as in :func:`~st_gchb.pp.embed_patches`.
    n_top_genes, seeds, slice_key, device
        Same as for :func:`~st_gchb.evaluate.evaluate`; by default three seeds.
    runs_dir
        Folder of finished runs, from which an interrupted study continues.
    features
        Further arguments of :func:`~st_gchb.pp.embed_patches`: ``weights``, ``patch_um``, ``n_views``, ``cache``.

    Returns
    -------
    Study
        Scores of all variants.

    Raises
    ------
    InputError
        A question is unknown, or an argument of :func:`~st_gchb.evaluate.evaluate` is invalid.
    """
    asked = list(STUDY) if questions is None else list(questions)
    unknown = [name for name in asked if name not in STUDY]
    if unknown or not asked:
        raise InputError(f"Unknown questions {unknown}; known: {list(STUDY)}.")
    seeds = seeds_of(seeds)
    rest: dict[str, Any] = {
        "n_top_genes": n_top_genes,
        "seeds": seeds,
        "slice_key": slice_key,
        "runs_dir": runs_dir,
        "device": device,
    }
    made = dict(features or {})
    parts = []
    for question in asked:
        for key, variants in by_features(STUDY[question]).items():
            name = features_for(adata, dict(key), encoder=encoder, slice_key=slice_key, features=made)
            logger.info("Question %r: %d variants on %s.", question, len(variants), dict(key) or "the study's features")
            methods = {variant.name: variant.method for variant in variants}
            result = evaluate(adata, methods=methods, features_key=name, **rest)
            parts.append(result.scores.rename(columns={"method": "variant"}).assign(question=question))
    scores = pd.concat(parts, ignore_index=True)
    front = ["question", "variant", "fold", "seed"]
    settings = {"questions": asked, "encoder": str(encoder), "n_top_genes": n_top_genes, "seeds": seeds}
    plain = {key: value if isinstance(value, int | float | bool) else str(value) for key, value in made.items()}
    return Study(scores[front + [name for name in scores if name not in front]], settings | plain)


def seeds_of(given: Sequence[int] | None) -> list[int]:
    """Return the seeds of a study; by default three, counted up from ``st_gchb.settings.seed``."""
    first = st_gchb.settings.seed
    return list(range(first, first + 3) if given is None else given)


def by_features(variants: Sequence[Variant]) -> dict[tuple[tuple[str, Any], ...], list[Variant]]:
    """Group variants that use the same patch features."""
    groups: dict[tuple[tuple[str, Any], ...], list[Variant]] = {}
    for variant in variants:
        groups.setdefault(tuple(variant.features.items()), []).append(variant)
    return groups


def features_for(
    adata: AnnData, changed: dict[str, Any], *, encoder: Any, slice_key: str, features: dict[str, Any]
) -> str:
    """Compute patch features unless they are present, and return their key in ``obsm``."""
    name = "_".join(["X_patch", *(f"{key}_{value}" for key, value in changed.items())])
    if name not in adata.obsm:
        options = features | changed
        embed_patches(adata, encoder=encoder, slice_key=slice_key, key_added=name, **options)
    return name


def study_table(result: Study, question: str) -> str:
    """Format the table of a question as Markdown: mean over folds, then mean ± standard deviation over seeds."""
    table = result.table(question)
    lines = ["| variant | " + " | ".join(MEASURES) + " |", "| --- |" + " ---: |" * len(MEASURES)]
    for variant, row in table.iterrows():
        cells = []
        for name in MEASURES:
            digits = 0 if name == "n>0.3" else 3
            mean, spread = row[name]["mean"], row[name]["sd"]
            spread = "" if pd.isna(spread) else f" ± {spread:.{max(digits, 1)}f}"
            cells.append("–" if pd.isna(mean) else f"{mean:.{digits}f}{spread}")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
