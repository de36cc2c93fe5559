"""The reference bank: everything of the training slices that a prediction needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._errors import MissingKeyError


@dataclass
class ReferenceTable:
    """One table of the reference: a layer or an ``obsm`` entry.

    Parameters
    ----------
    values
        ``(n_reference, n_columns)``, sparse.
    columns
        Names of the columns.
    """

    values: sparse.csr_matrix
    columns: pd.Index


@dataclass
class ReferenceBank:
    """Embeddings, expression and origin of the reference spots.

    Parameters
    ----------
    keys
        Joint embedding of each reference spot's expression, L2-normalised, ``(n_reference, d)``.
    image_keys
        Joint embedding of each reference spot's patch, ``(n_reference, d)``.
    linear
        Inputs of the linear read-out, ``(n_reference, n_inputs)``.
    appearance
        Coordinates of the patch features, ``(n_reference, n_coordinates)``, in which a query is compared with the
        reference's range.
    origin
        One row per reference spot: name, slice, patient where known, x and y in full-resolution px.
    tables
        What can be predicted, by name; ``"panel"`` is always there.
    """

    keys: np.ndarray
    image_keys: np.ndarray
    linear: np.ndarray
    appearance: np.ndarray
    origin: pd.DataFrame
    tables: dict[str, ReferenceTable] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def slices(self) -> np.ndarray:
        """Slice of each reference spot, ``(n_reference,)``."""
        return self.origin["slice"].astype(str).to_numpy()

    def table(self, name: str | None) -> ReferenceTable:
        """A table by name; ``None`` is the panel.

        Raises
        ------
        MissingKeyError
            If the reference has no such table.
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
        """A table from a layer or an ``obsm`` entry."""
        return ReferenceTable(sparse.csr_matrix(values, dtype=np.float32), pd.Index(columns).astype(str))
