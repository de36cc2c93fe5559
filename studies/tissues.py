"""Every method on every data set with images and counts: breast of two patients, bulb, brain, lung and colon.

Each data set is evaluated by the split that fits it: sections left out, quadrants of a single section, or patient to
patient. Makes the tables and the figure of docs/results/tissues, of accuracy and of what confidence is worth. Finished
runs and encoded patches are kept, and an interrupted study continues from there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from st_gchb import pl
from st_gchb.errors import InputError
from st_gchb.evaluate import METHODS, Reliability, evaluate, machine_and_versions, markdown, reliability, split_folds
from studies._command import add_tissues, new_parser, run_study
from studies._comparison import MEASURES, PRESETS, Compared, difference, differences_markdown, overall, overall_markdown
from studies._figure import tissues as draw
from studies._files import write_csv, write_record, write_text
from studies._tissues import TISSUES, Tissue, embedded

COMPARED = (
    "default",
    "kernel-head",
    "bleep",
    "ridge-neighbors",
    "reduced-rank-ridge",
    "kernel-ridge",
    "kernel-ridge-texture",
    "kernel-ridge-both",
)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    example = "--data ../shared/data --weights ../shared/weights/mobilenet_v2_imagenet.safetensors"
    parser = new_parser("tissues", __doc__, example)
    add_tissues(parser)
    add = parser.add_argument
    add("--tissues", nargs="+", metavar="NAME", default=list(TISSUES), help=f"{', '.join(TISSUES)} (default: all)")
    add("--methods", nargs="+", metavar="NAME", default=list(COMPARED), help=f"default: {', '.join(COMPARED)}")
    add("--paper", action="store_true", help="the published settings, too, which take longest to train")
    add("--seeds", type=int, default=3, help="number of seeds, counted up from --seed (default: %(default)s)")
    add("--seed", type=int, default=0, help="first seed (default: %(default)s)")
    add("--draws", type=int, default=1000, help="draws of the bootstrap (default: %(default)s)")
    add("--runs", type=Path, default=Path("evaluation/tissues"), help="folder of finished runs (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an invalid argument or data that cannot be used end it with status 2."""
    return run_study("tissues", run, build_parser().parse_args(argv))


def run(arguments: argparse.Namespace) -> list[Path]:
    """Evaluate the data sets, and write the tables of each and of all."""
    methods = list(dict.fromkeys([*arguments.methods, *["paper"] * arguments.paper]))
    check(arguments, methods)
    options: dict[str, Any] = {
        "methods": methods,
        "n_top_genes": arguments.n_top_genes,
        "seeds": range(arguments.seed, arguments.seed + arguments.seeds),
        "device": arguments.device,
    }
    compared: dict[str, Compared] = {}
    trust: dict[str, Reliability] = {}
    paths: list[Path] = []
    for name in arguments.tissues:
        tissue = TISSUES[name]
        adata = embedded(tissue, arguments.data, arguments.weights, arguments.device)
        compared[name] = compare(adata, tissue, runs_dir=arguments.runs / name, n_draws=arguments.draws, **options)
        paths += write_tissue(name, tissue, compared[name], arguments.out)
        common = {key: options[key] for key in ("n_top_genes", "device")}
        trust[name] = reliability(adata, **tissue.folds, **common, seeds=[arguments.seed])
    return [*paths, *write_overall(compared, arguments.out), *write_confidence(trust, arguments.out)]


def check(arguments: argparse.Namespace, methods: Sequence[str]) -> None:
    """Validate the options before anything is read.

    Raises
    ------
    InputError
        A data set or method is unknown, or there is nothing to compare.
    """
    unknown = [name for name in arguments.tissues if name not in TISSUES]
    if unknown:
        raise InputError(f"--tissues {unknown}: unknown; known are {', '.join(TISSUES)}.")
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise InputError(f"--methods {unknown}: unknown; known are {', '.join(METHODS)}.")
    if "default" not in methods or not set(methods) - set(PRESETS):
        raise InputError(f"--methods {methods}: expected default, and at least one baseline to compare it with.")
    if arguments.seeds < 1 or arguments.seed < 0 or arguments.draws < 1:
        raise InputError("--seeds, --seed, --draws: expected at least one seed and draw, and no seed below 0.")


