"""The package's one logger and its progress bars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm.auto import tqdm

from st_gchb._settings import bars_disabled
from st_gchb._signals import check_stopped

T = TypeVar("T")

logger = logging.getLogger("st_gchb")


class _Console(logging.Handler):
    """Write messages to stderr, above a progress bar that is running, not into it.

    Messages are also handed on to the handlers of the root logger, so that a log file of the user's and the tests of
    other projects hear them. Where one of those writes to the console itself, this one keeps still.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if any(_writes_to_console(other) for other in _handlers_above()):
            return
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        # A console that is closed, or cannot show a letter, must not end the work that the message tells of.
        except (OSError, ValueError):
            self.handleError(record)


def _handlers_above() -> list[logging.Handler]:
    return logging.getLogger().handlers if logger.propagate else []


def _writes_to_console(handler: logging.Handler) -> bool:
    streams = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    # Rich's handler has a console in place of a stream.
    return getattr(handler, "stream", None) in streams or hasattr(handler, "console")


_console = _Console()
_console.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))
logger.addHandler(_console)


def track(items: Iterable[T], description: str, total: int | None = None, delay: float = 0.0) -> Iterator[T]:
    """Iterate with a progress bar after ``delay`` seconds, where ``settings.progress_bars`` asks for one."""
    for item in tqdm(items, desc=description, total=total, disable=bars_disabled(), leave=False, delay=delay):
        check_stopped()
        yield item


@contextmanager
def others_quiet() -> Iterator[None]:
    """Keep the libraries underneath from reporting steps that the caller did not ask for; warnings still show."""
    names = ("spatialdata._logging", "scvi", "lightning.pytorch")
    loggers = [logging.getLogger(name) for name in names]
    levels = [other.level for other in loggers]
    try:
        for other in loggers:
            other.setLevel(max(other.level, logging.WARNING))
        yield
    finally:
        for other, level in zip(loggers, levels, strict=True):
            other.setLevel(level)


@contextmanager
def steps_quiet() -> Iterator[None]:
    """Hold back what the package says of each step, where hundreds of models are trained; warnings still show."""

    def important(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO

    logger.addFilter(important)
    try:
        yield
    finally:
        logger.removeFilter(important)
