"""How well each gene is predicted, from the best to the worst."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from st_gchb._errors import InputError, MissingKeyError

_COLOR = "#2a6f97"
_CONSTANT_COLOR = "0.7"


def gene_ranking(
    frame: pd.DataFrame,
    *,
    column: str = "pearson",
    n_label: int = 10,
    markers: Sequence[str] = (),
    threshold: float = 0.3,
    ax: Axes | None = None,
) -> Axes:
    """Draw genes by their correlation, the best ones and markers named.

    Parameters
    ----------
    frame
        What :func:`st_gchb.metrics.per_gene` returns: one row a gene.
    column
        Measure to rank by.
    n_label
        Number of best genes to name.
    markers
        Further genes to name, wherever they stand.
    threshold
        Correlation at which a line is drawn and above which genes are counted.
    ax
        Axes to draw into; new ones where left out.

    Returns
    -------
    The axes.

    Raises
    ------
    MissingKeyError
        The measure or a marker is not in the table.
    InputError
        A gene has more than one row, or there is none.

    Examples
    --------
    >>> import pandas as pd
    >>> from st_gchb import pl
    >>> pl.gene_ranking(pd.DataFrame({"pearson": [0.1, 0.6]}, index=["ACTB", "ERBB2"])).get_xlabel()
    'gene, best first'
    """
    if column not in frame:
        raise MissingKeyError(f"the table has no column {column!r}; found {list(frame.columns)}")
    if not len(frame) or not frame.index.is_unique:
        raise InputError("expected a table with one row a gene. Draw one held-out slice and method at a time")
    absent = [gene for gene in markers if gene not in frame.index]
    if absent:
        raise MissingKeyError(f"markers {absent} are not in the table of {len(frame):,} genes")
    if ax is None:
        ax = plt.subplots(figsize=(5.5, 3.4), layout="constrained")[1]
    ranked = frame.sort_values(column, ascending=False, kind="stable")
    values = ranked[column].to_numpy(dtype=float)
    places = np.arange(1, len(values) + 1)
    constant = ranked["constant"].to_numpy(dtype=bool) if "constant" in ranked else np.zeros(len(values), dtype=bool)
    ax.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    ax.scatter(places[~constant], values[~constant], s=7, color=_COLOR, linewidths=0, rasterized=len(values) > 5000)
    if constant.any():
        label = f"{constant.sum():,} constant, counted as 0"
        ax.scatter(places[constant], values[constant], s=7, color=_CONSTANT_COLOR, linewidths=0, label=label)
        ax.legend(frameon=False, fontsize=8, loc="lower left")
    _mark_threshold(ax, threshold, int((values > threshold).sum()), len(values))
    _name_genes(ax, ranked.index, values, dict.fromkeys([*ranked.index[:n_label], *markers]))
    ax.set(xlabel="gene, best first", ylabel=f"{column.capitalize()} correlation")
    ax.margins(x=0.02)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _mark_threshold(ax: Axes, threshold: float, n_above: int, n_genes: int) -> None:
    ax.axhline(threshold, color="0.4", lw=0.8, ls="--", zorder=0)
    ax.annotate(
        f"{n_above:,} of {n_genes:,} genes above {threshold:g}",
        (1.0, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="0.3",
    )


def _name_genes(ax: Axes, genes: pd.Index, values: np.ndarray, named: dict[str, None]) -> None:
    """Write the names in a column right of the curve's head, evenly spaced so that they never overlap."""
    places = np.sort([genes.get_loc(gene) for gene in named])
    if not len(places):
        return
    heights = np.linspace(0.97, max(0.97 - 0.062 * (len(places) - 1), 0.05), len(places))
    for place, height in zip(places, heights, strict=True):
        ax.annotate(
            str(genes[place]),
            (place + 1, values[place]),
            xytext=(0.16, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            fontstyle="italic",
            arrowprops={"arrowstyle": "-", "color": "0.75", "lw": 0.6, "shrinkA": 1, "shrinkB": 2},
        )
