"""Predict expression for many slides."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from st_gchb._arguments import Count, Megabytes, Micrometers, PixelSize, PositiveShare, checked
from st_gchb._errors import InputError
from st_gchb.many._call import Device, Slides, check_reading, check_slides, run
from st_gchb.many._slides import Slide
from st_gchb.many._steps import Predict
from st_gchb.pp._patches import MEMORY_MB

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

    from st_gchb.pp._grid import GridKind
    from st_gchb.pp._tissue import TissueMethod
    from st_gchb.retrieval import Weighting


@checked(apart=("layer",))
def predict_slides(
    model: str | PathLike[str],
    slides: Slides,
    out: str | PathLike[str],
    *,
    client: Client | None = None,
    um_per_px: PixelSize | None = None,
    spacing_um: Micrometers | None = None,
    grid: GridKind = "hex",
    tissue: TissueMethod = "stain",
    min_tissue: PositiveShare = 0.5,
    layer: str | None = None,
    k: Count | None = None,
    weighting: Weighting | None = None,
    weights: str | PathLike[str] | None = None,
    device: Device = "auto",
    memory_mb: Megabytes = MEMORY_MB,
    threads: Count | None = None,
) -> pd.DataFrame:
    """Predict expression for many slides, each into a file of its own; what was done is not done again.

    A slide that cannot be used is a row of the report, and the others go on. A call that was stopped goes on where it
    was when it is made again: a result is kept where slide, settings, model and version are the same.

    Parameters
    ----------
    model
        Folder that :meth:`STGCHB.save <st_gchb.model.STGCHB.save>` wrote. It is loaded once in each process.
    slides
        Paths of image files, SpatialData stores, AnnData files or Space Ranger folders; or a table (DataFrame, or path
        of a ``.csv`` or ``.tsv`` file) with the column ``path`` and, where they are needed, ``name``, ``image``,
        ``um_per_px`` and ``spacing_um``. Paths in a file are relative to its folder. A result is called by the slide's
        name, by default that of its file.
    out
        Folder of the results, which all workers have to see: ``NAME.h5ad``, ``receipts/NAME.json``, ``report.csv``.
    client
        dask's client of the cluster; None does the slides in this process, one after another.
    um_per_px
        Size of a full-resolution pixel, µm, for slides whose row does not say it.
    spacing_um
        Distance of the positions that are laid on a slide, µm, for slides whose row does not say it. None takes the
        slide's own spots where it has any, else 100.
    grid, tissue, min_tissue
        As :func:`~st_gchb.pp.tile_tissue` takes them.
    layer, k, weighting
        As :meth:`STGCHB.predict <st_gchb.model.STGCHB.predict>` takes them.
    weights
        Path of the encoder's weights, where it has moved since training.
    device
        Where encoder and network run: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``.
    memory_mb
        Bound of the decoded pixels that a worker holds, MB.
    threads
        Threads for a slide; by default as many as the worker has, or as this process uses. A worker does one slide at
        a time.

    Returns
    -------
    pandas.DataFrame
        One row per slide, in their order: ``name``, ``path``, ``status`` (``"done"``, ``"kept"`` from an earlier call,
        ``"failed"``), ``n_spots``, ``seconds``, ``worker`` (host and process), ``attempts`` (more than one where a
        worker died), ``output``, ``message`` (the error, or what was warned of).

    Raises
    ------
    MissingFileError, ModelFileError
        There is no such model or table, or the model is damaged.
    InputError
        No slide, two of one name, a name that is no name of a file, or an option that is out of range.
    ClusterError
        A worker has another version or does not see model and results; or the cluster was lost.
    StoreError
        The folder of the results cannot be written to.

    Examples
    --------
    >>> import st_gchb
    >>> from dask.distributed import Client  # doctest: +SKIP
    >>> client = Client("tcp://scheduler:8786")  # doctest: +SKIP
    >>> report = st_gchb.many.predict_slides(
    ...     "model/", "slides.csv", "predictions/", client=client, spacing_um=100
    ... )  # doctest: +SKIP
    >>> report.status.value_counts()  # doctest: +SKIP
    """
    rows = check_slides(slides, um_per_px, spacing_um)
    reading = check_reading(
        grid=grid,
        tissue=tissue,
        min_tissue=min_tissue,
        weights=weights,
        device=device,
        memory_mb=memory_mb,
        client=client,
    )
    step = _checked(Predict(str(Path(model).absolute()), "", layer, k, weighting, reading), rows)
    return run(rows, step, out, client, threads)


def _checked(step: Predict, slides: list[Slide]) -> Predict:
    """See that the model can be asked this, and that its encoder is to be had."""
    from st_gchb.model import STGCHB
    from st_gchb.retrieval import check_search

    # The machine that sends slides need not have what the workers have.
    model = STGCHB.load(step.folder, accelerator="cpu")
    if model.bank_ is None or model.rules_ is None:
        raise InputError(f"{step.folder} holds no trained model.")
    model.bank_.table(step.layer)
    check_search(len(model.bank_), 1 if step.k is None else step.k, step.weighting or model.settings.weighting)
    rule = model.rules_.features
    # A module of the caller's has no name to find it by: slides have to bring their features.
    if rule is not None and not rule.encoder.startswith("module:") and not all(map(_may_be_embedded, slides)):
        if step.reading.weights is None and rule.weights not in ("default", "none"):
            step = replace(step, reading=replace(step.reading, weights=str(Path(rule.weights).absolute())))
        step.reading.encoder(rule)
    return replace(step, model_id=model.model_id_ or "")


def _may_be_embedded(slide: Slide) -> bool:
    return Path(slide.path).suffix == ".h5ad"
