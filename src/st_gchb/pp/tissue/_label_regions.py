"""Labels of spots by the annotated regions that hold them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame

from st_gchb._arguments import checked
from st_gchb._errors import CoordinateError, InputError, SliceError
from st_gchb.io import check_object, column_of, placed_sections

_UNNAMED = "unclassified"
"""Label of regions that have neither a class nor a name."""


@checked
def label_regions(
    adata: AnnData,
    regions: GeoDataFrame,
    *,
    key_added: str = "region_class",
    slice: str | None = None,
    slice_key: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Label spots with the class of the annotated region that holds them.

    Parameters
    ----------
    adata
        Object with ``obsm["spatial"]`` in full-resolution px.
    regions
        Polygons in the same px, as :func:`st_gchb.io.read_geojson` returns them. Their label is the column
        ``classification``, else ``name``, else ``"unclassified"``. Of several regions that hold a spot, the smallest
        counts.
    key_added
        Column of ``obs`` for the labels.
    slice, slice_key
        Slice on which the regions lie if there are several, and column of ``obs`` with the slice of each spot. Labels
        of other slices are kept, so that slices can be labeled one after another.
    copy
        Return a labeled copy instead of changing ``adata``.

    Returns
    -------
    AnnData or None
        The copy, if asked for. Labels are categories in ``obs[key_added]``, missing for spots in no region; a spot
        belongs to a region if its center lies within it or on its outline. ``uns[key_added + "_colors"]`` has the
        colors of the classes where all have one.

    Raises
    ------
    CoordinateError
        All regions lie apart from the spots, or positions cannot be read.
    SliceError
        No slice was chosen among several, or there is no such slice.
    InputError
        A region is no polygon, or is not valid; or the column is not one of labels.

    Examples
    --------
    >>> import geopandas, shapely, st_gchb
    >>> adata = st_gchb.datasets.synthetic_tissue(1, n_rows=8, n_cols=8, n_genes=20)
    >>> left, top, right, bottom = *adata.obsm["spatial"].min(0), *adata.obsm["spatial"].max(0)
    >>> half = shapely.box(left, top, right, (top + bottom) / 2)
    >>> regions = geopandas.GeoDataFrame({"classification": ["Tumor"]}, geometry=[half])
    >>> st_gchb.pp.label_regions(adata, regions)
    >>> tumor = adata[adata.obs["region_class"] == "Tumor"]
    """
    check_object(adata)
    sections = placed_sections(adata, slice_key)
    names = list(sections.rows)
    if (slice is None and len(names) > 1) or (slice is not None and slice not in names):
        raise SliceError(
            f"slice={slice!r}: the object has the slices {names[:12]}, and regions are of one. Pass its name."
        )
    rows = sections.rows[names[0] if slice is None else slice]
    _check_regions(regions)
    found = _labels_at(regions, sections.centers[rows])
    labels = np.full(adata.n_obs, None, dtype=object)
    if key_added in adata.obs:
        column = column_of(adata, key_added, "key_added=")
        if pd.api.types.is_numeric_dtype(column):
            raise InputError(f"obs[{key_added!r}] is of type {column.dtype}, no labels. Pass another key_added=.")
        labels = column.astype(object).where(column.notna(), None).to_numpy(dtype=object, copy=True)
    labels[rows] = found
    result = adata.copy() if copy else adata
    colors = _colors_of(result, key_added)
    if "class_color" in regions:
        given = zip(_labels_of(regions), regions["class_color"], strict=True)
        colors |= {label: color for label, color in given if isinstance(color, str)}
    result.obs[key_added] = pd.Categorical(labels, categories=sorted({one for one in labels if one is not None}))
    categories = result.obs[key_added].cat.categories
    result.uns.pop(f"{key_added}_colors", None)
    if len(categories) and all(label in colors for label in categories):
        result.uns[f"{key_added}_colors"] = [colors[label] for label in categories]
    return result if copy else None


def _check_regions(regions: GeoDataFrame) -> None:
    if not len(regions):
        raise InputError("regions= has no region; expected one or more polygons.")
    for number, geometry in enumerate(regions.geometry, 1):
        which = f"region {number} of {len(regions)}"
        kind = None if geometry is None else geometry.geom_type
        if kind not in ("Polygon", "MultiPolygon") or geometry.is_empty:
            found = "empty" if kind is None or geometry.is_empty else f"a {kind}"
            raise InputError(
                f"{which} is {found}; expected a polygon. Take the areas: "
                "regions[regions.geom_type.isin(['Polygon', 'MultiPolygon'])]."
            )
        if not geometry.is_valid:
            raise InputError(
                f"{which} is not valid: {shapely.is_valid_reason(geometry)}. Read it with "
                "st_gchb.io.read_geojson(path, repair=True)."
            )


def _labels_of(regions: GeoDataFrame) -> np.ndarray:
    """Return the label of each region, ``(n_regions,)``."""
    labels = pd.Series([None] * len(regions), dtype=object)
    for name in ("classification", "name"):
        if name in regions:
            labels = labels.where(labels.notna(), regions[name].astype(object).reset_index(drop=True))
    return np.array([_UNNAMED if pd.isna(label) else str(label) for label in labels], dtype=object)


def _labels_at(regions: GeoDataFrame, centers: np.ndarray) -> np.ndarray:
    """Return the label of the smallest region that holds each spot, ``(n_spots,)``, None where none does."""
    left, top, right, bottom = regions.total_bounds
    low, high = centers.min(axis=0), centers.max(axis=0)
    if left > high[0] or right < low[0] or top > high[1] or bottom < low[1]:
        raise CoordinateError(
            f"the regions lie apart from the spots: regions at x {left:.6g} to {right:.6g}, y {top:.6g} to "
            f"{bottom:.6g}, spots at x {low[0]:.6g} to {high[0]:.6g}, y {low[1]:.6g} to {high[1]:.6g}; expected both "
            "in px of the same full-resolution image."
        )
    labels, areas = _labels_of(regions), regions.area.to_numpy()
    region, spot = shapely.STRtree(shapely.points(centers)).query(regions.geometry.to_numpy(), predicate="intersects")
    found = np.full(len(centers), None, dtype=object)
    # The last assignment of a spot counts: that of the smallest region.
    order = np.argsort(-areas[region], kind="stable")
    found[spot[order]] = labels[region[order]]
    return found


def _colors_of(adata: AnnData, key: str) -> dict[str, str]:
    """Return the colors that scanpy's place has for the labels of an earlier call."""
    column = adata.obs.get(key)
    stored = adata.uns.get(f"{key}_colors", ())
    if column is None or not isinstance(column.dtype, pd.CategoricalDtype) or len(stored) != len(column.cat.categories):
        return {}
    return dict(zip(column.cat.categories, stored, strict=True))
