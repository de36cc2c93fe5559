"""Query positions as elements of a SpatialData: circles, and a table that annotates them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from st_gchb._constants import VISIUM_PITCH_UM, Keys
from st_gchb._errors import ImageError, InputError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.io import (
    Library,
    Size,
    bin_um,
    find_image,
    finest_image,
    libraries_of,
    open_image,
    place_spots,
    put_libraries,
    settle,
    transformations_of,
    visium_pitch,
)
from st_gchb.pp.tissue._layout import lay_tiles
from st_gchb.pp.tissue._roi import roi_of_shapes


def tile_spatialdata(
    sdata: SpatialData,
    roi: Any,
    settings: dict[str, Any],
    um_per_px: float | None,
    name: str,
    image: str | None,
    overwrite: bool,
) -> SpatialData:
    """Add positions on an image element as ``shapes[name]`` and ``tables[name + "_table"]``.

    Parameters
    ----------
    sdata
        Object that holds the image. It is changed in memory only, and unchanged if an error is raised.
    roi, um_per_px, name, image, overwrite
        As in :func:`~st_gchb.pp.tile_tissue`.
    settings
        Keyword arguments of :func:`~st_gchb.pp.tissue._layout.lay_tiles`.

    Returns
    -------
    SpatialData
        The same object, with the two elements added.

    Raises
    ------
    MissingKeyError, ImageError, InputError
        The image is absent or ambiguous, or the names are taken.
    """
    table_name = f"{name}_table"
    element = _find_image(sdata, image)
    _check_names(sdata, {name: "shapes", table_name: "tables"}, overwrite)
    slide = open_image(sdata.images[element], um_per_px, name=f"image element {element!r}")
    if slide.um_per_px is None:
        slide = replace(slide, um_per_px=_size_by_spots(sdata, element, slide.name))
    region = roi_of_shapes(sdata, roi, element) if isinstance(roi, str) else roi
    tiles = lay_tiles(slide, region, **settings)
    shapes = ShapesModel.parse(
        tiles.grid.centers_px,
        geometry=0,
        radius=tiles.diameter_px / 2,
        index=np.arange(len(tiles.grid)),
        # The circles are in px of the image, so its transformations apply to them unchanged.
        transformations=dict(transformations_of(sdata.images[element], element)),
    )
    table = tiles.table(name)
    table.obs.insert(0, "region", pd.Categorical([name] * table.n_obs))
    table.obs.insert(1, "instance_id", shapes.index.to_numpy())
    factors = {Keys.SPOT_DIAMETER: tiles.diameter_px, Keys.UM_PER_PX: tiles.um_per_px}
    put_libraries(table, [Library(name, factors=factors)])
    parsed = TableModel.parse(table, region=name, region_key="region", instance_key="instance_id")
    for key, elements in ((name, sdata.shapes), (table_name, sdata.tables)):
        if key in elements:
            del elements[key]
    sdata.shapes[name] = shapes
    sdata.tables[table_name] = parsed
    return sdata


def _size_by_spots(sdata: SpatialData, element: str, what: str) -> float | None:
    """Derive the size of the image's px, µm, from the Visium spots or bins on it; None if there are none.

    Only reliable sources are used: the size stored with a table of the spots, the names of bins, and the distance
    between Visium's spots. The diameter of circles is not, since they may be cells.
    """
    systems = set(transformations_of(sdata.images[element], element))
    sizes: list[Size | None] = []
    for name, shapes in sdata.shapes.items():
        if not systems & set(transformations_of(shapes, name)):
            continue
        image, system = find_image(sdata, name, element, None)
        placed = place_spots(sdata, name, image, system, pd.Series(shapes.index))
        side_um, stored = bin_um(name), _stored_size(sdata, name)
        if stored is not None:
            sizes.insert(0, Size(stored / placed.scale, f"table of the spots {name!r}"))
        if placed.diameter_px is None:
            continue
        if side_um is not None:
            sizes.append(Size(side_um / placed.diameter_px, f"bins {name!r}, {side_um:g} µm"))
            continue
        pitch = visium_pitch(placed.centers_px, placed.diameter_px)
        if pitch is not None:
            sizes.append(Size(VISIUM_PITCH_UM / pitch, f"spots {name!r}, {pitch:.4g} px apart, Visium's 100 µm"))
    size = settle(sizes, what)
    if size is not None:
        logger.info("%s: %.4g µm per px, by the spots on it (um_per_px= sets it).", what, size)
    return size


def _stored_size(sdata: SpatialData, name: str) -> float | None:
    """Look up the size of a px of the spots' coordinates, µm, in the tables; None if none stores it."""
    for table in sdata.tables.values():
        library = libraries_of(table).get(name)
        size = None if library is None else library.factor(Keys.UM_PER_PX)
        if size is not None:
            return size
    return None


def _find_image(sdata: SpatialData, image: str | None) -> str:
    names = sorted(sdata.images)
    if image is not None:
        if image not in names:
            raise MissingKeyError(f"the SpatialData has no image {image!r}; image= takes one of {names}.")
        return image
    if not names:
        raise ImageError(
            "the SpatialData has no image element; expected the H&E image. Add it with Image2DModel.parse."
        )
    systems = {system for name in names for system in transformations_of(sdata.images[name], name)}
    return names[0] if len(names) == 1 else finest_image(sdata, names, systems, "with one another")


def _check_names(sdata: SpatialData, wanted: dict[str, str], overwrite: bool) -> None:
    """Validate that the names are unused, or belong to elements that may be replaced."""
    for key, kind in wanted.items():
        if key not in sdata:
            continue
        if key not in getattr(sdata, kind):
            raise InputError(f"the SpatialData has another element called {key!r}. Pass another name=.")
        if not overwrite:
            raise InputError(f"the SpatialData has {kind} {key!r} already. Pass another name=, or overwrite=True.")
