"""``st-gchb study``: ablations, choice of the default preset, and reliability of confidence on held-out slices."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from st_gchb._errors import InputError
from st_gchb.cli._arguments import add_data, add_encoder, embed, new_command, read_slides, torch_device

CHOICE, CONFIDENCE, FOREIGN = "choice", "confidence", "foreign"


def add_parser(commands: Any) -> None:
    """Declare the sub-command."""
    parser = new_command(
        commands,
        "study",
        "Change one part of the model at a time on held-out slices; choose by inner validation; check confidence.",
        "st-gchb study --data her2st/ --encoder mobilenet_v2 --weights mobilenet_v2.safetensors --out study/",
    )
    add_data(parser)
    add_encoder(parser)
    parser.add_argument(
        "--questions",
        nargs="+",
        metavar="NAME",
        help="together, alone, graph, dgi, bottleneck, alignment, components, query, read-out, training, patch, views, "
        "choice, confidence, foreign (default: all)",
    )
    parser.add_argument("--n-top-genes", type=int, default=1000, help="size of the panel (default: 1000)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, counted up from --seed (default: 3)")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and pictures; finished runs stay")
    parser.set_defaults(run=run, when_interrupted=lambda arguments: "the same command goes on from there")


def run(arguments: argparse.Namespace) -> None:
    """Run the chosen studies and write their tables; a study that was stopped continues from ``--out``."""
    from st_gchb import evaluate as ev
    from st_gchb.datasets import synthetic_tissue

    known = [*ev.STUDY, CHOICE, CONFIDENCE, FOREIGN]
    asked = arguments.questions or known
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise InputError(f"--questions {unknown}: unknown; known are {', '.join(known)}.")
    adata = read_slides(arguments.data, arguments.slices, arguments.slice_key)
    embed(adata, arguments)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    common: dict[str, Any] = {"n_top_genes": arguments.n_top_genes, "slice_key": arguments.slice_key, "seeds": seeds}
    runs = {"runs_dir": arguments.out / "runs", "device": arguments.device}
    paths: list[Path] = []
    questions = [name for name in asked if name in ev.STUDY]
    if questions:
        features = {name: getattr(arguments, name) for name in ("weights", "patch_um", "n_views")}
        features["device"] = torch_device(arguments)
        result = ev.study(adata, questions, encoder=arguments.encoder, **common, **runs, features=features)
        paths += ev.write_study(result, arguments.out)
    if CHOICE in asked:
        paths += ev.write_choice(ev.choose(adata, **common, **runs), arguments.out)
    if CONFIDENCE in asked:
        paths += ev.write_reliability(ev.reliability(adata, **common, device=arguments.device), arguments.out)
    if FOREIGN in asked:
        one = {"seed": arguments.seed, "device": arguments.device} | {
            name: common[name] for name in ("n_top_genes", "slice_key")
        }
        paths += ev.write_foreign(
            ev.foreign_sections(adata, {"drawn cortex": synthetic_tissue(1)}, **one), arguments.out
        )
    for path in paths:
        if path.suffix == ".md":
            print(f"\n{path.stem}\n{path.read_text()}", end="")
    print(f"\nwritten to {arguments.out}: {', '.join(path.name for path in paths)}")
