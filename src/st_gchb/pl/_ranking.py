"""How well each gene is predicted, from the best to the worst."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from st_gchb._arguments import CountFromZero, checked
from st_gchb._errors import InputError, MissingKeyError

_COLOR = "#2a6f97"
_CONSTANT_COLOR = "0.7"
_MARKER_COLOR = "#c1440e"


@checked
def gene_ranking(
    frame: pd.DataFrame,
    *,
    column: str = "pearson",
    n_label: CountFromZero = 10,
    markers: Sequence[str] = (),
    threshold: float = 0.3,
    ax: Axes | None = None,
) -> Axes:
    """Draw genes by their correlation; the best ones are listed, markers are named on the curve.

    Parameters
    ----------
    frame
        What :func:`st_gchb.metrics.per_gene` returns: one row a gene.
    column
        Measure to rank by.
    n_label
        Number of best genes to list beside the curve.
    markers
        Genes to name on the curve, wherever they stand.
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
    _list_best(ax, ranked[column].head(n_label))
    _name_markers(ax, np.flatnonzero(ranked.index.isin(list(markers))), ranked[column])
    ax.set(xlabel="gene, best first", ylabel=f"{column.capitalize()} correlation")
    ax.margins(x=0.02)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _mark_threshold(ax: Axes, threshold: float, n_above: int, n_genes: int) -> None:
    ax.axhline(threshold, color="0.4", lw=0.8, ls="--", zorder=0)
    # The curve goes down through the line: before that there is room below the line, after it above.
    below = n_above > n_genes / 2
    ax.annotate(
        f"{n_above:,} of {n_genes:,} genes above {threshold:g}",
        (0.02 if below else 1.0, threshold),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3 if below else 3),
        textcoords="offset points",
        ha="left" if below else "right",
        va="top" if below else "bottom",
        fontsize=8,
        color="0.3",
    )


def _list_best(ax: Axes, best: pd.Series) -> None:
    """List genes right of the axes, where no curve can run through their names."""
    lines = [f"{value:.2f}  $\\it{{{_plain(gene)}}}$".replace("-", "−", 1) for gene, value in best.items()]
    if lines:
        text = "\n".join(["best genes", *lines])
        ax.annotate(text, (1.02, 1.0), xycoords="axes fraction", va="top", fontsize=8, linespacing=1.35)


def _plain(gene: object) -> str:
    """Gene name as matplotlib's mathematical text wants it."""
    return "".join(rf"\{c}" if c in r"_#%&${}" else "{-}" if c == "-" else c for c in str(gene))


def _name_markers(ax: Axes, places: np.ndarray, ranked: pd.Series) -> None:
    # The curve falls, so the place above and right of a point is free; every other name is lifted further.
    for i, place in enumerate(places):
        at = (place + 1, ranked.iloc[place])
        ax.plot(*at, "o", ms=5, color=_MARKER_COLOR, mec="white", mew=0.6, zorder=3)
        ax.annotate(
            str(ranked.index[place]),
            at,
            xytext=(14, 12 + 11 * (i % 2)),
            textcoords="offset points",
            fontsize=8,
            fontstyle="italic",
            color=_MARKER_COLOR,
            arrowprops={"arrowstyle": "-", "color": _MARKER_COLOR, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
