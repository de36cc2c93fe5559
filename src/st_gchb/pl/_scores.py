"""Plots of result tables: metrics of several methods, and ranking of genes."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from st_gchb._arguments import CountFromZero, checked
from st_gchb._errors import InputError, MissingKeyError
from st_gchb._options import PCC_THRESHOLD


@checked
def metric_bars(
    frame: pd.DataFrame,
    metrics: Sequence[str] = ("AG", "HVG", "HEG"),
    *,
    method: str = "method",
    highlight: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot metrics of several methods: a bar at the mean over runs, and a dot for each run.

    Parameters
    ----------
    frame
        One row per run (held-out slice, seed): the name of the method and its metrics, such as rows of
        :func:`st_gchb.metrics.summary`.
    metrics
        Columns to plot, one group of bars each.
    method
        Column with the name of the method; methods are drawn in order of first occurrence.
    highlight
        Method to draw in color, the others in gray; by default the first one.
    ax
        Axes to draw into; new ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    MissingKeyError
        The table lacks a column.
    InputError
        The table is empty, no metric was named, or ``highlight`` is not a method of the table.

    Examples
    --------
    >>> import pandas as pd
    >>> from st_gchb import pl
    >>> runs = pd.DataFrame({"method": ["mean", "ridge"], "AG": [0.0, 0.1], "HVG": [0.0, 0.4]})
    >>> pl.metric_bars(runs, ["AG", "HVG"]).get_ylabel()
    'Pearson correlation'
    """
    absent = [column for column in (method, *metrics) if column not in frame]
    if absent:
        raise MissingKeyError(f"the table has no columns {absent}; found {list(frame.columns)}")
    names = list(dict.fromkeys(frame[method].astype(str)))
    if not names or not metrics:
        raise InputError("there is nothing to draw: the table is empty, or no measure was named")
    if highlight is not None and highlight not in names:
        raise InputError(f"highlight={highlight!r} is no method of the table; found {names}")
    if ax is None:
        width = max(4.0, 1.2 + 0.26 * len(names) * len(metrics))
        ax = plt.subplots(figsize=(width, 3.2), layout="constrained")[1]
    colors = _colors(names, highlight or names[0])
    width = 0.82 / len(names)
    for i, name in enumerate(names):
        runs = frame.loc[frame[method].astype(str) == name, list(metrics)].to_numpy(dtype=float)
        at = np.arange(len(metrics)) + (i - (len(names) - 1) / 2) * width
        ax.bar(at, runs.mean(axis=0), 0.9 * width, color=colors[name], label=name, zorder=1)
        if len(runs) > 1:
            spread = np.linspace(-0.25, 0.25, len(runs))[:, None] * width
            ax.scatter(at + spread, runs, s=6, color="0.15", alpha=0.6, linewidths=0, zorder=2)
    ax.axhline(0.0, color="0.3", lw=0.8)
    ax.set_xticks(np.arange(len(metrics)), metrics)
    ax.tick_params(axis="x", length=0)
    ax.set_ylabel("Pearson correlation")
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def _colors(names: list[str], highlight: str) -> dict[str, object]:
    grays = plt.get_cmap("Greys")(np.linspace(0.25, 0.6, max(len(names) - 1, 1)))
    others = [name for name in names if name != highlight]
    return {highlight: "#c1440e"} | dict(zip(others, grays, strict=False))


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
    threshold: float = PCC_THRESHOLD,
    ax: Axes | None = None,
) -> Axes:
    """Plot genes ranked by their correlation; the best genes are listed, and markers are labeled on the curve.

    Parameters
    ----------
    frame
        Table that :func:`st_gchb.metrics.per_gene` returns, one row per gene.
    column
        Metric to rank by.
    n_label
        Number of best genes to list beside the curve.
    markers
        Genes to label on the curve, whatever their rank.
    threshold
        Correlation at which a line is drawn and above which genes are counted.
    ax
        Axes to draw into; new ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    MissingKeyError
        The metric or a marker is not in the table.
    InputError
        The table is empty, or a gene has more than one row.

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
    # The curve falls through the line: left of the crossing there is room below the line, right of it above.
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
    """List genes to the right of the axes, where the curve cannot overlap their names."""
    lines = [f"{value:.2f}  $\\it{{{_plain(gene)}}}$".replace("-", "−", 1) for gene, value in best.items()]
    if lines:
        text = "\n".join(["best genes", *lines])
        ax.annotate(text, (1.02, 1.0), xycoords="axes fraction", va="top", fontsize=8, linespacing=1.35)


def _plain(gene: object) -> str:
    """Escape a gene name for matplotlib's mathtext."""
    return "".join(rf"\{c}" if c in r"_#%&${}" else "{-}" if c == "-" else c for c in str(gene))


def _name_markers(ax: Axes, places: np.ndarray, ranked: pd.Series) -> None:
    # The curve falls, so there is room above and right of a point; every other label is raised to avoid overlap.
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