def compare(adata: AnnData, tissue: Tissue, *, runs_dir: Path, n_draws: int, **options: Any) -> Compared:
    """Evaluate a data set by its split, and compare the default with its strongest baseline."""
    result = evaluate(adata, **tissue.folds, **options, runs_dir=runs_dir, keep_predictions=True)
    folds = split_folds(adata, result.settings["split"], result.settings["by"])
    return Compared(result, difference(result, adata, folds, n_draws=n_draws))


def write_tissue(name: str, tissue: Tissue, compared: Compared, out: Path) -> list[Path]:
    """Write the scores of all runs of a data set, and its table."""
    result = compared.result
    settings = result.settings
    seeds = len(settings["seeds"])
    held_out = {"slice": "sections left out", "patient": "patients left out", "blocks": "quadrants left out"}
    caption = (
        f"{tissue.title}: {held_out[tissue.split]} ({'; '.join(settings['folds'])}), up to {settings['n_top_genes']} "
        f"genes, {seeds} seed{'s' * (seeds > 1)}. {tissue.note}"
    )
    return [
        write_csv(result.scores, out / f"{name}.csv"),
        write_text(f"{caption.rstrip()}\n\n{markdown(result)}", out / f"{name}.md"),
    ]


def write_overall(compared: dict[str, Compared], out: Path) -> list[Path]:
    """Write the table of all data sets, the differences to the strongest baselines, and the figure."""
    titles = {name: TISSUES[name].title for name in compared}
    table = overall(compared)
    rows = pd.concat([one.difference.assign(tissue=name) for name, one in compared.items()], ignore_index=True)
    record = {name: one.result.settings | {"note": TISSUES[name].note} for name, one in compared.items()}
    pl.save(draw({titles[name]: one.means() for name, one in compared.items()}, MEASURES), out / "overall.png")
    return [
        write_csv(table.reset_index(), out / "overall.csv"),
        write_text(overall_markdown(table, titles), out / "overall.md"),
        write_csv(rows[["tissue", *rows.columns.drop("tissue")]], out / "differences.csv"),
        write_text(differences_markdown(compared, titles), out / "differences.md"),
        write_record({"tissues": record} | machine_and_versions(), out / "settings.json"),
        out / "overall.png",
    ]


def write_confidence(trust: dict[str, Reliability], out: Path) -> list[Path]:
    """Write what confidence, outlier flag and expected correlation were worth on each held-out part, with curves."""
    table = pd.concat({name: one.summary() for name, one in trust.items()}, names=["tissue"]).reset_index()
    lines = [
        "| tissue | held out | spots | flagged | error, least sure third | most sure third | spots: rank correlation | "
        "genes: rank correlation |",
        "| --- | --- |" + " ---: |" * 6,
    ]
    for row in table.itertuples():
        errors = f"{row.error_least:.3f} | {row.error_most:.3f}"
        ranks = f"{row.spearman_spots:.2f} | {row.spearman_genes:.2f}"
        title = TISSUES[row.tissue].title
        lines.append(f"| {title} | {row.fold} | {row.spots:.0f} | {row.outliers:.1%} | {errors} | {ranks} |")
    pictures = [out / f"{name}_confidence.png" for name in trust]
    for path, one in zip(pictures, trust.values(), strict=True):
        pl.save(pl.reliability(one.spots, one.genes), path, dpi=100)
    return [write_csv(table, out / "confidence.csv"), write_text("\n".join(lines), out / "confidence.md"), *pictures]


if __name__ == "__main__":
    raise SystemExit(main())
