"""Plots of the scores of model variants, and of methods on several data sets."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from st_gchb.errors import InputError, MissingKeyError


def variants(
    frame: pd.DataFrame, metrics: Sequence[str] = ("AG", "HVG", "HEG"), *, reference: str | None = None
) -> np.ndarray:
    """Plot metrics of model variants: a dot per seed (mean over folds), and a bar at the mean over seeds.

    Parameters
    ----------
    frame
        One row per run: ``variant``, ``seed``, ``fold`` and the metrics.
    metrics
        Columns to plot, one panel each.
    reference
        Variant at whose mean a line is drawn; by default none.

    Returns
    -------
    numpy.ndarray
        Axes, one per metric, ``(n_metrics,)``.

    Raises
    ------
    MissingKeyError
        The table lacks a column.
    InputError
        The table is empty, no metric was named, or ``reference`` is not a variant of the table.
    """
    absent = [column for column in ("variant", "seed", *metrics) if column not in frame]
    if absent:
        raise MissingKeyError(f"the table has no columns {absent}; found {list(frame.columns)}")
    names = list(dict.fromkeys(frame["variant"]))
    if not names or not metrics:
        raise InputError("there is nothing to draw: the table is empty, or no measure was named")
    if reference is not None and reference not in names:
        raise InputError(f"reference={reference!r} is no variant of the table; found {names}")
    means = frame.groupby(["variant", "seed"], sort=False)[list(metrics)].mean()
    height = 0.9 + 0.26 * len(names)
    axes: np.ndarray = plt.subplots(
        1, len(metrics), figsize=(3.6 + 2.1 * len(metrics), height), sharey=True, layout="constrained", squeeze=False
    )[1][0]
    for ax, metric in zip(axes, metrics, strict=True):
        for row, name in enumerate(names):
            values = means.loc[name, metric].to_numpy(dtype=float)
            color = "#c1440e" if name == reference else "0.25"
            ax.plot([values.mean()] * 2, [row - 0.28, row + 0.28], color=color, lw=2, zorder=2)
            ax.scatter(values, np.full(len(values), row), s=12, color=color, alpha=0.6, linewidths=0, zorder=3)
        if reference is not None:
            ax.axvline(means.loc[reference, metric].mean(), color="#c1440e", lw=0.8, ls=":", zorder=1)
        ax.set_title(metric, fontsize=10)
        ax.grid(axis="y", color="0.92", lw=0.6)
        ax.locator_params(axis="x", nbins=4)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(np.arange(len(names)), names, fontsize=8)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[len(axes) // 2].set_xlabel("Pearson correlation, mean over held-out slices")
    return axes


_COLORS = ("#c1440e", "#e8a33d", "#b9a27c", "0.5", "#9ecae1", "#4292c6", "#08306b", "#7b4ea3")
_MARKS = ("D", "o", "s", "s", "^", "^", "^", "o")


def tissues(means: Mapping[str, pd.DataFrame], metrics: Sequence[str] = ("AG", "HVG", "HEG")) -> np.ndarray:
    """Plot metrics of methods on several data sets: a row per data set, a mark per method.

    Parameters
    ----------
    means
        Metrics by data set: one row per method, one column per metric.
    metrics
        Columns to plot, one panel each.

    Returns
    -------
    numpy.ndarray
        Axes, one per metric, ``(n_metrics,)``.

    Raises
    ------
    InputError
        There is no data set, or no metric was named.
    """
    if not means or not metrics:
        raise InputError("there is nothing to draw: there are no data sets, or no measure was named")
    methods = list(dict.fromkeys(name for frame in means.values() for name in frame.index))
    titles = [textwrap.fill(title, 30) for title in means]
    height, step = 1.1 + 0.6 * len(titles), 0.7 / len(methods)
    figure, grid = plt.subplots(
        1, len(metrics), figsize=(3.0 + 2.3 * len(metrics), height), sharey=True, layout="constrained", squeeze=False
    )
    axes: np.ndarray = grid[0]
    for ax, metric in zip(axes, metrics, strict=True):
        for row in range(0, len(titles), 2):
            ax.axhspan(row - 0.5, row + 0.5, color="0.96", lw=0, zorder=0)
        for number, method in enumerate(methods):
            look = {"color": _COLORS[number % len(_COLORS)], "marker": _MARKS[number % len(_MARKS)]}
            values = [frame[metric].get(method, np.nan) for frame in means.values()]
            at = np.arange(len(titles)) + step * (number - (len(methods) - 1) / 2)
            ax.scatter(values, at, s=20, linewidths=0, zorder=3, label=method, **look)
        ax.set_title(metric, fontsize=10)
        ax.grid(axis="x", color="0.88", lw=0.6, zorder=1)
        ax.locator_params(axis="x", nbins=4)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(np.arange(len(titles)), titles, fontsize=8)
    axes[0].set_ylim(len(titles) - 0.5, -0.5)
    axes[len(axes) // 2].set_xlabel("Pearson correlation, mean over held-out parts and seeds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return axes
