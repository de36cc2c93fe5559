"""Files of a study: one table and one picture per question, and all scores as CSV and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from st_gchb import pl
from st_gchb._arguments import checked
from st_gchb._artifacts import write_whole
from st_gchb.evaluate._calibration import Reliability
from st_gchb.evaluate._choice import CRITERION, Choice
from st_gchb.evaluate._report import machine_and_versions
from st_gchb.evaluate._study import Study, study_table

_REFERENCES = ("default", "+ linear read-out by gene (default)")
_BEST = 10
"""Candidates that the table of a choice shows."""


@checked
def write_study(result: Study, folder: str | Path) -> list[Path]:
    """Write ``study.csv``, ``study.json`` and, per question, a Markdown table and a picture.

    Parameters
    ----------
    result
        What :func:`~st_gchb.evaluate.study` returns.
    folder
        Where to write; made if absent. Each file is written whole or not at all.

    Returns
    -------
    The paths.
    """
    out = Path(folder)
    paths = [_csv(result.scores, out / "study.csv")]
    paths.append(_text(json.dumps(result.settings | machine_and_versions(), indent=1), out / "study.json"))
    for question in dict.fromkeys(result.scores["question"]):
        paths.append(_text(study_table(result, question), out / f"{question}.md"))
        rows = result.scores[result.scores["question"] == question]
        reference = next((name for name in _REFERENCES if name in set(rows["variant"])), None)
        pl.save(pl.variants(rows, reference=reference), out / f"{question}.png")
        paths.append(out / f"{question}.png")
    return paths


@checked
def write_choice(result: Choice, folder: str | Path) -> list[Path]:
    """Write ``choice_inner.csv``, ``choice_outer.csv`` and ``choice.md``."""
    out = Path(folder)
    best = result.ranking()
    lines = ["| candidate | inner mean of the three | " + " | ".join(CRITERION) + " | slices it was chosen for |"]
    lines.append("| --- |" + " ---: |" * (len(CRITERION) + 2))
    for name, row in best.head(_BEST).iterrows():
        numbers = " | ".join(f"{row[key]:.4f}" for key in ("score", *CRITERION))
        lines.append(f"| {name} | {numbers} | {int(row['chosen'])} |")
    measures = [*CRITERION, "n>0.3"]
    lines += ["", "| held-out slice | chosen on the other slices | " + " | ".join(measures) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(measures))
    for (fold, name), rows in result.outer.groupby(["fold", "variant"], sort=False):
        lines.append(f"| {fold} | {name} | {_numbers(rows[measures].mean())} |")
    lines.append(f"| mean | | {_numbers(result.outer[measures].mean())} |")
    return [
        _csv(result.inner, out / "choice_inner.csv"),
        _csv(result.outer, out / "choice_outer.csv"),
        _text("\n".join(lines), out / "choice.md"),
    ]


@checked
def write_reliability(result: Reliability, folder: str | Path) -> list[Path]:
    """Write ``confidence_spots.csv``, ``confidence_genes.csv``, ``confidence.md`` and ``confidence.png``."""
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
    return [
        _csv(result.spots, out / "confidence_spots.csv"),
        _csv(result.genes, out / "confidence_genes.csv"),
        _text("\n".join(lines), out / "confidence.md"),
        out / "confidence.png",
    ]


@checked
def write_foreign(result: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write ``foreign.csv`` and ``foreign.md`` from what :func:`~st_gchb.evaluate.foreign_sections` returns."""
    out = Path(folder)
    lines = ["| section | spots | flagged as outliers | median confidence |", "| --- | ---: | ---: | ---: |"]
    for row in result.itertuples(index=False):
        lines.append(f"| {row.section} | {row.spots} | {row.outliers:.1%} | {row.confidence:.2f} |")
    return [_csv(result, out / "foreign.csv"), _text("\n".join(lines), out / "foreign.md")]


def _numbers(row: Any) -> str:
    return " | ".join(f"{value:.0f}" if name == "n>0.3" else f"{value:.4f}" for name, value in row.items())


def _csv(frame: pd.DataFrame, path: Path) -> Path:
    with write_whole(path) as part:
        frame.to_csv(part, index=False)
    return path


def _text(text: str, path: Path) -> Path:
    with write_whole(path) as part:
        part.write_text(text + "\n", encoding="utf-8")
    return path
