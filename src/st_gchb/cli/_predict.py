"""``st-gchb predict``: predict expression for a slide, or for spots, with H&E alone."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_gchb._constants import DEFAULT_SPACING_UM
from st_gchb._errors import InputError
from st_gchb.cli._arguments import (
    OneOrSeveral,
    add_tiles,
    new_command,
    read_h5ad,
    read_slides,
    take_slices,
    torch_device,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def add_query(parser: argparse.ArgumentParser) -> None:
    """Add the options that specify the query."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--slide",
        type=Path,
        help="an image (SVS, NDPI, TIFF, OME-TIFF, JPEG, PNG), a .zarr store of SpatialData or LazySlide, or a Space "
        "Ranger folder",
    )
    source.add_argument("--data", type=Path, help="an .h5ad file with spots, or a folder of her2st sections")
    parser.add_argument("--slices", nargs="+", metavar="NAME", help="slices to take (default: all)")
    parser.add_argument("--slice-key", default="slice", help="column of obs that tells slices apart (default: slice)")
    parser.add_argument("--image", help="full-resolution image file, or name of an image element")
    parser.add_argument(
        "--um-per-px", type=float, help="size of a full-resolution pixel, µm, where the file does not say it"
    )
    parser.add_argument(
        "--memory-mb", type=float, help="bound of the decoded pixels that are held, MB (default: the package's)"
    )
    grid = parser.add_argument_group("grid, for --slide")
    grid.add_argument(
        "--spacing",
        type=spacing_um,
        metavar="LENGTH",
        help="lay positions this far apart, such as 100um or 0.05mm, on the tissue (default: the slide's own spots; "
        f"{DEFAULT_SPACING_UM:g}um where it has none)",
    )
    grid.add_argument(
        "--roi", type=Path, metavar="GEOJSON", help="polygons in full-resolution px, as QuPath exports them"
    )
    add_tiles(grid)


