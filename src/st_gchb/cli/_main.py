"""Parse arguments, run a sub-command, turn our errors into one line and status 2."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from st_gchb import __version__
from st_gchb._advice import Door, entered
from st_gchb._errors import STGCHBError
from st_gchb._settings import settings
from st_gchb.cli import _demo, _evaluate, _predict, _predict_many, _study, _train
from st_gchb.cli._arguments import check_machine, options_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; by default the process's.

    Returns
    -------
    Exit status: 0, 1 if some of many slides failed, 2 on bad input, or 130 when it was stopped by Ctrl-C.

    Examples
    --------
    >>> main(["--version"])
    Traceback (most recent call last):
    SystemExit: 0
    """
    arguments = build_parser().parse_args(argv)
    with settings.override(verbosity="WARNING" if arguments.quiet else "INFO"), warnings.catch_warnings():
        # Notices of the libraries to their own developers would bury what the command says.
        for category in (DeprecationWarning, FutureWarning, SyntaxWarning):
            warnings.filterwarnings("ignore", category=category)
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    """Run a sub-command and turn the way it ends into a status."""
    try:
        check_machine(arguments)
        with entered(Door("st-gchb", options_of(arguments))):
            status = arguments.run(arguments)
    # Also what the system says of files: a full disk is no fault of ours that a traceback would help with.
    except (STGCHBError, OSError) as error:
        print(f"st-gchb: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns Ctrl-C into an end of its own.
        if not isinstance(stop, KeyboardInterrupt) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print(_interrupted(arguments), file=sys.stderr)
        return 130
    return status or 0


def _interrupted(arguments: argparse.Namespace) -> str:
    advice = getattr(arguments, "when_interrupted", None)
    return f"st-gchb: interrupted; {advice(arguments)}" if advice else "st-gchb: interrupted"


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, and where the help is, instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        self.exit(2, f"st-gchb: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands."""
    parser = OneLineParser(
        prog="st-gchb", description="Gene expression from H&E: train on slides that have both, predict for H&E alone."
    )
    parser.add_argument("--version", action="version", version=f"st-gchb {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="{demo,train,predict,predict-many,evaluate,study}"
    )
    for module in (_demo, _train, _predict, _predict_many, _evaluate, _study):
        module.add_parser(commands)
    return parser
