"""Whether a table that was read holds counts, told at once where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from st_gchb._compat import named_layers
from st_gchb._logging import logger

if TYPE_CHECKING:
    from anndata import AnnData

_ROWS = 2000
"""Rows that are looked at."""


def are_counts(matrix: Any) -> bool:
    """Whether all values of the first rows are whole and not negative.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.io._values import are_counts
    >>> are_counts(np.array([[0.0, 3.0]])), are_counts(np.array([[0.0, 1.1]])), are_counts(np.array([[-1, 3]]))
    (True, False, False)
    """
    part = matrix[:_ROWS]
    values = part.data if sparse.issparse(part) else np.asarray(part)
    if values.dtype.kind not in "buif":
        return False
    finite = values[np.isfinite(values)]
    return bool(len(finite) == values.size and (finite >= 0).all() and (finite == np.round(finite)).all())


def tell_values(adata: AnnData, where: str) -> None:
    """Warn where ``X`` holds no counts, and say where counts lie."""
    if adata.X is None or 0 in adata.shape or are_counts(adata.X):
        return
    places = [f"layers[{name!r}]" for name, layer in named_layers(adata).items() if are_counts(layer)]
    advice = f"Counts lie in {' and '.join(places)}: layer= of setup_anndata takes them. " if places else ""
    if adata.raw is not None and are_counts(adata.raw.X):
        genes = "" if adata.raw.n_vars == adata.n_vars else f" ({adata.raw.n_vars} genes)"
        advice += f"Counts lie in raw.X{genes}: adata = adata.raw.to_adata() takes them. "
    if not advice:
        advice = "The object holds no counts: read a file that does, or set up log1p values with log_normalized=True. "
    logger.warning(
        "%s: X holds no counts: its values are not whole or are negative, so they were normalized or scaled. %s"
        "A query needs none.",
        where,
        advice,
    )
