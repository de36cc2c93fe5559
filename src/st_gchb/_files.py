"""Files that are written whole or not at all, and content hashes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
    >>> from st_gchb._files import write_whole
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
