"""How work ends that is told to end: by an exception, after what lies half-written is whole or gone."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from st_gchb._errors import TerminatedError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAME_WISH_S = 3.0
"""Signals that follow within this time are the same wish to end, and must not cut short what the first one began."""


class Stopped(BaseException):
    """The process was told to end by a signal; no kind of ``Exception``, so that no library takes it for a failure.

    Parameters
    ----------
    number
        Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _State:
    """What this process was told; signals come to the process, whichever thread is at work."""

    active = False
    number: int | None = None
    since = 0.0


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.number is not None and now - _State.since < _SAME_WISH_S:
        return
    _State.number, _State.since = number, now
    raise _exception(number)


def _exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else Stopped(number)


def check_stopped() -> None:
    """Raise again what a signal raised: threads beside the main one hear of it here, and so does a block that lost it.

    Raises
    ------
    KeyboardInterrupt, Stopped
        The process was told to end.
    """
    if _State.number is not None:
        raise _exception(_State.number)


def is_stopping() -> bool:
    """Whether a signal has told the work that is going on to end."""
    return _State.number is not None


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the block by an exception, and put the handlers back after it.

    Handlers of the caller's own stay, and signals that are ignored, as under ``nohup``, stay so. In another thread than
    the main one, which alone may set handlers, and within another such block nothing is changed.
    """
    if _State.active or not _in_main_thread():
        yield
        return
    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number, one in earlier.items() if one in (signal.SIG_DFL, signal.default_int_handler)]
    _State.active = True
    try:
        for number in taken:
            signal.signal(number, _handle)
        yield
    finally:
        _State.active, _State.number = False, None
        for number in taken:
            signal.signal(number, earlier[number])


@contextmanager
def ended_by_signal(what: str, advice: str) -> Iterator[None]:
    """Let signals end a block of a function that users call, by an error of the package's.

    Parameters
    ----------
    what
        Sentence's subject, such as ``"Training"``.
    advice
        How to go on.

    Raises
    ------
    TerminatedError
        The process was told to end by SIGTERM or SIGHUP. Ctrl-C stays a KeyboardInterrupt.
    """
    if _State.active:
        # The outermost block knows best what the user called.
        yield
        return
    with stoppable():
        try:
            yield
        except Stopped as stop:
            name = signal.Signals(stop.number).name
            raise TerminatedError(f"{what} was ended by {name}. {advice}", stop.number) from None


@contextmanager
def held_back() -> Iterator[None]:
    """Let a short block come to its end before a signal that arrives in it does what it would have done."""
    if not _in_main_thread():
        yield
        return
    arrived: list[int] = []
    earlier: dict[int, Any] = {}
    for number in SIGNALS:
        # None is a handler that was not set from Python, and cannot be put back from there.
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            earlier[number] = signal.signal(number, lambda found, frame: arrived.append(found))
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
