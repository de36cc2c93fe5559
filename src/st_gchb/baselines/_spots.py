"""Training or held-out spots as published methods see them: patches, features, positions, expression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from st_gchb._errors import InputError
from st_gchb.pp.patches import PatchPixels

GRID_ROWS = 128
"""Number of rows and columns of the array that positions are counted in; beyond, they are clamped."""


@dataclass(frozen=True, eq=False)
class Spots:
    """Spots of one or several slices.

    Parameters
    ----------
    slices
        Slice of each spot, ``(n_spots,)``.
    positions
        Positions, ``(n_spots, 2)``, as x, y in px of the full-resolution image.
    graph
        Spot graph, ``(n_spots, n_spots)``, without edges between slices.
    features
        Patch features, ``(n_spots, n_features)``; None if there are none.
    read
        Function that reads the pixels of the patches of all spots, from ``out_px`` and ``patch_um``; None if there is
        no image.
    targets
        Log-normalized expression of the panel, ``(n_spots, n_genes)``; None for spots that are to be predicted.
    counts
        Counts of the panel, ``(n_spots, n_genes)``; None as before.
    rows
        Rows of these spots among those that ``read`` reads, ``(n_spots,)``; None for all of them.
    """

    slices: npt.NDArray[np.str_]
    positions: npt.NDArray[np.float64]
    graph: sparse.csr_matrix
    features: npt.NDArray[np.float32] | None = None
    read: Callable[..., PatchPixels] | None = None
    targets: npt.NDArray[np.float32] | None = None
    counts: npt.NDArray[np.float32] | None = None
    rows: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        # Pixels are asked for in every step: the files behind them are opened once, for all selections of the spots.
        if self.read is not None and not hasattr(self.read, "cache_info"):
            object.__setattr__(self, "read", lru_cache(maxsize=8)(self.read))

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Spots:
        """Select spots; edges to spots that are not selected are dropped."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        picked = {
            name: None if (values := getattr(self, name)) is None else values[index]
            for name in ("slices", "positions", "features", "targets", "counts")
        }
        return replace(self, **picked, graph=self.graph[index][:, index], rows=rows[index])  # type: ignore[arg-type]

    @property
    def by_slice(self) -> list[npt.NDArray[np.int64]]:
        """Rows of each slice, in the order in which slices appear."""
        return [np.flatnonzero(self.slices == name) for name in dict.fromkeys(self.slices)]

    @cached_property
    def grid(self) -> npt.NDArray[np.int64]:
        """Positions counted in spot distances from the corner of their slice, ``(n_spots, 2)``, below 128."""
        result = np.zeros((len(self), 2), dtype=np.int64)
        for rows in self.by_slice:
            own = self.positions[rows]
            pitch = 1.0
            if len(rows) > 1:
                search = NearestNeighbors(n_neighbors=2).fit(own)
                pitch = float(np.median(search.kneighbors(own)[0][:, 1])) or 1.0
            result[rows] = np.rint((own - own.min(0)) / pitch).astype(np.int64)
        return np.minimum(result, GRID_ROWS - 1)

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """Values that a method computes of these spots once, by a key of its own, such as a frozen trunk's features."""
        return {}

    def pixels(self, out_px: int, patch_um: float) -> Patches:
        """Get the patches, which are read when they are first taken.

        Parameters
        ----------
        out_px
            Side of the patches that are returned, px.
        patch_um
            Side on the tissue, µm.

        Raises
        ------
        InputError
            There is no image to read from.
        """
        if self.read is None:
            raise InputError(
                "The spots have no image, and this method learns from the pixels of patches. Give the slices with "
                "their images, or choose a method that takes patch features."
            )
        return Patches(self.read(out_px=out_px, patch_um=patch_um), self.rows)

    def check_features(self) -> npt.NDArray[np.float32]:
        """Return the patch features.

        Raises
        ------
        InputError
            There are none.
        """
        if self.features is None:
            raise InputError(
                "The spots have no patch features, which this method takes. Run st_gchb.pp.embed_patches(adata) first."
            )
        return self.features


class Patches:
    """Pixels of the patches of some spots, taken by row: ``(n, out_px, out_px, 3)`` uint8.

    Parameters
    ----------
    source
        Patches of all spots.
    rows
        Rows of these spots among all, ``(n_spots,)``; None for all.
    """

    def __init__(self, source: PatchPixels, rows: npt.NDArray[np.int64] | None) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.source) if self.rows is None else len(self.rows)

    def __getitem__(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return self.source[index if self.rows is None else self.rows[index]]
