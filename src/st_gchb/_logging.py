"""The package's one logger and its progress bars."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")

logger = logging.getLogger("st_gchb")


def set_verbosity(level: int | str) -> None:
    """Set how much the package says.

    Parameters
    ----------
    level
        A level of :mod:`logging`, such as ``"WARNING"`` (quiet: no progress bars) or ``"INFO"``.

    Examples
    --------
    >>> from st_gchb._logging import set_verbosity
    >>> set_verbosity("INFO")
    """
    logger.setLevel(level)
    if not logger.handlers:
        handler = _AboveBars(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)-8s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


class _AboveBars(logging.StreamHandler):
    """Writes lines above a progress bar that is running, not into it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        tqdm.write(self.format(record), file=self.stream)


def track(items: Iterable[T], description: str, total: int | None = None, delay: float = 0.0) -> Iterator[T]:
    """Iterate with a progress bar after ``delay`` seconds, absent when the logger is quieter than ``INFO``."""
    quiet = logger.getEffectiveLevel() > logging.INFO
    return iter(tqdm(items, desc=description, total=total, disable=quiet, leave=False, delay=delay))


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
