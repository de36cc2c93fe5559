"""Read 10x count matrices: HDF5 of Cell Ranger 2 and 3, and Matrix Market text (mtx)."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.io import mmread

from st_gchb._errors import ExpressionError
from st_gchb._genes import GENE
from st_gchb._logging import logger
from st_gchb.io._reading import reading
from st_gchb.io.sections._text_table import open_text

if TYPE_CHECKING:
    from anndata import AnnData

MTX = "matrix.mtx"
_ADVICE = "Expected a matrix as Space Ranger writes it: copy the file again."
_PARTS = ("barcodes", "data", "indices", "indptr", "shape")
_GZIP_START = b"\x1f\x8b"


def read_counts(path: Path, *, counts: bool = True) -> AnnData:
    """Read a 10x count matrix.

    Parameters
    ----------
    path
        An HDF5 file such as ``filtered_feature_bc_matrix.h5``; or ``matrix.mtx``, plain or compressed, in a folder with
        ``barcodes.tsv`` and ``features.tsv`` (``genes.tsv`` in early versions).
    counts
        Whether to read the values; without them the matrix is empty, and spots and genes are read alone.

    Returns
    -------
    AnnData
        ``X``: CSR float32, ``(n_spots, n_features)``. ``var``: ``gene_ids``, ``feature_types``, ``genome`` if the file
        has them, indexed by gene symbols, which are made unique.

    Raises
    ------
    ExpressionError
        The file is damaged, or holds no spots or no genes.
    """
    with reading(path, "the matrix of counts", _ADVICE, ExpressionError):
        read = _read_mtx if MTX in path.name.lower() else _read_h5
        barcodes, features, matrix = read(path, counts)
        if matrix.shape != (len(barcodes), len(features)):
            raise ExpressionError(
                f"{path}: the matrix is of {matrix.shape[1]} features and {matrix.shape[0]} spots, and names "
                f"{len(features)} and {len(barcodes)}. {_ADVICE}"
            )
        # Out-of-range indices would crash the process later, instead of raising an exception.
        matrix.check_format(full_check=True)
    if not len(barcodes):
        raise ExpressionError(f"{path}: the matrix holds no spots; expected those under tissue.")
    if not len(features):
        raise ExpressionError(f"{path}: the matrix holds no genes; expected some.")
    return _as_anndata(path, barcodes, features, matrix)


def _as_anndata(path: Path, barcodes: list[str], features: pd.DataFrame, matrix: sparse.csr_matrix) -> AnnData:
    from anndata import AnnData

    names = pd.Index(barcodes, dtype=object)
    if not names.is_unique:
        raise ExpressionError(f"{path}: the barcode {names[names.duplicated()][0]!r} is there twice; expected it once.")
    matrix.sum_duplicates()
    var = features.set_index("name", drop=True).rename_axis(None)
    adata = AnnData(matrix, obs=pd.DataFrame(index=names), var=var)
    twice = int(adata.var_names.duplicated().sum())
    if twice:
        logger.info("%s: %d gene symbols are there more than once and got numbers.", path, twice)
        adata.var_names_make_unique()
    return adata


def _read_h5(path: Path, counts: bool) -> tuple[list[str], pd.DataFrame, sparse.csr_matrix]:
    with h5py.File(path, "r") as file:
        if "matrix" in file:
            return _version_3(file["matrix"], counts)
        # Cell Ranger 2 writes one group per genome, with the names of the genes in the same group.
        groups = [name for name in file if isinstance(file[name], h5py.Group) and "genes" in file[name]]
        if not groups:
            raise ExpressionError(f"{path}: no matrix of counts that can be read (it holds {sorted(file)}). {_ADVICE}")
        parts = [_version_2(file[name], name, counts) for name in groups]
    barcodes = parts[0][0]
    if any(part[0] != barcodes for part in parts):
        raise ExpressionError(f"{path}: its genomes {groups} are of different spots; expected the same. {_ADVICE}")
    features = pd.concat([part[1] for part in parts], ignore_index=True)
    return barcodes, features, sparse.csr_matrix(sparse.hstack([part[2] for part in parts], format="csr"))


def _version_3(group: Any, counts: bool) -> tuple[list[str], pd.DataFrame, sparse.csr_matrix]:
    _expect(group, (*_PARTS, "features/id", "features/name"))
    kept = {"name": "name", "id": "gene_ids", "feature_type": "feature_types", "genome": "genome"}
    columns = {new: _texts(group["features"][old]) for old, new in kept.items() if old in group["features"]}
    return _texts(group["barcodes"]), pd.DataFrame(columns), _values(group, counts)


def _version_2(group: Any, genome: str, counts: bool) -> tuple[list[str], pd.DataFrame, sparse.csr_matrix]:
    _expect(group, (*_PARTS, "gene_names"))
    features = pd.DataFrame({"name": _texts(group["gene_names"]), "gene_ids": _texts(group["genes"])})
    return _texts(group["barcodes"]), features.assign(feature_types=GENE, genome=genome), _values(group, counts)


def _expect(group: Any, parts: tuple[str, ...]) -> None:
    absent = [part for part in parts if part not in group]
    if absent:
        raise KeyError(f"{group.name} has no {absent}")


def _texts(dataset: Any) -> list[str]:
    values = np.asarray(dataset[()])
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values.ravel().tolist()]


def _values(group: Any, counts: bool) -> sparse.csr_matrix:
    """Read the values as spots x features: the CSC matrix on disk is the CSR matrix of its transpose."""
    if not counts:
        n_features, n_spots = (int(side) for side in np.asarray(group["shape"][()]))
        return sparse.csr_matrix((n_spots, n_features), dtype=np.float32)
    data, indices, indptr, shape = (np.asarray(group[name][()]) for name in ("data", "indices", "indptr", "shape"))
    n_features, n_spots = (int(side) for side in shape)
    if not np.isfinite(data).all():
        raise ValueError("values are not finite")
    if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        raise ValueError("indices are no whole numbers")
    return sparse.csr_matrix((data.astype(np.float32), indices, indptr), shape=(n_spots, n_features))


def _read_mtx(path: Path, counts: bool) -> tuple[list[str], pd.DataFrame, sparse.csr_matrix]:
    prefix = path.name[: path.name.lower().index(MTX)]
    values = _read_mtx_values(path) if counts else None
    barcodes = [row[0] for row in _rows(_beside(path, prefix, ("barcodes.tsv",)))]
    rows = _rows(_beside(path, prefix, ("features.tsv", "genes.tsv")))
    width = min((len(row) for row in rows), default=1)
    columns = {"name": [row[min(1, width - 1)] for row in rows], "gene_ids": [row[0] for row in rows]}
    if width > 2:
        columns["feature_types"] = [row[2] for row in rows]
    if values is None:
        values = sparse.csr_matrix((len(barcodes), len(rows)), dtype=np.float32)
    return barcodes, pd.DataFrame(columns), values


def _read_mtx_values(path: Path) -> sparse.csr_matrix:
    """Read the values of a Matrix Market file, plain or compressed, as spots x features."""
    with open(path, "rb") as raw:
        packed = raw.read(2) == _GZIP_START
    with gzip.open(path, "rb") if packed else open(path, "rb") as file:
        matrix = sparse.csr_matrix(mmread(file).T, dtype=np.float32)
    if not np.isfinite(matrix.data).all():
        raise ValueError("values are not finite")
    return matrix


def _beside(path: Path, prefix: str, names: tuple[str, ...]) -> Path:
    """Find the table of barcodes or features that belongs to a Matrix Market file."""
    for name in names:
        for file in (path.with_name(prefix + name), path.with_name(f"{prefix}{name}.gz")):
            if file.is_file():
                return file
    raise ExpressionError(
        f"{path}: {' or '.join(prefix + name for name in names)} (or .gz) is missing beside it. Copy the whole folder."
    )


def _rows(path: Path) -> list[list[str]]:
    with open_text(path) as lines:
        return [[cell.strip() for cell in line.split("\t")] for line in lines]
