"""Receipts: records beside the results of slides of what each was made from, so that no slide is computed twice."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from st_gchb._artifacts import DamagedFileError, encode, read_json, sha256_of, write_json
from st_gchb._errors import MissingFileError
from st_gchb._logging import logger

FOLDER = "receipts"
DONE, KEPT, FAILED = "done", "kept", "failed"


@dataclass(frozen=True)
class Receipt:
    """Record of the result of a slide.

    Parameters
    ----------
    name, path
        Name and path of the slide.
    status
        ``"done"`` in this call, ``"kept"`` from an earlier one, or ``"failed"``.
    n_spots
        Number of spots of the result.
    seconds
        Duration of each part: ``read``, ``encode``, ``predict``, ``write``.
    worker
        Host and process that computed the result.
    output
        Path of the result; empty if there is none.
    message
        Error, or warnings.
    made_of
        Slide, content of its files, settings and version that the result depends on.
    call
        Identity of the call that computed the result.
    size, sha256
        Number and SHA-256 of the result's bytes.
    attempts
        Number of times that the slide was begun in that call: more than 1 if workers died.
    viewer_files
        Genes that were asked for in the GeoJSON, and names of its files; None if there is none.
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
    viewer_files: dict[str, list[str]] | None = None


def here() -> str:
    """Return the name of the host and the number of the process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def output_path(out: Path, name: str) -> Path:
    """Return the path of a slide's result."""
    return out / f"{name}.h5ad"


def receipt_path(out: Path, name: str) -> Path:
    """Return the path of a slide's receipt."""
    return out / FOLDER / f"{name}.json"


def content_of(path: str | Path) -> dict[str, int]:
    """Summarize the content of a slide without reading it.

    Parameters
    ----------
    path
        A file, a folder, or an MRXS file, which includes the folder of its name.

    Returns
    -------
    dict
        Number of files, bytes, and time of the latest change in ns.

    Raises
    ------
    MissingFileError
        Nothing exists at the path.
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
    """Find the receipt of a result that need not be computed again.

    Parameters
    ----------
    out
        Folder of the results.
    name
        Name of the slide.
    made_of
        Slide, content, settings and version that the result has to depend on.

    Returns
    -------
    Receipt | None
        None if there is no result, it was made from something else, or, with a warning, its receipt is damaged.
    """
    path = receipt_path(out, name)
    try:
        stored = Receipt(**read_json(path))
    except FileNotFoundError:
        return None
    except (DamagedFileError, TypeError) as error:
        logger.warning("The receipt %s is damaged (%s): the slide is done again.", path, error)
        return None
    output = output_path(out, name)
    # JSON turned its tuples into lists.
    same = stored.made_of == encode(made_of)
    if not same or not output.is_file() or output.stat().st_size != stored.size:
        return None
    return replace(stored, output=str(output))


def discard(out: Path, name: str) -> None:
    """Delete the receipt of a slide, then its results: so a receipt never describes another result."""
    for file in _viewer_files(out, name):
        (out / file).unlink(missing_ok=True)
    receipt_path(out, name).unlink(missing_ok=True)
    output_path(out, name).unlink(missing_ok=True)


def _viewer_files(out: Path, name: str) -> list[str]:
    """Return the names of the GeoJSON files that a receipt names; none if it is absent or damaged."""
    try:
        stored = read_json(receipt_path(out, name)).get("viewer_files") or {}
    except (FileNotFoundError, DamagedFileError):
        return []
    # Names alone, so that an edited receipt cannot name a file elsewhere.
    return [Path(file).name for file in stored.get("files", [])]


def sign(out: Path, receipt: Receipt) -> Receipt:
    """Write the receipt of a result, after the result itself.

    Parameters
    ----------
    out
        Folder of the results.
    receipt
        Receipt without path, size and hash of the result.

    Returns
    -------
    Receipt
        Complete receipt.
    """
    output = output_path(out, receipt.name)
    signed = replace(receipt, output=str(output), size=output.stat().st_size, sha256=sha256_of(output))
    record = asdict(signed)
    if signed.viewer_files is None:
        # Earlier versions know no such entry.
        del record["viewer_files"]
    write_json(receipt_path(out, receipt.name), record, indent=1)
    return signed


def times_begun(out: Path, name: str, call: str) -> int:
    """Count how often a slide was begun in a call without being finished: each time its worker died."""
    try:
        lines = _begun_path(out, name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return 0
    return sum(line.startswith(f"{call} ") for line in lines)


@contextmanager
def begun(out: Path, name: str, call: str) -> Iterator[int]:
    """Note that a slide is begun, and delete the note when the block ends.

    A process that is killed leaves its note, which names the slide that it died of. dask counts a worker's death for
    every slide assigned to it, also for those that were waiting.

    Yields
    ------
    int
        Number of times that the slide was begun in the call.
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
    """Note that a call has ended, for its tasks that wait on a worker, which dask cannot cancel."""
    _stop_path(out, call).touch()


def is_stopped(out: Path, call: str) -> bool:
    """Return whether a call ended before all of its slides were done."""
    return _stop_path(out, call).exists()


def _stop_path(out: Path, call: str) -> Path:
    return out / FOLDER / f".stopped-{call}"


def _begun_path(out: Path, name: str) -> Path:
    return out / FOLDER / f"{name}.begun"


def _sweep(out: Path, name: str) -> None:
    """Delete the temporary file of a result that a killed process left."""
    left = re.compile(rf"\.{re.escape(name)}\.\w{{8}}\.(?:h5ad|geojson)")
    for path in out.iterdir():
        if left.fullmatch(path.name):
            path.unlink(missing_ok=True)
