"""Patch features of many slides, for training or for later."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from st_gchb._arguments import Count, Limits, Megabytes, Micrometers, PixelSize, PositiveShare, checked
from st_gchb._constants import DEFAULT_PATCH_UM
from st_gchb.many._call import Device, Slides, check_reading, check_slides, run
from st_gchb.many._steps import Embed
from st_gchb.pp._patches import MEMORY_MB

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

    from st_gchb.pp import Stain
    from st_gchb.pp._engine import Precision, Views
    from st_gchb.pp._grid import GridKind
    from st_gchb.pp._tissue import TissueMethod


EncoderName = Annotated[str, Limits("the name of an encoder, which every worker can build")]
ONE_STAIN = Limits("a Stain, one for all slides, as st_gchb.pp.fit_stain(slide) gives it")


@checked
def embed_slides(
    slides: Slides,
    out: str | PathLike[str],
    *,
    client: Client | None = None,
    encoder: EncoderName = "resnet50",
    weights: str | PathLike[str] | None = "default",
    patch_um: Micrometers = DEFAULT_PATCH_UM,
    views: Views = 4,
    stain_norm: Annotated[Stain, ONE_STAIN] | None = None,
    um_per_px: PixelSize | None = None,
    spacing_um: Micrometers | None = None,
    grid: GridKind = "hex",
    tissue: TissueMethod = "stain",
    min_tissue: PositiveShare = 0.5,
    device: Device = "auto",
    precision: Precision = "float32",
    memory_mb: Megabytes = MEMORY_MB,
    threads: Count | None = None,
) -> pd.DataFrame:
    """Make the patch features of many slides, each slide into a file of its own; what was done is not done again.

    A file holds an AnnData with what the slide has (counts, where it has any), ``obsm["spatial"]``, ``obsm["X_patch"]``
    and how the features were made. It is a slide for :func:`predict_slides` and a part of a reference for training, and
    neither reads the image again. Spots whose pixels cannot be decoded have NaN, and ``uns["X_patch"]["left_out"]``
    names them.

    Parameters
    ----------
    slides, out, client, um_per_px, spacing_um, grid, tissue, min_tissue, device, memory_mb, threads
        As :func:`predict_slides` takes them.
    encoder
        Name of an encoder, as :func:`~st_gchb.pp.get_encoder` takes it. It is built once in each process.
    weights
        ``"default"`` (each machine downloads them once), None for random ones, or the path of a file that all workers
        see.
    patch_um, views, precision
        As :func:`~st_gchb.pp.embed_patches` takes them.
    stain_norm
        Stain to which all slides are moved, as :func:`~st_gchb.pp.fit_stain` gives it.

    Returns
    -------
    pandas.DataFrame
        As :func:`predict_slides`.

    Raises
    ------
    EncoderError, WeightsUnavailableError
        The encoder is unknown, or its weights are not to be had.
    InputError, MissingFileError, ClusterError, StoreError
        As :func:`predict_slides`.

    Examples
    --------
    >>> import st_gchb, tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> slide = st_gchb.datasets.synthetic_tissue(1, n_rows=6, n_cols=6, n_genes=20)
    >>> slide.write_h5ad(folder / "S1.h5ad")
    >>> report = st_gchb.many.embed_slides([folder / "S1.h5ad"], folder / "features", encoder="texture", views=1)
    >>> report[["name", "status"]].values.tolist()
    [['S1', 'done']]
    """
    from st_gchb.pp import FeatureRule, get_encoder

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
    named = None if weights is None else weights if weights == "default" else Path(weights).absolute()
    trunk = get_encoder(encoder, named)
    rule = FeatureRule(
        trunk.name,
        trunk.weights,
        trunk.weights_sha256,
        float(patch_um),
        None,
        views,
        trunk.n_features,
        stain_norm=None if stain_norm is None else stain_norm.method,
        stain_target=None if stain_norm is None else stain_norm.numbers,
        precision=None if precision == "float32" else precision,
    )
    return run(rows, Embed(rule, reading), out, client, threads)
