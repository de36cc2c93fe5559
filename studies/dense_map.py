"""Figure of a dense map: a gene of her2st section C5, predicted every 50 µm from its H&E, over the H&E.

Trains on the sections C2 to C4, lays positions on the bare image of C5, predicts them, and draws the result with
spatialdata-plot beside what was measured. The figure of docs/user-guide/predictions.md is made by this script.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import spatialdata_plot  # noqa: F401 (gives SpatialData its .pl)
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib_scalebar.scalebar import ScaleBar
from spatialdata import SpatialData

import st_gchb
from st_gchb.model import STGCHB
from studies._command import ON_HER2ST, add_weights, default_encoders, new_parser


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("dense_map", __doc__, f"{ON_HER2ST} --out docs/_static/dense_map.png")
    add = parser.add_argument
    add("--out", type=Path, default=Path("dense_map.png"), help="figure to write (default: %(default)s)")
    add("--data", type=Path, metavar="FOLDER", help="her2st as published (default: download it)")
    add_weights(parser)
    add("--spacing", type=float, default=50.0, metavar="UM", help="distance of positions, µm (default: %(default)s)")
    add("--gene", default="CD74", help="gene to draw (default: %(default)s)")
    return parser


def predictions(options: argparse.Namespace) -> tuple[AnnData, AnnData]:
    """C5 at its measured spots, and on a grid on its bare image."""
    reference = st_gchb.datasets.her2st(["C2", "C3", "C4"], path=options.data)
    st_gchb.pp.embed_patches(reference, **default_encoders(options.weights))
    STGCHB.setup_anndata(reference, slice_key="slice")
    model = STGCHB(reference)
    model.train(enable_progress_bar=False)
    section = st_gchb.datasets.her2st(["C5"], path=options.data)
    library = section.uns["spatial"]["C5"]
    slide = library["metadata"]["source_image_path"]
    um_per_px = library["scalefactors"]["microns_per_pixel"]
    query = st_gchb.pp.tile_tissue(slide, um_per_px=um_per_px, spacing_um=options.spacing, grid="square")
    return model.predict(section), model.predict(query)


def crop(axes: list[Axes], tissue: AnnData, um_per_px: float) -> None:
    """Show the tissue with a rim, and a scale bar."""
    low, high = tissue.obsm["spatial"].min(axis=0) - 200, tissue.obsm["spatial"].max(axis=0) + 200
    for ax in axes:
        ax.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), xticks=[], yticks=[], xlabel="", ylabel="")
        ax.add_artist(ScaleBar(um_per_px, "um", location="upper left", box_alpha=0, fixed_value=1000))


def draw(spots: SpatialData, dense: SpatialData, gene: str) -> plt.Figure:
    """Measured, predicted densely, and how sure the model is, over the H&E."""
    measured, values = spots["st_gchb"][:, gene].X, dense["st_gchb"][:, gene].layers["st_gchb"]
    # The scale begins below the lowest prediction: what is at its lower end is not drawn.
    norms = [Normalize(*np.quantile(measured, [0.01, 0.99])), Normalize(values.min() - 0.01, np.quantile(values, 0.99))]
    norms.append(Normalize(-0.01, 1))
    cmaps = ["viridis", "viridis", "magma"]
    channels = [gene, "st_gchb_confidence"]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    plot = spots.pl.render_images("C5_image").pl.render_shapes(
        "C5", color=gene, table_name="st_gchb", cmap=cmaps[0], norm=norms[0]
    )
    plot.pl.show(ax=axes[0], colorbar=False, title=f"{gene} measured, spots 200 µm apart")
    titles = [f"{gene} predicted from the H&E alone", "Confidence of the prediction"]
    for i, (channel, title) in enumerate(zip(channels, titles, strict=True), start=1):
        plot = dense.pl.render_images("C5_image").pl.render_images("C5_raster", channel=channel, norm=norms[i])
        plot.pl.show(ax=axes[i], colorbar=False, title=title)
        axes[i].images[-1].set(cmap=st_gchb.pl.transparent_cmap(cmaps[i]), alpha=0.7)
    labels = ["log-normalized expression"] * 2 + ["confidence"]
    for ax, cmap, norm, label in zip(axes, cmaps, norms, labels, strict=True):
        figure.colorbar(plt.cm.ScalarMappable(norm, cmap), ax=ax, shrink=0.8, label=label)
    return figure


def main() -> None:
    options = build_parser().parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("spatialdata_plot").setLevel(logging.ERROR)
    at_spots, densely = predictions(options)
    spots = st_gchb.pp.to_spatialdata(at_spots)
    dense = st_gchb.pp.to_spatialdata(densely)
    st_gchb.pp.rasterize(dense, [options.gene, "st_gchb_confidence"], fill=-1.0)
    figure = draw(spots, dense, options.gene)
    um_per_px = at_spots.uns["spatial"]["C5"]["scalefactors"]["microns_per_pixel"]
    crop(figure.axes[:3], densely, um_per_px)
    figure.savefig(options.out, dpi=110)
    print(f"{densely.n_obs} positions, {options.spacing:g} µm apart; wrote {options.out}")


if __name__ == "__main__":
    main()
