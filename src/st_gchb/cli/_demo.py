"""``st-gchb demo``: train on sections, predict a held-out one, print a table and draw a figure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_gchb._options import EVALUATION_GENES
from st_gchb.cli._arguments import add_data, add_encoder, embed, new_command, read_slides

if TYPE_CHECKING:
    from anndata import AnnData

METHODS = ("default", "bleep", "ridge-neighbors", "knn", "mean")


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "demo",
        "Train on sections, predict a held-out one, print a table and draw a figure; synthetic tissue without --data.",
        "st-gchb demo --out demo/",
    )
    add_data(parser, required=False)
    add_encoder(parser)
    parser.add_argument(
        "--n-top-genes", type=int, help=f"size of the panel (default: {EVALUATION_GENES}, or all genes where fewer are)"
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for tables and figures (default: demo)")
    parser.set_defaults(run=run, when_interrupted=lambda arguments: "the same command starts anew")


def run(arguments: argparse.Namespace) -> None:
    """Hold the last slice out, train on the others, and compare the methods."""
    # Before the libraries of training are imported, for which a fault in the data would wait for ten seconds.
    adata = _slides(arguments)
    from st_gchb.evaluate import evaluate_fold, markdown, write_report

    embed(adata, arguments)
    n_top_genes = arguments.n_top_genes
    if n_top_genes is None:
        n_top_genes = min(EVALUATION_GENES, adata.n_vars)
    names = list(dict.fromkeys(adata.obs[arguments.slice_key].astype(str)))
    result = evaluate_fold(
        adata,
        names[-1],
        methods=METHODS,
        n_top_genes=n_top_genes,
        seeds=[arguments.seed],
        slice_key=arguments.slice_key,
        device=arguments.device,
    )
    paths = write_report(result, arguments.out)
    kind = "simulated" if arguments.data is None else "measured"
    print(f"\nSlice {names[-1]} predicted from {', '.join(names[:-1])} ({kind} expression, correlation per gene):\n")
    print(markdown(result))
    print(f"\nfigures:  {paths['tissue']}, {paths['bars']}\ntables:   {paths['metrics']}, {paths['per_gene']}")


def _slides(arguments: argparse.Namespace) -> AnnData:
    if arguments.data is not None:
        return read_slides(arguments.data, arguments.slices, arguments.slice_key)
    from st_gchb.datasets import synthetic_tissue

    arguments.encoder, arguments.weights, arguments.n_views = "texture", "default", 1
    return synthetic_tissue(4, seed=arguments.seed)
