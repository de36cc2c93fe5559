"""Termination by signals: an exception ends the work, after partial output has been completed or removed."""

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
"""Seconds within which further signals count as one request, and must not interrupt the cleanup after the first."""


class Stopped(BaseException):
    """The process received a signal to end; not an ``Exception``, so that no library handles it as a failure.

    Parameters
    ----------
    number
        Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _State:
    """Signal that this process received, shared by all threads."""

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
    """Raise the exception of a received signal once more, for threads other than the main one and for lost exceptions.

    Raises
    ------
    KeyboardInterrupt, Stopped
        The process received a signal to end.
    """
    if _State.number is not None:
        raise _exception(_State.number)


def is_stopping() -> bool:
    """Return whether a signal has requested the current work to end."""
    return _State.number is not None


@contextmanager
def stoppable() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the block by an exception, and restore the handlers after it.

    The caller's own handlers are kept, and so are ignored signals, as under ``nohup``. Nothing changes within another
    such block, or in threads other than the main one, which alone may set handlers.
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
    """Let signals end a block of a public function by an error of the package.

    Parameters
    ----------
    what
        Subject of the message's sentence, such as ``"Training"``.
    advice
        Advice on how to continue.

    Raises
    ------
    TerminatedError
        The process received SIGTERM or SIGHUP. Ctrl-C still raises KeyboardInterrupt.
    """
    if _State.active:
        # The outermost block belongs to the function that the user called.
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
    """Delay signals that arrive during a short block until the block has ended."""
    if not _in_main_thread():
        yield
        return
    arrived: list[int] = []
    earlier: dict[int, Any] = {}
    for number in SIGNALS:
        # None stands for a handler that was not set from Python and cannot be restored from Python.
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
