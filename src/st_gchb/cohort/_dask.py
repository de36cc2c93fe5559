"""Distribution of slides: one after another in this process, or to the workers of a dask cluster."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_gchb._errors import ClusterError, InputError
from st_gchb._logging import logger
from st_gchb._settings import without_bars
from st_gchb._signals import is_stopping
from st_gchb.cohort._manifest import Slide
from st_gchb.cohort._receipts import FAILED, Receipt, stop, times_begun
from st_gchb.cohort._worker import DEATHS, OF_CALL, Job, UnfitError, check_fit, died, do_slide, look_around

if TYPE_CHECKING:
    from distributed import Client, Future

SECONDS = 30.0
"""Interval between two checks for workers. A worker that dask restarts is back before the second check."""


@contextmanager
def watched(client: Client) -> Iterator[None]:
    """Warn when the dask cluster has had no workers at two checks in a row, and log when it has some again."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(client, over, SECONDS), name="st_gchb watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        # The thread is not joined, since it may be waiting for a cluster that does not answer.
        over.set()


def _watch(client: Client, over: threading.Event, seconds: float) -> None:
    looks_without, told = 0, False
    while not over.wait(seconds):
        try:
            n_workers = len(client.nthreads())
        except (OSError, RuntimeError, AttributeError):
            # The connection is lost or the client is closed, in which case it has no scheduler (AttributeError). The
            # slides report the error.
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


_PATIENCE = 3
"""Number of times that a slide is sent again after dask gave it up before it was started."""


def send(slides: list[Slide], job: Job, client: Client | None) -> Generator[Receipt, None, None]:
    """Process all slides, and yield a receipt for each as it finishes or fails.

    Parameters
    ----------
    slides
        The slides.
    job
        The job to run on each slide.
    client
        Client of a dask cluster; ``None`` computes in this process.

    Yields
    ------
    Receipt
        The result of a slide, or the error with which it failed.

    Raises
    ------
    ClusterError
        The cluster was lost, or a worker is unfit for all slides.
    """
    if client is None:
        yield from _here(slides, job)
    else:
        with watched(client):
            yield from _Sent(slides, job, client).receipts()


def check_client(client: Any) -> None:
    """Validate that ``client`` is a running, synchronous client of dask.

    Raises
    ------
    InputError
        It is another object, asynchronous, or not running.
    """
    from distributed import Client

    if not isinstance(client, Client):
        raise InputError(f"client= is a {type(client).__name__}; expected a dask.distributed.Client, or None.")
    if client.asynchronous:
        raise InputError("client= is asynchronous; expected one that can be waited for, Client(address).")
    if client.status != "running":
        raise InputError(f"client= is {client.status}: it is connected to no cluster. Make a new Client.")


def check_workers(client: Client, job: Job) -> None:
    """Check that the present workers have this version of the package and see all files of the job.

    Raises
    ------
    ClusterError
        A worker cannot import the package, has another version, or does not see a file.
    """
    try:
        found = client.run(look_around, job.needs)
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"a worker cannot import what is needed ({error}). Install st-gchb {job.version} in its environment."
        ) from error
    for address, seen in found.items():
        check_fit(address, seen, job)
    if not found:
        logger.warning("The cluster has no worker yet: slides wait until there is one.", extra=OF_CALL)


def failed(slide: Slide, error: BaseException, attempts: int = 1) -> Receipt:
    """Make the receipt of a slide that failed."""
    text = " ".join(str(error).split())
    return Receipt(slide.name, slide.path, FAILED, message=f"{type(error).__name__}: {text}", attempts=attempts)


def _end_if_unfit(error: BaseException | None) -> None:
    """End the call if a worker that joined late is unfit, as :func:`check_workers` does for the first workers.

    Raises
    ------
    ClusterError
        ``error`` is an :class:`UnfitError`.
    """
    if isinstance(error, UnfitError):
        raise ClusterError(f"{error} What is done is kept: stop that worker, and call again to go on.") from error


