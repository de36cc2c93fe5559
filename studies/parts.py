"""What the paper's parts are worth on large tissue: graph encoders, infomax, bottleneck and a trained last layer.

Each variant changes one part of the default and is asked twice: for retrieval alone, in which the parts have their
effect, and for the whole prediction, with the kernel head. Sections are left out in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from st_gchb.evaluate import evaluate, machine_and_versions
from st_gchb.model import PRESETS
from studies._choice import CRITERION
from studies._command import add_tissues, new_parser, run_study
from studies._files import write_csv, write_record, write_text
from studies._tissues import TISSUES, Tissue, embedded
from studies.read_out import SharedModel

_SAGE: dict[str, Any] = {"image_graph": "sage", "expression_graph": "sage"}
_PUBLISHED: dict[str, Any] = {"dependence": "nhsic", "sigma": 10.0, "beta": 25.0}

PARTS: dict[str, dict[str, Any]] = {
    "default": {},
    "without bottleneck": {"bottleneck": 0.0},
    "bottleneck, weight 0.2": {"bottleneck": 0.2},
    "bottleneck of equation 4, weight 0.05": {**_PUBLISHED, "bottleneck": 0.05},
    "bottleneck of equation 4, weight 1 (as published)": {**_PUBLISHED, "bottleneck": 1.0},
    "GraphSAGE, image branch": {"image_graph": "sage"},
    "GraphSAGE, both branches": _SAGE,
    "GCN, both branches": {"image_graph": "gcn", "expression_graph": "gcn"},
    "GraphSAGE, both branches, and infomax, weight 0.1": {**_SAGE, "dgi_image": 0.1, "dgi_expression": 0.1},
    "the same, pre-trained on infomax for 50 epochs": {
        **_SAGE,
        "dgi_image": 0.1,
        "dgi_expression": 0.1,
        "pretrain_epochs": 50,
    },
    "trained last layer of 256": {"n_image_adapter": 256},
}
"""Settings that differ from the default's, by name of the variant."""

READ_OUTS: dict[str, dict[str, Any]] = {
    "retrieval alone": {"kernel_weight": 0.0, "sharpening": 0.0},
    "whole": {name: getattr(PRESETS["default"], name) for name in ("kernel_weight", "sharpening")},
}
"""Read-outs of each variant."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    example = "--data ../shared/data --weights ../shared/weights/mobilenet_v2_imagenet.safetensors"
    parser = new_parser("parts", __doc__, example)
    add_tissues(parser)
    add = parser.add_argument
    several = ["visium_mousebrain", "visium_lung"]
    add("--tissues", nargs="+", metavar="NAME", choices=TISSUES, default=several, help="default: %(default)s")
    add("--parts", nargs="+", metavar="NAME", choices=PARTS, default=list(PARTS), help="variants (default: all)")
    add("--seeds", type=int, default=1, help="number of seeds, counted up from 0 (default: %(default)s)")
    return parser


def run(arguments: argparse.Namespace) -> list[Path]:
    """Score every variant on every data set, and write the table."""
    parts = []
    for name in arguments.tissues:
        adata = embedded(TISSUES[name], arguments.data, arguments.weights, arguments.device)
        options = {"n_top_genes": arguments.n_top_genes, "seeds": range(arguments.seeds), "device": arguments.device}
        found = scores(adata, TISSUES[name], arguments.parts, **options)
        parts.append(found.assign(tissue=name))
    whole = pd.concat(parts, ignore_index=True)
    text = markdown({name: TISSUES[name].title for name in arguments.tissues}, whole)
    settings = {"parts": {name: PARTS[name] for name in arguments.parts}, "tissues": arguments.tissues}
    return [
        write_csv(whole, arguments.out / "parts.csv"),
        write_record(settings | machine_and_versions(), arguments.out / "parts.json"),
        write_text(text, arguments.out / "parts.md"),
    ]


def scores(adata: AnnData, tissue: Tissue, parts: Sequence[str], **options: Any) -> pd.DataFrame:
    """Score the variants with each read-out.

    Returns
    -------
    pandas.DataFrame
        One row per held-out part, seed, variant and read-out.
    """
    methods, shared = {}, SharedModel()
    for part in parts:
        for read_out, settings in READ_OUTS.items():
            methods[f"{part}|{read_out}"] = partial(shared.predict, **settings, **PARTS[part])
    found = evaluate(adata, **tissue.folds, methods=methods, **options).scores
    found[["part", "read_out"]] = found["method"].str.split("|", expand=True)
    return found.drop(columns="method")


def markdown(titles: dict[str, str], found: pd.DataFrame) -> str:
    """Format the means over held-out parts and seeds: a row per variant, for each data set both read-outs."""
    heads = [f"{title}, {read_out}" for title in titles.values() for read_out in READ_OUTS]
    lines = ["| part | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for part in dict.fromkeys(found["part"]):
        cells = []
        for name in titles:
            for read_out in READ_OUTS:
                rows = found[(found["tissue"] == name) & (found["part"] == part) & (found["read_out"] == read_out)]
                cells.append(" ".join(f"{value:.3f}" for value in rows[list(CRITERION)].mean()))
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an invalid argument or data that cannot be used end it with status 2."""
    return run_study("parts", run, build_parser().parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
