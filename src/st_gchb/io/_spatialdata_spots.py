"""Spots of a SpatialData as an AnnData, with positions in px of their image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb._compat import named_layers
from st_gchb._constants import Keys
from st_gchb._errors import ImageError
from st_gchb.io._annotation import bin_um
from st_gchb.io._library import Library, libraries_of, put_libraries
from st_gchb.io._spatialdata import Placed, find_image, find_spots, find_table, linked, place_spots
from st_gchb.io.images import SlideImage, open_image

if TYPE_CHECKING:
    from spatialdata import SpatialData

_REGION, _INSTANCE = "region", "instance_id"


@dataclass(eq=False)
class LocatedSpots:
    """Spots of a SpatialData with their images.

    Parameters
    ----------
    adata
        New object that shares the matrices of the table, with positions in px of the image's finest scale in
        ``obsm["spatial"]``, the region in a column of ``obs``, and the spot diameter in ``uns["spatial"]``.
    images
        Image of each region.
    elements
        Name of the image element of each region.
    table
        Table of the SpatialData; None if it has none.
    region_key, instance_key
        Columns by which rows are matched to shapes.
    """

    adata: AnnData
    images: dict[str, SlideImage]
    elements: dict[str, str]
    table: AnnData | None
    region_key: str
    instance_key: str


def locate_spots(
    sdata: SpatialData,
    table: str | None = None,
    image: Any = None,
    shapes: str | None = None,
    coordinate_system: str | None = None,
    *,
    thumbnails: bool = False,
) -> LocatedSpots:
    """Find the spots, positions and images of a SpatialData; parameters and errors as for :func:`st_gchb.pp.resolve`.

    Returns
    -------
    LocatedSpots
        Rows are in the order of the table and are matched to positions by instance id.
    """
    if Keys.TILE_SPEC in sdata.attrs and not sdata.images:
        raise ImageError(
            "the SpatialData is a store of LazySlide, whose slide is a file beside it. Read its tiles: "
            "st_gchb.io.read_lazyslide(wsi), with the WSIData or the path of the store."
        )
    source = find_table(sdata, table, shapes)
    spots = find_spots(sdata, source, shapes)
    adata = _light_copy(source, spots)
    images: dict[str, SlideImage] = {}
    elements: dict[str, str] = {}
    libraries: list[Library] = []
    centers = np.full((len(spots), 2), np.nan)
    n_regions = spots[_REGION].nunique()
    for region in spots[_REGION].unique():
        rows = np.flatnonzero(spots[_REGION] == region)
        element, system = find_image(sdata, region, image, coordinate_system)
        elements[region] = element
        images[region] = open_image(sdata.images[element], name=f"image element {element!r}")
        placed = place_spots(sdata, region, element, system, spots[_INSTANCE].iloc[rows])
        centers[rows] = placed.centers_px
        libraries.append(_library(images[region], placed, source, region, n_regions, thumbnails))
    adata.obsm[Keys.SPATIAL] = centers
    put_libraries(adata, libraries)
    return LocatedSpots(adata, images, elements, source, *_keys(source))


def _keys(source: AnnData | None) -> tuple[str, str]:
    if source is None:
        return _REGION, _INSTANCE
    link = linked(source)
    return link.region_key, link.instance_key


def _light_copy(source: AnnData | None, spots: pd.DataFrame) -> AnnData:
    """Make an AnnData of the rows in ``spots`` that shares the matrices of ``source``."""
    if source is None:
        obs = spots.astype({_REGION: "category"})
        return AnnData(obs=obs.set_index(obs.index.astype(str)))
    from spatialdata.models import TableModel

    region_key, instance_key = _keys(source)
    # By position, since row names may be duplicated; that is reported where names are needed.
    rows = np.flatnonzero(source.obs[region_key].astype(str).isin(spots[_REGION].unique()))
    part = source if len(rows) == source.n_obs else source[rows]
    light = AnnData(X=part.X, obs=part.obs.copy(), var=part.var.copy(), layers=named_layers(part), obsm=dict(part.obsm))
    light.uns.update(
        {key: value for key, value in source.uns.items() if key not in (TableModel.ATTRS_KEY, Keys.SPATIAL)}
    )
    light.obs[region_key] = pd.Categorical(spots[_REGION])
    light.obs[instance_key] = spots[_INSTANCE].to_numpy()
    return light


def _library(
    image: SlideImage, placed: Placed, source: AnnData | None, region: str, n_regions: int, thumbnails: bool
) -> Library:
    """Build the entry of ``uns["spatial"]`` for one region, in px of its image."""
    factors: dict[str, float] = {}
    if placed.diameter_px is not None:
        factors[Keys.SPOT_DIAMETER] = placed.diameter_px
    stored = libraries_of(source) if source is not None else {}
    # A single entry belongs to a single region, even if their names differ.
    lone = next(iter(stored.values())) if source is not None and len(stored) == 1 and n_regions == 1 else None
    um_per_px = (stored.get(region) or lone or Library(region)).factor(Keys.UM_PER_PX)
    side_um = bin_um(region)
    if um_per_px is not None:
        factors[Keys.UM_PER_PX] = um_per_px / placed.scale
    elif side_um is not None and placed.diameter_px is not None:
        factors[Keys.UM_PER_PX] = side_um / placed.diameter_px
    images: dict[str, Any] = {}
    if thumbnails:
        images["hires"], factors["tissue_hires_scalef"] = image.thumbnail()
    return Library(region, images, factors)
