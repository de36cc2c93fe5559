"""Read and validate the link from a SpatialData table to the elements that its rows annotate, and names of elements."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb._errors import InputError, MissingKeyError

_ATTRIBUTES = "spatialdata_attrs"
_PARSE = "Parse the table with TableModel.parse(table, region=..., region_key=..., instance_key=...)."


@dataclass(frozen=True)
class Link:
    """The link from a table to the elements that it annotates, as stored in ``uns["spatialdata_attrs"]``.

    Parameters
    ----------
    regions
        Names of the annotated elements.
    region_key, instance_key
        Columns of ``obs`` that hold the element of each row, and the row's id in that element.
    """

    regions: tuple[str, ...]
    region_key: str
    instance_key: str


def link_of(table: AnnData) -> Link | None:
    """Read the elements that a table annotates.

    Parameters
    ----------
    table
        A table of a SpatialData; it is not changed.

    Returns
    -------
    Link or None
        The link; None for a table that annotates nothing.

    Raises
    ------
    InputError
        ``uns["spatialdata_attrs"]`` does not have SpatialData's layout.
    MissingKeyError
        ``obs`` lacks one of the columns that the link names, or has it twice.
    """
    stored = table.uns.get(_ATTRIBUTES)
    if stored is None:
        return None
    keys_of_it = ("region", "region_key", "instance_key")
    found: dict[str, Any] = {key: stored.get(key) for key in keys_of_it} if isinstance(stored, Mapping) else {}
    given = found.get("region")
    regions = (given,) if isinstance(given, str) else tuple(np.ravel(np.asarray(given, dtype=object)).tolist())
    keys = [found.get("region_key"), found.get("instance_key")]
    if not regions or not all(isinstance(text, str) for text in (*regions, *keys)):
        raise InputError(
            f"the table's uns[{_ATTRIBUTES!r}] is {_short(stored)}; expected the names of its region(s), of the "
            f"region_key and of the instance_key. {_PARSE}"
        )
    for key in keys:
        if list(table.obs.columns).count(key) != 1:
            raise MissingKeyError(
                f"the table's uns[{_ATTRIBUTES!r}] names the column {key!r}, and obs has "
                f"{list(table.obs.columns).count(key)} of that name (columns: {list(table.obs.columns)[:12]}). {_PARSE}"
            )
    return Link(regions, str(keys[0]), str(keys[1]))


def annotated_rows(obs: pd.DataFrame, region_key: str, instance_key: str) -> pd.DataFrame:
    """Read the region and the id of every row, in the types in which SpatialData stores them.

    Parameters
    ----------
    obs
        Annotations of the rows.
    region_key, instance_key
        Columns of ``obs`` with the element of each row, and with the row's id in that element.

    Returns
    -------
    pandas.DataFrame
        Columns ``"region"`` (text) and ``"instance_id"`` (integers or text), indexed by the names of the rows.

    Raises
    ------
    InputError
        A region or an id is missing, an id is neither an integer nor text, or an id occurs twice in a region.
    """
    regions, ids = obs[region_key], _whole(obs[instance_key], instance_key)
    gaps = int(regions.isna().sum())
    if gaps:
        raise InputError(
            f"obs[{region_key!r}] is empty for {gaps} of {len(obs)} rows; expected the name of the element that each "
            f"annotates. Drop them: table = table[table.obs[{region_key!r}].notna()].copy()."
        )
    rows = pd.DataFrame({"region": regions.astype(str).to_numpy(dtype=object), "instance_id": ids}, index=obs.index)
    twice = rows.duplicated().to_numpy()
    if twice.any():
        region, first = rows[twice].iloc[0]
        raise InputError(
            f"obs[{instance_key!r}] holds {first!r} more than once for the region {region!r} ({int(twice.sum())} such "
            "rows); expected an id of its own for each row. Number them as the index of the element does."
        )
    return rows


def bin_um(region: str) -> float | None:
    """Read the side of the bins of Visium HD, µm, from the name that spatialdata-io gives them; None for other names.

    Examples
    --------
    >>> from st_gchb.io._annotation import bin_um
    >>> bin_um("sample_square_008um"), bin_um("sample")
    (8.0, None)
    """
    match = re.search(r"(?:^|_)square_(\d{3})um$", region)
    return float(match.group(1)) if match else None


def is_element_name(name: object) -> bool:
    """Return True if SpatialData accepts this as the name of an element."""
    return (
        isinstance(name, str)
        and name.strip(".") != ""
        and not name.startswith("__")
        and all(letter.isalnum() or letter in "_-." for letter in name)
    )


def _whole(column: pd.Series, key: str) -> np.ndarray:
    """Convert ids to int64, or keep them as text."""
    if column.isna().any():
        raise InputError(
            f"obs[{key!r}] is empty for {int(column.isna().sum())} of {len(column)} rows; expected an id for each. "
            f"Drop them: table = table[table.obs[{key!r}].notna()].copy()."
        )
    values = column.to_numpy(dtype=object)
    if all(isinstance(value, str) for value in values):
        return values
    if all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values):
        numbers = np.array(values, dtype=np.float64)
        if (np.abs(numbers) < 2**63).all() and (numbers == np.round(numbers)).all():
            return np.array([int(value) for value in values], dtype=np.int64)
    odd = next(value for value in values if not isinstance(value, int | np.integer) or isinstance(value, bool))
    raise InputError(
        f"obs[{key!r}] holds {odd!r} ({column.dtype}); expected whole numbers or text, as the index of the element has "
        "them."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:97]}..."
