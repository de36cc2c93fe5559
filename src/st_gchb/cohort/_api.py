"""Prediction and patch features for many slides: the public functions, their checks and their report."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import pandas as pd

from st_gchb import __version__
from st_gchb._advice import Fix, advise
from st_gchb._arguments import Count, Limits, Megabytes, Micrometers, PixelSize, PositiveShare, checked
from st_gchb._artifacts import write_json, write_whole
from st_gchb._constants import DEFAULT_PATCH_UM
from st_gchb._errors import InputError, StoreError
from st_gchb._logging import logger, track
from st_gchb._options import (
    DEFAULT_ENCODERS,
    DEFAULT_GRID,
    DEFAULT_MIN_TISSUE,
    DEFAULT_PRECISION,
    DEFAULT_TISSUE,
    Device,
    GridKind,
    Precision,
    TissueMethod,
    Views,
    Weighting,
    is_default,
)
from st_gchb._signals import ended_by_signal
from st_gchb.cohort._dask import check_client, check_workers, send
from st_gchb.cohort._manifest import Slide, is_utf8, slides_of
from st_gchb.cohort._receipts import FAILED, FOLDER, Receipt
from st_gchb.cohort._tasks import Embed, Grid, Predict, Reading, Step
from st_gchb.cohort._worker import OF_CALL, Job
from st_gchb.pp.patches import MEMORY_MB

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

    from st_gchb.pp import Stain

Slides: TypeAlias = Iterable[str | PathLike[str]] | pd.DataFrame | str | PathLike[str]

REPORT = "report.csv"
_CALL = "call.json"


def check_reading(
    *,
    grid: str,
    tissue: str,
    min_tissue: float,
    weights: str | PathLike[str] | None | Sequence[str | PathLike[str] | None],
    device: str,
    memory_mb: float,
    client: Any,
) -> Reading:
    """Validate the options with which all slides are read and encoded.

    Parameters
    ----------
    grid, tissue, min_tissue, weights, device, memory_mb, client
        As in :func:`predict_slides`.

    Returns
    -------
    Reading
        The options, with an absolute path of the weights.

    Raises
    ------
    InputError
        The slides are computed here and this machine has no such device, or ``client`` is no running client of dask.
    """
    from st_gchb.pp.encoders import choose_device

    if client is None:
        choose_device(device)
    else:
        check_client(client)
    paths = tuple(map(_absolute, weights)) if isinstance(weights, list | tuple) else _absolute(weights)
    return Reading(Grid(grid, tissue, float(min_tissue)), paths, device, float(memory_mb))


def _absolute(weights: Any) -> str | None:
    """Return the absolute path of weights, since workers may have another working directory."""
    return weights if weights is None or is_default(weights) else str(Path(weights).absolute())


def run(
    slides: list[Slide],
    step: Step,
    out: str | PathLike[str],
    client: Client | None,
    threads: int | None,
    genes: tuple[str, ...] | None = None,
) -> Any:
    """Process all slides and write the report.

    Parameters
    ----------
    slides
        The slides.
    step
        Computation to apply to each slide.
    out
        Folder of the results.
    client
        Client of a dask cluster; ``None`` computes in this process.
    threads
        Number of threads per slide.
    genes
        Genes to write as GeoJSON, empty for the most predictable ones; None writes none.

    Returns
    -------
    pandas.DataFrame
        One row per slide, in their order, see :func:`predict_slides`.

    Raises
    ------
    StoreError
        The folder cannot be written to.
    ClusterError
        Workers do not see the folder, or the cluster was lost.
    """
    folder = Path(out).absolute()
    job = Job(step, str(folder), uuid.uuid4().hex[:12], threads, genes=genes)
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
    """Create the folders and record the call, which also tests that they can be written to.

    Raises
    ------
    StoreError
        The folder cannot be written to.
    """
    if not is_utf8(str(folder)):
        raise StoreError(
            f"out={str(folder)!r} is no valid UTF-8, and the report holds the paths of results as text. Name another "
            "folder."
        )
    said = {"call": job.call, "version": __version__, "slides": n_slides, "settings": job.step.settings}
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_json(folder / _CALL, said, indent=1)
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


@checked(apart=("layer",))
def predict_slides(
    model: str | PathLike[str],
    slides: Slides,
    out: str | PathLike[str],
    *,
    client: Client | None = None,
    um_per_px: PixelSize | None = None,
    spacing_um: Micrometers | None = None,
    grid: GridKind = DEFAULT_GRID,
    tissue: TissueMethod = DEFAULT_TISSUE,
    min_tissue: PositiveShare = DEFAULT_MIN_TISSUE,
    layer: str | None = None,
    k: Count | None = None,
    weighting: Weighting | None = None,
    weights: str | PathLike[str] | None | Sequence[str | PathLike[str] | None] = None,
    device: Device = "auto",
    memory_mb: Megabytes = MEMORY_MB,
    threads: Count | None = None,
    geojson: bool = False,
    genes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Predict expression for many slides, one result file per slide, and skip slides that are finished.

    A slide that fails is a row of the report and does not stop the others. A call that was interrupted resumes when it
    is repeated: a result is kept if slide, settings, model and version are the same.

    Parameters
    ----------
    model
        Folder that :meth:`STGCHB.save <st_gchb.model.STGCHB.save>` wrote. It is loaded once per process.
    slides
        Paths of image files, SpatialData stores, AnnData files or Space Ranger folders; or a table (data frame, or path
        of a ``.csv`` or ``.tsv`` file) with the column ``path`` and, if needed, ``name``, ``image``, ``um_per_px`` and
        ``spacing_um``. Paths in a file are relative to its folder. Results are named after the slides, whose names are
        by default those of their files.
    out
        Folder of the results, visible to all workers: ``NAME.h5ad``, ``receipts/NAME.json``, ``report.csv``.
    client
        Client of a dask cluster; ``None`` processes the slides in this process, one after another.
    um_per_px
        Size of a full-resolution pixel, µm, for slides whose row of the table does not give it.
    spacing_um
        Distance between grid positions on a slide, µm, for slides whose row of the table does not give it. ``None``
        takes the slide's own spots if it has any, else a grid of 100 µm.
    grid, tissue, min_tissue
        As in :func:`~st_gchb.pp.tile_tissue`.
    layer, k, weighting
        As in :meth:`STGCHB.predict <st_gchb.model.STGCHB.predict>`.
    weights
        Path of the encoder's weights, if they have moved since training. Of several encoders with weights, one for
        each, None where they have not moved.
    device
        Device of encoder and network: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``.
    memory_mb
        Limit on the decoded pixels that a worker holds in memory, MB.
    threads
        Number of threads per slide; by default as many as the worker has, or as this process uses. A worker processes
        one slide at a time.
    geojson
        Also write ``NAME.geojson`` for QuPath beside each result, as :func:`~st_gchb.io.write_geojson` does.
    genes
        Genes in it; by default the three with the highest expected correlation.

    Returns
    -------
    pandas.DataFrame
        One row per slide, in their order: ``name``, ``path``, ``status`` (``"done"``, ``"kept"`` from an earlier call,
        ``"failed"``), ``n_spots``, ``seconds``, ``worker`` (host and process), ``attempts`` (more than one if a worker
        died), ``output``, ``message`` (the error, or the warnings).

    Raises
    ------
    MissingFileError, ModelFileError
        There is no such model or table, or the model is damaged.
    InputError
        There is no slide, two slides have the same name, a name cannot be that of a file, a path is no valid UTF-8, a
        gene is not predicted, or an option is out of range.
    ClusterError
        A worker has another version of the package or does not see model and results, or the cluster was lost.
    StoreError
        The folder of the results cannot be written to.

    Examples
    --------
    >>> import st_gchb
    >>> from dask.distributed import Client  # doctest: +SKIP
    >>> client = Client("tcp://scheduler:8786")  # doctest: +SKIP
    >>> report = st_gchb.cohort.predict_slides(
    ...     "model/", "slides.csv", "predictions/", client=client, spacing_um=100
    ... )  # doctest: +SKIP
    >>> report.status.value_counts()  # doctest: +SKIP
    """
    if genes is not None and not geojson:
        raise InputError(
            "genes says what the GeoJSON holds, and none is written. "
            + advise(Fix("geojson", why="too"), otherwise="Leave it out.")
        )
    rows = slides_of(slides, um_per_px=um_per_px, spacing_um=spacing_um)
    reading = check_reading(
        grid=grid,
        tissue=tissue,
        min_tissue=min_tissue,
        weights=weights,
        device=device,
        memory_mb=memory_mb,
        client=client,
    )
    step = _checked(Predict(str(Path(model).absolute()), "", layer, k, weighting, reading), rows, genes or ())
    return run(rows, step, out, client, threads, tuple(genes or ()) if geojson else None)


