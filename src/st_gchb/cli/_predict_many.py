"""``st-gchb predict-many``: predict expression for thousands of slides, locally or on a dask cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_gchb._errors import ClusterError, InputError, MissingFileError
from st_gchb.cli._arguments import OneOrSeveral, add_tiles, new_command, torch_device
from st_gchb.cli._predict import spacing_um

if TYPE_CHECKING:
    from distributed import Client

_SHOWN = 5
"""Number of failures that are printed; the report lists all of them."""


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "predict-many",
        "Predict expression for many slides, here or on a dask cluster; what is done is not done again.",
        "st-gchb predict-many slides.csv --model model/ --out predictions/ --workers 4",
    )
    parser.description = (
        f"{parser.description} Each slide gives OUT/NAME.h5ad; OUT/report.csv has a row for each. Exit status: 1 if "
        "some slides failed, 2 on bad input."
    )
    parser.add_argument(
        "slides",
        type=Path,
        nargs="*",
        help="a .csv or .tsv table with the column path (and name, image, um_per_px, spacing_um if needed), or paths",
    )
    parser.add_argument(
        "--samples", type=Path, metavar="SHEET", help="a sample sheet, as st-gchb train takes it, instead of slides"
    )
    parser.add_argument("--model", type=Path, required=True, help="folder written by st-gchb train or model.save")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, which all workers see")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="processes on this machine (default: this one alone)")
    where.add_argument("--scheduler", metavar="ADDRESS", help="a running dask scheduler, tcp://HOST:8786, or its file")
    parser.add_argument("--threads", type=int, help="threads for a slide (default: those of the worker)")
    parser.add_argument("--um-per-px", type=float, help="size of a pixel, µm, of slides that do not say it")
    parser.add_argument(
        "--spacing", type=spacing_um, metavar="LENGTH", help="of slides whose row does not say it, such as 100um"
    )
    add_tiles(parser)
    parser.add_argument("--layer", help="table of the reference to predict (default: the panel)")
    parser.add_argument("--k", type=int, help="reference spots per query spot (default: the model's)")
    parser.add_argument(
        "--weights",
        nargs="+",
        action=OneOrSeveral,
        type=Path,
        metavar="FILE",
        help="encoder weights file, where it has moved since training; of several encoders with weights one for each",
    )
    parser.add_argument("--memory-mb", type=float, help="bound of the decoded pixels that a worker holds, MB")
    parser.add_argument("--geojson", action="store_true", help="write OUT/NAME.geojson for QuPath, too")
    parser.add_argument("--genes", nargs="+", metavar="GENE", help="genes in it (default: the 3 most predictable)")
    parser.set_defaults(run=run, when_interrupted=lambda arguments: "the same command goes on from there")


def run(arguments: argparse.Namespace) -> int:
    """Predict all slides; return 1 if some of them failed, else 0."""
    from st_gchb._compat import import_dask_without_numba

    import_dask_without_numba()
    from st_gchb.cohort import predict_slides

    options = {name: getattr(arguments, name) for name in ("um_per_px", "grid", "tissue", "min_tissue", "layer", "k")}
    options |= {name: getattr(arguments, name) for name in ("weights", "threads", "geojson", "genes")}
    if arguments.memory_mb is not None:
        options["memory_mb"] = arguments.memory_mb
    slides = _slides(arguments.slides, arguments.samples)
    with _cluster(arguments) as client:
        report = predict_slides(
            arguments.model,
            slides,
            arguments.out,
            client=client,
            spacing_um=arguments.spacing,
            device=torch_device(arguments),
            **options,
        )
    failed = report[report["status"] == "failed"]
    for row in failed.head(_SHOWN).itertuples():
        print(f"{row.name}: {row.message}")
    if len(failed) > _SHOWN:
        print(f"... and {len(failed) - _SHOWN} more")
    counts = ", ".join(f"{n} {status}" for status, n in report["status"].value_counts(sort=False).items())
    print(f"{len(report)} slides: {counts}; {report['n_spots'].sum()} spots; see {arguments.out / 'report.csv'}")
    return int(len(failed) > 0)


def _slides(paths: list[Path], sheet: Path | None) -> Any:
    """Return the table of slides or the sample sheet if there is one, else the paths."""
    if sheet is not None:
        if paths:
            raise InputError(f"--samples {sheet} and {len(paths)} slides were given. Pass one of them.")
        return _sheet(sheet)
    if not paths:
        raise InputError("no slide was given; expected paths, a table of slides, or --samples with a sample sheet.")
    tables = [path for path in paths if path.suffix.lower() in (".csv", ".tsv")]
    if tables and len(paths) > 1:
        raise InputError(f"{tables[0]} is a table of slides, and {len(paths)} paths were given. Pass the table alone.")
    return tables[0] if tables else paths


def _sheet(sheet: Path) -> Any:
    """Read a sample sheet as a table of slides; patients and groups matter for training alone."""
    import pandas as pd

    from st_gchb import io

    if not io.is_sheet(sheet):
        raise InputError(f"--samples {sheet}: expected a .csv table. Pass paths of slides without it.")
    slides = io.query_slides(io.read_samples(sheet))
    return pd.DataFrame(slides, columns=["name", "path", "image", "um_per_px"], dtype=object)


@contextmanager
def _cluster(arguments: argparse.Namespace) -> Iterator[Client | None]:
    """Connect to a running scheduler, start local workers, or do neither."""
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"--workers {arguments.workers}; expected at least 1.")
    if arguments.scheduler is None and arguments.workers is None:
        yield None
        return
    if arguments.scheduler is not None:
        workers: AbstractContextManager[Client] = _connected(arguments.scheduler)
    else:
        from st_gchb.cohort import local_workers

        workers = local_workers(arguments.workers)
    with workers as client:
        yield client


def _connected(scheduler: str) -> Client:
    from distributed import Client

    is_file = "://" not in scheduler and Path(scheduler).suffix == ".json"
    if is_file and not Path(scheduler).is_file():
        raise MissingFileError(f"--scheduler {scheduler}: there is no such file. Start dask scheduler first.")
    try:
        return Client(scheduler_file=scheduler) if is_file else Client(scheduler)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--scheduler {scheduler} cannot be reached ({error}). Start dask scheduler first."
        ) from error
