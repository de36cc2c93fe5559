"""Diagnostic plots: training history, and reliability of confidence and expected correlation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from st_gchb._arguments import checked
from st_gchb._errors import InputError, MissingKeyError, NotTrainedError

# Names of the total loss in scvi-tools, and their labels in the legend.
_TOTAL = {"train_loss": "training", "validation_loss": "validation"}


@checked
def history(model: Any, keys: str | Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Plot the losses of a training against its epochs.

    Parameters
    ----------
    model
        A trained model with the attribute ``history``, or that dictionary: name of a loss to a data frame with one
        column, indexed by epoch.
    keys
        Losses to plot; by default the total loss on training and validation spots, with the epoch of the lowest
        validation loss marked.
    ax
        Axes to draw into; new ones by default.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    NotTrainedError
        The history is empty.
    MissingKeyError
        A key is not in the history.

    Examples
    --------
    >>> import pandas as pd
    >>> from st_gchb import pl
    >>> losses = {"train_loss": pd.DataFrame({"train_loss": [3.0, 2.0, 1.5]})}
    >>> pl.history(losses).get_xlabel()
    'epoch'
    """
    curves = model if isinstance(model, Mapping) else getattr(model, "history", None)
    if not curves:
        raise NotTrainedError("the model has no history: call model.train() first")
    if keys is None:
        chosen = [key for key in _TOTAL if key in curves] or list(curves)
    else:
        chosen = [keys] if isinstance(keys, str) else list(keys)
    absent = [key for key in chosen if key not in curves]
    if absent:
        raise MissingKeyError(f"the history has no {absent}; found {sorted(curves)}")
    if ax is None:
        ax = plt.subplots(figsize=(4.5, 3.0), layout="constrained")[1]
    for key in chosen:
        values = _series(curves[key], key)
        # A single epoch is drawn as a marker, since a line with one point is invisible.
        ax.plot(values.index, values, label=_TOTAL.get(key, key), lw=1.6, marker="o" if len(values) < 2 else None)
    if keys is None and "validation_loss" in chosen:
        validation = _series(curves["validation_loss"], "validation_loss")
        best = int(np.asarray(validation.index)[np.argmin(validation)])
        ax.axvline(best, color="0.6", lw=1.0, ls=":", zorder=0, label=f"lowest, epoch {best}")
    ax.set(xlabel="epoch", ylabel="loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax


def _series(values: Any, key: str) -> pd.Series:
    series = values.iloc[:, 0] if isinstance(values, pd.DataFrame) else pd.Series(values)
    series = pd.to_numeric(series).dropna()
    if series.empty:
        raise InputError(f"history[{key!r}] holds no number: nothing was logged under this name")
    return series


_BINS = 10


@checked
def reliability(spots: pd.DataFrame, genes: pd.DataFrame) -> np.ndarray:
    """Plot error against confidence, and observed against expected correlation, on held-out slices.

    Parameters
    ----------
    spots
        One row per held-out spot: ``fold``, ``confidence`` (0 to 1) and ``rmse``.
    genes
        One row per held-out slice and gene: ``fold``, ``expected`` and ``pearson``.

    Returns
    -------
    numpy.ndarray
        Two axes. Left, the mean error of spots in deciles of confidence, one line per slice. Right, the genes in
        deciles of expected correlation, with the median and interquartile range of the observed correlation.

    Raises
    ------
    MissingKeyError
        A table lacks a column.
    InputError
        A table is empty.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from st_gchb import pl
    >>> x = np.linspace(0, 1, 40)
    >>> spots = pd.DataFrame({"fold": "A", "confidence": x, "rmse": 1 - x / 2})
    >>> len(pl.reliability(spots, pd.DataFrame({"fold": "A", "expected": x, "pearson": x})))
    2
    """
    for name, frame, columns in (
        ("spots", spots, ("fold", "confidence", "rmse")),
        ("genes", genes, ("fold", "expected", "pearson")),
    ):
        absent = [column for column in columns if column not in frame]
        if absent:
            raise MissingKeyError(f"the table of {name} has no columns {absent}; found {list(frame.columns)}")
        if frame.empty:
            raise InputError(f"the table of {name} is empty; there is nothing to draw")
    axes: np.ndarray = plt.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained")[1]
    _draw_spots(axes[0], spots)
    _draw_genes(axes[1], genes)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return axes


def _draw_spots(ax: Axes, spots: pd.DataFrame) -> None:
    colors = plt.get_cmap("viridis")(np.linspace(0.1, 0.8, spots["fold"].nunique()))
    for color, (fold, rows) in zip(colors, spots.groupby("fold", sort=False), strict=True):
        # Deciles are computed within a slice, so that a slice with low confidence throughout fills all of them too.
        tenth = (rows["confidence"].rank(method="first", pct=True) * _BINS).clip(upper=_BINS - 1e-9).astype(int)
        means = rows.groupby(tenth)[["confidence", "rmse"]].mean()
        ax.plot(means["confidence"], means["rmse"], "o-", ms=4, lw=1.2, color=color, label=str(fold))
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("confidence (mean of a tenth of the slice's spots)")
    ax.set_ylabel("error, RMSE of log1p expression")
    ax.set_title("Spots")
    ax.legend(frameon=False, fontsize=8, title="held-out slice", title_fontsize=8)


def _draw_genes(ax: Axes, genes: pd.DataFrame) -> None:
    ax.scatter(genes["expected"], genes["pearson"], s=3, color="0.75", linewidths=0, rasterized=True, label="a gene")
    tenth = (genes["expected"].rank(method="first", pct=True) * _BINS).clip(upper=_BINS - 1e-9).astype(int)
    groups = genes.groupby(tenth)
    at, real = groups["expected"].mean(), groups["pearson"].quantile([0.25, 0.5, 0.75]).unstack()
    spread = np.abs(real[[0.25, 0.75]].to_numpy().T - real[0.5].to_numpy())
    ax.errorbar(at, real[0.5], spread, fmt="o", ms=5, color="#c1440e", capsize=2, label="median and middle half")
    low, high = float(genes["expected"].min()), float(genes["expected"].max())
    ax.plot([low, high], [low, high], color="0.3", lw=0.8, ls="--", label="as expected")
    ax.axhline(0.0, color="0.6", lw=0.6)
    ax.set_xlabel("expected correlation (st_gchb_expected_pcc)")
    ax.set_ylabel("correlation on the held-out slice")
    ax.set_title("Genes")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
