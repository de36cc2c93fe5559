"""``st-gchb train``: train a model on slides with H&E and expression, and write it to a folder."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, get_args

from st_gchb._errors import InputError
from st_gchb._options import Preset
from st_gchb._signals import held_back
from st_gchb.cli._arguments import add_cohort, add_encoder, embed, new_command, read_cohort


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "train",
        "Train a model on slides that have both H&E and expression.",
        "st-gchb train --data her2st/ --slices C2 C3 C4 --encoder texture --out model/",
    )
    add_cohort(parser)
    add_encoder(parser)
    parser.add_argument("--preset", default="default", choices=get_args(Preset))
    parser.add_argument("--n-top-genes", type=int, help="size of the panel (default: the preset's)")
    parser.add_argument("--max-epochs", type=int, help="epochs at most (default: the preset's)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    parser.add_argument("--resume", action="store_true", help="go on with a training that was interrupted")
    parser.set_defaults(run=run, when_interrupted=lambda arguments: "with --resume the same command goes on from there")


def run(arguments: argparse.Namespace) -> None:
    """Train the model and save it."""
    if arguments.out.exists() and not arguments.overwrite:
        raise InputError(f"--out {arguments.out} is there already. Pass --overwrite to replace it.")
    # Before the libraries of training are imported, for which a fault in the data would wait for ten seconds.
    adata = read_cohort(arguments)
    from st_gchb.model import STGCHB

    embed(adata, arguments)
    slice_key = arguments.slice_key if arguments.slice_key in adata.obs else None
    STGCHB.setup_anndata(adata, slice_key=slice_key)
    given = {} if arguments.n_top_genes is None else {"n_top_genes": arguments.n_top_genes}
    model = STGCHB(adata, arguments.preset, seed=arguments.seed, **given)
    options = {"accelerator": arguments.device, "resume": arguments.resume}
    # scvi-tools draws the bar of training on stdout, where results are named.
    with redirect_stdout(sys.stderr):
        model.train(arguments.max_epochs, **options)
    # Checkpoints are removed at the end of training, so the model must be written before a signal takes effect.
    with held_back():
        model.save(arguments.out, overwrite=arguments.overwrite)
        arguments.when_interrupted = lambda arguments: f"the model was complete by then, and is in {arguments.out}"
    print(f"model {model.model_id_} written to {arguments.out}")