def _checked(step: Predict, slides: list[Slide], genes: Sequence[str]) -> Predict:
    """Validate the options against the model, and check that its encoder can be built if a slide may need it.

    Returns
    -------
    Predict
        The step with the identity of the model and, if they are a file, the path of the encoder's weights.

    Raises
    ------
    InputError
        The folder holds no trained model, or it cannot answer the request.
    EncoderError, WeightsUnavailableError
        The encoder is unknown, or its weights are not available.
    """
    from st_gchb.model import load_predictor
    from st_gchb.retrieval import check_search

    # The machine that sends the slides need not have the accelerator of the workers.
    model = load_predictor(step.folder, device="cpu")
    bank, settings = model.parts.bank, model.parts.settings
    columns = bank.table(step.layer).columns
    missing = [gene for gene in genes if gene not in columns]
    if missing:
        raise InputError(
            f"genes {missing[:6]} are not among the {len(columns)} predicted ones. Name others, or predict every gene "
            "of the reference with layer='all_genes'."
        )
    check_search(len(bank), 1 if step.k is None else step.k, step.weighting or settings.weighting)
    rule = model.parts.rules.features
    # An encoder that was passed as a module cannot be rebuilt by name: the slides must hold their features already.
    by_name = rule is not None and not any(spec.encoder.startswith("module:") for spec in rule.encoders)
    if rule is not None and by_name and not all(map(_may_be_embedded, slides)):
        # None where no file is needed: the weights are the encoder's own, or random.
        files = [None if one.weights == "none" or is_default(one.weights) else one.weights for one in rule.encoders]
        own = tuple(map(_absolute, files))
        if step.reading.weights is None and any(own):
            step = replace(step, reading=replace(step.reading, weights=own))
        step.reading.encoders(rule)
    return replace(step, model_id=model.model_id)


