"""The paper's tables 1 and 2 and its figure 2: every method that it compares, every ablation, on one protocol.

Each data set is evaluated by leaving sections out; the slices of DLPFC with simulated counts at their true size. Beside
the methods of the paper stand the package's default and the strongest baselines. Finished runs and their times are kept
below --runs, and the same command goes on where it was stopped. With --hours, no method is begun after that time: those
that are left out stand in the tables with the time that a run of them would take. Times are of all cores together.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

import st_gchb
from st_gchb import pl
from st_gchb._artifacts import read_json
from st_gchb.errors import InputError
from st_gchb.evaluate import METHODS, Evaluation, Method, evaluate, evaluate_fold, machine_and_versions
from studies import dlpfc
from studies._command import add_tissues, default_encoders, new_parser, run_study
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
PRETRAINED = "st-net, MobileNetV2"
"""ST-Net with the stored MobileNetV2 of ImageNet as its trunk, in place of ImageNet's DenseNet-121."""
FROM_FEATURES = {f"{name}, features": name for name in ("hist2st", "thitogene", "histogene")}
"""Methods on pixels that take the frozen patch features of all other rows in place of their own patch embedding."""
VARIANTS = (PRETRAINED, *FROM_FEATURES)
SLICE_FOR_EVERY_STEP = TABLE_2[1:6]
"""Methods that encode a slice for each mini-batch of its spots: their time grows with the spots of a slice, too."""
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
    made = default_encoders(arguments.weights)
    device = {"gpu": "cuda"}.get(arguments.device, arguments.device)
    st_gchb.pp.embed_patches(adata, slice_key="slice", device=device, n_views=1, patch_um=(80.0, 150.0, 300.0), **made)
    return adata


_DPI = 50
"""Resolution of the figures, dots per inch: with ten methods side by side they are wide."""

