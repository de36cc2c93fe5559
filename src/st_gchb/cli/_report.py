"""``st-gchb report``: write a page on which a prediction is looked at in a browser."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_gchb._errors import InputError
from st_gchb.cli._arguments import new_command

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "report",
        "Write a page on which a prediction is looked at: the slide with deep zoom, and genes drawn over it.",
        "st-gchb report --prediction C5/prediction.h5ad --out C5/report/",
    )
    parser.add_argument(
        "--prediction",
        type=Path,
        required=True,
        help="the prediction.h5ad of st-gchb predict, or a .zarr store with a prediction",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; open its index.html in a browser")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--genes", nargs="+", metavar="GENE", help="genes, or columns of obs, the first one first (default: all genes)"
    )
    chosen.add_argument("--n-genes", type=int, metavar="N", help="the N most predictable genes alone")
    parser.add_argument("--layer", help="layer to show (default: the prediction); X for measured values")
    parser.add_argument("--table", help="table of a SpatialData store (default: st_gchb)")
    parser.add_argument("--slice", metavar="NAME", help="slice to show; needed where there are several")
    parser.add_argument("--slice-key", help="column of obs that tells slices apart (default: slice)")
    parser.add_argument("--title", help="heading of the page (default: the name of the slice)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier page")
    slide = parser.add_argument_group("slide")
    slide.add_argument("--image", help="full-resolution image file, or name of an image element (default: as stored)")
    slide.add_argument("--image-key", metavar="KEY", help="stored image to show instead, such as hires")
    slide.add_argument(
        "--um-per-px", type=float, help="size of a full-resolution pixel, µm, where the prediction does not say it"
    )
    slide.add_argument(
        "--finest-um-per-px", type=float, metavar="UM", help="finer slides are halved up to this size (default: 0.5)"
    )
    slide.add_argument("--diameter-px", type=float, help="diameter of the spots, full-resolution px, where not stored")
    slide.add_argument(
        "--memory-mb", type=float, help="bound of the decoded pixels that are held, MB (default: the package's)"
    )
    parser.set_defaults(run=run, when_interrupted=lambda arguments: "the same command writes it anew")


def run(arguments: argparse.Namespace) -> None:
    """Read the prediction and write the page."""
    data = read_prediction(arguments.prediction)
    from st_gchb import pl

    names = ["n_genes", "image", "image_key", "um_per_px", "finest_um_per_px", "table", "slice", "slice_key"]
    names += ["diameter_px", "title", "memory_mb"]
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.layer is not None:
        options["layer"] = None if arguments.layer == "X" else arguments.layer
    page = pl.report(data, arguments.out, arguments.genes, overwrite=arguments.overwrite, **options)
    print(f"page written: open {page} in a browser")


def read_prediction(path: Path) -> AnnData | SpatialData:
    """Read a prediction as it was stored.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    from st_gchb.io import load_anndata, read_section

    if path.suffix == ".zarr" and (path / "tables").is_dir():
        return read_section(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise InputError(
            f"--prediction {path}: expected an .h5ad file or a .zarr store with a prediction, such as the "
            "prediction.h5ad that st-gchb predict writes."
        )
    return load_anndata(path)
