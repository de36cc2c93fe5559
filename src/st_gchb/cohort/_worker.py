"""Processing of one slide on a worker: from its path to the result file and its receipt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_gchb import __version__
from st_gchb._advice import standing_at
from st_gchb._compat import import_dask_without_numba
from st_gchb._errors import ClusterError
from st_gchb._logging import logger
from st_gchb.cohort._manifest import Slide
from st_gchb.cohort._receipts import (
    DONE,
    FOLDER,
    KEPT,
    Receipt,
    begun,
    content_of,
    discard,
    find_receipt,
    here,
    is_stopped,
    output_path,
    sign,
)
from st_gchb.cohort._tasks import Seconds, Step
from st_gchb.cohort._viewer_files import write_viewer_files

if TYPE_CHECKING:
    from anndata import AnnData

DEATHS = 3
"""Number of workers that may die on a slide before it is given up."""

OF_CALL = {"of_call": True}
"""Extra of log records that concern the call and not a single slide."""

_DOOR = {name: f"{name}=" for name in ("um_per_px", "spacing_um", "weights", "memory_mb")}
_DOOR["image"] = "the column 'image' of the table of slides"
"""Names of arguments as messages about a slide show them, since a worker does not know which function was called."""


class UnfitError(ClusterError):
    """A worker that cannot process any slide, and would fail all remaining slides as fast as it receives them."""


_one_at_a_time = threading.Lock()
"""Lock, since a worker with several threads would hold several slides and their patches in memory."""


@dataclass(frozen=True)
class Job:
    """Work to do on each slide of a call, sent to the workers.

    Parameters
    ----------
    step
        Computation to apply to a slide.
    out
        Absolute path of the folder of the results.
    call
        Identifier of the call.
    threads
        Number of threads per slide; ``None`` leaves it to the worker.
    version
        Version of this package in the calling process.
    genes
        Genes to write as GeoJSON beside each result, empty for the most predictable ones; None writes none.
    """

    step: Step
    out: str
    call: str
    threads: int | None = None
    version: str = field(default_factory=lambda: __version__)
    genes: tuple[str, ...] | None = None

    @property
    def needs(self) -> list[str]:
        """Files and folders that every worker must see."""
        return [str(Path(self.out) / FOLDER), *self.step.needs]


def do_slide(slide: Slide, job: Job, threads: int | None = None) -> Receipt:
    """Process one slide, or return the receipt of an earlier result that is still valid.

    Parameters
    ----------
    slide
        The slide.
    job
        The job of the call.
    threads
        Number of threads; ``None`` leaves it unchanged.

    Returns
    -------
    Receipt
        Receipt of the result.

    Raises
    ------
    UnfitError
        This process has another version of this package, or does not see the files of the job.
    ClusterError
        The call was stopped, or too many workers died on this slide.
    STGCHBError, OSError, ...
        The slide cannot be processed.
    """
    out = Path(job.out)
    with _one_at_a_time:
        import_dask_without_numba()
        # Workers may join in the middle of a call, after the check of the first ones.
        check_fit(here(), look_around(job.needs), job)
        if is_stopped(out, job.call):
            raise ClusterError("the call was stopped before this slide was begun.")
        made_of = _made_of(slide, job.step)
        found = find_receipt(out, slide.name, made_of)
        if found is not None:
            found = _with_viewer_files(found, out, job, None)
            return replace(found, status=DONE if found.call == job.call else KEPT)
        with begun(out, slide.name, job.call) as attempts, _warnings() as said, _threads(threads):
            if attempts > DEATHS:
                raise ClusterError(died(attempts - 1))
            return _make(slide, job, made_of, attempts, said)


def look_around(needs: list[str]) -> tuple[str, list[str]]:
    """Return the version of this package in this process, and those of the paths that do not exist here."""
    return __version__, [path for path in needs if not Path(path).exists()]


def check_fit(worker: str, found: tuple[str, list[str]], job: Job) -> None:
    """Check that a worker gives the results of the calling process and sees the files of the job.

    Parameters
    ----------
    worker
        Name of the worker.
    found
        Its version and missing paths, from :func:`look_around`.
    job
        The job of the call.

    Raises
    ------
    UnfitError
        The worker has another version of this package, or does not see a file or folder.
    """
    version, missing = found
    if version != job.version:
        raise UnfitError(
            f"the worker {worker} has st-gchb {version}, the process that called {job.version}: results would differ. "
            "Install the same version."
        )
    if missing:
        raise UnfitError(f"the worker {worker} does not see {missing}. Put them on a disk that all share.")


def died(times: int) -> str:
    """Return the message for a slide on which every worker died."""
    return (
        f"the worker died each of {times} times that it was at this slide: most likely there was not enough memory "
        "(see the worker's log). Give workers more, or lower memory_mb, and call again: what is done is kept."
    )


def _made_of(slide: Slide, step: Step) -> dict[str, Any]:
    content = {"slide": content_of(slide.path)}
    if slide.image is not None and Path(slide.image).is_absolute():
        content["image"] = content_of(slide.image)
    return {"slide": asdict(slide), "content": content, "settings": step.settings, "version": __version__}


def _make(slide: Slide, job: Job, made_of: dict[str, Any], attempts: int, said: list[str]) -> Receipt:
    out, seconds = Path(job.out), Seconds()
    # An earlier result has other settings or another version of the slide, and must not be taken for the new one.
    discard(out, slide.name)
    with standing_at("st_gchb.cohort", **_DOOR):
        result = job.step.make(slide, output_path(out, slide.name), seconds)
    receipt = Receipt(
        name=slide.name,
        path=slide.path,
        status=DONE,
        n_spots=result.n_obs,
        seconds=dict(seconds),
        worker=here(),
        message=" | ".join(said),
        made_of=made_of,
        call=job.call,
        attempts=attempts,
    )
    # Signed first: a result that viewers cannot be given is not computed again.
    return _with_viewer_files(sign(out, receipt), out, job, result)


def _with_viewer_files(receipt: Receipt, out: Path, job: Job, result: AnnData | None) -> Receipt:
    """Write the GeoJSON of a slide if it is asked for and not there, from its result or else from the file of it."""
    if job.genes is None:
        return receipt
    known = receipt.viewer_files or {}
    files = known.get("files", [])
    if files and known.get("genes") == list(job.genes) and all((out / file).is_file() for file in files):
        return receipt
    if result is None:
        import anndata

        result = anndata.read_h5ad(receipt.output)
    with standing_at("st_gchb.cohort", **_DOOR):
        written = write_viewer_files(result, out, receipt.name, job.genes)
    return sign(out, replace(receipt, viewer_files={"genes": list(job.genes), "files": written}))


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the warnings of the package for the receipt, since the logs of many workers are hardly read."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # A worker may be a thread of the calling process, which logs the progress of the call.
            if not hasattr(record, "of_call"):
                said.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set the number of threads of torch and of the BLAS library of numpy; ``None`` changes nothing.

    dask starts its workers with OMP_NUM_THREADS=1, whatever their number of cores. Results are identical bit for bit
    only with the same number of threads.
    """
    if number is None:
        yield
        return
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    with threadpool_limits(number, user_api="blas"):
        torch.set_num_threads(number)
        try:
            yield
        finally:
            torch.set_num_threads(before)
