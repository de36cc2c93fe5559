"""Which parts of the method help: every variant of every question through the same protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from st_gchb._arguments import Pair, Seed, checked
from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import logger
from st_gchb.evaluate._evaluate import evaluate
from st_gchb.evaluate._protocol import seeds_of
from st_gchb.evaluate._variants import STUDY, Variant
from st_gchb.pp import embed_patches

MEASURES = ("AG", "HVG", "HEG", "n>0.3", "RMSE", "Moran")


@dataclass(frozen=True)
class Study:
    """Scores of all variants.

    Parameters
    ----------
    scores
        One row per question, variant, fold and seed; the columns of :class:`~st_gchb.evaluate.Evaluation` with the
        ``method`` named ``variant``.
    settings
        What was run.
    """

    scores: pd.DataFrame
    settings: dict[str, Any]

    def table(self, question: str) -> pd.DataFrame:
        """Mean over folds; then mean and standard deviation over seeds, one row per variant."""
        rows = self.scores[self.scores["question"] == question]
        by_seed = rows.groupby(["variant", "seed"], sort=False)[list(MEASURES)].mean()
        table = by_seed.groupby("variant", sort=False).agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
        return table.loc[list(dict.fromkeys(rows["variant"]))]


@checked
def study(
    adata: AnnData,
    questions: Sequence[str] | None = None,
    *,
    encoder: Any = "resnet50",
    n_top_genes: Pair = 1000,
    seeds: Sequence[Seed] | None = None,
    slice_key: str = Keys.SLICE,
    runs_dir: str | Path | None = None,
    device: str = "auto",
    features: dict[str, Any] | None = None,
) -> Study:
    """Leave one slice out with every variant of the model that a question asks for.

    Parameters
    ----------
    adata
        Raw counts in ``X``, positions and images of at least two slices. Patch features are added to it.
    questions
        Keys of :data:`STUDY`; by default all.
    encoder
        As :func:`~st_gchb.pp.embed_patches` takes it.
    n_top_genes, seeds, slice_key, device
        As :func:`~st_gchb.evaluate.evaluate` takes them.
    runs_dir
        Where finished runs are kept; a study that was stopped goes on from there.
    features
        Further arguments of :func:`~st_gchb.pp.embed_patches`: ``weights``, ``patch_um``, ``n_views``, ``cache``.

    Raises
    ------
    InputError
        For an unknown question, or what :func:`~st_gchb.evaluate.evaluate` refuses.

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.synthetic_tissue(2, n_rows=9, n_cols=9, n_genes=60)
    >>> result = st_gchb.evaluate.study(
    ...     adata, ["read-out"], encoder="texture", n_top_genes=50, seeds=[0], features={"cache": False}
    ... )
    >>> len(result.table("read-out"))
    10
    """
    asked = list(STUDY) if questions is None else list(questions)
    unknown = [name for name in asked if name not in STUDY]
    if unknown or not asked:
        raise InputError(f"Unknown questions {unknown}; known: {list(STUDY)}.")
    seeds = seeds_of(seeds, 3)
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


def by_features(variants: Sequence[Variant]) -> dict[tuple[tuple[str, Any], ...], list[Variant]]:
    """Variants that see the same patch features, together."""
    groups: dict[tuple[tuple[str, Any], ...], list[Variant]] = {}
    for variant in variants:
        groups.setdefault(tuple(variant.features.items()), []).append(variant)
    return groups


def features_for(
    adata: AnnData, changed: dict[str, Any], *, encoder: Any, slice_key: str, features: dict[str, Any]
) -> str:
    """Make patch features unless they are there, and name their key in ``obsm``."""
    name = "_".join([Keys.FEATURES, *(f"{key}_{value}" for key, value in changed.items())])
    if name not in adata.obsm:
        options = features | changed
        embed_patches(adata, encoder=encoder, slice_key=slice_key, key_added=name, **options)
    return name


def study_table(result: Study, question: str) -> str:
    """A question's table as Markdown: mean over folds, then mean ± standard deviation over seeds."""
    table = result.table(question)
    lines = ["| variant | " + " | ".join(MEASURES) + " |", "| --- |" + " ---: |" * len(MEASURES)]
    for variant, row in table.iterrows():
        cells = []
        for name in MEASURES:
            digits = 0 if name == "n>0.3" else 3
            mean, spread = row[name]["mean"], row[name]["sd"]
            cells.append(f"{mean:.{digits}f}" + ("" if pd.isna(spread) else f" ± {spread:.{max(digits, 1)}f}"))
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
