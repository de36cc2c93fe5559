"""Conversion of a SpatialData to the AnnData that the package computes with, and of results back to tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

from st_gchb._advice import Fix, advise
from st_gchb._arguments import checked
from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingKeyError
from st_gchb._matrices import in_memory
from st_gchb.io import (
    PlacedSections,
    annotated_rows,
    check_object,
    is_element_name,
    placed_sections,
    reading,
)
from st_gchb.pp.spots._slices import Slice, named_by, open_slices

if TYPE_CHECKING:
    from spatialdata import SpatialData


_REGION, _INSTANCE = "region", "instance_id"


@dataclass(eq=False)
class Resolved:
    """Spots with positions in image px, read from an AnnData or a SpatialData.

    Parameters
    ----------
    adata
        For AnnData the object itself. For SpatialData a new object that shares the matrices of the table and has
        positions in ``obsm["spatial"]``, the region in a column of ``obs``, and the spot diameter in
        ``uns["spatial"]``.
    images
        Images as :func:`slices_of` takes them by ``image=``; for SpatialData a dict by region.
    slice_key
        Column that identifies the slices; None to find it.
    table
        Table of the SpatialData; None if it has none, or for AnnData.
    region_key, instance_key
        Columns by which rows are matched to shapes; None for AnnData.
    from_spatialdata
        Whether the spots come from a SpatialData.
    """

    adata: AnnData
    images: Any = None
    slice_key: str | None = None
    table: AnnData | None = None
    region_key: str | None = None
    instance_key: str | None = None
    from_spatialdata: bool = False

    def sections(self, slice_key: str | None = None) -> PlacedSections:
        """Identify the slices of the spots; parameters and errors as for :func:`placed_sections`."""
        return placed_sections(self.adata, slice_key or self.slice_key, named_by(self.images))

    def slices(
        self,
        slice_key: str | None = None,
        image_key: str | None = None,
        um_per_px: float | Mapping[str, float] | None = None,
    ) -> list[Slice]:
        """Split the spots into slices with their images; parameters and errors as for :func:`slices_of`."""
        return open_slices(self.sections(slice_key), self.images, image_key, um_per_px)

    def target(self, *, copy: bool) -> AnnData:
        """Return the object to which results are written.

        Parameters
        ----------
        copy
            Return a copy of the spots in memory instead of the object or table that the caller passed.

        Raises
        ------
        InputError
            Without ``copy``, the SpatialData has no table with one row per spot.
        """
        if copy:
            return in_memory(self.adata)
        if not self.from_spatialdata:
            return self.adata
        if self.table is None or self.table.n_obs != self.adata.n_obs:
            found = (
                "no table" if self.table is None else f"a table of {self.table.n_obs} rows for {self.adata.n_obs} spots"
            )
            raise InputError(
                f"the SpatialData has {found} to write to. "
                + advise(
                    Fix("copy", "True", "which returns an AnnData"),
                    otherwise="Add a table that annotates the spots: TableModel.parse(table, region=..., ...).",
                )
            )
        return self.table


@checked
def resolve(
    data: AnnData | SpatialData,
    *,
    table: str | None = None,
    image: Any = None,
    shapes: str | None = None,
    coordinate_system: str | None = None,
    thumbnails: bool = False,
) -> Resolved:
    """Find the spots, positions and images of an AnnData or a SpatialData.

    Parameters
    ----------
    data
        AnnData, which is passed through, or SpatialData.
    table
        Name of the table, if there are several.
    image
        For AnnData as in :func:`slices_of`. For SpatialData the name of an image element, or a dict of names by region;
        not needed if one image shares a coordinate system with the spots.
    shapes
        Name of the spots, needed to select one of several regions, or one of several shapes elements without a table.
    coordinate_system
        Coordinate system that spots and images share, if several disagree.
    thumbnails
        Store a small image in ``uns["spatial"]``, for figures.

    Returns
    -------
    Resolved
        Spots with ``obsm["spatial"]`` in px of the image's finest scale. Rows are in the order of the table and are
        matched to positions by instance id.

    Raises
    ------
    InputError, MissingKeyError, SliceError
        Table, spots, image or transformation are missing or ambiguous.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> from st_gchb.pp import resolve
    >>> adata = AnnData(obsm={"spatial": np.zeros((2, 2))})
    >>> resolve(adata).adata is adata
    True
    """
    check_object(data, spatialdata=True)
    return resolve_spots(data, table, image, shapes, coordinate_system, thumbnails=thumbnails)


def resolve_spots(
    data: AnnData | SpatialData,
    table: str | None,
    image: Any,
    shapes: str | None,
    coordinate_system: str | None = None,
    *,
    thumbnails: bool = False,
) -> Resolved:
    """Find the spots, positions and images of an object that was validated before; as :func:`resolve` otherwise."""
    if isinstance(data, AnnData):
        for name, value in (("table", table), ("shapes", shapes), ("coordinate_system", coordinate_system)):
            if value is not None:
                raise InputError(f"{name}={value!r} is for SpatialData, and this is an AnnData. Leave it out.")
        return Resolved(data, images=image)
    from st_gchb.io import locate_spots

    found = locate_spots(data, table, image, shapes, coordinate_system, thumbnails=thumbnails)
    return Resolved(
        found.adata,
        found.images,
        found.region_key,
        found.table,
        found.region_key,
        found.instance_key,
        from_spatialdata=True,
    )


@checked
def write_table(
    sdata: SpatialData,
    result: AnnData,
    *,
    name: str = Keys.TABLE,
    region_key: str = _REGION,
    instance_key: str = _INSTANCE,
    overwrite: bool = False,
) -> None:
    """Add a result to a SpatialData as a table that annotates the spots.

    Only the object in memory changes; if it is backed by a folder, store the table with
    :func:`st_gchb.io.write_elements`.

    Parameters
    ----------
    sdata
        Object that holds the spots.
    result
        Result with the region and the instance id of every row in ``obs``, as :func:`resolve` returns it.
    name
        Name of the table. An earlier result of this package with that name is replaced.
    region_key, instance_key
        Columns of ``result.obs``.
    overwrite
        Replace any table of that name.

    Raises
    ------
    InputError, MissingKeyError
        A column is absent, names an element that ``sdata`` does not hold, or the name belongs to a table that this
        package did not write.
    """
    from spatialdata.models import TableModel

    check_object(result)
    absent = [key for key in (region_key, instance_key) if key not in result.obs]
    if absent:
        raise MissingKeyError(f"the result's obs has no {absent}; expected the columns that pp.resolve put there.")
    rows = annotated_rows(result.obs, region_key, instance_key)
    regions = rows["region"].unique().tolist()
    unknown = [region for region in regions if region not in sdata]
    if unknown:
        raise InputError(f"obs[{region_key!r}] names {unknown}, which the SpatialData does not hold.")
    check_table_name(sdata, name, overwrite=overwrite)
    table = in_memory(result)
    table.uns.pop(TableModel.ATTRS_KEY, None)
    table.obs[region_key] = pd.Categorical(rows["region"])
    table.obs[instance_key] = rows["instance_id"].to_numpy()
    with reading(f"the result for {name!r}", "what SpatialData takes", "Rename or drop what is named there."):
        parsed = TableModel.parse(table, region=regions, region_key=region_key, instance_key=instance_key)
    if name in sdata.tables:
        del sdata.tables[name]
    sdata.tables[name] = parsed


def check_table_name(sdata: SpatialData, name: str, *, overwrite: bool = False) -> None:
    """Validate the name of a table in which a result is stored.

    Raises
    ------
    InputError
        The name is not valid, or belongs to another element or, without ``overwrite``, to a table that this package
        did not write.
    """
    if not is_element_name(name):
        raise InputError(f"name {name!r}: expected letters, digits, '_', '-' and '.', as SpatialData takes them.")
    if name in sdata and name not in sdata.tables:
        raise InputError(f"the SpatialData has another element called {name!r}. Choose another name.")
    if name in sdata.tables and not overwrite and Keys.UNS not in sdata.tables[name].uns:
        raise InputError(
            f"the SpatialData has a table {name!r} already. "
            + advise(
                Fix("key_added", why="with another name"), Fix("name", why="with another one"), Fix("overwrite", "True")
            )
        )
