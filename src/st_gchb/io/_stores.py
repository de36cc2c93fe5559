"""Sections that were stored as AnnData or SpatialData."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import pandas as pd

from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb.io._open import open_image
from st_gchb.io._pixel_size import Size, caller_size, factor_size, settle

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
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("encoding-type") == "anndata" or {"obs", "var"} <= set(file):
                return "anndata"
            return "10x" if "matrix" in file else None
    except OSError as error:
        raise InputError(
            f"{path}: the HDF5 file is damaged or incomplete ({error}). Fetch or write it again."
        ) from error


def zarr_kind(path: Path) -> str | None:
    """``"spatialdata"`` or ``"anndata"`` for a folder that is such a Zarr store, else None."""
    files = [path / "zarr.json", path / ".zattrs"]
    if not any(file.is_file() for file in [*files, path / ".zgroup"]):
        return None
    attributes: dict[str, Any] = {}
    for file in files:
        if file.is_file():
            try:
                content = json.loads(file.read_text())
            except ValueError as error:
                raise InputError(f"{file}: the Zarr store is damaged ({error}). Write it again.") from error
            attributes |= content.get("attributes", {}) if file.name == "zarr.json" else content
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
    try:
        sdata = spatialdata.read_zarr(path)
    # Of a store in which parts are missing or damaged, each library underneath raises errors of its own.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path}: the SpatialData store cannot be read ({type(error).__name__}: {error}). Write it again with "
            "sdata.write."
        ) from error
    if um_per_px is not None:
        for table in sdata.tables.values():
            _note_size(table, um_per_px, str(path))
    return sdata


def _note_size(table: AnnData, um_per_px: float, where: str) -> None:
    from spatialdata.models import TableModel, get_table_keys

    if TableModel.ATTRS_KEY not in table.uns:
        return
    regions, _, _ = get_table_keys(table)
    libraries = dict(table.uns.get(Keys.SPATIAL) or {})
    for region in [regions] if isinstance(regions, str) else list(regions):
        libraries[region] = _with_size(libraries.get(region) or {}, um_per_px, f"{where}, {region!r}")
    table.uns[Keys.SPATIAL] = libraries


def read_anndata(path: Path, name: str | None, image: Path | None, um_per_px: float | None) -> AnnData:
    """Read an AnnData file or store, and note image and size of a pixel in ``uns["spatial"]``.

    Raises
    ------
    InputError
        The file is damaged; or it holds several slices, and one name, image or size was given.
    """
    import anndata

    try:
        adata = anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: the AnnData cannot be read ({type(error).__name__}: {error}). Write it again with "
            "adata.write_h5ad."
        ) from error
    if name is None and image is None and um_per_px is None:
        return adata
    stored = adata.uns.get(Keys.SPATIAL)
    libraries = dict(stored) if isinstance(stored, Mapping) else {}
    several = len(libraries) > 1 or (Keys.SLICE in adata.obs and adata.obs[Keys.SLICE].nunique() > 1)
    if several:
        raise InputError(
            f"{path}: holds several slices ({sorted(libraries) or 'by obs[' + repr(Keys.SLICE) + ']'}), and name=, "
            "image=, um_per_px= speak of one. Pass dicts by slice to pp.embed_patches, or cut the slices apart first."
        )
    label = name or next(iter(libraries), path.stem)
    library = dict(next(iter(libraries.values()), {}))
    slide = None if image is None else open_image(image)
    in_file = slide.um_per_px if slide is not None else None
    library = _with_size(library, um_per_px, str(path), in_file)
    if slide is not None and image is not None:
        library[Keys.METADATA] = {**(library.get(Keys.METADATA) or {}), Keys.SOURCE_IMAGE: str(image.resolve())}
    adata.uns[Keys.SPATIAL] = {label: library}
    if name is not None:
        adata.obs[Keys.SLICE] = pd.Categorical([name] * adata.n_obs)
    return adata


def _with_size(
    library: Mapping[str, Any], um_per_px: float | None, where: str, in_file: float | None = None
) -> dict[str, Any]:
    """Note the size of a pixel among the scale factors."""
    factors = dict(library.get(Keys.SCALEFACTORS) or {})
    size = settle(
        [
            caller_size(um_per_px),
            factor_size(factors, f"scalefactors of {where}"),
            None if in_file is None else Size(in_file, "the image file"),
        ],
        where,
    )
    if size is not None:
        factors[Keys.UM_PER_PX] = size
    return {Keys.IMAGES: {}, Keys.METADATA: {}, **library, Keys.SCALEFACTORS: factors}
