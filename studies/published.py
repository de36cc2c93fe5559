"""The paper's tables 1 and 2 and its figure 2: every method that it compares, every ablation, on one protocol.

Each data set is evaluated by leaving sections out; the slices of DLPFC with simulated counts at their true size. Beside
the methods of the paper stand the package's default and the strongest baselines. Finished runs and their times are kept
below --runs, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

import st_gchb
from st_gchb import pl
from st_gchb.evaluate import METHODS, Evaluation, evaluate, evaluate_fold, machine_and_versions
from studies import dlpfc
from studies._command import add_tissues, new_parser, run_study
from studies._files import write_csv, write_record, write_text
from studies._tissues import TISSUES, embedded

NEWER = ("mclstexp", "triplex")
TABLE_1 = ("hist2rna", "hist2st", "thitogene", "histogene", "st-net", *NEWER, "bleep", "paper", "default")
"""Methods of the paper's table 1 in its order, with two newer ones; ``paper`` is ST-GCHB as published."""
TABLE_2 = ("bleep", "paper", "paper-A", "paper-B", "paper-C", "paper-D", "default")
STRONG = ("ridge-neighbors", "kernel-ridge", "kernel-ridge-both")
"""Baselines that stand beside the methods of the paper."""
CHEAP = ("hist2rna-published",)
"""Methods that are cheap with the settings of their publication, too."""
COLUMNS = {"MG": "MG", "HVG": "HVG", "HEG": "HEG", "Cor>0.3": "n>0.3", "AG": "AG"}
"""The paper's names of the measures, and the package's."""


@dataclass(frozen=True)
class Experiment:
    """A data set, and what is run on it.

    Parameters
    ----------
    title
        Tissue and technology.
    read
        Function of the arguments of the command that reads and embeds the data.
    methods
        Methods by name.
    n_seeds
        Number of seeds.
    markers
        Candidates for the marker genes of MG and of the figure; those that all panels hold are taken.
    held_out
        Slice that alone is held out; None for each in turn.
    simulated
        Whether the counts are simulated.
    """

    title: str
    read: Callable[[argparse.Namespace], AnnData]
    methods: tuple[str, ...]
    n_seeds: int
    markers: tuple[str, ...]
    held_out: str | None = None
    simulated: bool = False


def _tissue(name: str) -> Callable[[argparse.Namespace], AnnData]:
    return lambda arguments: embedded(TISSUES[name], arguments.data, arguments.weights, arguments.device)


def _dlpfc(arguments: argparse.Namespace) -> AnnData:
    """Simulate counts and images on the spots of the paper's six slices, and embed their patches."""
    call = ["--simulated", str(arguments.data / "dlpfc"), "--n-top-genes", str(arguments.n_top_genes)]
    adata, _, _ = dlpfc.simulated_slices(dlpfc.build_parser().parse_args(call))
    made: dict[str, Any] = {"encoder": ("mobilenet_v2", "texture"), "weights": (arguments.weights, "default")}
    device = {"gpu": "cuda"}.get(arguments.device, arguments.device)
    st_gchb.pp.embed_patches(adata, slice_key="slice", device=device, n_views=1, patch_um=(80.0, 150.0, 300.0), **made)
    return adata


