"""Sections that were stored as AnnData or SpatialData."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb.io._annotation import link_of
from st_gchb.io._pixel_size import Size, caller_size, factor_size, settle
from st_gchb.io._reading import reading

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

HDF5_START = b"\x89HDF\r\n\x1a\n"
_SPATIALDATA = {"images", "labels", "points", "shapes", "tables", "table"}


def hdf5_kind(path: Path) -> str | None:
    """``"anndata"``, ``"10x"``, or None for another HDF5 file.

    Raises
    ------
    InputError
        The file is damaged.
    """
    with reading(path, "the HDF5 file", "It is damaged or incomplete: fetch or write it again."):
        with h5py.File(path, "r") as file:
            if file.attrs.get("encoding-type") == "anndata" or {"obs", "var"} <= set(file):
                return "anndata"
            return "10x" if "matrix" in file else None


def zarr_kind(path: Path) -> str | None:
    """``"spatialdata"`` or ``"anndata"`` for a folder that is such a Zarr store, else None."""
    files = [path / "zarr.json", path / ".zattrs"]
    if not any(file.is_file() for file in [*files, path / ".zgroup"]):
        return None
    attributes: dict[str, Any] = {}
    for file in files:
        if file.is_file():
            with reading(file, "the Zarr store", "It is damaged: write it again."):
                content = json.loads(file.read_bytes())
                attributes |= dict(content.get("attributes", {}) if file.name == "zarr.json" else content)
    if attributes.get("encoding-type") == "anndata":
        return "anndata"
    is_spatialdata = "spatialdata_attrs" in attributes or any((path / part).is_dir() for part in _SPATIALDATA)
    return "spatialdata" if is_spatialdata else None


def read_spatialdata(path: Path, name: str | None, image: Path | None, um_per_px: float | None) -> SpatialData:
    """Open a SpatialData store.

    Raises
    ------
    InputError
        The store is damaged; or a name or an image was given, which it has itself.
    """
    import spatialdata

    for argument, value in (("name", name), ("image", image)):
        if value is not None:
            raise InputError(
                f"{path}: {argument}={str(value)!r} is for folders and .h5ad files, and this is a SpatialData store, "
                "which has names and images of its own. Leave it out; an image is added with "
                "sdata.images[...] = Image2DModel.parse(...)."
            )
    with reading(path, "the SpatialData store", "Write it again with sdata.write."):
        sdata = spatialdata.read_zarr(path)
    if um_per_px is not None:
        for table in sdata.tables.values():
            _note_size(table, um_per_px, str(path))
    return sdata


def _note_size(table: AnnData, um_per_px: float, where: str) -> None:
    link = link_of(table)
    if link is None:
        return
    with reading(where, "what the table annotates", "Write the store again with sdata.write."):
        libraries = dict(as_record(table.uns.get(Keys.SPATIAL)))
    for region in link.regions:
        libraries[region] = with_size(as_record(libraries.get(region)), f"{where}, {region!r}", um_per_px)
    table.uns[Keys.SPATIAL] = libraries


def load_anndata(path: Path) -> AnnData:
    """Read an AnnData file or store as it is.

    Raises
    ------
    InputError
        The file is damaged.
    """
    import anndata

    with reading(path, "the AnnData", "Write it again with adata.write_h5ad."):
        return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path)


def as_record(value: Any) -> dict[str, Any]:
    """Read names and values in the forms in which programs store them; empty where there are none.

    What is a dict in Python is one row of a table in R.

    Examples
    --------
    >>> import pandas as pd
    >>> from st_gchb.io._stores import as_record
    >>> as_record(pd.DataFrame({"library": ["S1"]})), as_record(None)
    ({'library': 'S1'}, {})
    """
    if isinstance(value, Mapping):
        return {str(key): held for key, held in value.items()}
    if isinstance(value, pd.DataFrame) and len(value) == 1:
        return {str(key): value[key].iloc[0] for key in value}
    if isinstance(value, pd.Series):
        return {str(key): held for key, held in value.items()}
    names = getattr(getattr(value, "dtype", None), "names", None)
    if names and np.size(value) == 1:
        row = np.asarray(value).ravel()[0]
        return {str(name): row[name] for name in names}
    return {}


def with_size(library: Mapping[str, Any], where: str, um_per_px: float | None, *others: Size | None) -> dict[str, Any]:
    """Note the size of a pixel among the scale factors.

    Parameters
    ----------
    library
        Entry of ``uns["spatial"]``; it is not changed.
    where
        For messages.
    um_per_px
        What the caller says, µm.
    others
        What others say, after the scale factors; best first.
    """
    factors = as_record(library.get(Keys.SCALEFACTORS))
    size = settle([caller_size(um_per_px), factor_size(factors, f"scalefactors of {where}"), *others], where)
    if size is not None:
        factors[Keys.UM_PER_PX] = size
    return {Keys.IMAGES: {}, Keys.METADATA: {}, **library, Keys.SCALEFACTORS: factors}
