"""Choice of the default's read-out and surroundings: share of the kernel head, sharpening, steps, on training slices.

For each held-out part of a data set, the other slices are left out in turn (the quadrants of a single one), and a model
that is trained on the rest predicts them with every read-out. The held-out part has no part in this.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb._options import Split
from st_gchb.evaluate import Task, evaluate, split_folds
from st_gchb.model import STGCHB
from st_gchb.pp.patches import feature_keys
from studies._choice import CRITERION
from studies._command import add_tissues, new_parser, run_study
from studies._files import write_csv, write_text
from studies._tissues import TISSUES, Tissue, embedded

SHARES = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
"""Shares of the kernel head; the rest is retrieval."""
SHARPENINGS = (0.0, 0.2, 0.3, 0.4, 0.5, 1.0)
SURROUNDINGS = (0, 12, 24, 48)
"""Steps of the surroundings, with which other models are trained."""
_SHARE = 0.6
"""Share of the kernel head with which sharpening is compared."""
MEASURES = (*CRITERION, "Moran_difference")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    example = "--data ../shared/data --weights ../shared/weights/mobilenet_v2_imagenet.safetensors"
    parser = new_parser("read_out", __doc__, example)
    add_tissues(parser)
    add = parser.add_argument
    several = ("her2st", "mob_st2k", "visium_lung")
    add("--tissues", nargs="+", metavar="NAME", choices=TISSUES, default=list(several), help="default: %(default)s")
    add("--seed", type=int, default=0, help="seed (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an invalid argument or data that cannot be used end it with status 2."""
    return run_study("read_out", run, build_parser().parse_args(argv))


def run(arguments: argparse.Namespace) -> list[Path]:
    """Score every read-out on the training slices of every data set, and write the table."""
    parts = []
    for name in arguments.tissues:
        adata = embedded(TISSUES[name], arguments.data, arguments.weights, arguments.device)
        options = {"n_top_genes": arguments.n_top_genes, "seeds": [arguments.seed], "device": arguments.device}
        parts.append(inner_scores(adata, TISSUES[name], **options).assign(tissue=name))
    scores = pd.concat(parts, ignore_index=True)
    text = markdown({name: TISSUES[name].title for name in arguments.tissues}, scores)
    return [write_csv(scores, arguments.out / "read_out.csv"), write_text(text, arguments.out / "read_out.md")]


class SharedModel:
    """Answers with several read-outs from one training: they are no part of what is trained.

    The last model is kept, so that read-outs of one training are to be asked one after the other.
    """

    def __init__(self) -> None:
        self._trained: tuple[tuple[Any, ...], STGCHB, AnnData] | None = None

    def predict(self, task: Task, *, kernel_weight: float, sharpening: float, **settings: Any) -> np.ndarray:
        """Predict the held-out spots with a share of the kernel head and a sharpening, ``(n_test, n_genes)``.

        ``settings`` are those of the training that differ from the default's.
        """
        model = self._model(task, settings)
        whole = model.settings
        model.settings = replace(whole, kernel_weight=kernel_weight, sharpening=sharpening)
        try:
            answer = model.predict(task.test, slice_key=task.slice_key)
        finally:
            model.settings = whole
        return np.asarray(answer.layers["st_gchb"])

    def _model(self, task: Task, settings: dict[str, Any]) -> STGCHB:
        asked = (task.seed, tuple(settings.items()), *task.train.obs_names)
        if self._trained is None or self._trained[0] != asked:
            if self._trained is not None:
                # scvi-tools keeps every table that was set up for as long as the process lives.
                self._trained[1].deregister_manager(self._trained[2])
            table = without_images(task)
            STGCHB.setup_anndata(table, slice_key=task.slice_key, features_key=task.features_key)
            model = STGCHB(table, panel=task.panel, seed=task.seed, **settings)
            options: dict[str, Any] = {"enable_progress_bar": False, "enable_checkpointing": False}
            model.train(calibrate=False, accelerator=task.device, **options)
            self._trained = asked, model, table
        return self._trained[1]


def without_images(task: Task) -> AnnData:
    """Copy the training spots without the images, which no model needs once there are features."""
    train, key = task.train, task.features_key
    table = AnnData(train.X, obs=train.obs.copy(), var=train.var[[]].copy())
    for name in ("spatial", *feature_keys(train, key)):
        table.obsm[name] = train.obsm[name]
    if key in train.uns:
        table.uns[key] = train.uns[key]
    return table


def read_outs() -> dict[str, dict[str, float]]:
    """Return settings of the read-outs by name: shares without sharpening, then sharpenings of one share.

    They are asked of one model with the default's surroundings.
    """
    shares = {f"kernel head {share:g}": {"kernel_weight": share, "sharpening": 0.0} for share in SHARES}
    return shares | {
        f"sharpened by {by:g}": {"kernel_weight": _SHARE, "sharpening": by} for by in SHARPENINGS if by > 0
    }


def inner_scores(adata: AnnData, tissue: Tissue, **options: Any) -> pd.DataFrame:
    """Score the read-outs on the training slices of each held-out part.

    Returns
    -------
    pandas.DataFrame
        One row per held-out part and read-out: ``fold``, ``read_out``, and the measures as means over the slices, or
        quadrants, that were left out of the training slices.
    """
    rows = []
    for fold in split_folds(adata, **{"split": "section", "by": "slice"} | tissue.folds):
        training = adata[fold.train].copy()
        split: Split = "section" if training.obs["slice"].nunique() > 1 else "blocks"
        shared = SharedModel()
        methods: dict[str, Callable[[Task], np.ndarray]] = {
            name: partial(shared.predict, kernel_weight=settings["kernel_weight"], sharpening=settings["sharpening"])
            for name, settings in read_outs().items()
        }
        for steps in SURROUNDINGS:
            trained: dict[str, Any] = {"context_surroundings": steps}
            methods[f"surroundings of {steps} steps"] = partial(
                shared.predict, kernel_weight=_SHARE, sharpening=0.0, **trained
            )
        scores = evaluate(training, methods=methods, split=split, **options).scores
        means = scores.groupby("method", sort=False)[list(MEASURES)].mean()
        rows.append(means.rename_axis("read_out").reset_index().assign(fold=fold.name))
    return pd.concat(rows, ignore_index=True)


def markdown(titles: dict[str, str], scores: pd.DataFrame) -> str:
    """Format the means over held-out parts: a row per read-out, for each data set its measures."""
    lines = ["| read-out | " + " | ".join(titles.values()) + " |", "| --- |" + " --- |" * len(titles)]
    for read_out in dict.fromkeys(scores["read_out"]):
        cells = []
        for name in titles:
            rows = scores[(scores["tissue"] == name) & (scores["read_out"] == read_out)]
            cells.append(" ".join(f"{value:.3f}" for value in rows[list(MEASURES)].mean()))
        lines.append(f"| {read_out} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
