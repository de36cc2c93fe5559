"""``st-gchb evaluate``: compare methods on held-out slices or patients, and write tables and figures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from st_gchb._errors import InputError
from st_gchb._options import DEFAULT_HELD_OUT, DEFAULT_SPLIT, EVALUATION_GENES, HeldOut, Split
from st_gchb.cli._arguments import add_cohort, add_encoder, embed, new_command, read_cohort

if TYPE_CHECKING:
    from anndata import AnnData


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "evaluate",
        "Leave one slice, patient or block out, predict it, and compare with what was measured.",
        "st-gchb evaluate --data her2st/ --encoder mobilenet_v2 --weights mobilenet_v2.safetensors --out evaluation/",
    )
    parser.description = (
        f"{parser.description} Finished runs are kept in OUT/runs: the same command goes on where it was stopped."
    )
    add_cohort(parser)
    add_encoder(parser)
    parser.add_argument(
        "--split",
        default=DEFAULT_SPLIT,
        choices=get_args(Split),
        help="leave whole sections out, or quadrants of each section with a gap (default: %(default)s)",
    )
    parser.add_argument(
        "--by",
        default=DEFAULT_HELD_OUT,
        choices=get_args(HeldOut),
        help="whole section: a slice, or those of a patient (default: %(default)s)",
    )
    parser.add_argument("--held-out", metavar="NAME", help="leave out this slice or block alone (default: each)")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="default, paper, bleep, kernel-ridge, ridge, ...")
    parser.add_argument(
        "--n-top-genes", type=int, default=EVALUATION_GENES, help="size of the panel (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted up from --seed (default: 3)")
    parser.add_argument("--markers", nargs="+", metavar="GENE", help="genes of the measure MG")
    parser.add_argument(
        "--genes", nargs="+", metavar="GENE", help="genes to draw (default: the 3 best of the variable ones)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json, the tables and the figures")
    parser.add_argument("--overwrite", action="store_true", help="delete the runs of an earlier call in OUT/runs first")
    parser.set_defaults(run=run, when_interrupted=when_interrupted)


def when_interrupted(arguments: argparse.Namespace) -> str:
    """Tell a user who stopped the command how to continue."""
    return f"{'without --overwrite ' if arguments.overwrite else ''}the same command goes on from there"


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and write the report."""
    # Before the libraries of training are imported, for which a fault in the data would wait for ten seconds.
    adata = read_cohort(arguments)
    from st_gchb.evaluate import evaluate, evaluate_fold, markdown, write_report

    _check(adata, arguments)
    embed(adata, arguments)
    options = {
        "methods": arguments.methods,
        "split": arguments.split,
        "n_top_genes": arguments.n_top_genes,
        "seeds": range(arguments.seed, arguments.seed + arguments.seeds),
        "markers": arguments.markers,
        "slice_key": arguments.slice_key,
        "device": arguments.device,
        "runs_dir": arguments.out / "runs",
        "overwrite": arguments.overwrite,
    }
    if arguments.held_out is None:
        result = evaluate(adata, by=arguments.by, **options)
    else:
        result = evaluate_fold(adata, arguments.held_out, **options)
    paths = write_report(result, arguments.out, genes=arguments.genes)
    print(markdown(result))
    print(f"\nwritten to {arguments.out}: {', '.join(path.name for path in paths.values())}")


def _check(adata: AnnData, arguments: argparse.Namespace) -> None:
    """Validate the options before patches are embedded, which may take long.

    Raises
    ------
    InputError
        A gene, method or slice is unknown, or options contradict each other.
    """
    from st_gchb.evaluate import choose_methods, hold_one_out, split_folds

    absent = [gene for gene in arguments.genes or [] if gene not in adata.var_names]
    if absent:
        raise InputError(f"--genes {absent}: not among the {adata.n_vars} genes of the data. Name others.")
    choose_methods(arguments.methods or [])
    if arguments.held_out is None:
        split_folds(adata, arguments.split, arguments.by, slice_key=arguments.slice_key)
    elif arguments.by == "patient":
        raise InputError(f"--held-out {arguments.held_out} leaves one slice out. Drop it, or --by patient.")
    else:
        hold_one_out(adata, arguments.held_out, split=arguments.split, slice_key=arguments.slice_key)
