"""Summary of the per-gene table in one row, the evaluation protocol behind all result tables."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from st_gchb._arguments import Count, checked
from st_gchb._errors import InputError, MissingKeyError
from st_gchb._options import PCC_THRESHOLD, TOP_GENES

_NEEDED = ("pearson", "spearman", "rmse", "mean_truth", "var_truth", "constant")


@checked
def summary(
    frame: pd.DataFrame,
    *,
    train_mean: Any | None = None,
    train_var: Any | None = None,
    markers: str | Sequence[str] | None = None,
    n_top: Count = TOP_GENES,
    threshold: float = PCC_THRESHOLD,
) -> dict[str, float]:
    """Summarize a per-gene table in one row of metrics.

    Parameters
    ----------
    frame
        Table that :func:`per_gene` returns.
    train_mean, train_var
        Mean and variance of each gene on the training slices, ``(n_genes,)`` in the order of ``frame``, or a series
        by gene name. They add ``HEG_train`` and ``HVG_train``.
    markers
        Marker genes; they add ``MG``.
    n_top
        Number of genes in HVG and HEG; a smaller panel is taken whole.
    threshold
        Correlation above which a gene is counted.

    Returns
    -------
    dict[str, float]
        Metrics by name, see the notes; all values can be written to JSON.

    Raises
    ------
    MissingKeyError
        A column is absent, a marker is not in the panel, or a training statistic lacks a gene of the panel.
    InputError
        The table is empty or holds NaN, or ``n_top`` is not positive.

    Notes
    -----
    The first four items are means of the genes' Pearson correlation:

    - ``AG``: over all genes of the panel;
    - ``HVG``, ``HEG``: over the ``n_top`` genes with the largest variance or the largest mean **in the held-out truth**
      (the paper's definition);
    - ``HVG_train``, ``HEG_train``: the same, with genes ranked on the training slices;
    - ``MG``: over ``markers``;
    - ``n>0.3``: number of genes with a Pearson correlation above ``threshold``, whose value is in the name;
    - ``n_constant``: number of genes that count as 0 because truth or prediction is constant;
    - ``n_genes``: size of the panel;
    - ``RMSE``: mean of the genes' root mean squared errors;
    - ``Spearman``: mean of the genes' rank correlations.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.metrics import per_gene, summary
    >>> truth = np.random.default_rng(0).random((20, 3))
    >>> row = summary(per_gene(truth, truth, ["A", "B", "C"]), markers=["A"], n_top=2)
    >>> round(row["AG"], 6), round(row["MG"], 6), row["n>0.3"]
    (1.0, 1.0, 3)
    """
    _check_frame(frame)
    pearson = frame["pearson"]

    def top(rank_by: pd.Series) -> float:
        return float(pearson[top_genes(rank_by, n_top)].mean())

    row = {"AG": float(pearson.mean()), "HVG": top(frame["var_truth"]), "HEG": top(frame["mean_truth"])}
    if train_var is not None:
        row["HVG_train"] = top(_by_gene(train_var, frame.index, "train_var"))
    if train_mean is not None:
        row["HEG_train"] = top(_by_gene(train_mean, frame.index, "train_mean"))
    if markers is not None:
        row["MG"] = float(pearson[_check_markers(markers, frame.index)].mean())
    return row | {
        f"n>{threshold:g}": int((pearson > threshold).sum()),
        "n_constant": int(frame["constant"].sum()),
        "n_genes": len(frame),
        "RMSE": float(frame["rmse"].mean()),
        "Spearman": float(frame["spearman"].mean()),
    }


def top_genes(rank_by: pd.Series, n_top: int = TOP_GENES) -> pd.Index:
    """Select the ``n_top`` genes with the largest values; of equal ones, those that come first."""
    # The sort is stable, so that every run gives the same genes.
    return rank_by.sort_values(ascending=False, kind="stable").index[:n_top]


def _check_frame(frame: pd.DataFrame) -> None:
    missing = [column for column in _NEEDED if column not in frame]
    if missing:
        raise MissingKeyError(
            f"the per-gene table lacks the columns {missing}; found {list(frame.columns)}. "
            "Pass what st_gchb.metrics.per_gene returns"
        )
    if not len(frame):
        raise InputError("the per-gene table is empty: there is no gene to summarize")
    if not frame.index.is_unique:
        raise InputError(
            "the per-gene table names genes more than once. Summarize one held-out slice at a time: "
            "frame.groupby('slice').apply(summary)"
        )
    holes = [column for column in _NEEDED if frame[column].isna().any()]
    if holes:
        raise InputError(f"the per-gene table holds NaN in {holes}; expected a number for every gene")


def _by_gene(values: Any, genes: pd.Index, name: str) -> pd.Series:
    """Return a statistic in the order of the panel; a series is matched by name, other values by position."""
    if isinstance(values, pd.Series):
        absent = genes.difference(values.index, sort=False)
        if len(absent):
            raise MissingKeyError(
                f"{name} has no value for {len(absent):,} genes of the panel, such as {list(absent[:3])}. "
                "Compute it on the training slices for the same panel"
            )
        values = values[genes]
    try:
        array = np.asarray(values, dtype=float).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{name} ({type(values).__name__}) holds no numbers; expected one for every gene, as a series by name or "
            "a list in the panel's order"
        ) from error
    if isinstance(values, pd.Series):
        series = pd.Series(array, index=genes)
    else:
        if len(array) != len(genes):
            raise InputError(f"{name} has {len(array):,} values and the panel {len(genes):,} genes; expected as many")
        series = pd.Series(array, index=genes)
    if not np.isfinite(series.to_numpy()).all():
        raise InputError(f"{name} holds NaN or infinite values; expected a finite number for every gene")
    return series


def _check_markers(markers: Sequence[str], genes: pd.Index) -> list[str]:
    wanted = [markers] if isinstance(markers, str) else list(dict.fromkeys(markers))
    if not wanted:
        raise InputError("markers is empty: name at least one gene, or leave it out")
    known = set(genes)
    absent = [marker for marker in wanted if marker not in known]
    if absent:
        hints = []
        for marker in absent[:10]:
            # The case of gene symbols differs between species and tools, so names are compared in upper case.
            upper = {str(gene).upper(): str(gene) for gene in genes}
            close = difflib.get_close_matches(str(marker).upper(), list(upper), n=3)
            hints.append(f"{marker!r}" + (f" (close: {', '.join(upper[c] for c in close)})" if close else ""))
        raise MissingKeyError(
            f"{len(absent)} of {len(wanted)} markers are not in the panel of {len(genes):,} genes: {'; '.join(hints)}. "
            "Leave them out, or add them to the panel"
        )
    return wanted
