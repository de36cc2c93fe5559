"""Files of a study: one table and one figure per question, and all scores as CSV and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from st_gchb import pl
from st_gchb._artifacts import write_json, write_whole
from st_gchb.evaluate import machine_and_versions
from studies._choice import CRITERION, Choice
from studies._figure import variants
from studies._study import Study, study_table

_REFERENCES = ("default", "+ ridge head by gene (default)")
_BEST = 10
"""Number of candidates in the table of a choice."""


def write_study(result: Study, folder: str | Path) -> list[Path]:
    """Write ``study.csv``, ``study.json`` and, per question, a Markdown table and a figure.

    Parameters
    ----------
    result
        Result of :func:`~studies._study.study`.
    folder
        Folder to write to; created if absent.

    Returns
    -------
    list of pathlib.Path
        The files.
    """
    out = Path(folder)
    paths = [write_csv(result.scores, out / "study.csv")]
    paths.append(write_record(result.settings | machine_and_versions(), out / "study.json"))
    for question in dict.fromkeys(result.scores["question"]):
        paths.append(write_text(study_table(result, question), out / f"{question}.md"))
        rows = result.scores[result.scores["question"] == question]
        reference = next((name for name in _REFERENCES if name in set(rows["variant"])), None)
        pl.save(variants(rows, reference=reference), out / f"{question}.png")
        paths.append(out / f"{question}.png")
    return paths


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
        write_csv(result.inner, out / "choice_inner.csv"),
        write_csv(result.outer, out / "choice_outer.csv"),
        write_text("\n".join(lines), out / "choice.md"),
    ]


def write_foreign(result: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write ``foreign.csv`` and ``foreign.md``, the table of other sections."""
    out = Path(folder)
    lines = ["| section | spots | flagged as outliers | median confidence |", "| --- | ---: | ---: | ---: |"]
    for row in result.itertuples(index=False):
        lines.append(f"| {row.section} | {row.spots} | {row.outliers:.1%} | {row.confidence:.2f} |")
    return [write_csv(result, out / "foreign.csv"), write_text("\n".join(lines), out / "foreign.md")]


def _numbers(row: Any) -> str:
    return " | ".join(f"{value:.0f}" if name == "n>0.3" else f"{value:.4f}" for name, value in row.items())


def write_csv(frame: pd.DataFrame, path: Path) -> Path:
    """Write a table without its index, as a whole or not at all."""
    with write_whole(path) as part:
        frame.to_csv(part, index=False)
    return path


def write_text(text: str, path: Path) -> Path:
    """Write text and a line break, as a whole or not at all."""
    with write_whole(path) as part:
        part.write_text(f"{text}\n", encoding="utf-8")
    return path


def write_record(record: dict[str, Any], path: Path) -> Path:
    """Write the settings of a study as JSON, as a whole or not at all."""
    write_json(path, record, indent=1)
    return path
