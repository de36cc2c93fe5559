"""The panel of every fold, chosen on its training slices, and what makes one too small."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from st_gchb._errors import ExpressionError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.evaluate._folds import Fold
from st_gchb.pp._expression import choose_panel

_LEAST = 50
"""HVG and HEG are means over this many genes: a smaller panel has to be asked for."""

_USABLE = (
    "A gene is usable if it is found in every training slice, and in at least 10 training spots in all "
    "(1 % of them, at least 2, where there are fewer than 1,000)."
)


def choose_panels(
    log_values: sparse.csr_matrix, genes: pd.Index, slices: np.ndarray, folds: Sequence[Fold], n_top_genes: int
) -> dict[str, np.ndarray]:
    """Columns of each fold's panel, by the fold's name.

    Parameters
    ----------
    log_values
        Log-normalised expression of all spots, ``(n_spots, n_all_genes)``.
    genes
        Names of its columns.
    slices
        Slice of each spot.
    folds
        Splits of the spots.
    n_top_genes
        Size of the panel.

    Raises
    ------
    ExpressionError
        If the training slices of a fold share too few usable genes.
    """
    panels = {}
    for fold in folds:
        values, names = log_values[fold.train], slices[fold.train]
        try:
            # Asked for as many genes as there are, it gives all that a panel can be chosen from.
            usable = choose_panel(values, genes, names, len(genes))
        except ExpressionError as error:
            raise ExpressionError(f"Fold {fold.name!r}: {error}") from error
        _check_usable(fold, usable, values, names, n_top_genes)
        columns = usable if len(usable) <= n_top_genes else choose_panel(values, genes, names, n_top_genes)
        panels[fold.name] = columns
    return panels


def _check_usable(
    fold: Fold, usable: np.ndarray, values: sparse.csr_matrix, slices: np.ndarray, n_top_genes: int
) -> None:
    found = {name: (values[slices == name] > 0).getnnz(axis=0)[usable] > 0 for name in dict.fromkeys(slices)}
    shared = int(np.logical_and.reduce(list(found.values())).sum())
    least = min(n_top_genes, _LEAST)
    if shared < least:
        by_slice = ", ".join(f"{name} {int(seen.sum())}" for name, seen in found.items())
        advice = f", or pass n_top_genes={shared} if so few are meant" if shared > 1 else ""
        raise ExpressionError(
            f"Fold {fold.name!r}: its training slices share {shared} usable genes; expected at least {least}. "
            f"{_USABLE} Found by slice: {by_slice}. Leave out the slices that measure other genes or almost none"
            f"{advice}."
        )
    if len(usable) < n_top_genes:
        logger.warning(
            "Fold %s: n_top_genes=%d, but its training slices have %d usable genes: all of them are the panel.",
            fold.name,
            n_top_genes,
            len(usable),
        )


def present(markers: Sequence[str] | None, panel: Sequence[str]) -> list[str] | None:
    """The markers, all of which are in the panel.

    Raises
    ------
    MissingKeyError
        With those that are not.
    """
    if not markers:
        return None
    absent = [gene for gene in markers if gene not in panel]
    if absent:
        raise MissingKeyError(
            f"Markers {absent} are not in the panel of {len(panel)} genes. Leave them out, or widen it."
        )
    return list(markers)