EXPERIMENTS: dict[str, Experiment] = {
    "her2st": Experiment(
        TISSUES["her2st"].title,
        _tissue("her2st"),
        (*TABLE_1, *CHEAP, *VARIANTS, *TABLE_2[2:6], *STRONG),
        3,
        ("SCGB2A2", "IGHG1", "HLA-DRA", "VWF", "CEACAM6", "APOE"),
    ),
    "visium_mousebrain": Experiment(
        TISSUES["visium_mousebrain"].title,
        _tissue("visium_mousebrain"),
        (*TABLE_2, *STRONG),
        1,
        ("Mobp", "Ptgds", "Th", "Slc6a3", "Cartpt"),
    ),
    "visium_lung": Experiment(
        TISSUES["visium_lung"].title,
        _tissue("visium_lung"),
        (*TABLE_1, *CHEAP, *FROM_FEATURES, *TABLE_2[2:6], *STRONG),
        3,
        ("GRCh38__JCHAIN", "GRCh38__LYZ", "GRCh38__SCGB1A1", "GRCh38__ACTG2", "GRCh38__FOXJ1"),
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
    known = [*METHODS, *VARIANTS]
    add("--methods", nargs="+", metavar="NAME", choices=known, help="default: those of each data set")
    add("--seeds", type=int, help="number of seeds (default: that of each data set)")
    add("--hours", type=float, default=math.inf, help="begin no method later, 0 for none at all (default: no limit)")
    add("--earlier", type=Path, help="tables of an earlier call, whose rows are taken; what they lack is run")
    add("--runs", type=Path, default=Path("evaluation/published"), help="folder of runs (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> list[Path]:
    """Evaluate the data sets, and write their tables and figures."""
    until = time.monotonic() + 3600 * arguments.hours
    paths: list[Path] = []
    for name in arguments.sets:
        paths += run_experiment(name, EXPERIMENTS[name], arguments, until)
    return paths


def run_experiment(name: str, one: Experiment, arguments: argparse.Namespace, until: float) -> list[Path]:
    """Evaluate a data set, one method after the other, and write its tables and its figure."""
    adata = one.read(arguments)
    methods = list(dict.fromkeys(arguments.methods or one.methods))
    options: dict[str, Any] = {"n_top_genes": arguments.n_top_genes, "device": arguments.device}
    first = _evaluated(adata, one, ["mean"], **options, seeds=[0])
    folds, size = first.settings["folds"], training_size(adata, first.settings["folds"])
    markers = common_markers(one, first.genes, adata)
    settings = {key: first.settings[key] for key in first.settings if key not in _OF_A_CALL} | {"markers": markers}
    folder, n_seeds = arguments.runs / name, arguments.seeds or one.n_seeds
    earlier = read_earlier(arguments.earlier, name, settings)
    for method, seconds in earlier.seconds.items():
        if method not in times_of(folder).index:
            note_time(folder, method, seconds, 0, size, in_part=method in earlier.in_part)
    results: list[Evaluation] = []
    for number, method in enumerate(methods):
        missing = [seed for seed in range(n_seeds) if seed not in earlier.seeds(method)]
        if time.monotonic() >= until:
            missing = missing[: kept_runs(folder, method) // len(folds)]
        if not missing:
            continue
        print(f"{one.title}: {method}, {number + 1} of {len(methods)}{remaining(folder, methods[number:])}", flush=True)
        start, begun = time.process_time(), {path.parent for path in folder.glob("*.checkpoints/*.checkpoint")}
        made = {method: variant(method, arguments.weights)} if method in VARIANTS else [method]
        kept: dict[str, Any] = {"seeds": missing, "runs_dir": folder, "keep_predictions": True}
        results.append(_evaluated(adata, one, made, **options, **kept))
        count = results[-1].runs
        if count["made"]:
            seconds = (time.process_time() - start) / count["made"]
            resumed = any(path.with_suffix(".json").is_file() for path in begun)
            note_time(folder, method, seconds, count["made"] + count["taken"], size, in_part=resumed)
    taken = earlier.scores[earlier.scores["method"].isin(methods) & (earlier.scores["seed"] < n_seeds)]
    scores = pd.concat([taken, *(with_markers(result, markers) for result in results)], ignore_index=True)
    scores = scores.astype({"seed": int})
    if scores.empty:
        raise InputError(f"--hours {arguments.hours:g}: no run of {name} is kept in {arguments.runs}. Pass more hours.")
    left_out = {
        method: extrapolated(arguments.runs, method, size) for method in methods if method not in set(scores["method"])
    }
    times = times_of(folder)
    record = {
        "settings": settings | {"methods": list(dict.fromkeys(scores["method"])), "seeds": sorted(set(scores["seed"]))},
        "cpu_seconds": times["seconds"].round(1).to_dict(),
        "in_part": list(times.index[times["in_part"]]),
        **machine_and_versions(),
    }
    if len(taken):
        record["rows_taken_from"] = earlier.made_with
    paths = write_experiment(name, one, scores, left_out, record, arguments)
    return [*paths, *write_figure(name, adata, results, markers, folds[-1], arguments)]


def variant(name: str, weights: Path) -> Method:
    """Return one of :data:`VARIANTS`; ``weights`` are those of the stored MobileNetV2."""
    if name in FROM_FEATURES:
        return partial(METHODS[FROM_FEATURES[name]], **dict[str, Any](from_features=True))
    # Steps of the size with which a network is trained from scratch destroy a pretrained one without batch norm.
    settings: dict[str, Any] = {"lr": 1e-4, "train_norm": False}
    settings |= {"trunk": "mobilenet_v2", "weights": str(weights)}
    return partial(METHODS["st-net"], **settings)


class Size(NamedTuple):
    """Number of training spots, and of the spots of one of their slices, as means."""

    spots: float
    slice_spots: float


def training_size(adata: AnnData, folds: Sequence[str]) -> Size:
    """Return the size of the folds, each of which leaves a slice out."""
    slices = adata.obs["slice"].value_counts()
    spots = float(np.mean([slices.drop(fold).sum() for fold in folds]))
    return Size(spots, spots / (len(slices) - 1))


def _evaluated(adata: AnnData, one: Experiment, methods: list[str] | dict[str, Method], **options: Any) -> Evaluation:
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


def times_of(folder: Path) -> pd.DataFrame:
    """Read the CPU seconds of a run, the number of runs and the size, of each method made below a folder.

    Seconds are ``in_part`` where a run went on from its checkpoint: what came before it is not known.
    """
    path = folder / "times.csv"
    empty = pd.DataFrame({"method": [], "seconds": [], "runs": [], **{name: [] for name in Size._fields}})
    empty["in_part"] = np.zeros(0, dtype=bool)
    known = (pd.read_csv(path) if path.is_file() else empty).set_index("method")
    # Earlier files lack it; most data sets have one slice to train on.
    known["slice_spots"] = known.get("slice_spots", known["spots"])
    known["in_part"] = known.get("in_part", False)
    return known[list(empty)[1:]]


def kept_runs(folder: Path, method: str) -> int:
    """Return the number of runs of a method that are kept below a folder."""
    known = times_of(folder)
    return int(known["runs"][method]) if method in known.index else 0


def note_time(folder: Path, method: str, seconds: float, runs: int, size: Size, *, in_part: bool = False) -> None:
    """Note the CPU seconds that a run of a method took, or a part of it, how many are there, and the size of one."""
    known = times_of(folder)
    known.loc[method] = [seconds, max(runs, kept_runs(folder, method)), *size, in_part]
    write_csv(known.astype({"runs": int}).reset_index(), folder / "times.csv")


def extrapolated(runs: Path, method: str, size: Size) -> float:
    """Estimate the CPU seconds of a run from the largest data set with one, in proportion to the training spots.

    Those of :data:`SLICE_FOR_EVERY_STEP` are also in proportion to the spots of a slice.
    """
    found = [times_of(runs / name) for name in EXPERIMENTS]
    rows = [known.loc[method] for known in found if method in known.index]
    if not rows:
        return math.nan
    largest = max(rows, key=lambda row: row["spots"])
    seconds = largest["seconds"] * size.spots / largest["spots"]
    return float(seconds * size.slice_spots / largest["slice_spots"] if method in SLICE_FOR_EVERY_STEP else seconds)


def remaining(folder: Path, methods: Sequence[str]) -> str:
    """Say how long the methods took before, if it is known of all of them."""
    known = times_of(folder)
    # Of a method whose rows were all taken from an earlier call, the number of runs is not known.
    if not set(methods) <= set(known.index[known["runs"] > 0]):
        return ""
    own = known.loc[list(methods)]
    return f", at most {math.ceil((own['seconds'] * own['runs']).sum() / 60)} CPU min remain"


# ---- Rows of an earlier call ----

_OF_A_CALL = ("methods", "seeds")
"""Settings in which calls differ whose rows stand in one table."""
_SCORES = ("fold", "seed", "method")


@dataclass(frozen=True)
class Earlier:
    """Scores that an earlier call wrote for a data set.

    Parameters
    ----------
    scores
        One row per fold, method and seed; empty if there are none.
    seconds
        CPU seconds of a run by method.
    in_part
        Methods of which these are the seconds of a part.
    made_with
        Machine and versions of that call, and of those from which it took rows itself.
    """

    scores: pd.DataFrame
    seconds: Mapping[str, float]
    in_part: Collection[str]
    made_with: Mapping[str, Any]

    def seeds(self, method: str) -> set[int]:
        """Return the seeds of a method of which there are scores."""
        return set(self.scores.loc[self.scores["method"] == method, "seed"])


def read_earlier(folder: Path | None, name: str, settings: Mapping[str, Any]) -> Earlier:
    """Read what an earlier call wrote for a data set; nothing if it did not evaluate that one.

    Parameters
    ----------
    folder
        Folder of its tables; None for no earlier call.
    name
        Name of the data set.
    settings
        Settings of this call, which must be those of the earlier one.

    Raises
    ------
    InputError
        The settings differ; the message names those that do.
    """
    if folder is None or not (folder / f"{name}.csv").is_file():
        return Earlier(pd.DataFrame({key: [] for key in _SCORES}), {}, (), {})
    record = read_json(folder / f"{name}.json")
    before, now = _comparable(record["settings"]), _comparable(settings)
    differing = sorted(key for key in {*before, *now} - {*_OF_A_CALL} if before.get(key) != now.get(key))
    if differing:
        raise InputError(
            f"--earlier {folder}: the tables of {name} were made with other settings ({', '.join(differing)}). Leave "
            "--earlier out to make all runs anew."
        )
    made_with = {key: record[key] for key in ("versions", "machine", "rows_taken_from") if key in record}
    # By default, the last digits are lost.
    scores = pd.read_csv(folder / f"{name}.csv", float_precision="round_trip").astype({"seed": int})
    return Earlier(scores, record.get("cpu_seconds", {}), record.get("in_part", ()), made_with)


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON holds them, without the place of the weights, whose content is compared."""
    plain = json.loads(json.dumps(settings))
    features = {key: value for key, value in plain.pop("features", {}).items() if key != "weights"}
    return plain | {f"features: {key}": value for key, value in features.items()}


# ---- Tables and figure ----


def write_experiment(
    name: str,
    one: Experiment,
    scores: pd.DataFrame,
    left_out: Mapping[str, float],
    record: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> list[Path]:
    """Write tables 1 and 2, all scores, and the settings."""
    times = times_of(arguments.runs / name)
    took = {method: f"{'over ' * row.in_part}{row.seconds / 60:.1f}" for method, row in times.iterrows()}
    settings = record["settings"]
    caption = (
        f"{one.title}; held out: {', '.join(settings['folds'])}; at most {arguments.n_top_genes} genes. MG: "
        f"{', '.join(settings['markers']) or 'none of the candidates is in all panels'}."
    )
    known = {*scores["method"], *left_out}
    first = [method for method in (*TABLE_1, *CHEAP, *VARIANTS, *STRONG) if method in known]
    second = [method for method in TABLE_2 if method in known]
    order = scores["method"].map({method: place for place, method in enumerate(dict.fromkeys([*first, *second]))})
    rows = scores.assign(order=order).sort_values(["order", "seed", "fold"], kind="stable").drop(columns="order")
    return [
        write_csv(rows, arguments.out / f"{name}.csv"),
        *(
            write_text(
                f"{caption}\n\n{table(scores, methods, columns, took, left_out, one)}",
                arguments.out / f"{name}_{number}.md",
            )
            for number, methods, columns in ((1, first, ("MG", "HVG", "HEG")), (2, second, tuple(COLUMNS)))
        ),
        write_record(dict(record), arguments.out / f"{name}.json"),
    ]


def write_figure(
    name: str,
    adata: AnnData,
    results: Sequence[Evaluation],
    markers: list[str],
    fold: str,
    arguments: argparse.Namespace,
) -> list[Path]:
    """Draw the markers on a held-out section, by each method of table 1 whose predictions are kept.

    Where rows of an earlier call were taken, its figure shows more, and is taken, too.
    """
    path = arguments.out / f"{name}.png"
    before = arguments.earlier / path.name if arguments.earlier else None
    if before is not None and before.is_file():
        if before.resolve() != path.resolve():
            shutil.copyfile(before, path)
        return [path]
    if not results or not markers:
        return []
    pictured = compared(results, adata, fold)
    shown = [method for method in TABLE_1 if method in pictured.layers]
    if not shown:
        return []
    pl.save(pl.compare_methods(pictured, markers, methods=shown), path, dpi=_DPI)
    return [path]


def with_markers(result: Evaluation, markers: Sequence[str]) -> pd.DataFrame:
    """Add MG, the mean correlation over the markers, on which kept runs do not depend, to the scores."""
    if not markers:
        return result.scores
    run = ["fold", "method", "seed"]
    own = result.genes[result.genes["gene"].isin(markers)].groupby(run)["pearson"].mean()
    return result.scores.join(own.rename("MG"), on=run)


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
    took: Mapping[str, str],
    left_out: Mapping[str, float],
    one: Experiment,
) -> str:
    """Format the paper's columns: mean over folds, with the standard deviation over seeds; and the time of a run.

    Parameters
    ----------
    scores
        One row per fold, method and seed.
    methods
        Methods in the order of the rows.
    columns
        Measures by the paper's names.
    took
        CPU minutes of a run in words, of the methods of which they are known.
    left_out
        CPU seconds that a run of each method that was not run would take; NaN where nothing is known.
    one
        Data set.
    """
    measured = {name: COLUMNS[name] for name in columns if COLUMNS[name] in scores}
    by_seed = scores.groupby(["method", "seed"])[list(measured.values())].mean()
    label = "simulated" if one.simulated else "method"
    lines = [
        f"| {label} | " + " | ".join(measured) + " | seeds | CPU min a run |",
        "| --- |" + " ---: |" * (len(measured) + 2),
    ]
    for method in methods:
        name = f"{'simulated: ' * one.simulated}{method}"
        if method in left_out:
            cost = left_out[method] / 60
            told = "" if math.isnan(cost) else f"about {cost:.{int(cost < 1)}f}"
            lines.append(f"| {name} | not run |" + " |" * len(measured) + f" {told} |")
            continue
        own = by_seed.loc[method]
        cells = [dlpfc.cell(own[key].mean(), own[key].std(), 0 if ">" in key else 3) for key in measured.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(own)} | {took.get(method, '')} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an invalid argument or data that cannot be used end it with status 2."""
    return run_study("published", run, build_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
