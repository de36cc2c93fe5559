"""Matrices are read whatever holds them, and what is no matrix of numbers is told by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import zarr
from anndata import AnnData

from st_gchb._errors import ExpressionError, InputError
from st_gchb._matrices import dense_of, is_chunked, matrix_of

VALUES = np.array([[0.0, 1, 0], [2, 0, 3], [0, 0, 0], [4, 5, 6]])


def stored(folder: Path, values: Any) -> AnnData:
    path = folder / f"{type(values).__name__}.h5ad"
    if not path.exists():
        AnnData(values).write_h5ad(path)
    return anndata.read_h5ad(path, backed="r")


def in_zarr(folder: Path) -> Any:
    array = zarr.open_array(str(folder / "z"), mode="w", shape=VALUES.shape, dtype="float32", chunks=(2, 3))
    array[:] = VALUES
    return array


def in_h5(folder: Path) -> Any:
    file = h5py.File(folder / "x.h5", "a")
    return file["x"] if "x" in file else file.create_dataset("x", data=VALUES)


def in_another_byte_order() -> sp.csr_matrix:
    matrix = sp.csr_matrix(VALUES)
    matrix.data = matrix.data.astype(">f4")
    return matrix


HOLDERS: dict[str, Callable[[Path], Any]] = {
    "array": lambda _: VALUES,
    "whole numbers": lambda _: VALUES.astype(np.uint16),
    "other byte order": lambda _: VALUES.astype(">f4"),
    "columns first": lambda _: np.asfortranarray(VALUES),
    "matrix": lambda _: np.matrix(VALUES),
    "objects": lambda _: VALUES.astype(object),
    "masked without a mask": lambda _: np.ma.masked_equal(VALUES, -1),
    "list": lambda _: VALUES.tolist(),
    "csr_matrix": lambda _: sp.csr_matrix(VALUES),
    "csr_array": lambda _: sp.csr_array(VALUES),
    "csc_matrix": lambda _: sp.csc_matrix(VALUES),
    "coo_array": lambda _: sp.coo_array(VALUES),
    "bsr_matrix": lambda _: sp.bsr_matrix(VALUES),
    "dia_array": lambda _: sp.dia_array(VALUES),
    "lil_matrix": lambda _: sp.lil_matrix(VALUES),
    "dok_array": lambda _: sp.dok_array(VALUES),
    "csr of another byte order": lambda _: in_another_byte_order(),
    "frame": lambda _: pd.DataFrame(VALUES),
    "nullable frame": lambda _: pd.DataFrame(VALUES).astype("Int64"),
    "sparse frame": lambda _: pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(VALUES)),
    "tensor": lambda _: torch.tensor(VALUES),
    "tensor with a gradient": lambda _: torch.tensor(VALUES, requires_grad=True),
    "half tensor": lambda _: torch.tensor(VALUES, dtype=torch.bfloat16),
    "sparse tensor": lambda _: torch.tensor(VALUES).to_sparse(),
    "dask": lambda _: da.from_array(VALUES, chunks=(2, 3)),
    "dask of sparse blocks": lambda _: da.from_array(VALUES, chunks=(2, 3)).map_blocks(sp.csr_matrix),
    "h5py": in_h5,
    "zarr": in_zarr,
    "backed, dense": lambda folder: stored(folder, VALUES).X,
    "backed, sparse": lambda folder: stored(folder, sp.csr_matrix(VALUES)).X,
    "backed, by column": lambda folder: stored(folder, sp.csc_matrix(VALUES)).X,
    "view": lambda _: AnnData(sp.csr_matrix(VALUES))[:, :].X,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_matrix_is_read_whatever_holds_it(holder: str, tmp_path: Path):
    matrix = matrix_of(HOLDERS[holder](tmp_path), "X")
    assert isinstance(matrix, np.ndarray | sp.csr_matrix)
    assert not isinstance(matrix, np.matrix | np.ma.MaskedArray)
    assert matrix.dtype.isnative
    assert np.array_equal(matrix.toarray() if sp.issparse(matrix) else matrix, VALUES)
    assert np.array_equal(dense_of(HOLDERS[holder](tmp_path), "X"), VALUES)


def test_what_is_dense_and_in_chunks_is_known(tmp_path: Path):
    chunked = {name for name, make in HOLDERS.items() if is_chunked(make(tmp_path))}
    assert chunked == {"dask", "h5py", "zarr", "backed, dense"}


def test_masked_and_missing_values_are_nan():
    assert np.isnan(matrix_of(np.ma.masked_equal(VALUES, 3), "X")[1, 2])
    frame = pd.DataFrame(VALUES).astype("Int64")
    frame.iloc[1, 2] = pd.NA
    assert np.isnan(matrix_of(frame, "X")[1, 2])


def test_entries_of_one_place_are_added_up():
    twice = sp.csr_matrix((np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 2])), shape=(1, 3))
    assert matrix_of(twice, "X").data.tolist() == [3.0]
    assert twice.data.tolist() == [1.0, 2.0]


BAD: dict[str, Any] = {
    "text": VALUES.astype(str),
    "dates": VALUES.astype("M8[s]"),
    "complex": VALUES + 1j,
    "complex tensor": torch.tensor(VALUES + 1j),
    "ragged": [[1, 2], [3]],
    "three dimensions": np.zeros((2, 2, 2)),
    "nothing": None,
    "a word": "x",
    "objects": np.array([[object()]]),
    "frame of text": pd.DataFrame({"a": ["x"]}),
    "frame of categories": pd.DataFrame({"a": pd.Categorical(["x"])}),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_matrix_of_numbers_is_told_by_its_name(bad: str):
    with pytest.raises(ExpressionError, match=r"layers\['c'\]"):
        matrix_of(BAD[bad], "layers['c']", ExpressionError)


def test_indices_that_point_outside_are_refused():
    broken = sp.csr_matrix(VALUES)
    broken.indices[0] = 1000
    with pytest.raises(InputError, match="cannot be read"):
        matrix_of(broken, "X")


def test_a_file_that_is_closed_is_told(tmp_path: Path):
    file = h5py.File(tmp_path / "x.h5", "w")
    values = file.create_dataset("x", data=VALUES)
    file.close()
    with pytest.raises(InputError, match="to_memory"):
        matrix_of(values, "X")
