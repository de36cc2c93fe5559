"""Threads that read ahead of whoever takes the patches, and share the work of reading: order, errors, end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from threading import Lock
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

AHEAD = 2
"""Items that are prefetched while one is being processed."""
_END = object()


def prefetch(items: Iterator[T]) -> Generator[T]:
    """Prefetch items from an iterator in a background thread.

    Items keep their order, and an exception of the iterator is raised in place of its next item. If the caller stops
    early, by an error or Ctrl-C, the thread ends after its current item and the iterator is closed, provided that the
    generator is (:func:`contextlib.closing`).

    Examples
    --------
    >>> from st_gchb.pp.patches import prefetch
    >>> list(prefetch(iter("abcd")))
    ['a', 'b', 'c', 'd']
    """
    # The context holds the function that the user called, which error messages from the thread need.
    context = copy_context()

    def take() -> T | object:
        return context.run(lambda: next(items, _END))

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="st_gchb-patches") as thread:
            waiting = deque(thread.submit(take) for _ in range(AHEAD))
            try:
                while (item := waiting.popleft().result()) is not _END:
                    waiting.append(thread.submit(take))
                    yield item  # type: ignore[misc]
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        # A generator that is not closed would keep its own threads for as long as a traceback refers to it.
        if isinstance(items, Generator):
            items.close()


class Task(Generic[T]):
    """A call that one of several threads makes: the first that comes to it, or else the one that needs its result.

    Parameters
    ----------
    call
        The call.
    others
        Tasks that a thread may take up while it waits for this one.
    """

    def __init__(self, call: Callable[[], T], others: Iterable[Task[Any]]) -> None:
        self._call, self._others = call, others
        self._claim, self._made = Lock(), Future[T]()

    @property
    def is_done(self) -> bool:
        """True if the call has been made."""
        return self._made.done()

    def run(self) -> None:
        """Make the call, unless a thread has taken it up already; an exception is raised with the result."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._made.set_result(self._call())
        except BaseException as error:
            self._made.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def result(self) -> T:
        """Return the result, or raise the exception of the call."""
        self.run()
        for other in tuple(self._others):
            if self.is_done:
                break
            other.run()
        return self._made.result()


class Workers:
    """Threads that share the work of reading a slide: the caller's, and others that end with the ``with`` block.

    Parameters
    ----------
    number
        Number of threads. One starts no other: each call is made where its result is asked for.

    Examples
    --------
    >>> from st_gchb.pp.patches._threads import Workers
    >>> with Workers(2) as workers:
    ...     squares = [workers.submit(pow, side, 2) for side in (3, 4)]
    ...     [square.result() for square in squares]
    [9, 16]
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool = ThreadPoolExecutor(number - 1, "st_gchb-reading", _alone) if number > 1 else None
        self._tasks: deque[Task[Any]] = deque()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, call: Callable[..., T], *arguments: Any) -> Task[T]:
        """Have a call made by the next thread that is free, in the context of the caller."""
        if self._pool is None:
            return Task(partial(call, *arguments), ())
        while self._tasks and self._tasks[0].is_done:
            self._tasks.popleft()
        task = Task(partial(copy_context().run, call, *arguments), self._tasks)
        self._tasks.append(task)
        self._pool.submit(task.run)
        return task


def _alone() -> None:
    """Keep torch to the calling thread, where its loops would start as many threads again for each of these."""
    # The first question sets the thread's number to that of the process, which the second call then replaces.
    torch.get_num_threads()
    _openmp().limit(limits=1, user_api="openmp")


@cache
def _openmp() -> Any:
    """Find the libraries of the process that have threads, once."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
