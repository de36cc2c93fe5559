"""The reference bank, which holds all that a prediction needs of the training slices, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._errors import MissingKeyError
from st_gchb._matrices import matrix_of
from st_gchb.retrieval._faiss import SearchIndex
from st_gchb.retrieval._kernel import KernelHead
from st_gchb.retrieval._ridge import FittedRidgeHead


@dataclass
class ReferenceTable:
    """One table of the reference that can be predicted: a layer or an ``obsm`` entry.

    Parameters
    ----------
    values
        Values, ``(n_reference, n_columns)``, sparse.
    columns
        Names of the columns.
    ridge_head
        Ridge head fitted to the table; ``None`` until it is needed.
    held_out
        Correlation of the ridge head with each column on held-out slices of the reference, ``(n_columns,)``; ``None``
        until it is needed.
    kernel_loadings
        Loadings of the columns on the components that the kernel head predicts, ``(n_components, n_columns)``; None
        until they are needed.
    """

    values: sparse.csr_matrix
    columns: pd.Index
    ridge_head: FittedRidgeHead | None = field(default=None, repr=False)
    held_out: np.ndarray | None = field(default=None, repr=False)
    kernel_loadings: np.ndarray | None = field(default=None, repr=False)

    @cached_property
    def mean_squares(self) -> np.ndarray:
        """Mean of each spot's squared values over the columns, ``(n_reference,)``."""
        squares = np.square(self.values.data, dtype=np.float64)
        sums = np.add.reduceat(np.append(squares, 0.0), np.minimum(self.values.indptr[:-1], len(squares)))
        # For a row without stored values, reduceat returns the first value of the next row.
        return np.where(np.diff(self.values.indptr) > 0, sums, 0.0) / max(self.values.shape[1], 1)

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of each column, ``(n_columns,)`` float64."""
        return np.asarray(self.values.mean(axis=0, dtype=np.float64)).ravel()

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Minimum and maximum of each column, ``(n_columns,)`` each; values that are not stored count as 0."""
        n_rows, n_columns = self.values.shape
        low, high = np.full(n_columns, np.inf, np.float32), np.full(n_columns, -np.inf, np.float32)
        # scipy's own minimum and maximum would copy the table.
        np.minimum.at(low, self.values.indices, self.values.data)
        np.maximum.at(high, self.values.indices, self.values.data)
        gaps = np.bincount(self.values.indices, minlength=n_columns) < n_rows
        return np.where(gaps, np.minimum(low, 0), low), np.where(gaps, np.maximum(high, 0), high)


@dataclass
class ReferenceBank:
    """Embeddings, expression and origin of the reference spots.

    Parameters
    ----------
    keys
        Joint embedding of each reference spot's expression, L2-normalized, ``(n_reference, d)``.
    image_keys
        Joint embedding of each reference spot's patch, ``(n_reference, d)``.
    linear
        Inputs of the ridge head, ``(n_reference, n_inputs)``; none if predictions have no share of it.
    appearance
        Projected patch features, ``(n_reference, n_coordinates)``, in which a query is compared with the reference to
        find outliers.
    origin
        One row per reference spot: name, slice, patient if known, x and y in full-resolution px.
    tables
        Tables that can be predicted, by name; ``"panel"`` is always among them.
    index
        Search index of the keys, if one was built.
    kernel_head
        Kernel head fitted to the panel; None if predictions have no share of it.
    """

    keys: np.ndarray
    image_keys: np.ndarray
    linear: np.ndarray
    appearance: np.ndarray
    origin: pd.DataFrame
    tables: dict[str, ReferenceTable] = field(default_factory=dict)
    index: SearchIndex | None = None
    kernel_head: KernelHead | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def slices(self) -> np.ndarray:
        """Slice of each reference spot, ``(n_reference,)``."""
        return self.origin["slice"].astype(str).to_numpy()

    def table(self, name: str | None) -> ReferenceTable:
        """Return a table by name; ``None`` is the panel.

        Raises
        ------
        MissingKeyError
            The reference has no such table.
        """
        key = "panel" if name is None else name
        if key not in self.tables:
            raise MissingKeyError(
                f"layer={name!r} is none of the reference's tables; found {sorted(self.tables)}. "
                "Layers and obsm tables are taken from the reference when the model is trained."
            )
        return self.tables[key]

    @staticmethod
    def table_from(values: Any, columns: Sequence[str] | pd.Index) -> ReferenceTable:
        """Make a table from a layer or an ``obsm`` entry, ``(n_reference, n_columns)``."""
        matrix = sparse.csr_matrix(matrix_of(values, "the table"), dtype=np.float32)
        return ReferenceTable(matrix, pd.Index(columns).astype(str))
