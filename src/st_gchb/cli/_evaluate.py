"""``st-gchb evaluate``: leave one slice or patient out, all methods, tables and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from st_gchb._errors import InputError
from st_gchb.cli._arguments import add_data, add_encoder, embed, new_command, read_slides


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "evaluate",
        "Leave one slice (or patient) out, predict it, and compare with what was measured.",
        "st-gchb evaluate --data her2st/ --encoder mobilenet_v2 --weights mobilenet_v2.safetensors --out evaluation/",
    )
    add_data(parser)
    add_encoder(parser)
    parser.add_argument("--by", default="slice", choices=("slice", "patient"), help="what is left out (default: slice)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default, paper, bleep, paper-A to -D, ridge, ...")
    parser.add_argument("--n-top-genes", type=int, default=1000, help="size of the panel (default: 1000)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted up from --seed (default: 3)")
    parser.add_argument("--markers", nargs="+", metavar="GENE", help="genes of the measure MG")
    parser.add_argument(
        "--genes", nargs="+", metavar="GENE", help="genes to draw (default: the 3 best of the variable ones)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json, the tables and the pictures")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and write the report."""
    from st_gchb.evaluate import evaluate, write_report
    from st_gchb.evaluate._report import markdown
    from st_gchb.evaluate._run import DEFAULT_METHODS

    adata = read_slides(arguments.data, arguments.slices, arguments.slice_key)
    absent = [gene for gene in arguments.genes or [] if gene not in adata.var_names]
    if absent:
        raise InputError(f"--genes {absent}: not among the {adata.n_vars} genes of the data. Name others.")
    embed(adata, arguments)
    result = evaluate(
        adata,
        methods=arguments.methods or DEFAULT_METHODS,
        by=arguments.by,
        n_top_genes=arguments.n_top_genes,
        seeds=range(arguments.seed, arguments.seed + arguments.seeds),
        markers=arguments.markers,
        slice_key=arguments.slice_key,
        device=arguments.device,
    )
    paths = write_report(result, arguments.out, genes=arguments.genes)
    print(markdown(result))
    print(f"\nwritten to {arguments.out}: {', '.join(path.name for path in paths.values())}")
