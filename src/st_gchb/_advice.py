"""Advice at the end of messages, phrased with the arguments of the public function that the user called.

Internal checks know which arguments would solve a problem, but not which of them the called function or command takes.
:class:`EntryPoint` records that function, and :func:`advise` names only the arguments that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class EntryPoint:
    """Entry point: the public function or command that the user called.

    Parameters
    ----------
    name
        Name of the entry point in messages.
    arguments
        Its arguments by their names in the package's own functions, each with the text that the user writes:
        ``"image="`` in Python, ``"--image"`` on the command line.
    """

    name: str
    arguments: Mapping[str, str]


_entry_point: ContextVar[EntryPoint | None] = ContextVar("st_gchb_entry_point", default=None)


def current_entry_point() -> EntryPoint | None:
    """Return the entry point that the user called; None outside of one, and in threads that do not copy the context."""
    return _entry_point.get()


@contextmanager
def entered(entry_point: EntryPoint) -> Iterator[None]:
    """Record the entry point that was called, for a block; within another entry point, the outer one stays."""
    if _entry_point.get() is not None:
        yield
        return
    token = _entry_point.set(entry_point)
    try:
        yield
    finally:
        _entry_point.reset(token)


@dataclass(frozen=True)
class Fix:
    """Remedy for a problem: an argument, and the value to pass.

    Parameters
    ----------
    argument
        Name of the argument in the package's own functions.
    value
        Value to pass, as Python; quotes around a word are dropped on the command line.
    why
        Purpose or further description, appended to the advice.
    """

    argument: str
    value: str = ""
    why: str = ""


_OPTION: Final = "--"


@contextmanager
def standing_at(name: str, **arguments: str) -> Iterator[None]:
    """Add inputs that the entry point takes other than as arguments, such as columns of a table, for a block.

    Parameters
    ----------
    name
        Name of the entry point in messages, if none was entered.
    arguments
        Text that the user writes for each input; arguments of an entry point that was entered take precedence.
    """
    entry_point = _entry_point.get()
    known = {} if entry_point is None else dict(entry_point.arguments)
    token = _entry_point.set(EntryPoint(name if entry_point is None else entry_point.name, arguments | known))
    try:
        yield
    finally:
        _entry_point.reset(token)


def knows(argument: str) -> bool:
    """Return whether the called function has an argument; True if no entry point was entered."""
    entry_point = _entry_point.get()
    return entry_point is None or argument in entry_point.arguments


def advise(*fixes: Fix, otherwise: str = "") -> str:
    """Name the arguments of the called function that solve a problem; arguments that it lacks are left out.

    Parameters
    ----------
    fixes
        Remedies, best first.
    otherwise
        Sentence to return if the function has none of these arguments.

    Returns
    -------
    str
        The advice, as a sentence.

    Examples
    --------
    >>> from st_gchb._advice import EntryPoint, Fix, advise, entered
    >>> fixes = Fix("image", why="with the full-resolution image"), Fix("image_key", "'hires'")
    >>> advise(*fixes)
    "Pass image= with the full-resolution image, or image_key='hires'."
    >>> with entered(EntryPoint("st-gchb predict", {"image": "--image"})):
    ...     advise(*fixes)
    'Pass --image with the full-resolution image.'
    """
    entry_point = _entry_point.get()
    ways = [
        _written(fix, f"{fix.argument}=" if entry_point is None else entry_point.arguments[fix.argument])
        for fix in fixes
        if entry_point is None or fix.argument in entry_point.arguments
    ]
    return f"Pass {', or '.join(ways)}." if ways else otherwise


def _written(fix: Fix, argument: str) -> str:
    """Format a remedy as the user would write it."""
    if fix.value and argument.startswith(_OPTION):
        # An option that switches something on takes no value.
        argument = argument if fix.value == "True" else f"{argument} {fix.value.strip(chr(39))}"
    else:
        argument += fix.value if argument.endswith("=") else f" {fix.value}".rstrip()
    return f"{argument} {fix.why}".rstrip()
