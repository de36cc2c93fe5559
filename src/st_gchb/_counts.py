"""Validation of expression values: raw counts, or log-normalized values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from st_gchb._compat import named_layers
from st_gchb._errors import ExpressionError, InputError
from st_gchb._logging import logger
from st_gchb._matrices import matrix_of

if TYPE_CHECKING:
    from anndata import AnnData

_MAX_COUNT_LOG = 20.0
"""Largest value accepted as log-normalized; log1p of a count per 10^4 never exceeds log1p(10^4) = 9.2."""

_MAX_COUNT = 2.0**31
"""Largest value accepted as a count; negative numbers stored as unsigned integers exceed it."""

_BLOCK = 2**24
"""Number of values inspected at a time."""

_ROWS = 1000
"""Number of spots whose totals are used to infer how a table was processed."""

_EQUAL = 0.01
"""Coefficient of variation of the spots' totals below which they count as scaled to one total."""

_NARROW, _DEEP, _MANY = 1.5, 1000, 50
"""Thresholds for counts that were corrected for depth: ratio of the 95 % to the 5 % quantile of the spots' totals,
median total, and number of spots. The ratio is 12 to 30 for raw counts of Visium and legacy ST, and 1.3 after a
correction for depth."""


_LOGS = "Pass log1p of counts per 10,000: sc.pp.normalize_total(adata, target_sum=1e4), then sc.pp.log1p(adata)."


@dataclass(frozen=True)
class Remedy:
    """Location of an object's counts, described for the function that the user called.

    Parameters
    ----------
    adata
        Object that the user passed; ``None`` if there is only a matrix.
    layer
        Layer from which expression was taken; ``None`` for ``X``.
    takes_layer
        Instruction for passing a layer to the function, such as ``"pass layer={!r}"``; empty if it always reads ``X``.
    takes_logs
        Instruction for declaring values as log-normalized; empty if the function does not accept such values.
    called
        Name of the user's object in suggested code.
    """

    adata: AnnData | None = None
    layer: str | None = None
    takes_layer: str = ""
    takes_logs: str = ""
    called: str = "adata"

    def told(self, *, looks_logged: bool = False) -> str:
        """Describe in a sentence where the counts are and how to pass them to the function."""
        if self.adata is None:
            return "Pass raw counts."
        layers, raw = counts_elsewhere(self.adata, self.layer)
        if layers:
            taken = (
                self.takes_layer.format(layers[0]) or f"{self.called}.X = {self.called}.layers[{layers[0]!r}].copy()"
            )
            return f"Counts lie in layers[{layers[0]!r}]: {taken}."
        if raw:
            whole = f" ({self.adata.raw.n_vars} genes)" if self.adata.raw.n_vars != self.adata.n_vars else ""
            return f"Counts lie in raw.X{whole}: {self.called} = {self.called}.raw.to_adata()."
        logs = (
            f", or {self.takes_logs} if they are log1p of counts per 10,000" if self.takes_logs and looks_logged else ""
        )
        return f"Neither its layers nor raw.X hold counts: read them again{logs}."


def are_counts(values: Any) -> bool:
    """Return whether a matrix of any type that can be read holds raw counts, and at least one that is not 0.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb._counts import are_counts
    >>> are_counts(np.array([[0.0, 3.0]])), are_counts(np.array([[0.0, 1.1]])), are_counts(np.array([[-1, 3]]))
    (True, False, False)
    """
    try:
        matrix = matrix_of(values, "it")
    except InputError:
        return False
    seen = _look_at(matrix)
    return not _said_of(seen, "it", log_normalized=False, matrix=matrix) and seen.high > 0


def why_no_counts(values: Any, name: str) -> str:
    """Explain why a matrix does not hold raw counts; empty if it does. Spots without any count are accepted."""
    try:
        matrix = matrix_of(values, name)
    except InputError as error:
        return str(error)
    return "" if 0 in matrix.shape else _said_of(_look_at(matrix), name, log_normalized=False, matrix=matrix)


def counts_elsewhere(adata: AnnData, layer: str | None) -> tuple[list[str], bool]:
    """Find counts outside of the layer in use.

    Returns
    -------
    list of str
        Layers other than ``layer`` that hold counts, those with "count" or "raw" in their name first.
    bool
        Whether ``raw.X`` holds counts.
    """
    others = {name: values for name, values in named_layers(adata).items() if name != layer}
    found = [name for name, values in others.items() if are_counts(values)]
    found.sort(key=lambda name: ("count" not in name.lower(), "raw" not in name.lower()))
    return found, adata.raw is not None and are_counts(adata.raw.X)


def check_expression(matrix: Any, *, log_normalized: bool, name: str, remedy: Remedy | None = None) -> None:
    """Validate that the matrix holds counts, or log-normalized values if it is declared to hold these.

    Parameters
    ----------
    matrix
        Expression, ``(n_spots, n_genes)``, of any type that :func:`~st_gchb._matrices.matrix_of` reads.
    log_normalized
        Whether the values are declared to be log-normalized.
    name
        Name of the matrix in messages.
    remedy
        Location of the object's counts.

    Raises
    ------
    ExpressionError
        For NaN or infinite values, negative values, values that are not counts (or, with ``log_normalized``, not
        log-normalized), and spots without any count. The message says how the values were probably processed, and
        where counts are.
    """
    remedy = remedy or Remedy()
    matrix = matrix_of(matrix, name, ExpressionError)
    if 0 in matrix.shape:
        wanted = _LOGS if log_normalized else remedy.told()
        raise ExpressionError(f"{name} holds no expression at all: found shape {matrix.shape}. {wanted}")
    seen = _look_at(matrix)
    said = _said_of(seen, name, log_normalized=log_normalized, matrix=matrix)
    if said:
        logs = not log_normalized and 0 <= seen.low and seen.high <= _MAX_COUNT_LOG
        raise ExpressionError(f"{said} {_mended(seen, remedy, log_normalized=log_normalized, looks_logged=logs)}")
    if seen.high == 0:
        wanted = _LOGS if log_normalized else remedy.told()
        raise ExpressionError(f"{name} holds zeros alone: its {matrix.shape[0]} spots have no count. {wanted}")
    empty = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel() <= 0
    if empty.any():
        place = "X" if remedy.layer is None else f"layers[{remedy.layer!r}]"
        line = f"{remedy.called}[np.asarray({remedy.called}.{place}.sum(axis=1)).ravel() > 0].copy()"
        drop = f"sc.pp.filter_cells({remedy.called}, min_counts=1)" if place == "X" else f"{remedy.called} = {line}"
        raise ExpressionError(
            f"{name} has {int(empty.sum())} spots without a single count (first row: {int(np.flatnonzero(empty)[0])}). "
            f"Drop them with {drop}."
        )


