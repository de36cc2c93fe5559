"""Choice of the steps of the surroundings: each data set is predicted with those that are best on the other data sets.

The steps are one number for all tissues. On the training slices of a single data set they cannot be told apart: where
one slice is left, surroundings of its quadrants say little of another section. So the choice for a data set is made on
all others, and its own held-out slices have no part in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from st_gchb.evaluate import METHODS, evaluate, machine_and_versions
from studies._choice import CRITERION
from studies._command import add_tissues, new_parser, run_study
from studies._files import write_csv, write_record, write_text
from studies._tissues import TISSUES, embedded

STEPS = (0, 12, 24, 48)
"""Steps of the surroundings that are compared; 0 leaves them out."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    example = "--data ../shared/data --weights ../shared/weights/mobilenet_v2_imagenet.safetensors"
    parser = new_parser("surroundings", __doc__, example)
    add_tissues(parser)
    add = parser.add_argument
    add("--tissues", nargs="+", metavar="NAME", choices=TISSUES, default=list(TISSUES), help="default: all")
    add("--seeds", type=int, default=1, help="number of seeds, counted up from 0 (default: %(default)s)")
    add("--runs", type=Path, default=Path("evaluation/tissues"), help="folder of finished runs (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> list[Path]:
    """Evaluate every number of steps on every data set, and write the table."""
    default: Any = METHODS["default"]
    methods = {str(steps): partial(default, context_surroundings=steps) for steps in STEPS}
    options: dict[str, Any] = {"n_top_genes": arguments.n_top_genes, "device": arguments.device}
    rows = []
    for name in arguments.tissues:
        adata = embedded(TISSUES[name], arguments.data, arguments.weights, arguments.device)
        seeds = range(arguments.seeds)
        runs = arguments.runs / name
        found = evaluate(adata, **TISSUES[name].folds, methods=methods, seeds=seeds, runs_dir=runs, **options).table()
        means = found[list(CRITERION)].xs("mean", axis=1, level=1)
        rows.append(means.rename_axis("steps").reset_index().assign(tissue=name))
    scores = pd.concat(rows, ignore_index=True).astype({"steps": int})
    titles = {name: TISSUES[name].title for name in arguments.tissues}
    return [
        write_csv(scores, arguments.out / "surroundings.csv"),
        write_record({"steps": list(STEPS)} | options | machine_and_versions(), arguments.out / "surroundings.json"),
        write_text(markdown(scores, titles), arguments.out / "surroundings.md"),
    ]


def relative(scores: pd.DataFrame) -> pd.DataFrame:
    """Divide each measure by its value without surroundings, and average: a row per data set, a column per steps."""
    table = scores.set_index(["tissue", "steps"])[list(CRITERION)]
    without = table.xs(0, level="steps")
    return (table / without.reindex(table.index, level="tissue")).mean(axis=1).unstack("steps")


def chosen(scores: pd.DataFrame) -> dict[str, int]:
    """Choose the steps of each data set: those with the best mean of :func:`relative` over the other data sets."""
    table = relative(scores)
    return {str(name): int(table.drop(index=name).mean().idxmax()) for name in table.index}


def markdown(scores: pd.DataFrame, titles: dict[str, str]) -> str:
    """Format AG, HVG and HEG of every number of steps, and the steps that the other data sets choose."""
    steps = sorted(scores["steps"].unique())
    heads = ["without" if n == 0 else f"{n} steps" for n in steps]
    lines = ["| tissue | " + " | ".join(heads) + " | chosen on the others |", "| --- |" + " --- |" * (len(steps) + 1)]
    choice = chosen(scores)
    table = scores.set_index(["tissue", "steps"])[list(CRITERION)]
    for name, title in titles.items():
        cells = [" ".join(f"{value:.3f}" for value in table.loc[(name, n)]) for n in steps]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {choice[name]} |")
    mean = relative(scores).mean()
    return "\n".join([*lines, "| mean, relative | " + " | ".join(f"{mean[n]:.3f}" for n in steps) + " | |"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an invalid argument or data that cannot be used end it with status 2."""
    return run_study("surroundings", run, build_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