def spacing_um(text: str) -> float:
    """Convert a length with a unit to µm; without a unit, it is in µm.

    Raises
    ------
    argparse.ArgumentTypeError
        The text is not a positive length.

    Examples
    --------
    >>> spacing_um("100um"), spacing_um("0.05 mm"), spacing_um("25")
    (100.0, 50.0, 25.0)
    """
    from st_gchb.io import um_per_unit

    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([^\W\d]*)\s*", text)
    um = um_per_unit(match.group(2) or "um") if match else None
    if match is None or um is None or float(match.group(1)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no length; expected a positive number of µm, such as 100um")
    return float(match.group(1)) * um


def read_query(arguments: argparse.Namespace) -> tuple[AnnData | SpatialData, dict[str, Any]]:
    """Read the query, and collect the arguments by which ``model.predict`` finds its positions and image.

    Raises
    ------
    InputError
        The query cannot be read, or an option does not apply to it.
    """
    if arguments.slide is None:
        _refuse_grid(arguments, "--data")
        return _read_data(arguments), {"image": arguments.image, "um_per_px": arguments.um_per_px}
    if arguments.image is not None and arguments.slide.is_file() and arguments.slide.suffix != ".h5ad":
        raise InputError("--image: --slide names the image already. Leave one of them out.")
    from anndata import AnnData

    from st_gchb import cohort

    query, where = cohort.read_query(
        arguments.slide,
        image=arguments.image,
        um_per_px=arguments.um_per_px,
        spacing_um=arguments.spacing,
        grid=arguments.grid,
        roi=None if arguments.roi is None else read_areas(arguments.roi),
        tissue=arguments.tissue,
        min_tissue=arguments.min_tissue,
    )
    if where and isinstance(query, AnnData):
        query = take_slices(query, arguments.slices, arguments.slice_key)
    return query, where


def _refuse_grid(arguments: argparse.Namespace, what: str) -> None:
    given = [f"--{name}" for name in ("spacing", "roi") if getattr(arguments, name) is not None]
    if given:
        raise InputError(
            f"{' and '.join(given)}: positions are laid on a slide, and {what} brings its own. Leave "
            f"{'them' if len(given) > 1 else 'it'} out, or pass the image as --slide with --spacing."
        )


def read_areas(path: Path) -> list[Any]:
    """Read the polygons of a GeoJSON file; points and lines are left out.

    Raises
    ------
    InputError
        The file is not GeoJSON, or holds no polygon.
    """
    from st_gchb.io import read_geojson

    regions = read_geojson(path)
    areas = regions[regions.geom_type.isin(["Polygon", "MultiPolygon"])]
    if areas.empty:
        found = sorted(set(regions.geom_type))
        raise InputError(f"--roi {path} holds no polygon; found {found or 'nothing'}. Draw areas, not points or lines.")
    return list(areas.geometry)


def _read_data(arguments: argparse.Namespace) -> Any:
    path = arguments.data
    if path.suffix == ".zarr":
        from st_gchb import io

        return io.read_section(path)
    if path.suffix == ".h5ad":
        return take_slices(read_h5ad(path), arguments.slices, arguments.slice_key)
    return read_slides(path, arguments.slices, arguments.slice_key)


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "predict",
        "Predict expression for a slide, or for spots that have H&E alone.",
        "st-gchb predict --model model/ --slide C5.jpg --um-per-px 0.7 --spacing 100um --out C5/ --genes ERBB2 KRT19",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder written by st-gchb train or model.save")
    add_query(parser)
    parser.add_argument(
        "--weights",
        nargs="+",
        action=OneOrSeveral,
        metavar="FILE",
        help="encoder weights file, where it has moved since training; of several encoders with weights one for each",
    )
    parser.add_argument("--layer", help="table of the reference to predict (default: the panel)")
    parser.add_argument("--k", type=int, help="reference spots per query spot (default: the model's)")
    parser.add_argument("--genes", nargs="+", metavar="GENE", help="genes to draw (default: the 3 most predictable)")
    parser.add_argument(
        "--geojson", action="store_true", help="write the genes of --genes for QuPath, too, one .geojson for each slice"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for prediction.h5ad, spots.csv and the figure")
    parser.set_defaults(run=run, when_interrupted=lambda arguments: "the same command predicts it anew")


def run(arguments: argparse.Namespace) -> None:
    """Predict, write the results and draw the chosen genes."""
    from st_gchb._compat import import_dask_without_numba

    import_dask_without_numba()
    import dask.threaded
    from anndata import AnnData

    from st_gchb._artifacts import write_whole

    # A fault of the slide is told before torch is imported, which the model needs.
    query, where = read_query(arguments)
    from st_gchb.cohort import most_predictable
    from st_gchb.model import load_predictor

    model = load_predictor(arguments.model, device=torch_device(arguments))
    _check_genes(arguments, model.parts.bank.table(arguments.layer).columns)
    key = arguments.slice_key if arguments.slice_key in getattr(query, "obs", ()) else None
    options = {"layer": arguments.layer, "k": arguments.k, "weights": arguments.weights, "slice_key": key}
    if arguments.memory_mb is not None:
        options["memory_mb"] = arguments.memory_mb
    path = arguments.out / "prediction.h5ad"
    if isinstance(query, AnnData):
        prediction = model.predict(query, out=path, **options, **where)
    else:
        prediction = model.predict(query, **options, **where)
        with write_whole(path) as part:
            prediction.write_h5ad(part)
    genes = arguments.genes or most_predictable(prediction)
    # Of a large slide, the other genes are in the file alone. Without a function that reads, dask imports distributed.
    with dask.config.set(scheduler=dask.threaded.get):
        shown = prediction[:, list(dict.fromkeys(genes))].copy().to_memory()
    with write_whole(arguments.out / "spots.csv") as part:
        _spots(shown, genes).to_csv(part)
    if arguments.geojson:
        _write_geojson(shown, genes, arguments)
    _draw(shown, genes, arguments)
    print(f"{prediction.n_obs} spots x {prediction.n_vars} genes written to {path}")


def _check_genes(arguments: argparse.Namespace, columns: Any) -> None:
    """Reject genes that the model does not predict, before the slide is processed."""
    missing = [gene for gene in arguments.genes or () if gene not in columns]
    if missing:
        raise InputError(
            f"--genes {missing}: not among the {len(columns)} predicted ones. "
            "Name others, or predict every gene of the reference with --layer all_genes."
        )


def _spots(prediction: Any, genes: list[str]) -> Any:
    from st_gchb._constants import Keys

    frame = prediction.obs.copy()
    frame["x_px"], frame["y_px"] = prediction.obsm[Keys.SPATIAL][:, 0], prediction.obsm[Keys.SPATIAL][:, 1]
    for gene in genes:
        frame[gene] = prediction.layers[Keys.LAYER][:, prediction.var_names.get_loc(gene)]
    return frame


def _slice_key(prediction: Any, wanted: str) -> str | None:
    """Return the column that tells slices apart: the requested one, or the regions of a SpatialData."""
    return next((key for key in (wanted, "region") if key in prediction.obs), None)


def _slices(prediction: Any, key: str | None) -> list[str | None]:
    return [None] if key is None else [str(name) for name in prediction.obs[key].unique()]


def _write_geojson(prediction: Any, genes: list[str], arguments: argparse.Namespace) -> None:
    from st_gchb.io import write_geojson

    key = _slice_key(prediction, arguments.slice_key)
    for name in _slices(prediction, key):
        path = arguments.out / f"{name or 'prediction'}.geojson"
        write_geojson(prediction, path, genes, slice=name, slice_key=key)


def _draw(prediction: Any, genes: list[str], arguments: argparse.Namespace) -> None:
    from st_gchb import pl
    from st_gchb._constants import Keys

    if Keys.SPATIAL not in prediction.uns:
        return
    key = _slice_key(prediction, arguments.slice_key)
    for name in _slices(prediction, key):
        axes = pl.measured_vs_predicted(prediction, genes, slice=name, slice_key=key)
        pl.save(axes, arguments.out / f"{name or 'prediction'}.png")
