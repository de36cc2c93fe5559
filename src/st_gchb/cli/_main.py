"""Entry point of the command line: parse arguments, run a sub-command, report errors in one line with status 2."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from st_gchb import __version__
from st_gchb._advice import EntryPoint, entered
from st_gchb._errors import STGCHBError
from st_gchb._settings import settings
from st_gchb._signals import Stopped, check_stopped, stoppable
from st_gchb.cli import _demo, _evaluate, _hest_bench, _predict, _predict_many, _report, _train
from st_gchb.cli._arguments import check_inputs, check_machine, options_of

_FOR_DEVELOPERS = (DeprecationWarning, FutureWarning, SyntaxWarning)
"""Warnings of other libraries for developers, which would bury the command's own output."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit status: 0 on success; 1 if some of many slides failed; 2 on bad input; 128 plus the number of the signal
        that ended the command: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.

    Examples
    --------
    >>> main(["--version"])
    Traceback (most recent call last):
    SystemExit: 0
    """
    arguments = build_parser().parse_args(argv)
    quiet = settings.override(verbosity="WARNING" if arguments.quiet else "INFO")
    with stoppable(), quiet, warnings.catch_warnings():
        for category in _FOR_DEVELOPERS:
            warnings.filterwarnings("ignore", category=category)
        # Libraries that set filters of their own when they are imported would overrule these.
        warnings.showwarning = partial(_show_to_user, warnings.showwarning)
        return _run(arguments)


def _show_to_user(show: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Show a warning unless it is for developers."""
    if not issubclass(category, _FOR_DEVELOPERS):
        show(message, category, *place)


def _run(arguments: argparse.Namespace) -> int:
    """Run a sub-command and turn its outcome into an exit status."""
    try:
        check_inputs(arguments)
        check_machine(arguments)
        with entered(EntryPoint("st-gchb", options_of(arguments))):
            status = arguments.run(arguments)
        # A library may have swallowed the exception of a signal.
        check_stopped()
    # OSError covers failures of the file system such as a full disk, for which a traceback is of no use.
    except (STGCHBError, OSError) as error:
        print(f"st-gchb: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _ended(arguments, "interrupted", signal.SIGINT)
    except Stopped as stop:
        return _ended(arguments, f"ended by {signal.Signals(stop.number).name}", stop.number)
    except SystemExit as stop:
        # Lightning turns KeyboardInterrupt into SystemExit.
        if isinstance(stop.__context__, KeyboardInterrupt):
            return _ended(arguments, "interrupted", signal.SIGINT)
        raise
    return status or 0


def _ended(arguments: argparse.Namespace, how: str, number: int) -> int:
    """Print how to continue, and return the status that a shell assigns to the signal."""
    print(f"st-gchb: {how}; {arguments.when_interrupted(arguments)}", file=sys.stderr)
    return 128 + number


class OneLineParser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line with a pointer to the help, instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with status 2."""
        self.exit(2, f"st-gchb: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with all sub-commands."""
    parser = OneLineParser(
        prog="st-gchb",
        description="Gene expression from H&E: train on slides that have both, predict for H&E alone.",
        epilog="exit status: 0; 1 if some of many slides failed; 2 on bad input; 130 after Ctrl-C, 143 after SIGTERM",
    )
    parser.add_argument("--version", action="version", version=f"st-gchb {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="{demo,train,predict,predict-many,report,evaluate,hest-bench}"
    )
    for module in (_demo, _train, _predict, _predict_many, _report, _evaluate, _hest_bench):
        module.add_parser(commands)
    return parser