def _here(slides: list[Slide], job: Job) -> Generator[Receipt, None, None]:
    # One thread, as on a worker: its futures hold any error with which a slide fails.
    pool = ThreadPoolExecutor(1, thread_name_prefix="st_gchb")
    try:
        open_slides = {pool.submit(do_slide, slide, job, job.threads): slide for slide in slides}
        for future in as_completed(open_slides):
            error = future.exception()
            _end_if_unfit(error)
            slide = open_slides.pop(future)
            yield future.result() if error is None else failed(slide, error)
    finally:
        # After a signal, the running slide ends at its next step, so it is waited for; otherwise it is not.
        pool.shutdown(wait=is_stopping(), cancel_futures=True)


def _on_worker(slide: Slide, job: Job) -> Receipt:
    """Process one slide as a task of dask."""
    from distributed import get_worker

    with without_bars():
        return do_slide(slide, job, job.threads or get_worker().state.nthreads)


class _Sent:
    """Slides that were sent to a cluster and have not come back."""

    def __init__(self, slides: list[Slide], job: Job, client: Client) -> None:
        self._slides, self._job, self._client = slides, job, client
        self._open: dict[Any, tuple[Slide, Future]] = {}
        self._given_up: Counter[str] = Counter()
        self._numbers = itertools.count()

    def receipts(self) -> Generator[Receipt, None, None]:
        from distributed import as_completed as as_finished

        try:
            finished = as_finished(self._send(self._slides), loop=self._client.loop)
            for future in finished:
                slide, _ = self._open[future.key]
                receipt = self._receipt(slide, future)
                # While their futures are held, dask recomputes the finished tasks of a worker that died.
                del self._open[future.key]
                future.release()
                if receipt is None:
                    finished.update(self._send([slide]))
                else:
                    yield receipt
        finally:
            self._cancel()

    def _send(self, slides: list[Slide]) -> list[Future]:
        """Submit slides to the cluster.

        They are submitted all at once: the scheduler hands them to free workers, and an adaptive cluster scales with
        the number of waiting tasks. Keys of tasks are tuples, which cannot equal a string among the arguments: dask
        would replace such a string by the result of the task.
        """
        keys = [(f"{self._job.step.settings['what']}-{self._job.call}", next(self._numbers)) for _ in slides]
        # The result depends on files that may change, so dask must not reuse it for the same arguments (pure=False).
        futures: list[Future] = self._client.map(_on_worker, slides, key=keys, pure=False, job=self._job)
        self._open |= {future.key: (slide, future) for slide, future in zip(slides, futures, strict=True)}
        return futures

    def _receipt(self, slide: Slide, future: Future) -> Receipt | None:
        """Return the receipt of a slide that came back, or ``None`` if it is to be sent again.

        Raises
        ------
        ClusterError
            The cluster was lost, or a worker is unfit for all slides.
        """
        from distributed import KilledWorker

        if future.status == "cancelled":
            raise ClusterError(
                "the cluster was lost, or its tasks were canceled. What is done is kept: call again to go on."
            )
        error = future.exception()
        if error is None:
            try:
                receipt: Receipt = future.result()
                return receipt
            except KilledWorker as late:
                # The worker died before its receipt was fetched, and so did the workers that dask tried next.
                error = late
        _end_if_unfit(error)
        if not isinstance(error, KilledWorker):
            return failed(slide, error)
        attempts = times_begun(Path(self._job.out), slide.name, self._job.call)
        self._given_up[slide.name] += 1
        if attempts >= DEATHS:
            return failed(slide, ClusterError(died(attempts)), attempts)
        if self._given_up[slide.name] > _PATIENCE:
            return failed(slide, error, attempts)
        logger.info("%s was on a worker that died, and is sent again.", slide.name)
        return None

    def _cancel(self) -> None:
        if not self._open:
            return
        stop(Path(self._job.out), self._job.call)
        if self._client.status == "running":
            logger.warning("%d slides are canceled; those that are done are kept.", len(self._open), extra=OF_CALL)
            self._client.cancel([future for _, future in self._open.values()], force=True)
