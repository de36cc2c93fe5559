"""Write elements of a SpatialData into its Zarr store atomically.

Elements are written into a hidden, locked work folder inside the store and renamed into place when all are complete, so
that a failed or killed write leaves the store unchanged.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from st_gchb._arguments import checked
from st_gchb._compat import read_errors, store_format
from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingFileError, MissingKeyError, STGCHBError, StoreError
from st_gchb._logging import logger, others_quiet

if TYPE_CHECKING:
    from spatialdata import SpatialData

if sys.platform != "win32":
    import fcntl

_PREFIX = ".st_gchb-"
_LOCK, _ASIDE = "lock", "aside"
_STRAGGLERS_S = (0.05, 0.2, 1.0)
"""Waiting times between attempts to remove a work folder, s: when one write fails, zarr's other threads may still be
writing. Files that remain after the last attempt are removed by the next write."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Constants of Linux's ``renameat2``."""
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
"""Error codes of kernels and file systems that cannot exchange two names."""


@contextmanager
def work_folder(store: Path) -> Iterator[Path]:
    """Create a hidden work folder in ``store``, locked so that other processes leave it alone; remove it at exit."""
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
    """Remove work folders of killed processes, and restore elements that they had moved aside.

    Returns
    -------
    list of str
        Names of the removed folders.
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
    """Exchange two folders: in one step if the system supports it, else by moving one into the work folder first."""
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
    """Exchange two names atomically; return False if the system cannot."""
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
    """Lock a file until it is closed or its process ends; on Windows, open files cannot be removed anyway."""
    if sys.platform != "win32":
        # Some network file systems do not support locks.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _in_use(lock: Path) -> bool:
    """Check if the process that created a work folder still uses it."""
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
        except OSError:  # the file system does not support locks
            return False
    return False


_KINDS = ("images", "labels", "points", "shapes", "tables")
_WRITTEN = ("images", "shapes", "tables")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}


@checked
def write_elements(sdata: SpatialData, names: str | Sequence[str], *, overwrite: bool = False) -> None:
    """Write elements atomically into the Zarr store that backs a SpatialData.

    Unlike ``sdata.write_element``, a failed or killed write leaves the store unchanged: the elements are written chunk
    by chunk into a hidden folder of the store and renamed into place when all are complete.

    Parameters
    ----------
    sdata
        Object that holds the elements and is backed by a folder on disk.
    names
        Images, shapes and tables to write. Either all are written, or none.
    overwrite
        Replace existing elements of these names. A table predicted by this package is always replaced.

    Raises
    ------
    StoreError
        Writing failed, for example because the store is read-only or the disk is full. The elements are still in
        ``sdata``.
    InputError, MissingKeyError, MissingFileError
        ``sdata`` has no store on disk or lacks an element, or the store already has another element of that name.

    Notes
    -----
    Files that a killed process left behind are removed by the next write.

    Examples
    --------
    >>> import tempfile, numpy as np, spatialdata
    >>> from spatialdata.models import Image2DModel
    >>> import st_gchb
    >>> path = tempfile.mkdtemp() + "/sample.zarr"
    >>> sdata = spatialdata.SpatialData()
    >>> sdata.write(path)
    >>> sdata.images["he"] = Image2DModel.parse(np.zeros((3, 40, 50), np.uint8), dims=("c", "y", "x"))
    >>> st_gchb.io.write_elements(sdata, "he")
    >>> list(spatialdata.read_zarr(path).images)
    ['he']
    """
    wanted = list(dict.fromkeys([names] if isinstance(names, str) else names))
    kinds = {name: _kind_of(sdata, name) for name in wanted}
    store = check_store(sdata, kinds, overwrite=overwrite)
    earlier = [name for name, kind in kinds.items() if (store / kind / name).exists()]
    try:
        _write(sdata, kinds, store)
    except STGCHBError:
        raise
    except OSError as error:
        raise StoreError(_what_failed(kinds, earlier, store, error)) from error
    # Consolidating the metadata reads existing elements, which may be damaged.
    except read_errors() as error:
        raise InputError(
            f"{store}: nothing was written: what the store holds cannot be read ({type(error).__name__}: {error}). "
            "Write the whole object elsewhere with sdata.write(path)."
        ) from error
    logger.info("%s: wrote %s.", store, ", ".join(f"{kind}/{name}" for name, kind in kinds.items()))


def check_store(sdata: SpatialData, kinds: dict[str, str], *, overwrite: bool = False) -> Path:
    """Check that a store is writable and that element names are available in it.

    Parameters
    ----------
    sdata
        Object that must be backed by a folder.
    kinds
        Kind of each element, such as ``"tables"``, by its name.
    overwrite
        Allow elements of the same kind to be replaced.

    Returns
    -------
    pathlib.Path
        Folder of the store.

    Raises
    ------
    InputError, MissingFileError, StoreError
        The same conditions as in :func:`write_elements`.
    """
    if sdata.path is None:
        raise InputError("the SpatialData is not backed by a store. Write it first, sdata.write('sample.zarr').")
    store = Path(sdata.path)
    if not store.is_dir():
        raise MissingFileError(
            f"{sdata.path}: the SpatialData's store is no folder that is there; expected a local one. For a remote "
            "store use sdata.write_element, for one that was moved spatialdata.read_zarr."
        )
    for name, kind in kinds.items():
        for other in _KINDS:
            if not (store / other / name).exists() or (other == kind and (overwrite or _is_own(store, kind, name))):
                continue
            advice = ", or overwrite=True" if other == kind != "tables" else ""
            raise InputError(f"{store} has an element {other}/{name} already. Choose another name{advice}.")
    try:
        with work_folder(store):
            pass
    except OSError as error:
        raise StoreError(_what_failed(kinds, [], store, error)) from error
    return store


def is_stored(sdata: SpatialData, name: str) -> bool:
    """Check if the store of an object has an element of that name."""
    return sdata.path is not None and any((Path(sdata.path) / kind / name).exists() for kind in _KINDS)


def _kind_of(sdata: SpatialData, name: str) -> str:
    if name not in sdata:
        known = sorted(element for _, element, _ in sdata.gen_elements())
        raise MissingKeyError(f"the SpatialData has no element {name!r}; expected one of {known}.")
    kind = next(kind for kind in _KINDS if name in getattr(sdata, kind))
    if kind not in _WRITTEN:
        raise InputError(f"element {name!r} is one of {kind}; expected one of {_WRITTEN}. Use sdata.write_element.")
    return kind


def _is_own(store: Path, kind: str, name: str) -> bool:
    """Check if a stored table is an earlier prediction of this package."""
    return kind == "tables" and (store / kind / name / "uns" / Keys.UNS).exists()


def _write(sdata: SpatialData, kinds: dict[str, str], store: Path) -> None:
    for leftover in clear_leftovers(store):
        logger.info("%s: removed %s, which a write that was cut off had left.", store, leftover)
    consolidated = sdata.has_consolidated_metadata()
    with work_folder(store) as folder, ExitStack() as undo:
        new = folder / "new.zarr"
        _write_alone({name: sdata[name] for name in kinds}, new, store)
        for kind in dict.fromkeys(kinds.values()):
            if not (store / kind).exists():
                _move(new / kind, store / kind, undo)
                continue
            for name in (name for name, other in kinds.items() if other == kind):
                part, place = new / kind / name, store / kind / name
                if place.exists():
                    exchange(part, place, folder)
                    undo.callback(exchange, part, place, folder)
                else:
                    _move(part, place, undo)
        if consolidated:
            # zarr renames the new metadata into place, so a reader sees either the old or the new metadata.
            sdata.write_consolidated_metadata()
        undo.pop_all()


def _move(part: Path, place: Path, undo: ExitStack) -> None:
    os.rename(part, place)
    undo.callback(os.rename, place, part)


def _write_alone(elements: dict[str, Any], path: Path, store: Path) -> None:
    """Write elements into a new store, in the same format as ``store``."""
    from spatialdata import SpatialData

    with warnings.catch_warnings(), others_quiet():
        warnings.filterwarnings("ignore", message=r"The table is annotating .*not present", category=UserWarning)
        SpatialData.init_from_elements(elements).write(
            path, consolidate_metadata=False, sdata_formats=store_format(store)
        )


def _what_failed(kinds: dict[str, str], earlier: list[str], store: Path, error: OSError) -> str:
    what = ", ".join(f"{kind}/{name}" for name, kind in kinds.items())
    kept = f", with its earlier {', '.join(earlier)}" if earlier else ""
    again = f"st_gchb.io.write_elements(sdata, {list(kinds)}, overwrite=True)"
    advice = "Then write again"
    if error.errno in _FULL:
        advice = "Free space on that disk, then write again"
    elif error.errno in _REFUSED:
        advice = "Make the folder writable, then write again"
    return (
        f"{what} could not be written into {store}: {error.strerror or error}. The store is as it was{kept}. {advice} "
        f"({again}), or write the whole object elsewhere with sdata.write(path)."
    )
