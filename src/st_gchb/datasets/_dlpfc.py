"""Load the DLPFC data set: human dorsolateral prefrontal cortex, 10x Visium (Maynard et al. 2021)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from st_gchb._arguments import checked
from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, ExpressionError, InputError
from st_gchb._logging import logger, track
from st_gchb._options import VisiumImage
from st_gchb.datasets._fetch import DataFile, fetch
from st_gchb.datasets._tables import join_slices
from st_gchb.datasets.synthetic import LAYER_NAMES
from st_gchb.io import Library, check_text, libraries_of, put_libraries
from st_gchb.io.images import read_thumbnail

_BUCKET = "https://spatial-dlpfc.s3.us-east-2.amazonaws.com"
_REPOSITORY = "https://raw.githubusercontent.com/LieberInstitute/HumanPilot/master/10X"

PATIENTS = {
    **dict.fromkeys(("151507", "151508", "151509", "151510"), "Br5292"),
    **dict.fromkeys(("151669", "151670", "151671", "151672"), "Br5595"),
    **dict.fromkeys(("151673", "151674", "151675", "151676"), "Br8100"),
}

PAPER_SLICES = ("151669", "151670", "151673", "151674", "151675", "151676")

_LAYERS = "barcode_level_layer_map.tsv"

_SHA256 = {
    "151669_tissue_positions_list.csv": "00147e492d41a3724c413934ef777c94f72f15636933346783fcd3e7903bddb4",
    "151669_scalefactors_json.json": "46422f5b8e256c6f532b9e3bd59671a16536bb6e4640f44fbf69fc654b53c5d3",
    "151670_tissue_positions_list.csv": "cf1cf68a6efe052f10b86b32c0b7f142d6d4bfcfa107aafa92c56234b08ec25a",
    "151670_scalefactors_json.json": "125b25b3df2a99c60bc3364c398f0c7cd9ae47401551f87265ed5e580a3fea2f",
    "151673_tissue_positions_list.csv": "c1ce0eafc855982bb2a9773f147ce6c5aef68dfd06600caa8a7e7a0e6f7cc5e8",
    "151673_scalefactors_json.json": "91c4beb9ca8145855a6a6df0a00eda6541931fc12d82d09cf8f01c9c15179dbc",
    "151674_tissue_positions_list.csv": "bc8738299011382ad81a35d81c5bcb1546b17b5c10a5a6411baf9bc1f58acca7",
    "151674_scalefactors_json.json": "869be1c7c2bc7722b1858e1f41a491305264208d083d641786e6f102fc723bac",
    "151675_tissue_positions_list.csv": "2c857eeddd96898d5d17bd066ee9f55fb8f0c7c7758cb8c26f71dc95d60024ff",
    "151675_scalefactors_json.json": "fce4c55751326c1bf9af0f87591a4bab1383fcab0b10714bf688d2eabf909dc6",
    "151676_tissue_positions_list.csv": "2b655c9ead1fa5686ef9a49ab8452d56cd849dc1d15779b215e4f9726ebe55c0",
    "151676_scalefactors_json.json": "2ee6b05b734c39688792ca2d26b8558b59c116098fc184b579b500d3b8497afd",
}
"""Checksums of Space Ranger's positions and scale factors; none are published for counts, images and layers."""


def geometry_files(name: str) -> dict[str, DataFile]:
    """List the files of one slice with positions, scale factors and layers."""
    return {
        "positions": _file(name, "tissue_positions_list.csv", f"{_REPOSITORY}/{name}/tissue_positions_list.txt"),
        "scalefactors": _file(name, "scalefactors_json.json", f"{_REPOSITORY}/{name}/scalefactors_json.json"),
        # The repository has one table for all slices; a local folder may have one per slice.
        "layers": DataFile(
            _LAYERS, f"{_REPOSITORY}/{_LAYERS}", None, (f"{name}/layers.tsv", f"{name}_layers.tsv", f"10X/{_LAYERS}")
        ),
    }


def slice_files(name: str, image: str) -> dict[str, DataFile]:
    """List all files of one slice, including the full-resolution image if ``image`` is ``"full"``."""
    files = geometry_files(name)
    files["counts"] = _file(name, "filtered_feature_bc_matrix.h5", f"{_BUCKET}/h5")
    files["hires"] = _file(name, "tissue_hires_image.png", f"{_BUCKET}/images")
    if image == "full":
        files["full"] = _file(name, "full_image.tif", f"{_BUCKET}/images")
    return files


