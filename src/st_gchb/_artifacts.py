"""The JSON part of a model folder: arrays in it, and the hash that it vouches for itself with."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from st_gchb._errors import StoreError


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, renamed to ``path`` when the block ends without an error.

    Raises
    ------
    StoreError
        Its folder cannot be made or written to, or a folder is in its place. Errors of the block pass through.

    Examples
    --------
    >>> from st_gchb._artifacts import write_whole
    >>> with write_whole("/tmp/st_gchb_doc.txt") as part:
    ...     _ = part.write_text("all of it")
    """
    target = Path(path)
    with _told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
        os.close(handle)
    part = Path(name)
    try:
        yield part
        make_readable(part)
        with _told(target):
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """Say of a file that cannot be made what it is and why."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        told = StoreError(f"{target}: no file can be written there ({reason}). Name another place.")
        told.errno = error.errno
        raise told from error


def is_there(path: Path, kind: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether something is at a path, of a kind such as ``Path.is_dir``; nothing is at a path that no file can have."""
    try:
        return kind(path)
    except (OSError, ValueError):
        # Longer than names may be, below a folder that is closed to us, or with a null in it.
        return False


def make_readable(path: Path) -> None:
    """Give a file the rights that a plain ``open`` would have given it: temporary files are their maker's alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(record: dict[str, Any]) -> str:
    """Hash of the JSON part without its hash: the file holds the genes' names, and vouches for the other files."""
    own = {key: value for key, value in record.items() if key != "record_sha256"}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def encode(value: Any) -> Any:
    """A registry as JSON: arrays are marked, so that they come back as arrays."""
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"__array__": value.tolist(), "dtype": "object" if value.dtype.kind in "OUS" else str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """The registry that :func:`encode` was given."""
    if isinstance(value, dict):
        if "__array__" in value:
            return np.array(value["__array__"], dtype=value["dtype"])
        return {key: decode(item) for key, item in value.items()}
    return [decode(item) for item in value] if isinstance(value, list) else value
