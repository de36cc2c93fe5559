"""Whether a table that was read holds counts, told at once where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st_gchb._counts import counts_elsewhere, why_no_counts
from st_gchb._logging import logger

if TYPE_CHECKING:
    from anndata import AnnData


def tell_values(adata: AnnData, where: str) -> None:
    """Warn where ``X`` holds no counts, and say where counts lie."""
    said = "" if adata.X is None else why_no_counts(adata.X, "it")
    if not said:
        return
    layers, raw = counts_elsewhere(adata, None)
    advice = (
        f"Counts lie in {' and '.join(f'layers[{name!r}]' for name in layers)}: layer= of setup_anndata takes them. "
    )
    advice = advice if layers else ""
    if raw:
        genes = "" if adata.raw.n_vars == adata.n_vars else f" ({adata.raw.n_vars} genes)"
        advice += f"Counts lie in raw.X{genes}: adata = adata.raw.to_adata() takes them. "
    if not advice:
        advice = "The object holds no counts: read a file that does, or set up log1p values with log_normalized=True. "
    logger.warning("%s: X holds no counts: %s %sA query needs none.", where, said, advice)
