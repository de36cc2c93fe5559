"""Does stain normalization help? Sections of her2st, each left out once, in their own and other stains.

Makes the tables of docs/user-guide/stain.md. What was encoded is kept in the cache: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import st_gchb
from st_gchb.errors import StainError
from st_gchb.evaluate import hide_expression, leave_one_out
from st_gchb.metrics import pearson
from st_gchb.model import STGCHB
from studies._command import ON_HER2ST, add_encoder, log_progress, new_parser
from studies._files import write_csv, write_record, write_text
from studies._stains import recolored, restained

SECTIONS = ("C2", "C3", "C4", "C5")
TREATMENTS: dict[str, dict[str, Any]] = {
    "none": {},
    "macenko": {"stain_norm": "macenko"},
    "reinhard": {"stain_norm": "reinhard"},
}
SHIFTS: dict[str, tuple[float, float, float] | None] = {
    "hematoxylin ×0.7": (0.7, 1.0, 1.0),
    "hematoxylin ×1.4": (1.4, 1.0, 1.0),
    "eosin ×0.7": (1.0, 0.7, 1.0),
    "eosin ×1.4": (1.0, 1.4, 1.0),
    "eosin as brown": None,
}


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("stain", __doc__, f"{ON_HER2ST} --out docs/results/stain/")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="folder with the sections of her2st")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where tables are written")
    add_encoder(parser)
    add("--seeds", type=int, default=3, metavar="N", help="number of seeds (default: %(default)s)")
    add("--sections", nargs="+", default=list(SECTIONS), metavar="NAME", help="sections to leave out (default: all)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    log_progress()
    adata = st_gchb.datasets.her2st(list(SECTIONS), path=args.data)
    made = {"encoder": args.encoder, "weights": args.weights, "patch_um": 150, "n_views": 4}
    parts = []
    for fold in leave_one_out(adata):
        if fold.name not in args.sections:
            continue
        parts.append(one_fold(adata[fold.train], adata[fold.test], made, range(args.seeds)).assign(section=fold.name))
        scores = pd.concat(parts, ignore_index=True)
        write_csv(scores, args.out / "stain.csv")
        write_tables(scores, args.out)
    return 0


def one_fold(train: AnnData, test: AnnData, made: dict[str, Any], seeds: range) -> pd.DataFrame:
    references, queries = {}, {}
    for name, treatment in TREATMENTS.items():
        references[name] = train.copy()
        st_gchb.pp.embed_patches(references[name], **made, **treatment)
    for shift in ("own stain", *SHIFTS):
        image, um_per_px = shifted(test, shift)
        for name, reference in references.items():
            queries[shift, name] = embedded(test, reference, image, um_per_px)
    rows = []
    for name, reference in references.items():
        STGCHB.setup_anndata(reference, slice_key="slice")
        for seed in seeds:
            model = STGCHB(reference, n_top_genes=1000, seed=seed)
            model.train(enable_progress_bar=False)
            for (shift, treated), query in queries.items():
                if treated == name and query is not None:
                    rows.append({"stain": shift, "treatment": name, "seed": seed} | score(model, query, test))
                    logging.getLogger("st_gchb").info("%s", rows[-1])
    return pd.DataFrame(rows)


def shifted(test: AnnData, shift: str) -> tuple[np.ndarray, float]:
    """The section's image in another stain, and the size of its pixels."""
    (section,) = st_gchb.pp.slices_of(test)
    height, width = section.image.shape_px
    pixels = np.array(section.image.read(0, 0, height, 0, width))
    section.image.release()
    assert section.um_per_px is not None
    if shift == "eosin as brown":
        return recolored(pixels), section.um_per_px
    factors = SHIFTS.get(shift)
    if factors is not None:
        pixels = restained(pixels, factors)
    return pixels, section.um_per_px


def embedded(test: AnnData, reference: AnnData, image: np.ndarray, um_per_px: float) -> AnnData | None:
    """The section as a query with the reference's kind of features; None where its stain cannot be normalized."""
    query = hide_expression(test)
    rule = st_gchb.pp.FeatureSpec.from_uns(reference.uns["X_patch"])
    try:
        st_gchb.pp.embed_patches_like(query, rule, image=image, um_per_px=um_per_px)
    except StainError as error:
        logging.getLogger("st_gchb").warning("%s", error)
        return None
    return query


def score(model: STGCHB, query: AnnData, test: AnnData) -> dict[str, float]:
    answer = model.predict(query)
    slide = answer.uns["st_gchb"]["stain"].iloc[0]
    truth = np.log1p(test.X.multiply(1e4 / test.X.sum(1)).toarray())[:, test.var_names.get_indexer(answer.var_names)]
    predicted = answer.layers["st_gchb"]
    correlation = np.nan_to_num(pearson(truth, predicted))
    return {
        "AG": float(correlation.mean()),
        "HVG": float(correlation[np.argsort(-truth.var(0))[:50]].mean()),
        "HEG": float(correlation[np.argsort(-truth.mean(0))[:50]].mean()),
        "RMSE": float(np.sqrt(((predicted - truth) ** 2).mean())),
        "outliers": float(answer.obs["st_gchb_outlier"].mean()),
        "distance": float(slide["distance"] / slide["limit"]),
    }


def write_tables(scores: pd.DataFrame, out: Path) -> None:
    """One table a measure: stains by treatment, mean over sections, mean ± standard deviation over seeds."""
    for measure, digits in (("HVG", 3), ("AG", 3), ("distance", 2)):
        by_seed = scores.groupby(["stain", "treatment", "seed"], sort=False)[measure].mean()
        table = by_seed.groupby(["stain", "treatment"], sort=False).agg(["mean", "std"])
        names = list(dict.fromkeys(scores["treatment"]))
        lines = ["| query | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
        for stain in dict.fromkeys(scores["stain"]):
            cells = []
            for name in names:
                if (stain, name) not in table.index:
                    cells.append("refused")
                    continue
                mean, spread = table.loc[(stain, name)]
                # What is told by the frozen features alone is the same for every seed.
                varies = round(float(spread), digits) > 0 or measure != "distance"
                told = "" if np.isnan(spread) or not varies else f" ± {spread:.{digits}f}"
                cells.append(f"{mean:.{digits}f}{told}")
            lines.append(f"| {stain} | " + " | ".join(cells) + " |")
        write_text("\n".join(lines), out / f"{measure}.md")
    settings = {"seeds": int(scores["seed"].nunique()), "sections": sorted(set(scores["section"]))}
    write_record(settings, out / "settings.json")


if __name__ == "__main__":
    raise SystemExit(main())
