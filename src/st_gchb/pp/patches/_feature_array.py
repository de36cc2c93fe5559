"""Access to the rows of a feature matrix in memory, memory-mapped, or chunked on disk, and to their feature maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from st_gchb._logging import logger
from st_gchb.pp.patches._feature_maps import FILES_KEY, PatchMaps, find_maps, ids_of, let_go

BLOCK_ROWS = 4096
"""Rows read at once: 32 MiB for 2,048 features as float32."""


class FeatureRows:
    """Some or all rows of a feature matrix, read on access, as float32.

    Parameters
    ----------
    array
        Features ``(n, n_features)``: numpy array, ``np.memmap``, zarr array, ``h5py`` dataset, dask array, or any other
        array with ``shape`` whose rows can be read by slicing.
    rows
        Row numbers, ascending; None for all rows.
    maps
        Feature maps of these rows before the image encoder's last stage, needed to train that stage.
    """

    def __init__(self, array: Any, rows: np.ndarray | None = None, maps: PatchMaps | None = None) -> None:
        self._array: Any
        self._rows: np.ndarray | None
        self.maps = maps
        if isinstance(array, FeatureRows):
            if maps is None and array.maps is not None:
                self.maps = array.maps if rows is None else array.maps.subset(rows)
            rows = array._rows if rows is None else (rows if array._rows is None else array._rows[rows])
            array = array._array
        self._array = array if hasattr(array, "__array_interface__") or _is_lazy(array) else np.asarray(array)
        self._rows = rows

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_rows, n_features)``."""
        n = self._array.shape[0] if self._rows is None else len(self._rows)
        return n, self._array.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        """Read rows by number, in any order, ``(n, n_features)``."""
        wanted = np.asarray(index) if self._rows is None else self._rows[index]
        if isinstance(self._array, np.ndarray):
            values = np.asarray(self._array[wanted], dtype=np.float32)
            let_go(self._array)
            return values
        # Arrays on disk are read in contiguous blocks: few formats accept unsorted row numbers, and none is fast.
        result = np.empty((len(wanted), self.shape[1]), dtype=np.float32)
        order = np.argsort(wanted, kind="stable")
        cuts = np.flatnonzero(np.diff(wanted[order] // BLOCK_ROWS)) + 1
        for places in np.split(order, cuts) if len(order) else []:
            first, last = int(wanted[places[0]]), int(wanted[places[-1]])
            result[places] = self._stretch(first, last + 1)[wanted[places] - first]
        return result

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Iterate over all rows in blocks: the row range and the features of each block."""
        for start in range(0, len(self), BLOCK_ROWS):
            where = slice(start, min(start + BLOCK_ROWS, len(self)))
            rows = np.arange(where.start, where.stop)
            yield where, self._stretch(where.start, where.stop) if self._rows is None else self[rows]

    def subset(self, rows: np.ndarray) -> FeatureRows:
        """Select some of these rows without reading them."""
        return FeatureRows(self, np.asarray(rows))

    def whole(self) -> np.ndarray:
        """Read all rows into memory, ``(n_rows, n_features)``."""
        if isinstance(self._array, np.ndarray):
            return np.asarray(self._array if self._rows is None else self._array[self._rows], dtype=np.float32)
        return self[np.arange(len(self))]

    def _stretch(self, start: int, stop: int) -> np.ndarray:
        values = np.array(self._array[start:stop], dtype=np.float32)
        let_go(self._array)
        return values


def has_features(adata: AnnData, key: str, *, maps: bool) -> bool:
    """Return True if a query has features in ``obsm[key]`` and, with ``maps``, also their feature maps."""
    if key in adata.obsm and maps and FILES_KEY not in adata.uns.get(key, {}):
        logger.info(
            "The query's obsm[%r] has no maps for the image encoder's last stage: both are made from its image.", key
        )
        return False
    return key in adata.obsm


def with_maps(adata: AnnData, key: str) -> FeatureRows:
    """Open the features of all spots together with their feature maps; errors as for ``_feature_maps.find_maps``."""
    features = FeatureRows(adata.obsm[key])
    ids = np.concatenate([ids_of(block) for _, block in features.blocks()])
    return FeatureRows(features, maps=find_maps(adata.uns.get(key, {}), ids, key))


def _is_lazy(array: Any) -> bool:
    """Return True if rows of an array can be read without reading the whole array."""
    known = hasattr(array, "shape") and hasattr(array, "dtype") and hasattr(array, "ndim")
    return known and not sparse.issparse(array) and not hasattr(array, "columns")
