"""What a result was made of, kept beside it, so that no slide is done twice and none is lost."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from st_gchb._artifacts import sha256_of, write_whole
from st_gchb._errors import MissingFileError
from st_gchb._logging import logger

FOLDER = "receipts"
DONE, KEPT, FAILED = "done", "kept", "failed"


@dataclass(frozen=True)
class Receipt:
    """What was done for one slide.

    Parameters
    ----------
    name, path
        Of the slide.
    status
        ``"done"`` in this call, ``"kept"`` from an earlier one, or ``"failed"``.
    n_spots
        Rows of the result.
    seconds
        By part: ``read``, ``encode``, ``predict``, ``write``.
    worker
        Host and process that did it.
    output
        Path of the result; empty where there is none.
    message
        The error, or what was warned of.
    made_of
        Slide, settings, model and version.
    call
        The call in which it was done.
    size, sha256
        Of the result's bytes.
    attempts
        How often it was begun in that call: more than once where a worker died.
    """

    name: str
    path: str
    status: str
    n_spots: int = 0
    seconds: dict[str, float] | None = None
    worker: str = ""
    output: str = ""
    message: str = ""
    made_of: dict[str, Any] | None = None
    call: str = ""
    size: int = 0
    sha256: str = ""
    attempts: int = 0


def here() -> str:
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def output_path(out: Path, name: str) -> Path:
    """Where a slide's result lies."""
    return out / f"{name}.h5ad"


def receipt_path(out: Path, name: str) -> Path:
    """Where its receipt lies."""
    return out / FOLDER / f"{name}.json"


def content_of(path: str | Path) -> dict[str, int]:
    """Files, bytes and time of the latest change, without reading them: of a file, a folder, or an MRXS with its own.

    Raises
    ------
    MissingFileError
        There is nothing at the path.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path}: there is no such file or folder. Every worker has to see the slides.")
    files = [path] if path.is_file() else []
    below = path.with_suffix("") if path.suffix.lower() == ".mrxs" else path
    if below.is_dir():
        files += [Path(folder, name) for folder, _, names in os.walk(below) for name in names]
    stats = [file.stat() for file in files]
    return {
        "files": len(stats),
        "bytes": sum(stat.st_size for stat in stats),
        "changed_ns": max((stat.st_mtime_ns for stat in stats), default=0),
    }


def find_receipt(out: Path, name: str, made_of: dict[str, Any]) -> Receipt | None:
    """The receipt of a result that is there and was made of the same; None where there is none."""
    path = receipt_path(out, name)
    try:
        stored = Receipt(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        logger.warning("The receipt %s is damaged (%s): the slide is done again.", path, error)
        return None
    output = output_path(out, name)
    # Through JSON, as the stored one went.
    same = stored.made_of == json.loads(json.dumps(made_of))
    if not same or not output.is_file() or output.stat().st_size != stored.size:
        return None
    return replace(stored, output=str(output))


def discard(out: Path, name: str) -> None:
    """Remove what is there of a slide; the receipt first, so that it never speaks of another result."""
    receipt_path(out, name).unlink(missing_ok=True)
    output_path(out, name).unlink(missing_ok=True)


def sign(out: Path, receipt: Receipt) -> Receipt:
    """Write the receipt of a result that lies there, last of all."""
    output = output_path(out, receipt.name)
    signed = replace(receipt, output=str(output), size=output.stat().st_size, sha256=sha256_of(output))
    with write_whole(receipt_path(out, receipt.name)) as part:
        part.write_text(json.dumps(asdict(signed), indent=1), encoding="utf-8")
    return signed


def times_begun(out: Path, name: str, call: str) -> int:
    """How often a slide was begun in a call, and not ended: each time its worker died."""
    try:
        lines = _begun_path(out, name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0
    return sum(line.startswith(f"{call} ") for line in lines)


@contextmanager
def begun(out: Path, name: str, call: str) -> Iterator[int]:
    """Note that a slide is begun, and forget it when the block ends; gives how often it was begun in the call.

    A process that is killed forgets nothing. dask itself blames every slide that a dead worker had been given, also
    those that only waited there.
    """
    path = _begun_path(out, name)
    if path.exists():
        _sweep(out, name)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{call} {here()} {time.strftime('%Y-%m-%dT%H:%M:%S')}\n")
    try:
        yield times_begun(out, name, call)
    finally:
        path.unlink(missing_ok=True)


def stop(out: Path, call: str) -> None:
    """Note that a call is over, for tasks of it that wait on a worker: dask cannot take those back."""
    _stop_path(out, call).touch()


def is_stopped(out: Path, call: str) -> bool:
    """Whether a call is over before all its slides are done."""
    return _stop_path(out, call).exists()


def _stop_path(out: Path, call: str) -> Path:
    return out / FOLDER / f".stopped-{call}"


def _begun_path(out: Path, name: str) -> Path:
    return out / FOLDER / f"{name}.begun"


def _sweep(out: Path, name: str) -> None:
    """Remove the part of a result that a process left which was killed while it wrote."""
    left = re.compile(rf"\.{re.escape(name)}\.\w{{8}}\.h5ad")
    for path in out.iterdir():
        if left.fullmatch(path.name):
            path.unlink(missing_ok=True)
