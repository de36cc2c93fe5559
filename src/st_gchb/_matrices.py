"""Reading of numeric matrices from numpy, scipy, files, dask, torch and pandas as numpy arrays or CSR matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._compat import ARRAY_ERRORS
from st_gchb._errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

_NUMBERS = "buif"
"""Kinds of dtype that count as numbers: booleans, integers and floats."""


def matrix_of(values: Any, name: str, error: type[InputError] = InputError) -> Any:
    """Read a matrix into memory as a numpy array or CSR matrix in native byte order.

    Other containers are read once: the ``X`` of a backed AnnData (dense or sparse), h5py data sets, zarr and dask
    arrays, torch tensors, data frames, masked arrays. Masked and missing values become NaN. A numpy array or CSR matrix
    of numbers is returned as it is, so the result must not be modified.

    Parameters
    ----------
    values
        Matrix, ``(n_rows, n_columns)``.
    name
        Name of the matrix in messages, such as ``"layers['counts']"``.
    error
        Type of the error to raise.

    Returns
    -------
    numpy.ndarray or scipy.sparse.csr_matrix
        The matrix; CSR has no duplicate entries.

    Raises
    ------
    InputError
        Or the given type: the matrix cannot be read, is not two-dimensional, or holds values other than real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from st_gchb._matrices import matrix_of
    >>> matrix_of(sparse.coo_array(np.eye(2)), "X").format
    'csr'
    >>> matrix_of(np.ma.masked_equal([[1, 2]], 2), "X")
    array([[ 1., nan]])
    """
    try:
        matrix = _canonical(sparse.csr_matrix(_read(values))) if _is_sparse(values) else _plain(_read(values))
    except ARRAY_ERRORS as problem:
        raise error(
            f"{name} ({_kind(values)}) cannot be read as a matrix: {problem}. Pass a numpy array or a scipy sparse "
            "matrix; an AnnData on disk is read into memory by adata = adata.to_memory()."
        ) from problem
    if matrix.ndim != 2:
        raise error(f"{name} has shape {matrix.shape}; expected two dimensions, (n_spots, n_columns).")
    if matrix.dtype.kind not in _NUMBERS:
        raise error(f"{name} ({_kind(values)}) holds {matrix.dtype} values; expected real numbers.")
    return matrix


def dense_of(values: Any, name: str, error: type[InputError] = InputError) -> np.ndarray:
    """Read a matrix as a dense numpy array; parameters and errors are those of :func:`matrix_of`."""
    matrix = matrix_of(values, name, error)
    return np.asarray(matrix.toarray() if sparse.issparse(matrix) else matrix)


def in_memory(adata: AnnData) -> AnnData:
    """Copy an AnnData, or a view of one, into memory; a backed object is read rather than copied to a second file."""
    return adata.to_memory() if adata.isbacked else adata.copy()


def is_chunked(values: Any) -> bool:
    """Return whether rows of a dense matrix can be read without the others: h5py data set, zarr or dask array."""
    return (
        hasattr(values, "chunks")
        and not _is_sparse(values)
        and len(getattr(values, "shape", ())) == 2
        and np.dtype(getattr(values, "dtype", object)).kind in _NUMBERS
    )


def _is_sparse(values: Any) -> bool:
    """Return whether a matrix is sparse: in memory, in a file, in dask blocks, or as a tensor."""
    if sparse.issparse(values) or sparse.issparse(getattr(values, "_meta", None)):
        return True
    # anndata's sparse matrices on disk, and torch's sparse tensors.
    return getattr(values, "format", None) in ("csr", "csc") or "sparse" in str(getattr(values, "layout", ""))


def _read(values: Any) -> Any:
    """Load a matrix into memory as an object that numpy or scipy understands."""
    if hasattr(values, "detach"):
        return _tensor(values.detach().cpu())
    if hasattr(values, "to_memory"):
        values = values.to_memory()
    if hasattr(values, "compute"):
        values = values.compute()
    if isinstance(values, pd.DataFrame):
        return _frame(values)
    return values


def _tensor(tensor: Any) -> Any:
    """Convert a tensor on the host to a numpy array or CSR matrix."""
    # numpy has no bfloat16.
    tensor = tensor.double() if tensor.is_floating_point() else tensor
    if "sparse" not in str(tensor.layout):
        return tensor.resolve_neg().numpy()
    coo = tensor.to_sparse_coo().coalesce()
    return sparse.csr_matrix((coo.values().numpy(), coo.indices().numpy()), shape=tuple(coo.shape))


def _frame(frame: pd.DataFrame) -> np.ndarray:
    """Convert a data frame to an array; text stays text, which the caller rejects."""
    if all(pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind) for kind in frame.dtypes):
        return frame.to_numpy(dtype=np.float64, na_value=np.nan)
    return frame.to_numpy()


def _plain(values: Any) -> np.ndarray:
    """Convert to a numpy array without mask, in native byte order."""
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan) if np.ma.is_masked(values) else values.data
    array = np.asarray(values)
    if array.dtype.kind == "O" and all(isinstance(value, int | float | np.number) for value in array.flat):
        array = array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _canonical(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Convert to native byte order and sum duplicate entries, since the log of a sum is not the sum of logs."""
    if not matrix.dtype.isnative:
        matrix = matrix.astype(matrix.dtype.newbyteorder("="))
    # Indices outside of the matrix would crash the process instead of raising an error.
    matrix.check_format(full_check=True)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return matrix


def _kind(values: Any) -> str:
    return f"{type(values).__module__.partition('.')[0]} {type(values).__name__}".removeprefix("builtins ")
