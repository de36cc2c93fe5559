"""Methods side by side, one group of bars a measure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from st_gchb._arguments import checked
from st_gchb._errors import InputError, MissingKeyError


@checked
def metric_bars(
    frame: pd.DataFrame,
    metrics: Sequence[str] = ("AG", "HVG", "HEG"),
    *,
    method: str = "method",
    highlight: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw measures of several methods: bars at the mean over rows, a dot a row.

    Parameters
    ----------
    frame
        One row a run (held-out slice, seed): the method's name and its measures, such as rows of
        :func:`st_gchb.metrics.summary`.
    metrics
        Columns to draw, one group of bars each.
    method
        Column with the method's name; methods are drawn in the order in which they come.
    highlight
        Method to draw in colour, the others in grey; the last one where left out.
    ax
        Axes to draw into; new ones where left out.

    Returns
    -------
    The axes.

    Raises
    ------
    MissingKeyError
        A column is not in the table.
    InputError
        The table is empty, or ``highlight`` is no method of it.

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
    colors = _colors(names, highlight or names[-1])
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
    greys = plt.get_cmap("Greys")(np.linspace(0.25, 0.6, max(len(names) - 1, 1)))
    others = [name for name in names if name != highlight]
    return {highlight: "#c1440e"} | dict(zip(others, greys, strict=False))
