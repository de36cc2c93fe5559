"""The slices of an AnnData: their names, their spots and their entries in ``uns["spatial"]``.

Every function that needs to know which slices an object holds asks :func:`sections_of`, or :func:`placed_sections` if
it also needs the positions of the spots.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree

from st_gchb._advice import Fix, advise
from st_gchb._constants import Keys
from st_gchb._errors import InputError, SliceError
from st_gchb._logging import logger
from st_gchb.io._library import Library, column_of, libraries_of
from st_gchb.io._spot_centers import spot_centers

if TYPE_CHECKING:
    from spatialdata import SpatialData

T = TypeVar("T")

_CALL_IT = "Call the column of obs that names the slices 'slice'."

_LIKE_SLICES = {"library", "sample", "section", "slice", "slide", "batch", "capture", "ident", "specimen", "array"}
"""Words in the names of columns that identify slices, as used by scanpy, Seurat, Space Ranger and data portals."""
_OVERLAP = 0.7
"""Spots of two groups overlap if they are nearer than this fraction of the distance between spots of one group."""
_OVERLAPPING = 0.1
"""Fraction of overlapping spots above which groups are separate slices; within one slice it is close to 0."""


def is_spatialdata(data: object) -> TypeGuard[SpatialData]:
    """Return whether an object is a SpatialData, without importing its package, which takes a second."""
    package = sys.modules.get("spatialdata")
    return package is not None and isinstance(data, package.SpatialData)


def check_object(data: Any, *, spatialdata: bool = False, error: type[InputError] = InputError) -> None:
    """Validate that an object is an AnnData with spots or, if allowed, a SpatialData.

    Parameters
    ----------
    data
        Object that the caller passed.
    spatialdata
        Whether a SpatialData is allowed.
    error
        Type of the error to raise.

    Raises
    ------
    InputError
        The object is of another type, was read lazily, or has a MultiIndex; the message says how to convert it.
    SliceError
        The AnnData has no spots.
    """
    if isinstance(data, AnnData):
        if data.n_obs == 0:
            if error is InputError:
                error = SliceError
            raise error("the object has no spots (n_obs is 0); expected one row per spot. Was a filter too strict?")
        if not isinstance(data.obs, pd.DataFrame) or not isinstance(data.var, pd.DataFrame):
            raise error(
                "the AnnData was read lazily: its obs and var are not in memory. Call adata = adata.to_memory() first; "
                "X, layers and features alone may stay on disk, as by anndata.read_h5ad(path, backed='r')."
            )
        for axis, index in (("obs_names", data.obs_names), ("var_names", data.var_names)):
            # anndata 0.12 keeps the tuples of an index of several levels, and not the index.
            n_levels = len(index[0]) if len(index) and isinstance(index[0], tuple) else index.nlevels
            if n_levels > 1:
                raise error(
                    f"{axis} have {n_levels} levels, such as {index[:1].tolist()}; expected text. Join them: "
                    f"adata.{axis} = ['_'.join(map(str, name)) for name in adata.{axis}]."
                )
        for axis, names in (("obs", data.obs.columns), ("var", data.var.columns)):
            if isinstance(names, pd.MultiIndex):
                raise error(
                    f"{axis} has columns of {names.nlevels} levels, such as {names[0]!r}; expected one name for each. "
                    f"Join them: adata.{axis}.columns = ['_'.join(map(str, name)) for name in adata.{axis}.columns]."
                )
        return
    if spatialdata and is_spatialdata(data):
        return
    kind = type(data).__name__
    advice = {
        "SpatialData": " This function takes its table: st_gchb.pp.resolve(sdata).adata.",
        "str": " Read a file with st_gchb.io.read_section.",
        "PosixPath": " Read a file with st_gchb.io.read_section.",
        "list": " Join several with anndata.concat(..., label='slice', keys=..., uns_merge='unique').",
        "dict": " Join several with anndata.concat(..., label='slice', uns_merge='unique').",
    }.get(kind, "")
    expected = "AnnData or SpatialData" if spatialdata else "AnnData"
    raise error(f"found an object of type {kind}; expected {expected}.{advice}")


@dataclass(frozen=True, eq=False)
class Sections:
    """The slices of an AnnData.

    Parameters
    ----------
    key
        Column of ``obs`` that names each spot's slice; None if all spots belong to one slice.
    names
        Name of the slice of each spot, ``(n_spots,)``.
    rows
        Row numbers of the spots of each slice, in the order in which the slices first appear.
    libraries
        Entry of each slice in ``uns["spatial"]``; an empty :class:`~st_gchb.io.Library` if there is none.
    """

    key: str | None
    names: npt.NDArray[np.object_]
    rows: dict[str, npt.NDArray[np.int64]]
    libraries: dict[str, Library]

    def given(self, value: Mapping[str, T] | T | None, argument: str) -> dict[str, T | None]:
        """Expand an argument, one value for all slices or a dict by slice, to one value per slice.

        In a dict, a slice may also be identified by the name of its entry in ``uns["spatial"]``.

        Parameters
        ----------
        value
            Value of the argument.
        argument
            Name of the argument, for messages.

        Returns
        -------
        dict
            Value of each slice; None where the dict has none.

        Raises
        ------
        InputError
            A key of the dict names no slice, and a slice has no value.
        """
        if not isinstance(value, Mapping):
            return dict.fromkeys(self.rows, value)
        by_text = {str(key): held for key, held in value.items()}
        result, used = {}, set()
        for name, library in self.libraries.items():
            called = next((key for key in (name, library.name) if key in by_text), None)
            result[name] = None if called is None else by_text[called]
            used.add(called)
        unknown = sorted(set(by_text) - used)
        if unknown:
            missing = [name for name, held in result.items() if held is None]
            text = f"{argument} names {unknown[:6]}, and there is no such slice: {list(self.rows)[:6]}."
            if missing:
                close = {key: difflib.get_close_matches(key, missing, n=1) or missing[:1] for key in unknown[:3]}
                raise InputError(f"{text} Did you mean {', '.join(f'{b[0]!r} by {a!r}' for a, b in close.items())}?")
            logger.warning("%s", text)
        return result

    def check_at_least(self, n: int, why: str) -> None:
        """Validate that every slice has at least ``n`` spots.

        Parameters
        ----------
        n
            Smallest number of spots.
        why
            Operation that needs them, for the error message.

        Raises
        ------
        SliceError
            A slice has fewer spots.
        """
        for name, rows in self.rows.items():
            if len(rows) < n:
                raise SliceError(f"Slice {name!r} has {len(rows)} spot; {why} at least {n}. Drop this slice.")


@dataclass(frozen=True, eq=False)
class PlacedSections(Sections):
    """The slices of an AnnData with the positions of their spots.

    Parameters
    ----------
    key, names, rows, libraries
        As for :class:`Sections`.
    centers
        Positions of the spots, ``(n_spots, 2)``, as x, y in full-resolution px.
    """

    centers: npt.NDArray[np.float64]

    def part(self, keep: npt.NDArray[np.bool_]) -> Self:
        """Return the slices with some of their spots, by a mask ``(n_spots,)``."""
        if keep.all():
            return self
        names = self.names[keep]
        rows = _rows_by_name(names)
        libraries = {name: self.libraries[name] for name in rows}
        return replace(self, names=names, rows=rows, libraries=libraries, centers=self.centers[keep])


def placed_sections(adata: AnnData, slice_key: str | None = None, names: Iterable[object] = ()) -> PlacedSections:
    """Identify the slices of an AnnData and read the positions of their spots.

    Parameters
    ----------
    adata, slice_key, names
        As for :func:`sections_of`.

    Returns
    -------
    PlacedSections
        The slices, in the order in which they first appear.

    Raises
    ------
    CoordinateError
        Positions are absent or not finite.
    InputError, SliceError
        As for :func:`sections_of`; or spots taken for one slice are several slices in overlapping coordinates.
    """
    centers = spot_centers(adata)
    sections = sections_of(adata, slice_key, names)
    check_lone_slice(adata, sections, centers)
    return PlacedSections(sections.key, sections.names, sections.rows, sections.libraries, centers)


def sections_of(adata: AnnData, slice_key: str | None = None, names: Iterable[object] = ()) -> Sections:
    """Identify the slices of an AnnData.

    Parameters
    ----------
    adata
        Object with one or several slices.
    slice_key
        Column of ``obs`` that names each spot's slice. By default the column ``"slice"`` if there is one, otherwise the
        only column whose values are names of entries of ``uns["spatial"]``. Without either, all spots belong to one
        slice.
    names
        Further known names of slices, such as the keys of ``image=``.

    Returns
    -------
    Sections
        The slices, in the order in which they first appear.

    Raises
    ------
    InputError
        ``uns["spatial"]`` is not organized by slice.
    SliceError
        The column is absent or has missing values, or ``uns["spatial"]`` holds several slices and not exactly one
        column names them.

    Examples
    --------
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> from st_gchb.io._sections import sections_of
    >>> sections_of(AnnData(obs=pd.DataFrame({"slice": ["a", "b"]}, index=["1", "2"]))).names.tolist()
    ['a', 'b']
    """
    libraries = libraries_of(adata)
    known = list(dict.fromkeys([*libraries, *map(str, names)]))
    key = slice_key if slice_key is not None else _find_key(adata, known)
    if key is None:
        name = known[0] if known else Keys.SLICE
        column = np.full(adata.n_obs, name, dtype=object)
    else:
        column = _read_column(adata, key)
    rows = _rows_by_name(column)
    # A single slice and a single entry of uns["spatial"] belong together, even if their names differ.
    lone = next(iter(libraries.values())) if len(rows) == 1 == len(libraries) else None
    owned = {name: libraries.get(name) or lone or Library(name) for name in rows}
    return Sections(key, column, rows, owned)


def _rows_by_name(names: npt.NDArray[np.object_]) -> dict[str, npt.NDArray[np.int64]]:
    codes, unique = pd.factorize(names)
    return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(unique)}


def _read_column(adata: AnnData, key: str) -> npt.NDArray[np.object_]:
    if not isinstance(key, str) or key not in adata.obs:
        raise SliceError(
            f"obs has no column {key!r} (slice_key); found {list(adata.obs.columns)[:12]}. Name the column that tells "
            "the slices apart."
        )
    column = column_of(adata, key, "slice_key", SliceError)
    gaps = int(column.isna().sum())
    if gaps:
        raise SliceError(
            f"obs[{key!r}] is empty for {gaps} of {adata.n_obs} spots; expected the name of a slice for each. Drop "
            f"them: adata = adata[adata.obs[{key!r}].notna()].copy()."
        )
    return column.astype(str).to_numpy(dtype=object)


def _find_key(adata: AnnData, known: list[str]) -> str | None:
    """Find the column that identifies the slices; None if there is one slice."""
    has_slice = Keys.SLICE in adata.obs
    if len(known) <= 1:
        return Keys.SLICE if has_slice else None
    # By position, since names of columns may be duplicated.
    columns = [(str(name), adata.obs.iloc[:, i].dropna()) for i, name in enumerate(adata.obs.columns)]
    naming = [name for name, values in columns if len(values) and set(values.astype(str)) <= set(known)]
    if Keys.SLICE in naming or (has_slice and len(naming) != 1):
        return Keys.SLICE
    if len(naming) == 1:
        logger.info("Slices are told apart by obs[%r].", naming[0])
        return naming[0]
    raise SliceError(
        f"uns['spatial'] holds {len(known)} slices, {known[:6]}, and slice_key was not given; "
        + (f"columns of obs that name them: {naming}. " if naming else f"obs has {list(adata.obs.columns)[:12]}. ")
        + advise(Fix("slice_key", why="with the column of obs that names them"), otherwise=_CALL_IT)
    )


def check_lone_slice(adata: AnnData, sections: Sections, centers: npt.NDArray[np.float64]) -> None:
    """Validate that spots taken for one slice are not several slices in overlapping coordinates.

    ``anndata.concat`` keeps one entry of ``uns["spatial"]`` if those of several slices have the same name, so that the
    result looks like a single slice.

    Parameters
    ----------
    adata
        Object whose ``obs`` is searched for columns that may identify slices.
    sections
        Slices of the object; nothing is checked if there are several.
    centers
        Positions of the spots, ``(n_spots, 2)``.

    Raises
    ------
    SliceError
        Groups of spots in a column of ``obs`` overlap, or positions on the array are duplicated.
    """
    if len(sections.rows) != 1:
        return
    (name,) = sections.rows
    for column in _columns_like_slices(adata, sections.key):
        groups = adata.obs[column].astype(str).to_numpy(dtype=object)
        n = len(set(groups))
        if _share_overlapping(centers, groups) > _OVERLAPPING:
            raise SliceError(
                f"all spots are taken for one slice, {name!r}, but those of the {n} groups of obs[{column!r}] lie over "
                f"one another: several sections. {advise(Fix('slice_key', repr(column)), otherwise=_CALL_IT)} "
                "Each needs an image: uns['spatial'] an entry of each one's name (anndata.concat keeps "
                "one of several that have the same name). "
                + advise(Fix("image", why=f"as a dict by {column} where it has none"))
            )
        logger.warning(
            "All spots are taken for one slice, %r, though obs[%r] tells %d groups apart. %s",
            name,
            column,
            n,
            advise(Fix("slice_key", repr(column), "if these are slices"), otherwise=_CALL_IT),
        )
    twice = _array_places_twice(adata.obs)
    if twice > _OVERLAPPING:
        raise SliceError(
            f"all spots are taken for one slice, {name!r}, but {twice:.0%} of them have a place on the array "
            "(obs['array_row'], obs['array_col']) that another spot has too: several sections. Give obs a column "
            f"that names each spot's slice. {advise(Fix('slice_key', why='with its name'), otherwise=_CALL_IT)}"
        )


def _columns_like_slices(adata: AnnData, key: str | None) -> list[str]:
    """List columns of ``obs`` that may identify slices, by name and number of distinct values."""
    found = []
    for name in adata.obs.columns:
        if not isinstance(name, str) or name == key or not _LIKE_SLICES & set(re.split(r"[^a-z]+", name.lower())):
            continue
        column = adata.obs[name]
        if name.startswith("array_") or isinstance(column, pd.DataFrame) or column.isna().any():
            continue
        if isinstance(column.dtype, pd.CategoricalDtype) or not pd.api.types.is_float_dtype(column.dtype):
            n = len(set(column.astype(str)))
            if 2 <= n <= adata.n_obs / 2:
                found.append(name)
    return found


def _share_overlapping(centers: npt.NDArray[np.float64], groups: npt.NDArray[np.object_]) -> float:
    """Compute the fraction of spots to which a spot of another group is much nearer than those of their own group."""
    own = np.full(len(centers), np.nan)
    for group in set(groups):
        rows = np.flatnonzero(groups == group)
        if len(rows) > 1:
            own[rows] = np.asarray(cKDTree(centers[rows]).query(centers[rows], k=2)[0])[:, 1]
    pitch = float(np.nanmedian(own)) if np.isfinite(own).any() else 0.0
    if pitch <= 0:
        return 0.0
    _, near = cKDTree(centers).query(centers, k=min(4, len(centers)), distance_upper_bound=_OVERLAP * pitch)
    near = np.asarray(near).reshape(len(centers), -1)
    # The tree returns the number of spots as the index of a missing neighbor.
    labels = np.array([*groups, None], dtype=object)
    other = (near < len(centers)) & (labels[near] != groups[:, None])
    return float(other.any(axis=1).mean())


def _array_places_twice(obs: pd.DataFrame) -> float:
    """Compute the fraction of spots that share their array position with another spot."""
    columns = ["array_row", "array_col"]
    if not all(list(obs.columns).count(name) == 1 for name in columns):
        return 0.0
    places = obs[columns].dropna()
    return float(places.duplicated(keep=False).mean()) if len(places) else 0.0
