"""What prediction and features of many slides have in common: the door, the way, the report."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import pandas as pd

from st_gchb import __version__
from st_gchb._errors import StoreError
from st_gchb._files import write_whole
from st_gchb._logging import logger, track
from st_gchb._signals import ended_by_signal
from st_gchb.many._receipts import FAILED, FOLDER, Receipt
from st_gchb.many._send import check_client, check_workers, send
from st_gchb.many._slides import Slide, slides_of
from st_gchb.many._steps import Grid, Reading, Step
from st_gchb.many._work import OF_CALL, Job

if TYPE_CHECKING:
    from distributed import Client

Slides: TypeAlias = Iterable[str | PathLike[str]] | pd.DataFrame | str | PathLike[str]

REPORT = "report.csv"
_CALL = "call.json"
Device = Literal["auto", "cpu", "cuda", "mps"]


def check_reading(
    *,
    grid: str,
    tissue: str,
    min_tissue: float,
    weights: str | PathLike[str] | None,
    device: str,
    memory_mb: float,
    client: Any,
) -> Reading:
    """Check what all slides are read with.

    Raises
    ------
    InputError
        This machine has no such device.
    """
    from st_gchb.pp._device import choose_device

    if client is None:
        choose_device(device)
    else:
        check_client(client)
    path = None if weights is None else str(weights)
    # Workers have working directories of their own.
    path = str(Path(path).absolute()) if path is not None and path != "default" else path
    return Reading(Grid(grid, tissue, float(min_tissue)), path, device, float(memory_mb))


def check_slides(slides: Slides, um_per_px: float | None, spacing_um: float | None) -> list[Slide]:
    """The slides of a call; errors as :func:`~st_gchb.many._slides.slides_of`."""
    return slides_of(slides, um_per_px=um_per_px, spacing_um=spacing_um)


def run(slides: list[Slide], step: Step, out: str | PathLike[str], client: Client | None, threads: int | None) -> Any:
    """Do all slides and report on them.

    Raises
    ------
    StoreError
        The folder cannot be written to.
    ClusterError
        Workers do not see the folder, or the cluster was lost.
    """
    folder = Path(out).absolute()
    job = Job(step, str(folder), uuid.uuid4().hex[:12], threads)
    _begin(folder, job, len(slides))
    if client is not None:
        check_workers(client, job)
    found: dict[str, Receipt] = {}
    advice = "Slides that are done are kept: the same call goes on with the others."
    with ended_by_signal("The call", advice), closing(send(slides, job, client)) as receipts:
        for receipt in track(receipts, "Slides", len(slides)):
            found[receipt.name] = receipt
            if receipt.status == FAILED:
                logger.warning("%s failed: %s", receipt.name, receipt.message, extra=OF_CALL)
    report = pd.DataFrame([_row(found[slide.name]) for slide in slides])
    with write_whole(folder / REPORT) as part:
        report.to_csv(part, index=False)
    counts = Counter(report["status"])
    logger.info("%s; see %s.", ", ".join(f"{n} {status}" for status, n in counts.items()), folder / REPORT)
    return report


def _begin(folder: Path, job: Job, n_slides: int) -> None:
    """Make the folders and note what is begun; shows whether they can be written to."""
    said = {"call": job.call, "version": __version__, "slides": n_slides, "settings": job.step.settings}
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        with write_whole(folder / _CALL) as part:
            part.write_text(json.dumps(said, indent=1), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"out={str(folder)!r} cannot be written to ({error}). Name another folder.") from error


def _row(receipt: Receipt) -> dict[str, Any]:
    seconds = receipt.seconds or {}
    return {
        "name": receipt.name,
        "path": receipt.path,
        "status": receipt.status,
        "n_spots": receipt.n_spots,
        "seconds": round(sum(seconds.values()), 3),
        "worker": receipt.worker,
        "attempts": receipt.attempts,
        "output": receipt.output,
        "message": receipt.message,
    }
