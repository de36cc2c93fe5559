"""``st-gchb hest-bench``: run HEST-Bench on features of an encoder, with the package's methods on the same folds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from st_gchb._constants import HEST_PATCH_UM
from st_gchb.cli._arguments import add_encoder, new_command
from st_gchb.cli._evaluate import when_interrupted


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "hest-bench",
        "Run HEST-Bench: its own protocol on features of an encoder, and methods of this package on its folds.",
        "st-gchb hest-bench --data bench_data/ --tasks IDC PAAD --encoder resnet50 texture --out hest-bench/",
    )
    parser.description = (
        f"{parser.description} Finished runs are kept in OUT/runs: the same command goes on where it was stopped."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="the data set MahmoodLab/hest-bench, or the folder of one of its tasks"
    )
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="tasks, such as IDC PRAD (default: all)")
    add_encoder(parser, patch_um=(HEST_PATCH_UM,), n_views=1)
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="of this package (default: default, kernel-ridge-both, ridge-neighbors)",
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, counted up from --seed (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="folder for metrics.json and the tables")
    parser.add_argument("--overwrite", action="store_true", help="delete the runs of an earlier call in OUT/runs first")
    parser.set_defaults(run=run, when_interrupted=when_interrupted)


def run(arguments: argparse.Namespace) -> None:
    """Run the benchmark and write its tables."""
    from st_gchb.evaluate import find_tasks

    # A fault of the folder is told before the libraries of training are imported.
    find_tasks(arguments.data, arguments.tasks)
    from st_gchb.evaluate import hest_bench, write_hest_bench

    result = hest_bench(
        arguments.data,
        tasks=arguments.tasks,
        encoder=arguments.encoder,
        weights=arguments.weights,
        patch_um=arguments.patch_um,
        n_views=arguments.n_views,
        methods=arguments.methods,
        seeds=range(arguments.seed, arguments.seed + arguments.seeds),
        device=arguments.device,
        runs_dir=arguments.out / "runs",
        overwrite=arguments.overwrite,
    )
    paths = write_hest_bench(result, arguments.out)
    print(result.markdown())
    print(f"\nwritten to {arguments.out}: {', '.join(path.name for path in paths.values())}")
