"""Read and write ``uns["spatial"]`` in scanpy's and squidpy's layout: images, scale factors, metadata of each slice."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb._constants import Keys
from st_gchb._errors import InputError, STGCHBError
from st_gchb.io._pixel_size import positive

_PARTS = (Keys.IMAGES, Keys.SCALEFACTORS, Keys.METADATA)
_EXPECTED = (
    "expected a dict with one entry for each slice, {'S1': {'images': {...}, 'scalefactors': {...}}}, as "
    "squidpy.read.visium makes it"
)


@dataclass(frozen=True, eq=False)
class Library:
    """The entry of one slice in ``uns["spatial"]``.

    Parameters
    ----------
    name
        Key in ``uns["spatial"]``, as text.
    images
        Images by name, such as ``"hires"``.
    factors
        Scale factors as stored; :meth:`factor` converts them to numbers.
    metadata
        Further metadata, such as the path of the full-resolution image.
    """

    name: str
    images: Mapping[str, Any] = field(default_factory=dict)
    factors: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Location of the entry, for messages."""
        return f"uns['spatial'][{self.name!r}]"

    def factor(self, name: str) -> float | None:
        """Read a scale factor; None if there is none.

        Raises
        ------
        ScaleError
            The factor is not a positive number.
        """
        value = self.factors.get(name)
        return None if value is None else positive(value, f"{self.where}['scalefactors'][{name!r}]")

    def entry(self) -> dict[str, dict[str, Any]]:
        """Convert to an entry of ``uns["spatial"]``, in scanpy's and squidpy's layout."""
        parts = (self.images, self.factors, self.metadata)
        return {name: dict(part) for name, part in zip(_PARTS, parts, strict=True)}

    @property
    def image_path(self) -> Path | None:
        """Path of the full-resolution image; None if none is stored.

        Raises
        ------
        InputError
            The stored value is not a path.
        """
        value = self.metadata.get(Keys.SOURCE_IMAGE)
        one = value.ravel()[0] if isinstance(value, np.ndarray) and value.size == 1 else value
        one = one.decode(errors="replace") if isinstance(one, bytes) else one
        if one is None or (isinstance(one, str) and not one) or (isinstance(one, float) and np.isnan(one)):
            return None
        if not isinstance(one, str | Path):
            raise InputError(
                f"{self.where}['metadata'][{Keys.SOURCE_IMAGE!r}] is {value!r}; expected the path of the "
                "full-resolution image as text. Set it, or delete the entry."
            )
        return Path(one)


def put_libraries(adata: AnnData, libraries: Iterable[Library]) -> None:
    """Replace ``uns["spatial"]`` by one entry per slice."""
    adata.uns[Keys.SPATIAL] = {library.name: library.entry() for library in libraries}


def hand_on_libraries(source: AnnData, target: AnnData, names: Collection[str] | None = None) -> None:
    """Copy entries of ``uns["spatial"]`` from one object to another, by reference.

    Parameters
    ----------
    source
        Object with the entries; without any, nothing is copied.
    target
        Object that receives the entries.
    names
        Slices to copy, such as those of ``target``; all by default. If none of them has an entry, all entries are
        copied, since a single slice may have another name in ``obs`` than in ``uns["spatial"]``.
    """
    if Keys.SPATIAL not in source.uns:
        return
    stored = source.uns[Keys.SPATIAL]
    if names is None:
        target.uns[Keys.SPATIAL] = stored
        return
    entries = {name: stored.get(name) for name in libraries_of(source)}
    target.uns[Keys.SPATIAL] = {name: entry for name, entry in entries.items() if name in names} or entries


