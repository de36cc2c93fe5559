"""``st-gchb predict``: a slide with H&E to predicted expression."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from st_gchb._errors import InputError, MissingFileError
from st_gchb.cli._arguments import new_command, read_h5ad, read_slides, take_slices


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "predict",
        "Predict expression for spots that have H&E alone.",
        "st-gchb predict --model model/ --data her2st/ --slices C5 --out C5/ --genes ERBB2 KRT19",
    )
    parser.add_argument("--model", type=Path, required=True, help="folder written by st-gchb train or model.save")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="an .h5ad file, a SpatialData .zarr store, or a folder of her2st sections",
    )
    parser.add_argument("--slices", nargs="+", metavar="NAME", help="slices to take (default: all)")
    parser.add_argument("--slice-key", default="slice", help="column of obs that tells slices apart (default: slice)")
    parser.add_argument("--image", help="full-resolution image; for a .zarr store the name of the image element")
    parser.add_argument(
        "--um-per-px", type=float, help="size of a full-resolution pixel, µm, where the data do not say it"
    )
    parser.add_argument("--weights", help="encoder weights file, where it has moved since training")
    parser.add_argument("--layer", help="table of the reference to predict (default: the panel)")
    parser.add_argument("--k", type=int, help="reference spots per query spot (default: the model's)")
    parser.add_argument("--genes", nargs="+", metavar="GENE", help="genes to draw (default: the 3 most predictable)")
    parser.add_argument("--out", type=Path, required=True, help="folder for prediction.h5ad, spots.csv and the picture")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Predict, write, draw."""
    from st_gchb._files import write_whole
    from st_gchb.model import STGCHB

    model = STGCHB.load(arguments.model, accelerator=arguments.device)
    query = _read_query(arguments)
    prediction = model.predict(
        query,
        layer=arguments.layer,
        k=arguments.k,
        image=arguments.image,
        um_per_px=arguments.um_per_px,
        weights=arguments.weights,
        slice_key=arguments.slice_key if arguments.slice_key in getattr(query, "obs", ()) else None,
    )
    genes = arguments.genes or _predictable(prediction)
    missing = [gene for gene in genes if gene not in prediction.var_names]
    if missing:
        raise InputError(
            f"--genes {missing}: not among the {prediction.n_vars} predicted ones. "
            "Name others, or predict every gene of the reference with --layer all_genes."
        )
    with write_whole(arguments.out / "prediction.h5ad") as part:
        prediction.write_h5ad(part)
    with write_whole(arguments.out / "spots.csv") as part:
        _spots(prediction, genes).to_csv(part)
    for name in _slices(prediction, arguments.slice_key):
        _draw(prediction, genes, name, arguments)
    print(f"{prediction.n_obs} spots x {prediction.n_vars} genes written to {arguments.out / 'prediction.h5ad'}")


def _read_query(arguments: argparse.Namespace) -> Any:
    path = arguments.data
    if not path.exists():
        raise MissingFileError(f"--data {path}: there is no such file or folder.")
    if path.suffix == ".zarr":
        import spatialdata

        try:
            return spatialdata.read_zarr(path)
        except (OSError, KeyError, ValueError) as error:
            raise InputError(
                f"--data {path} cannot be read as SpatialData ({error}). Write it with sdata.write."
            ) from error
    if path.suffix == ".h5ad":
        return take_slices(read_h5ad(path), arguments.slices, arguments.slice_key)
    return read_slides(path, arguments.slices, arguments.slice_key)


def _predictable(prediction: Any) -> list[str]:
    from st_gchb._constants import Keys

    if Keys.EXPECTED_PCC in prediction.var and prediction.var[Keys.EXPECTED_PCC].notna().any():
        return list(prediction.var[Keys.EXPECTED_PCC].nlargest(3).index)
    return list(prediction.var_names[:3])


def _spots(prediction: Any, genes: list[str]) -> Any:
    from st_gchb._constants import Keys

    frame = prediction.obs.copy()
    frame["x_px"], frame["y_px"] = prediction.obsm[Keys.SPATIAL][:, 0], prediction.obsm[Keys.SPATIAL][:, 1]
    for gene in genes:
        frame[gene] = prediction.layers[Keys.LAYER][:, prediction.var_names.get_loc(gene)]
    return frame


def _slices(prediction: Any, slice_key: str) -> list[str | None]:
    if slice_key not in prediction.obs:
        return [None]
    return [str(name) for name in prediction.obs[slice_key].unique()]


def _draw(prediction: Any, genes: list[str], name: str | None, arguments: argparse.Namespace) -> None:
    from st_gchb import pl
    from st_gchb._constants import Keys

    if Keys.SPATIAL not in prediction.uns:
        return
    key = arguments.slice_key if name is not None else None
    axes = pl.measured_vs_predicted(prediction, genes, slice=name, slice_key=key)
    pl.save(axes, arguments.out / f"{name or 'prediction'}.png")