def _may_be_embedded(slide: Slide) -> bool:
    return Path(slide.path).suffix == ".h5ad"


EncoderName = Annotated[str, Limits("the name of an encoder, which every worker can build")]
ONE_STAIN = Limits("a Stain, one for all slides, as st_gchb.pp.fit_stain(slide) gives it")


@checked
def embed_slides(
    slides: Slides,
    out: str | PathLike[str],
    *,
    client: Client | None = None,
    encoder: EncoderName | Sequence[EncoderName] = DEFAULT_ENCODERS,
    weights: str | PathLike[str] | None | Sequence[str | PathLike[str] | None] = "default",
    patch_um: Micrometers | Sequence[Micrometers] = DEFAULT_PATCH_UM,
    n_views: Views | None = None,
    stain_norm: Annotated[Stain, ONE_STAIN] | None = None,
    um_per_px: PixelSize | None = None,
    spacing_um: Micrometers | None = None,
    grid: GridKind = DEFAULT_GRID,
    tissue: TissueMethod = DEFAULT_TISSUE,
    min_tissue: PositiveShare = DEFAULT_MIN_TISSUE,
    device: Device = "auto",
    precision: Precision = DEFAULT_PRECISION,
    memory_mb: Megabytes = MEMORY_MB,
    threads: Count | None = None,
) -> pd.DataFrame:
    """Compute patch features for many slides, one result file per slide, and skip slides that are finished.

    A file holds an AnnData with the slide's own data (such as counts), ``obsm["spatial"]``, ``obsm["X_patch"]`` and the
    specification of the features. It can be passed as a slide to :func:`predict_slides` or used in a reference for
    training; neither reads the image again. Spots whose pixels cannot be decoded have NaN features and are listed in
    ``uns["X_patch"]["excluded"]``.

    Parameters
    ----------
    slides, out, client, um_per_px, spacing_um, grid, tissue, min_tissue, device, memory_mb, threads
        As in :func:`predict_slides`.
    encoder
        Name of an encoder, see :func:`~st_gchb.pp.get_encoder`, or of several. They are built once per process.
    weights
        ``"default"`` (each machine downloads them once), ``None`` for random weights, or the path of a file that all
        workers see; or a sequence of one for each encoder.
    patch_um, n_views, precision
        As in :func:`~st_gchb.pp.embed_patches`.
    stain_norm
        Stain to which all slides are normalized, from :func:`~st_gchb.pp.fit_stain`.

    Returns
    -------
    pandas.DataFrame
        One row per slide, as in :func:`predict_slides`.

    Raises
    ------
    EncoderError, WeightsUnavailableError
        The encoder is unknown, or its weights are not available.
    InputError, MissingFileError, ClusterError, StoreError
        As in :func:`predict_slides`; or there is no encoder or patch size, or one is given twice.

    Examples
    --------
    >>> import st_gchb, tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> slide = st_gchb.datasets.synthetic_tissue(1, n_rows=6, n_cols=6, n_genes=20)
    >>> slide.write_h5ad(folder / "S1.h5ad")
    >>> report = st_gchb.cohort.embed_slides([folder / "S1.h5ad"], folder / "features", encoder="texture", n_views=1)
    >>> report[["name", "status"]].values.tolist()
    [['S1', 'done']]
    """
    from st_gchb.pp.patches import encoders_of, features_of, sizes_of

    rows = slides_of(slides, um_per_px=um_per_px, spacing_um=spacing_um)
    reading = check_reading(
        grid=grid,
        tissue=tissue,
        min_tissue=min_tissue,
        weights=weights,
        device=device,
        memory_mb=memory_mb,
        client=client,
    )
    encoders = encoders_of(encoder, reading.weights, None)
    if len(encoders) > 1 and not isinstance(reading.weights, tuple):
        reading = replace(reading, weights=(reading.weights,) * len(encoders))
    rule = features_of(encoders, sizes_of(patch_um, None), n_views, stain_norm, precision)
    return run(rows, Embed(rule, reading), out, client, threads)