def _file(name: str, rest: str, url: str) -> DataFile:
    flat = f"{name}_{rest}"
    address = url if url.endswith((".txt", ".json")) else f"{url}/{flat}"
    stem = rest.rsplit(".", 1)[0]
    # Paths in a folder per slice, in Space Ranger's layout, and in the layout of the bucket.
    places = (f"{name}/{rest}", f"{name}/spatial/{rest}", f"{name}/{flat}", f"h5/{flat}", f"images/{flat}")
    repository = (f"10X/{name}/{stem}.*",)
    return DataFile(flat, address, _SHA256.get(flat), (*places, *repository))


_PITCH_UM = 100.0
"""Distance between the centers of neighboring Visium spots, µm."""


@checked
def dlpfc(
    slices: str | Sequence[str] = PAPER_SLICES,
    *,
    path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    image: VisiumImage = "hires",
) -> ad.AnnData:
    """Load slices of human dorsolateral prefrontal cortex with counts, images and manually annotated layers.

    Parameters
    ----------
    slices
        Names of slices, 151507 to 151510 and 151669 to 151676.
    path
        Folder with the files, either flat with the names of the bucket, or with one subfolder per slice. By default the
        folder in the environment variable ``ST_GCHB_DATA``, if it is set.
    cache_dir
        Folder for downloads; by default ``st_gchb.settings.cache_dir``.
    image
        ``"hires"``: only Space Ranger's down-scaled image (about 2,000 px). ``"full"``: also the full-resolution image,
        several hundred MB per slice.

    Returns
    -------
    AnnData
        One row per spot under tissue. ``X``: raw UMI counts, CSR float32, ``(n_spots, n_genes)``. ``obs``: ``slice``,
        ``patient``, ``layer``, ``array_row``, ``array_col``. ``obsm["spatial"]``: spot centers as x, y in
        full-resolution px, ``(n_spots, 2)``. ``uns["spatial"][slice]``: image, scale factors, µm per px.

    Raises
    ------
    InputError
        A slice or kind of image is unknown.
    MissingFileError
        A local folder is given and lacks files.
    DownloadError
        Files cannot be downloaded; the message explains where to put them manually.

    Notes
    -----
    Maynard et al., *Transcriptome-scale spatial gene expression in the human dorsolateral prefrontal cortex*,
    Nature Neuroscience 2021. The pixel size is derived from the spot pitch, which is 100 µm.

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.dlpfc(["151673"])  # doctest: +SKIP
    """
    import scanpy  # imported here because it takes seconds and only this function needs it

    names = _check_slices(slices)
    files = {name: slice_files(name, image) for name in names}
    found = iter(
        fetch([file for group in files.values() for file in group.values()], "dlpfc", path=path, cache_dir=cache_dir)
    )
    places = {name: {kind: next(found) for kind in group} for name, group in files.items()}
    parts, libraries = [], []
    for name in track(names, "reading slices"):
        where = places[name]
        geometry = _read_geometry(name, where)
        try:
            counts = scanpy.read_10x_h5(where["counts"])
        except OSError as error:
            raise ExpressionError(
                f"{where['counts']}: no HDF5 file that can be read ({error}). Fetch it again."
            ) from error
        counts.var_names_make_unique()
        parts.append(_with_counts(name, geometry, counts))
        libraries.append(_library(libraries_of(geometry)[name], where))
    return join_slices(parts, libraries)


@checked
def dlpfc_geometry(slice: str, path: str | Path | None = None, *, cache_dir: str | Path | None = None) -> ad.AnnData:
    """Load positions and layers of one slice, without counts and image.

    Parameters
    ----------
    slice
        Name of the slice.
    path
        Folder with the files; see :func:`dlpfc`.
    cache_dir
        Folder for downloads; by default ``st_gchb.settings.cache_dir``.

    Returns
    -------
    AnnData
        No genes; ``obs``, ``obsm["spatial"]`` and scale factors as in :func:`dlpfc`. Pass it to
        :func:`synthetic_tissue` as ``geometry``.

    Raises
    ------
    InputError
        The slice is unknown.
    MissingFileError
        A local folder is given and lacks files.
    DownloadError
        Files cannot be downloaded.

    Examples
    --------
    >>> import st_gchb
    >>> geometry = st_gchb.datasets.dlpfc_geometry("151673")  # doctest: +SKIP
    """
    (name,) = _check_slices([slice])
    files = geometry_files(name)
    found = fetch(list(files.values()), "dlpfc", path=path, cache_dir=cache_dir)
    return _read_geometry(name, dict(zip(files, found, strict=True)))


def _check_slices(slices: Sequence[str]) -> list[str]:
    names = [slices] if isinstance(slices, str) else list(slices)
    if not names or len(set(names)) < len(names):
        raise InputError(f"slices: found {names}; expected at least one, each once.")
    unknown = [name for name in names if name not in PATIENTS]
    if unknown:
        raise InputError(f"dlpfc: unknown slices {unknown}; known are {', '.join(PATIENTS)}.")
    return names


