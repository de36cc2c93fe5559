"""The paper's experiment on human cortex (DLPFC): five Visium slices train, one is predicted from its H&E.

Downloads the real slices, or grows simulated tissue on their true spots (--simulated); all that follows is the same.
What it writes is explained in docs/results/dlpfc.md.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NoReturn

import pandas as pd
from anndata import AnnData

import st_gchb
from st_gchb.evaluate import Evaluation
from studies._command import add_encoder, log_progress

SLICES = ("151669", "151670", "151673", "151674", "151675", "151676")
MARKERS = ("ATP2B4", "RASGRF2", "LAMP5", "B3GALT2")
MARKED_LAYERS = ("L2", "L3", "L5", "L6")  # simulated genes have other names: one that marks each of these stands in
METHODS = (
    "default paper bleep paper-A paper-B paper-C paper-D ridge ridge-neighbors reduced-rank-ridge knn mean".split()
)
COLUMNS = {"MG": "MG", "HVG": "HVG", "HEG": "HEG", "Cor>0.3": "n>0.3", "AG": "AG"}  # the paper's names, the package's
PUBLISHED = """\
| published, real slices | MG | HVG | HEG | Cor>0.3 | AG |
| --- | --- | --- | --- | --- | --- |
| BLEEP, table 1 | 0.1020 ± 0.0002 | 0.3985 ± 0.0010 | 0.3324 ± 0.0055 | | |
| ST-GCHB, table 1 | 0.1509 ± 0.0109 | 0.4310 ± 0.0057 | 0.3545 ± 0.0019 | | |
| BLEEP, table 2 | 0.1177 | 0.3975 | 0.3270 | 155 | 0.0916 |
| ST-GCHB (Baseline), table 2 | 0.1617 | 0.4366 | 0.3564 | 181 | 0.1022 |
| A, table 2 | 0.1314 | 0.4188 | 0.3470 | 160 | 0.0960 |
| B, table 2 | 0.1395 | 0.4031 | 0.3211 | 163 | 0.0953 |
| C, table 2 | 0.0869 | 0.3814 | 0.3012 | 144 | 0.0887 |
| D, table 2 | 0.1361 | 0.4099 | 0.3328 | 169 | 0.0991 |"""


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="dlpfc.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m studies.dlpfc --out dlpfc/\n"
        "  python -m studies.dlpfc --simulated HumanPilot/ --methods default bleep ridge --seeds 1",
    )
    add = parser.add_argument
    add("--out", type=Path, help="folder for tables and figures (default: dlpfc, or dlpfc_simulated)")
    add("--data", type=Path, metavar="FOLDER", help="real slices that are there already (default: download them)")
    add("--simulated", type=Path, metavar="FOLDER", help="simulate on the true spots that this folder holds")
    add("--slices", nargs="+", default=list(SLICES), metavar="NAME", help="default: the paper's six")
    add("--held-out", default="151676", metavar="NAME", help="slice to predict (default: %(default)s)")
    add("--methods", nargs="+", default=METHODS, metavar="NAME", help=f"default: {' '.join(METHODS)}")
    add("--seeds", type=int, default=3, metavar="N", help="number of seeds (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="first seed, and seed of the simulation (default: 0)")
    add("--n-top-genes", type=int, default=2000, metavar="N", help="size of the panel (default: %(default)s)")
    add("--markers", nargs="+", metavar="GENE", help=f"genes of MG (default: {' '.join(MARKERS)})")
    add_encoder(parser, "resnet50")
    add(
        "--views",
        dest="n_views",
        type=int,
        default=4,
        choices=(1, 4, 8),
        help="views averaged per patch (default: %(default)s)",
    )
    add("--patch-um", type=float, default=150.0, help="side of a patch, µm (default: %(default)g; the paper's: 81)")
    add("--image", default="hires", choices=("hires", "full"), help="image of the real slices (default: %(default)s)")
    add("--device", default="auto", choices=("auto", "cpu", "gpu", "mps"), help="default: auto")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    log_progress()
    check(parser, args)
    try:
        run(parser, args)
    except (KeyError, OSError, ValueError) as error:
        # The package's own errors, and the system's of files, are sentences; a fault needs its traceback.
        if not (isinstance(error, OSError) or type(error).__module__.startswith("st_gchb.")):
            raise
        parser.error(str(error))
    return 0


def check(parser: OneLineParser, args: argparse.Namespace) -> None:
    """What can be refused before anything is downloaded."""
    if args.held_out not in args.slices:
        parser.error(f"--held-out {args.held_out}: not among the slices {' '.join(args.slices)}")
    if len(set(args.slices)) < max(2, len(args.slices)):
        parser.error("--slices: expected at least two, each once; one of them is held out")
    unknown = [name for name in args.methods if name not in st_gchb.evaluate.METHODS]
    if unknown:
        parser.error(f"--methods {' '.join(unknown)}: unknown; known are {' '.join(st_gchb.evaluate.METHODS)}")
    if args.seeds < 1 or args.seed < 0:
        parser.error("--seeds, --seed: expected at least one seed, and none below 0")


def run(parser: OneLineParser, args: argparse.Namespace) -> None:
    out = args.out or Path("dlpfc_simulated" if args.simulated else "dlpfc")
    out.mkdir(parents=True, exist_ok=True)
    if args.simulated:
        adata, title, held_out = simulated_slices(args)
    else:
        adata = st_gchb.datasets.dlpfc(args.slices, path=args.data, image=args.image)
        title, held_out = "DLPFC, real slices", args.held_out
    print(f"{title}: {adata.n_obs} spots, {adata.n_vars} genes", flush=True)
    options = {name: getattr(args, name) for name in ("encoder", "weights", "n_views", "patch_um")}
    device = {"gpu": "cuda"}.get(args.device, args.device)  # as torch names it
    st_gchb.pp.embed_patches(adata, slice_key="slice", device=device, **options)
    protocol = {"n_top_genes": args.n_top_genes, "device": args.device}
    # Which genes the panel holds is known once the training slices are: the training mean is the quickest to ask.
    panel = st_gchb.evaluate.evaluate_fold(adata, held_out, methods=["mean"], seeds=[0], **protocol).genes["gene"]
    markers, note = choose_markers(parser, args, adata.var, list(panel))
    print(note, flush=True)
    protocol |= {"seeds": range(args.seed, args.seed + args.seeds), "methods": args.methods}
    result = st_gchb.evaluate.evaluate_fold(adata, held_out, markers=markers or None, runs_dir=out / "runs", **protocol)
    result.settings |= {"data": title, "simulated": bool(args.simulated), "markers": markers}
    caption = (
        f"{title}. Held out: {held_out}; trained on the other {len(args.slices) - 1}. {len(panel)} genes, chosen on "
        f"the training slices. {args.seeds} seed(s): mean{' ± standard deviation over seeds' * (args.seeds > 1)}. "
        f"Features: {args.encoder} ({Path(args.weights).name}), {args.n_views} view(s), patches of "
        f"{args.patch_um:g} µm. {note}"
    )
    write(result, out, title, caption)
    print(f"\n{(out / 'paper_table.md').read_text(encoding='utf-8')}\nwritten to {out}")


def simulated_slices(args: argparse.Namespace) -> tuple[AnnData, str, str]:
    geometry = [st_gchb.datasets.dlpfc_geometry(name, args.simulated) for name in args.slices]
    n_genes = max(20, 3 * args.n_top_genes // 2)  # more than the panel, so that it has something to choose from
    adata = st_gchb.datasets.synthetic_tissue(n_genes=n_genes, geometry=geometry, seed=args.seed)
    del adata.layers["truth"]  # expected expression: nothing here may look at it
    names = {f"S{i}": f"simulated_{name}" for i, name in enumerate(args.slices, start=1)}
    adata.obs["slice"] = adata.obs["slice"].cat.rename_categories(names)
    adata.uns["spatial"] = {names[key]: library for key, library in adata.uns["spatial"].items()}
    return adata, "SIMULATED counts and images on the spots of DLPFC slices", f"simulated_{args.held_out}"


def choose_markers(
    parser: OneLineParser, args: argparse.Namespace, var: pd.DataFrame, panel: list[str]
) -> tuple[list[str], str]:
    """Markers of MG that the panel holds, and a sentence about them."""
    wanted, rule = list(args.markers or MARKERS), ""
    if args.simulated and not args.markers:
        layer = var.loc[panel, "layer"].sort_index()
        wanted = [gene for name in MARKED_LAYERS for gene in layer.index[layer == name][:1]]
        rule = f" (simulated: of each of the layers {', '.join(MARKED_LAYERS)} the panel's first gene by name)"
    present, absent = ([gene for gene in wanted if (gene in panel) == there] for there in (True, False))
    if absent and args.markers:
        parser.error(f"--markers {' '.join(absent)}: not in the panel of {len(panel)} genes; name others, or widen it")
    note = f"MG: {', '.join(present)}{rule}." if present else "MG: none of the markers is in the panel."
    if absent:
        note += f" LEFT OUT, not in the panel that was chosen on the training slices: {', '.join(absent)}."
    return present, note


def write(result: Evaluation, out: Path, title: str, caption: str) -> None:
    """The package's report and the paper's table, each with a word about the data in it."""
    genes, (held_out,), method = result.settings["markers"], result.settings["folds"], result.settings["methods"][0]
    paths = st_gchb.evaluate.write_report(result, out, genes=genes or None)
    paths["table"].write_text(f"{caption}\n\n{paths['table'].read_text(encoding='utf-8')}", encoding="utf-8")
    simulated = result.settings["simulated"]
    relation = "not comparable with the simulated table above" if simulated else "see docs/results/dlpfc.md"
    text = f"{caption}\n\n{paper_table(result.scores)}\n\nPublished figures ({relation}):\n\n{PUBLISHED}\n"
    (out / "paper_table.md").write_text(text, encoding="utf-8")
    bars = st_gchb.pl.metric_bars(result.scores, ["MG"] * bool(genes) + ["HVG", "HEG", "AG"], highlight=method)
    bars.set_title(title, fontsize=9)
    st_gchb.pl.save(bars, paths["bars"])
    assert result.pictured is not None  # a fold that was evaluated by itself has a figure
    maps = st_gchb.pl.measured_vs_predicted(result.pictured, genes or result.pictured.var_names[:3], slice_key=None)
    maps[0, 0].figure.suptitle(f"{title}\n{method}, held out: {held_out}")
    st_gchb.pl.save(maps, paths["tissue"])


def paper_table(scores: pd.DataFrame) -> str:
    """Mean ± standard deviation over seeds in the paper's columns, one row a method."""
    table = scores.reindex(columns=["method", *COLUMNS.values()]).groupby("method", sort=False).agg(["mean", "std"])
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for method, row in table.iterrows():
        cells = [cell(row[name, "mean"], row[name, "std"], 0 if ">" in name else 4) for name in COLUMNS.values()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(mean: float, sd: float, digits: int) -> str:
    spread = "" if math.isnan(sd) else f" ± {sd:.{max(digits, 1)}f}"
    return "" if math.isnan(mean) else f"{mean:.{digits}f}{spread}"


if __name__ == "__main__":
    raise SystemExit(main())
