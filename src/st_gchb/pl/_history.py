"""Losses over the epochs of training."""

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

# scvi-tools' names of the total loss, and what a reader calls them.
_TOTAL = {"train_loss": "training", "validation_loss": "validation"}


@checked
def history(model: Any, keys: str | Sequence[str] | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw losses against epochs.

    Parameters
    ----------
    model
        A trained model with ``history``, or that dictionary: name of a loss to a data frame of one column, indexed by
        epoch.
    keys
        Losses to draw; the total on training and validation where left out, with the epoch of the lowest validation
        loss marked.
    ax
        Axes to draw into; new ones where left out.

    Returns
    -------
    The axes.

    Raises
    ------
    NotTrainedError
        There is no history yet.
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
        # A single epoch is a point: a line through it would be invisible.
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
