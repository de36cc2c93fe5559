"""``st-gchb predict``: a slide with H&E to predicted expression."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from st_gchb._errors import InputError
from st_gchb.cli._arguments import new_command
from st_gchb.cli._query import add_query, read_query


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
    parser.add_argument("--weights", help="encoder weights file, where it has moved since training")
    parser.add_argument("--layer", help="table of the reference to predict (default: the panel)")
    parser.add_argument("--k", type=int, help="reference spots per query spot (default: the model's)")
    parser.add_argument("--genes", nargs="+", metavar="GENE", help="genes to draw (default: the 3 most predictable)")
    parser.add_argument("--out", type=Path, required=True, help="folder for prediction.h5ad, spots.csv and the picture")
    parser.set_defaults(run=run, when_interrupted=lambda arguments: "the same command predicts it anew")


def run(arguments: argparse.Namespace) -> None:
    """Predict, write, draw."""
    from st_gchb._files import write_whole
    from st_gchb.model import STGCHB

    model = STGCHB.load(arguments.model, accelerator=arguments.device)
    _check_genes(arguments, model.bank_.table(arguments.layer).columns if model.bank_ is not None else [])
    query, where = read_query(arguments)
    key = arguments.slice_key if arguments.slice_key in getattr(query, "obs", ()) else None
    options = {"layer": arguments.layer, "k": arguments.k, "weights": arguments.weights, "slice_key": key}
    if arguments.memory_mb is not None:
        options["memory_mb"] = arguments.memory_mb
    prediction = model.predict(query, **options, **where)
    genes = arguments.genes or _predictable(prediction)
    with write_whole(arguments.out / "prediction.h5ad") as part:
        prediction.write_h5ad(part)
    with write_whole(arguments.out / "spots.csv") as part:
        _spots(prediction, genes).to_csv(part)
    _draw(prediction, genes, arguments)
    print(f"{prediction.n_obs} spots x {prediction.n_vars} genes written to {arguments.out / 'prediction.h5ad'}")


def _check_genes(arguments: argparse.Namespace, columns: Any) -> None:
    """Refuse genes that are not predicted, before the slide is."""
    missing = [gene for gene in arguments.genes or () if gene not in columns]
    if missing:
        raise InputError(
            f"--genes {missing}: not among the {len(columns)} predicted ones. "
            "Name others, or predict every gene of the reference with --layer all_genes."
        )


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


def _slice_key(prediction: Any, wanted: str) -> str | None:
    """Column that tells slices apart: the one asked for, or that of a SpatialData's regions."""
    return next((key for key in (wanted, "region") if key in prediction.obs), None)


def _draw(prediction: Any, genes: list[str], arguments: argparse.Namespace) -> None:
    from st_gchb import pl
    from st_gchb._constants import Keys

    if Keys.SPATIAL not in prediction.uns:
        return
    key = _slice_key(prediction, arguments.slice_key)
    names = [None] if key is None else [str(name) for name in prediction.obs[key].unique()]
    for name in names:
        axes = pl.measured_vs_predicted(prediction, genes, slice=name, slice_key=key)
        pl.save(axes, arguments.out / f"{name or 'prediction'}.png")
