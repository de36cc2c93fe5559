"""One slide from its path to a result and a receipt, on whatever machine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from st_gchb import __version__
from st_gchb._advice import standing_at
from st_gchb._artifacts import write_whole
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

DEATHS = 3
"""Workers that may die on a slide before it is given up."""

OF_CALL = {"of_call": True}
"""Marks what the log says of a call, not of a slide."""

_DOOR = {name: f"{name}=" for name in ("um_per_px", "spacing_um", "weights", "memory_mb")}
_DOOR["image"] = "the column 'image' of the table of slides"
"""What a slide's message names: a worker does not know by which function it was called."""


class UnfitError(ClusterError):
    """A worker that can do no slide: it would fail all that are left as fast as it is given them."""


_one_at_a_time = threading.Lock()
"""A worker with several threads would hold several slides, and their patches, in memory at once."""


@dataclass(frozen=True)
class Job:
    """What is done with each slide of a call.

    Parameters
    ----------
    step
        What is made of a slide.
    out
        Absolute path of the folder of the results.
    call
        Identity of the call.
    threads
        Threads for a slide; None leaves it to the worker.
    version
        Version of this package in the process that called.
    """

    step: Step
    out: str
    call: str
    threads: int | None = None
    version: str = field(default_factory=lambda: __version__)

    @property
    def needs(self) -> list[str]:
        """Files and folders that every worker has to see."""
        return [str(Path(self.out) / FOLDER), *self.step.needs]


def do_slide(slide: Slide, job: Job, threads: int | None = None) -> Receipt:
    """Do one slide, or find that it was done.

    Raises
    ------
    UnfitError
        This process has another version of this package, or does not see what the job needs.
    ClusterError
        The call was stopped, or too many died on this slide.
    STGCHBError, OSError, ...
        Whatever is wrong with the slide.
    """
    out = Path(job.out)
    with _one_at_a_time:
        # Workers also come in the middle of a call.
        check_fit(here(), look_around(job.needs), job)
        if is_stopped(out, job.call):
            raise ClusterError("the call was stopped before this slide was begun.")
        made_of = _made_of(slide, job.step)
        found = find_receipt(out, slide.name, made_of)
        if found is not None:
            return replace(found, status=DONE if found.call == job.call else KEPT)
        with begun(out, slide.name, job.call) as attempts, _warnings() as said, _threads(threads):
            if attempts > DEATHS:
                raise ClusterError(died(attempts - 1))
            return _make(slide, job, made_of, attempts, said)


def look_around(needs: list[str]) -> tuple[str, list[str]]:
    """Version of this package in this process, and what of the paths it does not see."""
    return __version__, [path for path in needs if not Path(path).exists()]


def check_fit(worker: str, found: tuple[str, list[str]], job: Job) -> None:
    """See that a worker, which has looked around, would give what the calling process would.

    Raises
    ------
    UnfitError
        With both versions, or the paths.
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
    """Say what became of a slide that no worker survives."""
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
    # Of other settings, or of the slide as it was: none of it may be taken for what is asked now.
    discard(out, slide.name)
    with standing_at("st_gchb.cohort", **_DOOR):
        result = job.step.make(slide, seconds)
    with seconds.of("write"), write_whole(output_path(out, slide.name)) as part:
        result.write_h5ad(part)
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
    return sign(out, receipt)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what the package warns of: nobody reads the logs of a hundred workers."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # A worker may be a thread of the process that waits for it and tells how it goes.
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
    """Let torch and the libraries under numpy use this many threads.

    dask starts its workers with OMP_NUM_THREADS=1, whatever cores they have. Results are the same to the last bit where
    the number of threads is.
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
