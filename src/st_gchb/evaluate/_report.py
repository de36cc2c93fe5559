"""Files that report an evaluation: metrics.json, scores.csv, per_gene.csv, table.md and figures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from st_gchb import pl
from st_gchb._arguments import checked
from st_gchb._artifacts import write_json, write_whole
from st_gchb._errors import MissingKeyError
from st_gchb.evaluate._calibration import Reliability
from st_gchb.evaluate._evaluate import Evaluation
from st_gchb.metrics import pearson

_SHOWN = (
    *("AG", "HVG", "HEG", "AG_share", "HVG_share", "HEG_share"),
    *("n>0.3", "RMSE", "Moran_difference", "Moran_rank"),
)
_PACKAGES = ("st-gchb", "torch", "torchvision", "torch-geometric", "scvi-tools", "scanpy", "squidpy", "anndata")


@checked
def write_report(result: Evaluation, folder: str | Path, *, genes: Sequence[str] | None = None) -> dict[str, Path]:
    """Write an evaluation to a folder; each file is written completely or not at all.

    Parameters
    ----------
    result
        Result of :func:`evaluate`.
    folder
        Output folder; created if absent.
    genes
        Genes to draw; by default the three best predicted among the 50 most variable.

    Returns
    -------
    dict of str to pathlib.Path
        Paths by name: ``metrics``, ``scores``, ``per_gene``, ``table``, ``bars`` and, if there is a held-out slice to
        draw, ``tissue``.

    Raises
    ------
    MissingKeyError
        A gene is not in the panel; nothing is written then.
    """
    if result.pictured is not None:
        absent = [gene for gene in genes or [] if gene not in result.pictured.var_names]
        if absent:
            raise MissingKeyError(f"Genes {absent} are not in the panel of {result.pictured.n_vars}. Draw others.")
    out = Path(folder)
    names = ("metrics.json", "scores.csv", "per_gene.csv", "table.md", "measured_vs_predicted.png", "methods.png")
    paths = dict(
        zip(("metrics", "scores", "per_gene", "table", "tissue", "bars"), (out / n for n in names), strict=True)
    )
    write_json(paths["metrics"], as_json(result), indent=1)
    with write_whole(paths["scores"]) as part:
        result.scores.to_csv(part, index=False)
    with write_whole(paths["per_gene"]) as part:
        result.genes.to_csv(part, index=False)
    with write_whole(paths["table"]) as part:
        part.write_text(markdown(result) + "\n", encoding="utf-8")
    pl.save(pl.metric_bars(result.scores), paths["bars"])
    if result.pictured is None:
        del paths["tissue"]
    else:
        axes = pl.measured_vs_predicted(result.pictured, genes or best_genes(result.pictured), slice_key=None)
        pl.save(axes, paths["tissue"])
    return paths


@checked
def write_reliability(result: Reliability, folder: str | Path) -> list[Path]:
    """Write ``confidence_spots.csv``, ``confidence_genes.csv``, ``confidence.md`` and ``confidence.png``.

    Parameters
    ----------
    result
        Result of :func:`reliability`.
    folder
        Folder to write to; created if absent. Each file is written whole or not at all.

    Returns
    -------
    list of pathlib.Path
        The files.
    """
    out = Path(folder)
    heads = (
        "held-out slice",
        "spots",
        "flagged as outliers",
        "error, least confident third",
        "error, most confident third",
        "less error",
        "Spearman, confidence and error",
        "Spearman, expected and real correlation",
    )
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for fold, row in result.summary().iterrows():
        lines.append(
            f"| {fold} | {row['spots']:.0f} | {row['outliers']:.1%} | {row['error_least']:.3f} | "
            f"{row['error_most']:.3f} | {row['less_error']:.0%} | {row['spearman_spots']:.2f} | "
            f"{row['spearman_genes']:.2f} |"
        )
    pl.save(pl.reliability(result.spots, result.genes), out / "confidence.png")
    with write_whole(out / "confidence_spots.csv") as part:
        result.spots.to_csv(part, index=False)
    with write_whole(out / "confidence_genes.csv") as part:
        result.genes.to_csv(part, index=False)
    with write_whole(out / "confidence.md") as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [out / name for name in ("confidence_spots.csv", "confidence_genes.csv", "confidence.md", "confidence.png")]


def markdown(result: Evaluation, measures: tuple[str, ...] = _SHOWN) -> str:
    """Format the table as Markdown: mean over folds, then mean ± standard deviation over seeds."""
    table = result.table()
    shown = [name for name in measures if name in table.columns.get_level_values(0)]
    lines = ["| method | " + " | ".join(shown) + " |", "| --- |" + " --- |" * len(shown)]
    for method, row in table.iterrows():
        cells = [_cell(name, row[name]["mean"], row[name]["sd"]) for name in shown]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_json(result: Evaluation) -> dict[str, Any]:
    """Collect settings, machine, versions and the table's numbers for JSON."""
    table = result.table()
    measures = list(dict.fromkeys(table.columns.get_level_values(0)))
    methods = {
        str(method): {name: {"mean": _number(row[name]["mean"]), "sd": _number(row[name]["sd"])} for name in measures}
        for method, row in table.iterrows()
    }
    return {
        "settings": result.settings,
        "runs": result.runs,
        "methods": methods,
        "by_fold": json.loads(result.scores.to_json(orient="records")),
        **machine_and_versions(),
    }


def machine_and_versions() -> dict[str, Any]:
    """Collect package versions and machine, on which results depend besides the settings."""
    return {
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
    }


def best_genes(pictured: Any) -> list[str]:
    """Select the three best predicted genes among the 50 most variable of the held-out slice."""
    truth, predicted = pictured.layers["measured"], pictured.layers["st_gchb"]
    score = pd.Series(pearson(truth, predicted), index=pictured.var_names)
    variable = pd.Series(truth.var(0), index=pictured.var_names).nlargest(50).index
    return list(score[variable].nlargest(3).index)


def _cell(name: str, mean: float, sd: float) -> str:
    if pd.isna(mean):
        return "–"
    digits = 0 if name.startswith("n") else 3
    spread = "" if pd.isna(sd) else f" ± {sd:.{max(digits, 1)}f}"
    return f"{mean:.{digits}f}{spread}"


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
