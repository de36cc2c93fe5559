"""Logger and progress bars of the package."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TypeVar

from tqdm.auto import tqdm

from st_gchb._settings import bars_disabled
from st_gchb._signals import check_stopped

T = TypeVar("T")

logger = logging.getLogger("st_gchb")


class _Console(logging.Handler):
    """Write messages to stderr, above a running progress bar instead of into it.

    Records also propagate to the handlers of the root logger, so that the user's log files and the tests of other
    projects receive them. If one of those handlers writes to the console, this one stays silent.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if any(_writes_to_console(other) for other in _handlers_above()):
            return
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        # A console that is closed, or cannot encode a character, must not abort the work being reported.
        except (OSError, ValueError):
            self.handleError(record)


def _handlers_above() -> list[logging.Handler]:
    return logging.getLogger().handlers if logger.propagate else []


def _writes_to_console(handler: logging.Handler) -> bool:
    streams = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    # Rich's handler has a console instead of a stream.
    return getattr(handler, "stream", None) in streams or hasattr(handler, "console")


_console = _Console()
_console.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))
logger.addHandler(_console)


def track(items: Iterable[T], description: str, total: int | None = None, delay: float = 0.0) -> Iterator[T]:
    """Iterate with a progress bar, shown after ``delay`` seconds if ``settings.progress_bars`` is on."""
    for item in tqdm(items, desc=description, total=total, disable=bars_disabled(), leave=False, delay=delay):
        check_stopped()
        yield item


@contextmanager
def track_steps(description: str, n_steps: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar over steps that have names, if ``settings.progress_bars`` is on.

    Yields
    ------
    callable
        Function to be called with the name of each step when it begins.

    Examples
    --------
    >>> from st_gchb._logging import track_steps
    >>> with track_steps("Fitting", 2) as begin:
    ...     begin("genes")
    ...     begin("network")
    """
    with tqdm(desc=description, total=n_steps, unit="step", disable=bars_disabled(), leave=False) as bar:
        over = count()

        def begin(step: str) -> None:
            check_stopped()
            bar.n = next(over)
            bar.set_description(f"{description}: {step}")

        yield begin


@contextmanager
def others_quiet() -> Iterator[None]:
    """Suppress messages of other libraries about steps that the caller did not ask for; warnings are still shown."""
    names = ("spatialdata._logging", "scvi", "lightning.pytorch")
    loggers = [logging.getLogger(name) for name in names]
    levels = [other.level for other in loggers]
    try:
        _set_levels(loggers, [max(level, logging.WARNING) for level in levels])
        yield
    finally:
        _set_levels(loggers, levels)


def _set_levels(loggers: Iterable[logging.Logger], levels: Iterable[int]) -> None:
    for other, level in zip(loggers, levels, strict=True):
        # Even one that stays as it is makes logging forget what it knows of every logger of the process.
        if other.level != level:
            other.setLevel(level)


@contextmanager
def all_quiet() -> Iterator[None]:
    """Suppress all messages of the package while files are validated that are read later, with the same messages."""

    def never(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(never)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(never)


@contextmanager
def steps_quiet() -> Iterator[None]:
    """Suppress the package's messages about single steps while hundreds of models are trained, except warnings."""

    def important(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO

    logger.addFilter(important)
    try:
        yield
    finally:
        logger.removeFilter(important)
