"""Ablations, choice of the default preset, and reliability of confidence on held-out slices.

Makes the tables of docs/results/study.md. Finished runs are kept below ``--out``, and an interrupted study continues
from there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from anndata import AnnData

import st_gchb
from st_gchb.datasets import her2st, synthetic_tissue
from st_gchb.errors import InputError, MissingFileError
from st_gchb.evaluate import reliability, write_reliability
from studies._choice import choose
from studies._command import add_encoder, new_parser, run_study
from studies._files import write_choice, write_foreign, write_study
from studies._foreign import foreign_sections
from studies._study import study
from studies._variants import STUDY

CHOICE, CONFIDENCE, FOREIGN = "choice", "confidence", "foreign"
KNOWN = [*STUDY, CHOICE, CONFIDENCE, FOREIGN]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command."""
    example = "--data her2st/ --encoder mobilenet_v2 --weights mobilenet_v2.safetensors --out study/"
    parser = new_parser("ablations", __doc__, example)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="an .h5ad file, or a folder with her2st sections")
    add("--slices", nargs="+", metavar="NAME", help="slices to take (default: all)")
    add("--slice-key", default="slice", help="column of obs that tells slices apart (default: %(default)s)")
    add_encoder(parser, "resnet50")
    add("--patch-um", type=float, default=150.0, help="side of a patch, µm (default: %(default)g)")
    add("--views", dest="n_views", type=int, default=4, choices=(1, 4, 8), help="views per patch (default: 4)")
    add("--questions", nargs="+", metavar="NAME", default=KNOWN, help=f"{', '.join(KNOWN)} (default: all)")
    add("--n-top-genes", type=int, default=1000, help="size of the panel (default: %(default)s)")
    add("--seeds", type=int, default=3, help="number of seeds, counted up from --seed (default: %(default)s)")
    add("--seed", type=int, default=0, help="first seed (default: %(default)s)")
    add("--device", default="auto", choices=("auto", "cpu", "gpu", "mps"), help="default: %(default)s")
    add("--out", type=Path, required=True, help="folder of tables, figures and finished runs")
    add("--quiet", action="store_true", help="warnings only, no progress bars")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; an invalid argument or data that cannot be used end it with status 2."""
    return run_study("ablations", run, build_parser().parse_args(argv))


def run(arguments: argparse.Namespace) -> list[Path]:
    """Answer the questions and write their tables and figures."""
    unknown = [name for name in arguments.questions if name not in KNOWN]
    if unknown:
        raise InputError(f"--questions {unknown}: unknown; known are {', '.join(KNOWN)}.")
    adata = read_slices(arguments.data, arguments.slices, arguments.slice_key)
    features: dict[str, Any] = {name: getattr(arguments, name) for name in ("weights", "patch_um", "n_views")}
    features["device"] = {"gpu": "cuda"}.get(arguments.device, arguments.device)
    if "X_patch" not in adata.obsm:
        st_gchb.pp.embed_patches(adata, encoder=arguments.encoder, slice_key=arguments.slice_key, **features)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    common: dict[str, Any] = {"n_top_genes": arguments.n_top_genes, "slice_key": arguments.slice_key}
    common["device"] = arguments.device
    runs: dict[str, Any] = {"seeds": seeds, "runs_dir": arguments.out / "runs"}
    paths: list[Path] = []
    questions = [name for name in arguments.questions if name in STUDY]
    if questions:
        result = study(adata, questions, encoder=arguments.encoder, features=features, **common, **runs)
        paths += write_study(result, arguments.out)
    if CHOICE in arguments.questions:
        paths += write_choice(choose(adata, **common, **runs), arguments.out)
    if CONFIDENCE in arguments.questions:
        paths += write_reliability(reliability(adata, seeds=seeds, **common), arguments.out)
    if FOREIGN in arguments.questions:
        others = {"drawn cortex": synthetic_tissue(1)}
        paths += write_foreign(foreign_sections(adata, others, seed=arguments.seed, **common), arguments.out)
    return paths


def read_slices(path: Path, slices: list[str] | None, slice_key: str) -> AnnData:
    """Read the slices from an .h5ad file or a folder of her2st sections."""
    if not path.exists():
        raise MissingFileError(f"--data {path}: there is no such file or folder.")
    if path.is_dir():
        found = sorted(file.name.removesuffix("_selection.tsv") for file in path.glob("*_selection.tsv"))
        return her2st(slices or found, path=path)
    adata = cast("AnnData", st_gchb.io.read_section(path))
    return adata if slices is None else adata[adata.obs[slice_key].astype(str).isin(slices)].copy()


if __name__ == "__main__":
    raise SystemExit(main())
