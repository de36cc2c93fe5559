"""Draw and measure docs/user-guide/bare_slides.md: a section as a bare JPEG, gridded, predicted from three others."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from scipy.spatial import cKDTree

import st_gchb
from st_gchb.model import STGCHB
from studies._command import ON_HER2ST, add_weights, default_encoders, ignore_warnings_of_others, new_parser


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("bare_slide", __doc__, f"{ON_HER2ST} --out docs/_static/bare_slide.png")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="folder with the sections of her2st")
    add("--out", type=Path, required=True, metavar="FILE", help="figure to write")
    add_weights(parser)
    add("--gene", default="CD74", help="gene to draw (default: %(default)s)")
    return parser


def scores(spotwise: AnnData, pred: AnnData) -> str:
    """AG and HVG of the measured spots, each with the prediction of the position that is nearest to it."""
    nearest = cKDTree(pred.obsm["spatial"]).query(spotwise.obsm["spatial"])[1]
    measured = np.asarray(spotwise.X)
    found = st_gchb.metrics.pearson(measured, pred.layers["st_gchb"][nearest])
    variable = np.argsort(-measured.var(axis=0), kind="stable")[:50]
    return f"AG {np.nan_to_num(found).mean():.3f}, HVG {np.nan_to_num(found)[variable].mean():.3f}"


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    ignore_warnings_of_others()
    warnings.filterwarnings("ignore", category=UserWarning)
    ref = st_gchb.datasets.her2st(["C2", "C3", "C4"], path=args.data)
    st_gchb.pp.embed_patches(ref, **default_encoders(args.weights))
    STGCHB.setup_anndata(ref, slice_key="slice")
    model = STGCHB(ref, n_top_genes=1000)
    model.train()
    # The distance between spots, 200 µm, gives the size of a pixel: see datasets.her2st.
    section = st_gchb.datasets.her2st(["C5"], path=args.data)
    um_per_px = section.uns["spatial"]["C5"]["scalefactors"]["microns_per_pixel"]
    spotwise = model.predict(section)
    print(f"spots: {scores(spotwise, spotwise)}")
    for spacing in (200, 100, 50):
        query = st_gchb.pp.tile_tissue(args.data / "C5.jpg", um_per_px=um_per_px, spacing_um=spacing)
        print(f"{query.n_obs} positions {spacing} µm apart: {scores(spotwise, model.predict(query))}")
    query = st_gchb.pp.tile_tissue(args.data / "C5.jpg", um_per_px=um_per_px)
    pred = model.predict(query)
    _, (slide, gene, trust) = plt.subplots(1, 3, figsize=(14, 4.4), width_ratios=(1, 1.25, 1.25), layout="constrained")
    st_gchb.pl.slide_overview(query, ax=slide)
    st_gchb.pl.measured_vs_predicted(pred, args.gene, show_tissue=False, axs=np.array([[gene]]))
    st_gchb.pl.confidence(pred, ax=trust)
    slide.figure.savefig(args.out, dpi=85)
    print(f"{args.out}: {pred.n_obs} positions, {args.out.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
