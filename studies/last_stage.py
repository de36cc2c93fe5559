"""Does training the image encoder's last stage pay? Sections of her2st, each left out once, by what is trained of it.

The answer is in docs/how-to/training_at_size.md. Finished runs and encoded patches are kept: a run that was stopped
goes on.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch

import st_gchb
from st_gchb.evaluate import METHODS, evaluate
from studies._command import ON_HER2ST, add_encoder, log_progress, new_parser
from studies._files import write_text

SECTIONS = ("C2", "C3", "C4", "C5")
COLUMNS = ("AG", "HVG", "HEG", "n>0.3", "RMSE")
PAPER: dict[str, Any] = {"preset": "paper", "sampler": "spots"}
BLEEP: dict[str, Any] = {"preset": "bleep", "n_image_components": None}
STAGE: dict[str, Any] = {"finetune": "last_stage"}
VARIANTS: dict[str, dict[str, Any]] = {
    "paper: none": PAPER | {"n_image_adapter": 0},
    "paper: fc": PAPER,
    "paper: last stage": PAPER | {"n_image_adapter": 0} | STAGE,
    "paper: last stage + fc": PAPER | STAGE,
    "bleep: none": BLEEP,
    "bleep: last stage": BLEEP | STAGE,
}

DEFAULT = [name for name in VARIANTS if name != "paper: last stage"]


def build_parser() -> argparse.ArgumentParser:
    parser = new_parser("last_stage", __doc__, ON_HER2ST)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="folder with the sections of her2st")
    add_encoder(parser, last_stage=True)
    add("--seeds", type=int, default=1, metavar="N", help="number of seeds (default: %(default)s)")
    add("--pretrain-epochs", type=int, default=10, metavar="N", help="of the paper preset (default: %(default)s of 50)")
    add("--lr-share", type=float, default=0.01, metavar="X", help="finetune_lr_factor (default: %(default)s)")
    add("--variants", nargs="+", default=list(DEFAULT), choices=list(VARIANTS), metavar="NAME")
    add("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    add("--runs", type=Path, metavar="FOLDER", help="where finished runs are kept")
    add("--docs", type=Path, metavar="FILE", help="Markdown file to write")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    log_progress()
    torch.set_num_threads(args.threads)
    adata = st_gchb.datasets.her2st(list(SECTIONS), path=args.data)
    made = {"encoder": args.encoder, "weights": args.weights, "patch_um": 150, "n_views": 1}
    st_gchb.pp.embed_patches(adata, **made, save_feature_maps=True)
    methods = {name: method(VARIANTS[name], args) for name in args.variants}
    result = evaluate(adata, methods=methods, seeds=range(args.seeds), runs_dir=args.runs)
    text = table(result.scores, args)
    print(text)
    if args.docs:
        write_text(text, args.docs)
    return 0


def method(settings: dict[str, Any], args: argparse.Namespace) -> Any:
    own = {"pretrain_epochs": args.pretrain_epochs} if settings["preset"] == "paper" else {}
    own |= {"finetune_lr_factor": args.lr_share} if "finetune" in settings else {}
    changed = {name: value for name, value in settings.items() if name != "preset"}
    return partial(METHODS[settings["preset"]], **changed | own)


def table(scores: Any, args: argparse.Namespace) -> str:
    """Mean over sections and seeds, and in how many of these runs a variant beats the one with nothing trained."""
    lines = [
        "| trained of the image encoder | " + " | ".join(COLUMNS) + " | AG above none's |",
        "| --- |" + " ---: |" * 6,
    ]
    by_run = scores.set_index(["fold", "seed", "method"])
    for name in args.variants:
        own = by_run.xs(name, level="method")
        none = f"{name.split(':')[0]}: none"
        better = "" if name == none or none not in args.variants else count(own, by_run.xs(none, level="method"))
        cells = [f"{own[column].mean():.{1 if column == 'n>0.3' else 4}f}" for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {better} |")
    caption = (
        f"*her2st {', '.join(SECTIONS)}, each left out once, {args.seeds} seed(s), 1,000 genes, {args.encoder}, one "
        f"view; paper preset with {args.pretrain_epochs} epochs of infomax and spots drawn over all slices; learning "
        f"rate of the stage {args.lr_share:g} of the others'; `python -m studies.last_stage`.*"
    )
    return "\n".join([*lines, "", caption])


def count(own: Any, none: Any) -> str:
    above = own["AG"] > none["AG"].reindex(own.index)
    return f"{int(above.sum())} of {len(above)}"


if __name__ == "__main__":
    raise SystemExit(main())
