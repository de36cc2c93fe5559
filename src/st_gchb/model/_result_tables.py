"""Tables of a result, spots by genes: in memory, or in a file to which they are written as they are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from st_gchb._artifacts import write_whole
from st_gchb._compat import lazy_table

if TYPE_CHECKING:
    import h5py

_CHUNK_BYTES = 1 << 26
"""Size of the parts in which a table is read back from a file, bytes."""


class ResultTables(ABC):
    """Tables of a result, each filled some rows at a time."""

    @abstractmethod
    def put(self, name: str | None, rows: np.ndarray, values: np.ndarray) -> None:
        """Fill some rows of a table.

        Parameters
        ----------
        name
            Name of the layer; None for ``X``.
        rows
            Rows of the spots, ``(n_rows,)``.
        values
            Their values, ``(n_rows, n_columns)``.
        """

    @abstractmethod
    def complete(self, result: AnnData) -> None:
        """Give the tables to a result that has everything else."""


@contextmanager
def result_tables(out: Path | None, shape: tuple[int, int]) -> Iterator[ResultTables]:
    """Make tables of a result.

    Parameters
    ----------
    out
        File of AnnData's format to which they are written, as a whole or not at all; None keeps them in memory.
    shape
        Numbers of spots and genes.

    Yields
    ------
    ResultTables
        Tables to be filled and then completed within the block.
    """
    if out is None:
        yield _InMemory(shape)
        return
    import h5py

    with write_whole(out) as part:
        AnnData().write_h5ad(part)
        with h5py.File(part, "r+") as file:
            tables = _InFile(file, shape)
            yield tables
        result = tables.result
    if result is not None:
        _read_from(out, result, shape)


class _InMemory(ResultTables):
    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._arrays: dict[str | None, np.ndarray] = {}

    def put(self, name: str | None, rows: np.ndarray, values: np.ndarray) -> None:
        if name not in self._arrays:
            self._arrays[name] = np.empty(self._shape, dtype=np.float32)
        self._arrays[name][rows] = values

    def complete(self, result: AnnData) -> None:
        for name, values in self._arrays.items():
            if name is None:
                result.X = values
            else:
                result.layers[name] = values


class _InFile(ResultTables):
    def __init__(self, file: h5py.File, shape: tuple[int, int]) -> None:
        self._file, self._shape = file, shape
        self.result: AnnData | None = None

    def put(self, name: str | None, rows: np.ndarray, values: np.ndarray) -> None:
        place = _place(name)
        if place not in self._file:
            table = self._file.create_dataset(place, self._shape, dtype=np.float32)
            table.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        order = np.argsort(rows)
        rows, values = rows[order], values[order]
        # Rows that lie side by side are written at once.
        for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
            self._file[place][rows[run[0]] : rows[run[-1]] + 1] = values[run[0] : run[-1] + 1]

    def complete(self, result: AnnData) -> None:
        from anndata.io import write_elem

        # As ``write_h5ad`` does, which writes nothing but whole tables.
        result.strings_to_categoricals()
        parts = {"obs": result.obs, "var": result.var, "obsm": dict(result.obsm), "uns": dict(result.uns)}
        for name, part in parts.items():
            write_elem(self._file, name, part)
        self.result = result


def _place(name: str | None) -> str:
    return "X" if name is None else f"layers/{name}"


def _read_from(path: Path, result: AnnData, shape: tuple[int, int]) -> None:
    """Let ``X`` and the layers of a result be arrays of dask that read from its file."""
    import h5py

    at_once = max(1, _CHUNK_BYTES // max(4 * shape[1], 1))
    with h5py.File(path) as file:
        result.X = lazy_table(file["X"], at_once)
        for name in file["layers"]:
            result.layers[name] = lazy_table(file[_place(name)], at_once)
