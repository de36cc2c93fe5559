"""Worker processes on this machine, which share the libraries in memory where the system can."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client

WORKER_IMPORTS = "st_gchb.cohort._imported"
"""Module that imports what a worker needs, by name: it is imported in the process of which workers are forked."""


@contextmanager
def local_workers(n_workers: int) -> Iterator[Client]:
    """Start worker processes on this machine, with one thread each, and connect to them.

    On Linux they are forked of a process that has imported the libraries, once for all: a worker starts at once, and
    holds in memory of its own only what it computes.

    Parameters
    ----------
    n_workers
        Number of processes.

    Yields
    ------
    distributed.Client
        Client of the workers, which end with the context.
    """
    import dask
    from distributed import Client, LocalCluster

    # On a busy machine, a worker that died may not restart within dask's limit of 15 s, after which it is given up.
    settings = {"distributed.deploy.lost-worker-timeout": "1 hour"}
    # macOS offers it too, where system libraries do not survive a fork.
    if sys.platform == "linux":
        _start_server()
        settings["distributed.worker.multiprocessing-method"] = "forkserver"
    with (
        dask.config.set(settings),
        LocalCluster(n_workers=n_workers, threads_per_worker=1, dashboard_address=None) as local,
        Client(local) as client,
    ):
        yield client


def _start_server() -> None:
    """Start the process of which workers are forked, unless this process has started one before."""
    import dask

    # dask sets these, too, before it starts a worker: here they are read when the libraries are imported.
    environment = dask.config.get("distributed.nanny.pre-spawn-environ")
    for name, value in environment.items():
        if value is not None:
            os.environ.setdefault(name, str(value))
    multiprocessing.get_context("forkserver").set_forkserver_preload([WORKER_IMPORTS])
    forkserver.ensure_running()
