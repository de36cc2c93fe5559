"""The paper's experiment on human cortex (DLPFC): five Visium slices train, one is predicted from its H&E.

Downloads the real slices, or grows simulated tissue on their true spots (--simulated); all that follows is the same.
What it writes is explained in docs/dlpfc.md.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import NoReturn

import st_gchb

SLICES = ("151669", "151670", "151673", "151674", "151675", "151676")
MARKERS = ("ATP2B4", "RASGRF2", "LAMP5", "B3GALT2")
MARKED_LAYERS = ("L2", "L3", "L5", "L6")
"""Simulated genes have names of their own: the first gene of the panel that marks each of these layers stands in."""
METHODS = (
    *("default", "paper", "bleep", "paper-A", "paper-B", "paper-C", "paper-D"),
    *("ridge", "ridge-neighbors", "knn", "mean"),
)
COLUMNS = {"MG": "MG", "HVG": "HVG", "HEG": "HEG", "Cor>0.3": "n>0.3", "AG": "AG"}
"""The paper's name of a measure, and the package's."""
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
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="dlpfc.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python docs/scripts/dlpfc.py --out dlpfc/\n"
        "  python docs/scripts/dlpfc.py --simulated HumanPilot/ --methods default bleep ridge --seeds 1",
    )
    add = parser.add_argument
    add("--out", type=Path, help="folder for tables and pictures (default: dlpfc, or dlpfc_simulated)")
    add("--data", type=Path, metavar="FOLDER", help="real slices that are there already (default: download them)")
    add("--simulated", type=Path, metavar="FOLDER", help="simulate on the true spots that this folder holds")
    add("--slices", nargs="+", default=list(SLICES), metavar="NAME", help="default: the paper's six")
    add("--held-out", default="151676", metavar="NAME", help="slice to predict (default: %(default)s)")
    add("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=f"default: {' '.join(METHODS)}")
    add("--seeds", type=int, default=3, metavar="N", help="number of seeds (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="first seed, and seed of the simulation (default: 0)")
    add("--n-top-genes", type=int, default=2000, metavar="N", help="size of the panel (default: %(default)s)")
    add("--markers", nargs="+", metavar="GENE", help=f"genes of MG (default: {' '.join(MARKERS)})")
    add("--encoder", default="resnet50", help="any torchvision model, timm:NAME, or texture (default: %(default)s)")
    add("--weights", default="default", help="'default' (downloaded once), or a .safetensors/.pt file")
    add("--views", type=int, default=4, choices=(1, 4, 8), help="views averaged per patch (default: %(default)s)")
    add("--patch-um", type=float, default=150.0, help="side of a patch, µm (default: %(default)g; the paper's: 81)")
    add("--image", default="hires", choices=("hires", "full"), help="image of the real slices (default: %(default)s)")
    add("--device", default="auto", choices=("auto", "cpu", "gpu"), help="default: auto")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("st_gchb").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
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
    """Refuse what can be refused before anything is downloaded."""
    if args.held_out not in args.slices:
        parser.error(f"--held-out {args.held_out}: not among the slices {' '.join(args.slices)}")
    if len(args.slices) < 2:
        parser.error("--slices: at least two are needed, one of them to be held out")
    unknown = [name for name in args.methods if name not in st_gchb.evaluate.METHODS]
    if unknown:
        parser.error(f"--methods {' '.join(unknown)}: unknown; known are {' '.join(st_gchb.evaluate.METHODS)}")
    if args.seeds < 1 or args.seed < 0:
        parser.error("--seeds, --seed: expected at least one seed, and none below 0")


def run(parser: OneLineParser, args: argparse.Namespace) -> None:
    out = args.out or Path("dlpfc_simulated" if args.simulated else "dlpfc")
    out.mkdir(parents=True, exist_ok=True)
    adata, title, held_out = simulated_slices(args) if args.simulated else real_slices(args)
    print(f"{title}: {adata.n_obs} spots, {adata.n_vars} genes", flush=True)
    device = {"gpu": "cuda"}.get(args.device, args.device)
    st_gchb.pp.embed_patches(
        adata,
        encoder=args.encoder,
        weights=args.weights,
        patch_um=args.patch_um,
        views=args.views,
        slice_key="slice",
        device=device,
    )
    protocol = {"n_top_genes": args.n_top_genes, "device": args.device}
    # Which genes the panel holds is known once the training slices are: the training mean is the quickest to ask.
    panel = st_gchb.evaluate.evaluate_fold(adata, held_out, methods=["mean"], seeds=[0], **protocol).genes["gene"]
    markers, note = choose_markers(parser, args, adata.var, list(panel))
    print(note, flush=True)
    result = st_gchb.evaluate.evaluate_fold(
        adata,
        held_out,
        methods=args.methods,
        seeds=range(args.seed, args.seed + args.seeds),
        markers=markers or None,
        **protocol,
    )
    result.settings |= {"data": title, "simulated": bool(args.simulated), "markers": markers}
    caption = (
        f"{title}. Held out: {held_out}; trained on the other {len(args.slices) - 1}. {len(panel)} genes, chosen on "
        f"the training slices. {args.seeds} seed(s): mean{' ± standard deviation over seeds' * (args.seeds > 1)}. "
        f"Features: {args.encoder}, {args.views} view(s), patches of {args.patch_um:g} µm. {note}"
    )
    write(result, out, title, caption, markers)
    print(f"\n{(out / 'paper_table.md').read_text(encoding='utf-8')}\nwritten to {out}")


def real_slices(args: argparse.Namespace):
    adata = st_gchb.datasets.dlpfc(args.slices, path=args.data, image=args.image)
    return adata, "DLPFC, real slices", args.held_out


def simulated_slices(args: argparse.Namespace):
    geometry = [st_gchb.datasets.dlpfc_geometry(name, args.simulated) for name in args.slices]
    n_genes = max(20, 3 * args.n_top_genes // 2)  # more than the panel, so that it has something to choose from
    adata = st_gchb.datasets.synthetic_tissue(n_genes=n_genes, geometry=geometry, seed=args.seed)
    del adata.layers["truth"]  # expected expression: nothing here may look at it
    names = {f"S{i}": f"simulated_{name}" for i, name in enumerate(args.slices, start=1)}
    adata.obs["slice"] = adata.obs["slice"].cat.rename_categories(names)
    adata.uns["spatial"] = {names[key]: library for key, library in adata.uns["spatial"].items()}
    return adata, "SIMULATED counts and images on the spots of DLPFC slices", f"simulated_{args.held_out}"


def choose_markers(parser: OneLineParser, args: argparse.Namespace, var, panel: list[str]) -> tuple[list[str], str]:
    """Markers of MG that the panel holds, and a sentence about them."""
    if args.simulated and args.markers is None:
        of_layers = var.loc[panel][var.loc[panel, "programme"] == "layer"]
        first = [of_layers.index[of_layers["layer"] == layer].sort_values()[:1] for layer in MARKED_LAYERS]
        wanted, rule = [gene for names in first for gene in names], "first gene of the panel that marks each layer of "
        rule = f" (simulated genes: the {rule}{', '.join(MARKED_LAYERS)})"
    else:
        wanted, rule = list(args.markers or MARKERS), ""
    absent = [gene for gene in wanted if gene not in panel]
    if absent and args.markers:
        parser.error(f"--markers {' '.join(absent)}: not in the panel of {len(panel)} genes; name others, or widen it")
    present = [gene for gene in wanted if gene in panel]
    note = f"MG: {', '.join(present)}{rule}." if present else "MG: none of the markers is in the panel."
    if absent:
        note += f" LEFT OUT, not in the panel chosen on the training slices: {', '.join(absent)}."
    return present, note


def paper_table(result) -> str:
    """The measures in the paper's columns, one row a method."""
    table = result.table()
    lines = ["| method | " + " | ".join(COLUMNS) + " |", "| --- |" + " --- |" * len(COLUMNS)]
    for method, row in table.iterrows():
        cells = []
        for name in COLUMNS.values():
            digits = 0 if name == "n>0.3" else 4
            mean, sd = (row[name]["mean"], row[name]["sd"]) if name in table else (float("nan"), float("nan"))
            spread = f" ± {sd:.{max(digits, 1)}f}" if sd == sd else ""
            cells.append(f"{mean:.{digits}f}{spread}" if mean == mean else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(result, out: Path, title: str, caption: str, markers: list[str]) -> None:
    """The package's report and the paper's table, each with a word about the data in it."""
    paths = st_gchb.evaluate.write_report(result, out, genes=markers or None)
    paths["table"].write_text(f"{caption}\n\n{paths['table'].read_text(encoding='utf-8')}", encoding="utf-8")
    relation = "not comparable with the simulated table above" if result.settings["simulated"] else "see docs/dlpfc.md"
    text = f"{caption}\n\n{paper_table(result)}\n\nPublished figures ({relation}):\n\n{PUBLISHED}\n"
    (out / "paper_table.md").write_text(text, encoding="utf-8")
    measures = [name for name in ("MG", "HVG", "HEG", "AG") if name in result.scores]
    bars = st_gchb.pl.metric_bars(result.scores, measures, highlight=result.settings["methods"][0])
    bars.set_title(title, fontsize=9)
    st_gchb.pl.save(bars, paths["bars"])
    if "tissue" in paths and markers:
        maps = st_gchb.pl.measured_vs_predicted(result.pictured, markers, slice_key=None)
        maps[0, 0].figure.suptitle(f"{title}\n{result.settings['methods'][0]}, held out: {result.settings['folds'][0]}")
        st_gchb.pl.save(maps, paths["tissue"])


if __name__ == "__main__":
    raise SystemExit(main())
