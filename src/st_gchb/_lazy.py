"""Rooms whose names are imported when they are first asked for, since some bring libraries that take seconds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lazy_loader


def attach_stub(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make ``__getattr__``, ``__dir__`` and ``__all__`` of a room from its stub, ``__init__.pyi``.

    Parameters
    ----------
    package
        ``__name__`` of the room.
    file
        ``__file__`` of the room, beside which the stub lies.

    Returns
    -------
    tuple
        Functions and list for the room's module.
    """
    find, list_names, names = lazy_loader.attach_stub(package, file)

    def import_name(name: str) -> Any:
        with without_collection():
            return find(name)

    return import_name, list_names, names


@contextmanager
def without_collection() -> Iterator[None]:
    """Import without garbage collection, which would take a fifth of the time.

    What is imported is no garbage, and Python would pass over all of it again and again. Collection is put off and not
    disabled: dask notes when it is imported whether it is enabled, and leaves it so for good.
    """
    first, *others = gc.get_threshold()
    if first == 0:
        yield
        return
    try:
        gc.set_threshold(0)
        yield
    finally:
        gc.set_threshold(first, *others)
