"""Command line of the studies: parser, image encoder, and the log of a run."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import st_gchb
from st_gchb.errors import STGCHBError

ON_HER2ST = "--data ../shared/data/her2st --weights ../shared/weights/mobilenet_v2_imagenet.safetensors"
"""Arguments of an example that runs on the sections of her2st."""


def new_parser(study: str, description: str | None, *examples: str) -> argparse.ArgumentParser:
    """Create the parser of ``python -m studies.<study>``; its help ends with the examples, arguments of the command."""
    command = f"python -m studies.{study}"
    return argparse.ArgumentParser(
        prog=command,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["example:", *(f"  {command} {arguments}" for arguments in examples)]),
    )


def add_encoder(parser: argparse.ArgumentParser, default: str = "mobilenet_v2", *, last_stage: bool = False) -> None:
    """Declare ``--encoder`` and ``--weights``; ``last_stage`` asks for an encoder whose last stage can be trained."""
    known = "a torchvision model with a last stage" if last_stage else "any torchvision model, timm:NAME, or texture"
    parser.add_argument("--encoder", default=default, help=f"{known} (default: %(default)s)")
    parser.add_argument("--weights", default="default", help="'default' (downloaded once), or a .safetensors/.pt file")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Declare ``--weights`` of :func:`default_encoders`."""
    parser.add_argument(
        "--weights", default="default", help="MobileNetV2: 'default' (downloaded once), or a .safetensors/.pt file"
    )


def default_encoders(weights: str | Path) -> dict[str, Any]:
    """Return the package's default encoders as arguments of ``embed_patches``, MobileNetV2 in the place of ResNet50."""
    return {"encoder": ("mobilenet_v2", "texture"), "weights": (weights, "default")}


def add_tissues(parser: argparse.ArgumentParser) -> None:
    """Declare what studies on the data sets of several tissues have in common."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the data sets")
    add_weights(parser)
    add("--n-top-genes", type=int, default=1000, help="size of the panel (default: %(default)s)")
    add("--device", default="auto", choices=("auto", "cpu", "gpu", "mps"), help="default: %(default)s")
    add("--out", type=Path, default=Path("docs/results/tissues"), help="folder of tables (default: %(default)s)")
    add("--quiet", action="store_true", help="warnings only, no progress bars")


def ignore_warnings_of_others() -> None:
    """Ignore warnings that other packages raise about their own versions."""
    for category in (DeprecationWarning, FutureWarning, SyntaxWarning):
        warnings.filterwarnings("ignore", category=category)


def log_progress() -> None:
    """Print the package's messages, and none of the :func:`ignored warnings <ignore_warnings_of_others>`."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("st_gchb").setLevel(logging.INFO)
    ignore_warnings_of_others()


def run_study(study: str, run: Callable[[argparse.Namespace], list[Path]], arguments: argparse.Namespace) -> int:
    """Run a study, print its tables, and return the status of the command.

    An invalid argument, or data that cannot be used, are printed in one line and end it with status 2.

    Parameters
    ----------
    study
        Name of the study.
    run
        Function of the arguments that returns the files it has written.
    arguments
        Arguments of the command, with ``out`` and ``quiet``.
    """
    ignore_warnings_of_others()
    with st_gchb.settings.override(verbosity="WARNING" if arguments.quiet else "INFO"):
        try:
            paths = run(arguments)
        except STGCHBError as error:
            print(f"{study}: error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
    for path in paths:
        if path.suffix == ".md":
            print(f"\n{path.stem}\n{path.read_text(encoding='utf-8')}", end="")
    print(f"\nwritten to {arguments.out}: {', '.join(path.name for path in paths)}")
    return 0
