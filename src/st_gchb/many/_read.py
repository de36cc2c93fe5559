"""From the path of a slide to a query: spots that are there, or a grid laid on the tissue."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_gchb._errors import InputError, MissingFileError

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

SPACING_UM = 100.0
"""Distance of positions on a slide that has no spots, where none was asked for."""

_GRID = "grid"
"""Name of the positions that are laid on a slide of a SpatialData."""


def read_query(
    path: Path,
    *,
    name: str | None = None,
    image: str | None = None,
    um_per_px: float | None = None,
    spacing_um: float | None = None,
    roi: Any = None,
    **grid: Any,
) -> tuple[AnnData | SpatialData, dict[str, Any]]:
    """The query, and how :func:`~st_gchb.pp.resolve` and the model are to find positions and image in it.

    Parameters
    ----------
    path
        An image file, a SpatialData store, an AnnData file, a folder of Space Ranger or of legacy ST.
    name
        Name of the slide, where positions are laid on an image file.
    image
        Full-resolution image file of a folder or an AnnData, or name of an image element of a store.
    um_per_px
        Size of a full-resolution pixel, µm.
    spacing_um
        Distance of positions, µm; None takes the slide's own spots where it has any, else 100.
    roi, grid
        As :func:`~st_gchb.pp.tile_tissue` takes them.

    Raises
    ------
    InputError, MissingFileError
        It is not there, cannot be read, or an option does not fit it.
    """
    from st_gchb import pp

    if not os.path.exists(path):
        raise MissingFileError(f"{path}: there is no such file or folder.")
    laid = {"spacing_um": spacing_um or SPACING_UM, "roi": roi, **grid}
    if path.is_file() and path.suffix != ".h5ad":
        if image is not None:
            raise InputError(f"image={image!r}: {path.name} is an image already. Leave one of them out.")
        return pp.tile_tissue(path, um_per_px=um_per_px, name=name, **laid), {}
    from anndata import AnnData

    from st_gchb import io

    # A file is the full-resolution image, which Space Ranger keeps no copy of; else it is an element's name.
    file = image if image is not None and os.path.isfile(image) else None
    section = io.read_section(path, image=file, um_per_px=um_per_px if file else None)
    where: dict[str, Any] = {"image": None if file else image, "um_per_px": um_per_px}
    asked = [key for key, value in (("spacing", spacing_um), ("region of interest", roi)) if value is not None]
    own = isinstance(section, AnnData) or (spacing_um is None and len(section.shapes) > 0)
    if own and asked:
        raise InputError(
            f"a {' and a '.join(asked)} was given: positions are laid on a slide, and {path.name} brings its own. "
            "Leave it out, or pass the image itself as the slide."
        )
    if own:
        return section, where
    pp.tile_tissue(section, name=_GRID, overwrite=True, **where, **laid)
    return section, {"table": f"{_GRID}_table", "image": where["image"]}
