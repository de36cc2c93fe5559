"""Files that are written whole or not at all, and content hashes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, renamed to ``path`` when the block ends without an error.

    Examples
    --------
    >>> from st_gchb._files import write_whole
    >>> with write_whole("/tmp/st_gchb_doc.txt") as part:
    ...     _ = part.write_text("all of it")
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        make_readable(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


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