def _read_geometry(name: str, where: Mapping[str, Path]) -> ad.AnnData:
    spots = _read_positions(where["positions"])
    um_per_px = _PITCH_UM / _pitch_px(spots, where["positions"])
    try:
        factors: dict[str, Any] = dict(json.loads(where["scalefactors"].read_text()))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where['scalefactors']}: damaged ({error}); expected JSON as Space Ranger writes it."
        ) from error
    spots = spots[spots["in_tissue"] == 1]
    layers = _read_layers(name, where["layers"]).reindex(spots.index)
    unlabeled = int(layers.isna().sum())
    if unlabeled:
        logger.info("dlpfc %s: %d of %d spots have no layer", name, unlabeled, len(spots))
    obs = pd.DataFrame(
        {
            Keys.SLICE: pd.Categorical([name] * len(spots)),
            Keys.PATIENT: pd.Categorical([PATIENTS[name]] * len(spots)),
            "layer": pd.Categorical(layers, categories=list(LAYER_NAMES)),
            "array_row": spots["array_row"].to_numpy(),
            "array_col": spots["array_col"].to_numpy(),
        },
        index=pd.Index([f"{name}_{barcode}" for barcode in spots.index]),
    )
    adata = ad.AnnData(obs=obs, obsm={Keys.SPATIAL: spots[["pxl_col", "pxl_row"]].to_numpy(dtype=np.float64)})
    put_libraries(adata, [Library(name, factors={**factors, Keys.UM_PER_PX: um_per_px})])
    return adata


def _read_positions(path: Path) -> pd.DataFrame:
    check_text(path, "the table of spots", CoordinateError)
    columns = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row", "pxl_col"]
    try:
        spots = pd.read_csv(path, header=None, names=columns, index_col=0)
        numbers = spots.to_numpy(dtype=float)
    except ValueError as error:  # pandas' parser errors are subclasses of ValueError
        raise CoordinateError(f"{path}: expected lines of barcode and 5 numbers ({error}).") from error
    if not len(spots) or not np.isfinite(numbers).all() or not spots.index.is_unique:
        raise CoordinateError(f"{path}: expected lines of barcode and 5 numbers, each barcode once.")
    return spots


def _pitch_px(spots: pd.DataFrame, path: Path) -> float:
    """Measure the distance between neighbors in a row of the array, px; their column numbers differ by two."""
    grid = spots.reset_index().set_index(["array_row", "array_col"])[["pxl_row", "pxl_col"]]
    beside = grid.rename(index=lambda col: col - 2, level="array_col")
    steps = (beside - grid).dropna()
    if steps.empty:
        raise CoordinateError(f"{path}: no two spots are neighbors in the array; are array_row and array_col right?")
    return float(np.median(np.hypot(steps["pxl_row"], steps["pxl_col"])))


def _read_layers(name: str, path: Path) -> pd.Series:
    check_text(path, "the table of layers")
    table = pd.read_csv(path, sep="\t", header=None, dtype=str)
    if table.shape[1] == 3:
        table = table[table[1] == name][[0, 2]]
    if table.shape[1] != 2:
        raise InputError(
            f"{path}: found {table.shape[1]} columns, expected barcode and layer, or barcode, slice, layer."
        )
    return pd.Series(table.iloc[:, 1].to_numpy(), index=table.iloc[:, 0].to_numpy())


def _with_counts(name: str, geometry: ad.AnnData, counts: ad.AnnData) -> ad.AnnData:
    counts.obs_names = [f"{name}_{barcode}" for barcode in counts.obs_names]
    keep = geometry.obs_names[geometry.obs_names.isin(counts.obs_names)]
    if len(keep) < geometry.n_obs:
        logger.info("dlpfc %s: dropped %d spots under tissue without counts", name, geometry.n_obs - len(keep))
    if not len(keep):
        raise InputError(f"dlpfc {name}: no spot is both in the counts and in the positions; do they belong together?")
    adata, spots = counts[keep].copy(), geometry[keep]
    adata.obs = spots.obs.copy()
    adata.obsm[Keys.SPATIAL] = spots.obsm[Keys.SPATIAL].copy()
    return adata


def _library(library: Library, where: Mapping[str, Path]) -> Library:
    hires, _ = read_thumbnail(where["hires"], 10**9)
    metadata = {Keys.SOURCE_IMAGE: str(where["full"])} if "full" in where else {}
    return replace(library, images={"hires": hires}, metadata=metadata)
