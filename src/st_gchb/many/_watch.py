"""Say so while a cluster has no worker: slides that only wait look like slides that are computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from st_gchb._logging import logger
from st_gchb.many._work import OF_CALL

if TYPE_CHECKING:
    from distributed import Client

SECONDS = 30.0
"""Time between two looks. A worker that dask starts again is back before the second."""


@contextmanager
def watched(client: Client) -> Iterator[None]:
    """Log it when a cluster has been without a worker for two looks, and again when there is one."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(client, over, SECONDS), name="st_gchb watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Without waiting for it: it may be asking a cluster that does not answer.
        over.set()


def _watch(client: Client, over: threading.Event, seconds: float) -> None:
    looks_without, told = 0, False
    while not over.wait(seconds):
        try:
            n_workers = len(client.nthreads())
        except (OSError, RuntimeError, AttributeError):
            # The connection is lost, or closed: a closed client has no scheduler to ask. The slides say why they end.
            return
        looks_without = 0 if n_workers else looks_without + 1
        if looks_without == 2:
            told = True
            logger.warning(
                "The cluster has had no worker for %g s or more: slides wait until there is one. "
                "What is done is kept: you can also interrupt, and call again.",
                seconds,
                extra=OF_CALL,
            )
        if told and n_workers:
            told = False
            logger.info("The cluster has workers again: %d.", n_workers)