def tell_depth(matrix: Any, name: str) -> None:
    """Warn about counts that appear to be corrected for depth: whole numbers with nearly equal totals in all spots.

    They are used nevertheless: normalization to counts per 10,000 removes depth once more, which changes little.
    """
    totals = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    if len(totals) < _MANY:
        return
    low, middle, high = np.quantile(totals, (0.05, 0.5, 0.95))
    if middle >= _DEEP and high < _NARROW * low:
        logger.warning(
            "%s holds whole numbers, but nearly as many in every spot (%.4g in the middle, 5 to 95 %% within %.2f "
            "times): corrected for depth, as by sctransform, or drawn down to one depth. They are used as counts; raw "
            "ones are better, where there are any.",
            *(name, middle, high / max(low, 1e-300)),
        )


@dataclass(frozen=True)
class _Seen:
    """Summary of a matrix's values."""

    bad: int
    low: float
    high: float
    fractions: int
    size: int


def _look_at(matrix: Any) -> _Seen:
    bad = fractions = size = 0
    low, high = np.inf, -np.inf
    for part in _parts(matrix):
        finite = np.isfinite(part)
        n_bad = int(part.size - np.count_nonzero(finite))
        # Boolean indexing copies, so it is left out where all values are finite.
        own = part[finite] if n_bad else part
        bad, size = bad + n_bad, size + part.size
        if own.size:
            low, high = min(low, float(own.min())), max(high, float(own.max()))
            fractions += 0 if own.dtype.kind in "biu" else int(np.count_nonzero(own != np.round(own)))
    # Values that a sparse matrix does not store are 0.
    if size < np.prod(matrix.shape):
        low, high = min(low, 0.0), max(high, 0.0)
    return _Seen(bad, low, high, fractions, size)


def _parts(matrix: Any) -> Iterator[np.ndarray]:
    if sparse.issparse(matrix):
        for start in range(0, len(matrix.data), _BLOCK):
            yield matrix.data[start : start + _BLOCK]
        return
    rows = max(1, _BLOCK // max(matrix.shape[1], 1))
    for start in range(0, len(matrix), rows):
        yield matrix[start : start + rows]


def _said_of(seen: _Seen, name: str, *, log_normalized: bool, matrix: Any) -> str:
    """Describe what is wrong with the values; empty if nothing is."""
    whole = not seen.fractions
    if seen.bad:
        return f"{name} holds {seen.bad} NaN or infinite values."
    if matrix.dtype.kind == "b":
        return f"{name} holds true and false, which tell where a gene is found, and no numbers of molecules."
    if seen.low < 0:
        return f"{name} holds negative values (minimum {seen.low:.3g}), so it has been scaled or regressed."
    if seen.high > _MAX_COUNT and not (log_normalized and not whole):
        return f"{name} holds values up to {seen.high:.3g}, which no spot has of a gene."
    if not log_normalized and not whole:
        return (
            f"{name} holds values that are no whole numbers (maximum {seen.high:.3g}), so it is no table of raw counts"
            f"{_what_was_done(matrix, seen)}."
        )
    if log_normalized and (seen.high > _MAX_COUNT_LOG or (whole and seen.high > 1)):
        kind = "are whole numbers" if whole else "are too large"
        return f"{name} was said to be log-normalized, but its values {kind} (maximum {seen.high:.3g})."
    return ""


def _mended(seen: _Seen, remedy: Remedy, *, log_normalized: bool, looks_logged: bool) -> str:
    if seen.bad:
        return "Remove or repair them first."
    if not log_normalized:
        return remedy.told(looks_logged=looks_logged)
    if seen.low >= 0 and not seen.fractions:
        return "Pass log_normalized=False." if remedy.takes_logs else "Take counts per 10,000 and log1p first."
    return _LOGS


def _what_was_done(matrix: Any, seen: _Seen) -> str:
    """Infer from the totals of the first spots how counts were processed."""
    part = matrix[:_ROWS]
    if seen.high <= _MAX_COUNT_LOG:
        # expm1 maps 0 to 0, so a sparse matrix stays sparse.
        raised = part.expm1() if sparse.issparse(part) else np.expm1(part.astype(np.float64))
        if _variation(raised) < _EQUAL:
            return ": it looks normalized to one total and logged (sc.pp.normalize_total, sc.pp.log1p)"
        return ": it looks logged (sc.pp.log1p)"
    return ": it looks normalized to one total (sc.pp.normalize_total)" if _variation(part) < _EQUAL else ""


def _variation(part: Any) -> float:
    totals = np.asarray(part.sum(axis=1, dtype=np.float64)).ravel()
    totals = totals[totals > 0]
    return float(totals.std() / totals.mean()) if len(totals) > 1 else np.inf