def libraries_of(adata: AnnData) -> dict[str, Library]:
    """Read and validate the entries of ``uns["spatial"]``.

    All functions that need images, scale factors or library names read them through this function.
    Entries that hold a single value, such as CELLxGENE's ``is_single``, describe no slice and are skipped.

    Parameters
    ----------
    adata
        The object; it is not changed.

    Returns
    -------
    dict
        Libraries by name, in the order of ``uns["spatial"]``; empty if the object has none.

    Raises
    ------
    InputError
        ``uns["spatial"]``, or an entry of it, has another layout.

    Examples
    --------
    >>> from anndata import AnnData
    >>> from st_gchb.io._library import libraries_of
    >>> stored = {"is_single": True, "S1": {"scalefactors": {"microns_per_pixel": [0.5]}}}
    >>> libraries_of(AnnData(uns={"spatial": stored}))["S1"].factor("microns_per_pixel")
    0.5
    """
    stored = adata.uns.get(Keys.SPATIAL)
    if stored is None:
        return {}
    if not isinstance(stored, Mapping):
        raise InputError(f"uns['spatial'] is a {type(stored).__name__}; {_EXPECTED}.")
    flat = [key for key in (Keys.IMAGES, Keys.SCALEFACTORS) if key in stored]
    if flat:
        raise InputError(
            f"uns['spatial'] holds {flat} itself; {_EXPECTED}. Name the slice: "
            "adata.uns['spatial'] = {'S1': adata.uns['spatial']}."
        )
    found: dict[str, Library] = {}
    for key, entry in stored.items():
        if _is_plain(entry):
            continue
        name = str(key)
        if name in found:
            raise InputError(f"uns['spatial'] has two entries that are called {name!r} as text. Rename one of them.")
        found[name] = _read(name, entry)
    return found


def column_of(adata: AnnData, key: str, argument: str, error: type[STGCHBError] = InputError) -> pd.Series:
    """Read a column of ``obs`` that must exist exactly once.

    Parameters
    ----------
    adata
        The object.
    key
        Name of the column.
    argument
        Argument by which the caller was given the name, for the message.
    error
        Type of the error to raise.

    Returns
    -------
    pandas.Series
        The column.

    Raises
    ------
    InputError
        The column is missing or occurs twice; or the type given as ``error``.

    Examples
    --------
    >>> import pandas as pd
    >>> from anndata import AnnData
    >>> from st_gchb.io._library import column_of
    >>> column_of(AnnData(obs=pd.DataFrame({"slice": ["a"]}, index=["1"])), "slice", "slice_key").tolist()
    ['a']
    """
    if not isinstance(key, str) or key not in adata.obs:
        raise error(f"obs has no column {key!r} ({argument}); found {list(adata.obs.columns)[:12]}.")
    column = adata.obs[key]
    if isinstance(column, pd.DataFrame):
        raise error(
            f"obs has {column.shape[1]} columns that are called {key!r} ({argument}); expected one. Drop the others: "
            "adata.obs = adata.obs.loc[:, ~adata.obs.columns.duplicated()]."
        )
    return column


def _read(name: str, entry: Any) -> Library:
    """Validate one entry of ``uns["spatial"]``."""
    where = f"uns['spatial'][{name!r}]"
    if not isinstance(entry, Mapping):
        raise InputError(f"{where} is a {type(entry).__name__}; {_EXPECTED}.")
    parts: dict[str, Mapping[str, Any]] = {}
    for part in _PARTS:
        value = entry.get(part)
        if isinstance(value, Mapping):
            parts[part] = {str(key): held for key, held in value.items()}
        elif value is None or part == Keys.METADATA:
            # Metadata of another type, such as a string, hold no image path.
            parts[part] = {}
        else:
            raise InputError(f"{where}[{part!r}] is a {type(value).__name__}; expected a dict. Set it or delete it.")
    return Library(name, parts[Keys.IMAGES], parts[Keys.SCALEFACTORS], parts[Keys.METADATA])


def _is_plain(entry: Any) -> bool:
    """Check if an entry is a single value, which describes no slice."""
    scalar = entry is None or isinstance(entry, bool | int | float | str | bytes | np.generic)
    return scalar or (isinstance(entry, np.ndarray) and entry.ndim == 0)
