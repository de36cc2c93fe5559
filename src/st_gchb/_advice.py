"""Advice in the words of the function that the user called: which of its arguments mends what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Door:
    """The public function, or command, that the user called.

    Parameters
    ----------
    name
        What messages call it.
    arguments
        Its arguments by the names that the package's own functions use, with what the user writes for each:
        ``"image="`` in Python, ``"--image"`` on the command line.
    """

    name: str
    arguments: Mapping[str, str]


_door: ContextVar[Door | None] = ContextVar("st_gchb_door", default=None)


def current_door() -> Door | None:
    """Give the function that the user called; None outside of public functions, and in threads that copy no context."""
    return _door.get()


@contextmanager
def entered(door: Door) -> Iterator[None]:
    """Take ``door`` for what the user called, unless it is called from within another one."""
    if _door.get() is not None:
        yield
        return
    token = _door.set(door)
    try:
        yield
    finally:
        _door.reset(token)


@dataclass(frozen=True)
class Fix:
    """One way to mend what was found: an argument, and what to give it.

    Parameters
    ----------
    argument
        Its name in the package's own functions.
    value
        What to give, as Python; a quoted word is written without quotes on the command line.
    why
        What for, put behind.
    """

    argument: str
    value: str = ""
    why: str = ""


_OPTION: Final = "--"


@contextmanager
def standing_at(name: str, **arguments: str) -> Iterator[None]:
    """Work for a door that takes something in another way than by an argument, such as in a column of a table.

    Parameters
    ----------
    name
        What messages call the door, where none was entered.
    arguments
        What the user writes; what the door that was entered has goes before.
    """
    door = _door.get()
    known = {} if door is None else dict(door.arguments)
    token = _door.set(Door(name if door is None else door.name, arguments | known))
    try:
        yield
    finally:
        _door.reset(token)


def knows(argument: str) -> bool:
    """Whether the called function has an argument; True where it is not known which was called."""
    door = _door.get()
    return door is None or argument in door.arguments


def advise(*fixes: Fix, otherwise: str = "") -> str:
    """Tell which arguments of the called function mend what was found; those that it lacks are not named.

    Parameters
    ----------
    fixes
        Ways to mend it, best first.
    otherwise
        Sentence for a function that has none of these arguments.

    Examples
    --------
    >>> from st_gchb._advice import Door, Fix, advise, entered
    >>> fixes = Fix("image", why="with the full-resolution image"), Fix("image_key", "'hires'")
    >>> advise(*fixes)
    "Pass image= with the full-resolution image, or image_key='hires'."
    >>> with entered(Door("st-gchb predict", {"image": "--image"})):
    ...     advise(*fixes)
    'Pass --image with the full-resolution image.'
    """
    door = _door.get()
    ways = [
        _written(fix, f"{fix.argument}=" if door is None else door.arguments[fix.argument])
        for fix in fixes
        if door is None or fix.argument in door.arguments
    ]
    return f"Pass {', or '.join(ways)}." if ways else otherwise


def _written(fix: Fix, argument: str) -> str:
    """One way as the user writes it."""
    if fix.value and argument.startswith(_OPTION):
        argument = f"{argument} {fix.value.strip(chr(39))}"
    else:
        argument += fix.value if argument.endswith("=") else f" {fix.value}".rstrip()
    return f"{argument} {fix.why}".rstrip()