EXPERIMENTS: dict[str, Experiment] = {
    "her2st": Experiment(
        TISSUES["her2st"].title,
        _tissue("her2st"),
        (*TABLE_1, *CHEAP, *TABLE_2[2:6], *STRONG),
        3,
        ("ERBB2", "CD74", "FASN", "GNAS", "IGKC", "SCD"),
    ),
    "visium_mousebrain": Experiment(
        TISSUES["visium_mousebrain"].title,
        _tissue("visium_mousebrain"),
        (*TABLE_2, *STRONG),
        1,
        ("Cux2", "Rorb", "Prox1", "Calb1", "Mbp", "Slc17a7", "Nrgn", "Penk"),
    ),
    "visium_lung": Experiment(
        TISSUES["visium_lung"].title,
        _tissue("visium_lung"),
        (*TABLE_1, *CHEAP, *TABLE_2[2:6], *STRONG),
        3,
        ("SFTPC", "SFTPB", "SCGB1A1", "COL1A1", "AGER", "IGKC"),
    ),
    "dlpfc": Experiment(
        "human cortex (DLPFC), Visium, SIMULATED counts",
        _dlpfc,
        (*TABLE_2, "ridge-neighbors", "kernel-ridge"),
        1,
        (),
        held_out="simulated_151676",
        simulated=True,
    ),
}
"""Data sets by name."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    example = "--data ../shared/data --weights ../shared/weights/mobilenet_v2_imagenet.safetensors"
    parser = new_parser("published", __doc__, example)
    add_tissues(parser)
    parser.set_defaults(out=Path("evaluation/tables"))
    add = parser.add_argument
    add("--sets", nargs="+", metavar="NAME", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="default: all")
    add("--methods", nargs="+", metavar="NAME", choices=METHODS, help="default: those of each data set")
    add("--seeds", type=int, help="number of seeds (default: that of each data set)")
    add("--runs", type=Path, default=Path("evaluation/published"), help="folder of runs (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> list[Path]:
    """Evaluate the data sets, and write their tables and figures."""
    paths: list[Path] = []
    for name in arguments.sets:
        paths += run_experiment(name, EXPERIMENTS[name], arguments)
    return paths


def run_experiment(name: str, one: Experiment, arguments: argparse.Namespace) -> list[Path]:
    """Evaluate a data set, one method after the other, and write its tables and its figure."""
    adata = one.read(arguments)
    methods = list(dict.fromkeys(arguments.methods or one.methods))
    options: dict[str, Any] = {"n_top_genes": arguments.n_top_genes, "device": arguments.device}
    panels = _evaluated(adata, one, ["mean"], **options, seeds=[0]).genes
    markers = common_markers(one, panels, adata)
    options |= {"seeds": range(arguments.seeds or one.n_seeds), "markers": markers or None}
    folder = arguments.runs / name
    results: list[Evaluation] = []
    for number, method in enumerate(methods):
        print(f"{one.title}: {method}, {number + 1} of {len(methods)}{remaining(folder, methods[number:])}", flush=True)
        start = time.perf_counter()
        results.append(_evaluated(adata, one, [method], **options, runs_dir=folder, keep_predictions=True))
        made = results[-1].runs["made"]
        if made:
            note_time(folder, method, (time.perf_counter() - start) / made, made + results[-1].runs["taken"])
    scores = pd.concat([result.scores for result in results], ignore_index=True)
    return write_experiment(name, one, adata, results, scores, markers, arguments)


def _evaluated(adata: AnnData, one: Experiment, methods: list[str], **options: Any) -> Evaluation:
    if one.held_out is None:
        return evaluate(adata, methods=methods, **options)
    return evaluate_fold(adata, one.held_out, methods=methods, **options)


def common_markers(one: Experiment, panels: pd.DataFrame, adata: AnnData) -> list[str]:
    """Return the markers that the panels of all folds hold; of simulated tissue, a gene for each marked layer."""
    by_fold = [set(genes["gene"]) for _, genes in panels.groupby("fold")]
    shared = set.intersection(*by_fold)
    if one.simulated:
        layer = adata.var.loc[sorted(shared), "layer"]
        return [gene for name in dlpfc.MARKED_LAYERS for gene in layer.index[layer == name][:1]]
    return [gene for gene in one.markers if gene in shared][:4]


# ---- Times ----


def times_of(folder: Path) -> dict[str, list[float]]:
    """Read the seconds of a run, and the number of runs, of each method that was made below a folder."""
    path = folder / "times.csv"
    if not path.is_file():
        return {}
    table = pd.read_csv(path).drop_duplicates("method", keep="last")
    return {row.method: [row.seconds, row.runs] for row in table.itertuples()}


def note_time(folder: Path, method: str, seconds: float, runs: int) -> None:
    """Note how long a run of a method took."""
    known = times_of(folder) | {method: [seconds, runs]}
    rows = [{"method": name, "seconds": own[0], "runs": int(own[1])} for name, own in known.items()]
    write_csv(pd.DataFrame(rows), folder / "times.csv")


def remaining(folder: Path, methods: Sequence[str]) -> str:
    """Say how long the methods took before, if it is known of all of them."""
    known = times_of(folder)
    if not all(method in known for method in methods):
        return ""
    return f", at most {math.ceil(sum(math.prod(known[method]) for method in methods) / 60)} min remain"


# ---- Tables and figure ----


def write_experiment(
    name: str,
    one: Experiment,
    adata: AnnData,
    results: Sequence[Evaluation],
    scores: pd.DataFrame,
    markers: list[str],
    arguments: argparse.Namespace,
) -> list[Path]:
    """Write tables 1 and 2, all scores, the settings, and the figure of the markers."""
    times = times_of(arguments.runs / name)
    folds, seeds = results[0].settings["folds"], results[0].settings["seeds"]
    caption = (
        f"{one.title}; held out: {', '.join(folds)}; {len(seeds)} seed{'s' * (len(seeds) > 1)}, at most "
        f"{arguments.n_top_genes} genes. MG: {', '.join(markers) or 'none of the candidates is in all panels'}."
    )
    known = list(dict.fromkeys(scores["method"]))
    first = [method for method in (*TABLE_1, *CHEAP, *STRONG) if method in known]
    second = [method for method in TABLE_2 if method in known]
    paths = [
        write_csv(scores, arguments.out / f"{name}.csv"),
        write_text(
            f"{caption}\n\n{table(scores, first, ('MG', 'HVG', 'HEG'), times, one)}", arguments.out / f"{name}_1.md"
        ),
        write_text(f"{caption}\n\n{table(scores, second, tuple(COLUMNS), times, one)}", arguments.out / f"{name}_2.md"),
        write_record({"settings": results[0].settings} | machine_and_versions(), arguments.out / f"{name}.json"),
    ]
    if markers:
        pictured = compared(results, adata, folds[-1])
        shown = [method for method in first if method in pictured.layers]
        pl.save(pl.compare_methods(pictured, markers, methods=shown), arguments.out / f"{name}.png")
        paths.append(arguments.out / f"{name}.png")
    return paths


def compared(results: Sequence[Evaluation], adata: AnnData, fold: str) -> AnnData:
    """Collect the predictions of all methods for a fold in one table."""
    tables = [result.compared(adata, fold) for result in results]
    for other in tables[1:]:
        for layer in set(other.layers) - {"measured"}:
            tables[0].layers[layer] = other.layers[layer]
    return tables[0]


def table(
    scores: pd.DataFrame,
    methods: Sequence[str],
    columns: Sequence[str],
    times: Mapping[str, Sequence[float]],
    one: Experiment,
) -> str:
    """Format the paper's columns: mean over folds, with the standard deviation over seeds; and the time of a run."""
    measured = {name: COLUMNS[name] for name in columns if COLUMNS[name] in scores}
    by_seed = scores.groupby(["method", "seed"])[list(measured.values())].mean()
    label = "simulated" if one.simulated else "method"
    lines = [f"| {label} | " + " | ".join(measured) + " | min a run |", "| --- |" + " ---: |" * (len(measured) + 1)]
    for method in methods:
        own = by_seed.loc[method].agg(["mean", "std"])
        cells = [dlpfc.cell(own[key]["mean"], own[key]["std"], 0 if ">" in key else 4) for key in measured.values()]
        took = f"{times[method][0] / 60:.1f}" if method in times else ""
        lines.append(f"| {'simulated: ' * one.simulated}{method} | " + " | ".join(cells) + f" | {took} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an invalid argument or data that cannot be used end it with status 2."""
    return run_study("published", run, build_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
