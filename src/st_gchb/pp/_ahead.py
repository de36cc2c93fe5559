"""Work that goes on in the background while what it gave is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")

AHEAD = 2
"""Items that are ready, or being made, while one is used."""
_END = object()


def read_ahead(items: Iterator[T]) -> Generator[T]:
    """Give the same items in the same order, made by one thread in the background, a few ahead.

    What the iterator raises is raised where its next item would have come. When the caller stops, by an error or by
    Ctrl-C, the thread ends with the item at hand; close the iterator for that (:func:`contextlib.closing`).

    Examples
    --------
    >>> from st_gchb.pp._ahead import read_ahead
    >>> list(read_ahead(iter("abcd")))
    ['a', 'b', 'c', 'd']
    """
    # Errors name the function that the user called: the background knows it too.
    context = copy_context()

    def take() -> T | object:
        return context.run(lambda: next(items, _END))

    with ThreadPoolExecutor(1, thread_name_prefix="st_gchb-patches") as thread:
        waiting = deque(thread.submit(take) for _ in range(AHEAD))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(take))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
