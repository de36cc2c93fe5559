"""Folders that are filled beside a store's elements and take their place in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl

_PREFIX = ".st_gchb-"
_LOCK, _ASIDE = "lock", "aside"
_STRAGGLERS_S = (0.05, 0.2, 1.0)
"""Where one write fails, zarr's others may still be under way. What they leave at last, the next write removes."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux's renameat2."""
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
"""What kernels and file systems answer that cannot exchange two names."""


@contextmanager
def work_folder(store: Path) -> Iterator[Path]:
    """Give a new hidden folder inside ``store``, removed at the end; locked, so that others see it is in use."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=store))
    try:
        with open(folder / _LOCK, "w") as lock:
            _take(lock)
            yield folder
    finally:
        for wait_s in _STRAGGLERS_S:
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(wait_s)


def clear_leftovers(store: Path) -> list[str]:
    """Remove work folders of processes that were killed, putting back what they had moved aside.

    Returns
    -------
    list of str
        Names of the folders that were removed.
    """
    removed = []
    for folder in sorted(store.glob(f"{_PREFIX}*")):
        if not _in_use(folder / _LOCK):
            for kept in folder.glob(f"{_ASIDE}/*/*"):
                place = store / kept.parent.name / kept.name
                if not place.exists():
                    os.rename(kept, place)
            shutil.rmtree(folder)
            removed.append(folder.name)
    return removed


def exchange(part: Path, place: Path, folder: Path) -> None:
    """Exchange two folders: at once where the system can, else by way of the work folder."""
    if _exchanged_at_once(part, place):
        return
    aside = folder / _ASIDE / place.parent.name / place.name
    aside.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as undo:
        os.rename(place, aside)
        undo.callback(os.rename, aside, place)
        os.rename(part, place)
        undo.callback(os.rename, place, part)
        os.rename(aside, part)
        undo.pop_all()


def _exchanged_at_once(first: Path, second: Path) -> bool:
    """Exchange two names in one step, of which a kill can leave no half; False where the system cannot."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def _take(lock: IO[str]) -> None:
    """Lock a file until it is closed, or its process ends. Windows keeps open files from being removed anyway."""
    if sys.platform != "win32":
        # Some network file systems know no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _in_use(lock: Path) -> bool:
    """Whether the process that made a work folder is still at it."""
    if not lock.exists():
        return False
    if sys.platform == "win32":
        try:
            lock.unlink()
        except PermissionError:
            return True
        return False
    with open(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no locks here
            return False
    return False
