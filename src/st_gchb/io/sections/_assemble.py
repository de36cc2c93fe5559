"""Assemble Space Ranger's counts, positions and images into one SpatialData, in spatialdata-io's layout."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from st_gchb._advice import Fix, advise
from st_gchb._constants import Keys
from st_gchb._errors import ImageError, InputError, MissingKeyError, ScaleError
from st_gchb._logging import logger
from st_gchb.io._library import Library, put_libraries
from st_gchb.io._pixel_size import Size, caller_size, factor_size, positive, settle
from st_gchb.io.images import RGB, SlideImage, as_element
from st_gchb.io.sections._spaceranger import image_shape, read_downscaled

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_ID, _REGION = "spot_id", "region"
_SCALES = (1e-4, 10.0)
"""Valid scale factors of down-scaled images; Space Ranger writes 0.01 to 1."""
_SIZE_TOLERANCE = 0.02
"""Relative difference allowed between the full-resolution sizes that two down-scaled images imply."""


def assemble(
    adata: AnnData,
    *,
    label: str,
    region: str,
    table: str,
    squares: bool,
    factors: dict[str, Any],
    downscaled: dict[str, Path],
    slide: SlideImage | None,
    um_per_px: float | None,
) -> SpatialData:
    """Create a SpatialData with the spots as shapes, their counts as a table, and all images.

    Parameters
    ----------
    adata
        Counts, with positions in full-resolution px in ``obsm["spatial"]``.
    label, region, table
        Names of the coordinate system, the shapes and the table.
    squares
        Whether the shapes are squares (bins) or circles (spots).
    factors
        Scale factors.
    downscaled
        Paths of the down-scaled images by kind, ``"hires"`` and ``"lowres"``.
    slide
        Full-resolution image, if available.
    um_per_px
        Pixel size of the full-resolution image according to the caller, µm.

    Returns
    -------
    SpatialData
        Images, shapes and the table of one section.

    Raises
    ------
    ImageError
        An image is damaged, or there is none.
    InputError
        The scale factors of two images contradict each other.
    MissingKeyError
        The scale factor of an image is missing.
    ScaleError
        A scale factor is not a valid number.
    """
    from spatialdata import SpatialData
    from spatialdata.models import TableModel
    from spatialdata.transformations import Identity, Scale

    scales = {kind: _scale(factors, kind, path) for kind, path in downscaled.items()}
    systems: dict[str, Any] = {label: Identity()}
    systems |= {f"{label}_downscaled_{kind}": Scale([scale] * 2, axes=("x", "y")) for kind, scale in scales.items()}
    images: dict[str, Any] = {}
    if slide is not None:
        images[f"{label}_full_image"] = as_element(slide, {label: Identity()})
    seen: dict[str, Path] = {}
    for kind, path in downscaled.items():
        pixels = read_downscaled(path)
        if pixels is not None:
            seen[kind] = path
            to_full = Scale([1 / scales[kind]] * 2, axes=("x", "y"))
            images[f"{label}_{kind}_image"] = _element(
                pixels, {f"{label}_downscaled_{kind}": Identity(), label: to_full}
            )
    _check_scales(seen, scales)
    if not images:
        empty = ", ".join(str(path) for path in downscaled.values())
        raise ImageError(
            f"{label}: the folder holds no image of the tissue"
            + (f" (in {empty} nothing is to be seen)" if downscaled else "")
            + f"; expected one. {advise(Fix('image', why='with its path'), otherwise='Put it there.')}"
        )
    adata.obs[_ID] = np.arange(adata.n_obs)
    adata.obs[_REGION] = pd.Categorical([region] * adata.n_obs)
    shapes = _shapes(adata, positive(factors[Keys.SPOT_DIAMETER], "spot_diameter_fullres"), systems, squares=squares)
    _note(adata, region, factors, slide, um_per_px, label)
    parsed = TableModel.parse(adata, region=region, region_key=_REGION, instance_key=_ID)
    sdata = SpatialData(images=images, shapes={region: shapes}, tables={table: parsed})
    logger.info("section %r: %d spots, %d genes, images %s.", label, adata.n_obs, adata.n_vars, sorted(sdata.images))
    return sdata


def _check_scales(downscaled: dict[str, Path], scales: dict[str, float]) -> None:
    """Check that all down-scaled images imply the same size of the full-resolution image."""
    whole = {kind: np.array(image_shape(path)) / scales[kind] for kind, path in downscaled.items()}
    for (one, first), (other, second) in combinations(whole.items(), 2):
        # The sides of down-scaled images are rounded to whole px.
        rounding = 1 / scales[one] + 1 / scales[other]
        if (np.abs(first - second) > _SIZE_TOLERANCE * np.maximum(first, second) + rounding).any():
            raise InputError(
                f"{downscaled[one]} and {downscaled[other].name} contradict each other: by their scale factors, "
                f"{scales[one]:.6g} and {scales[other]:.6g}, the full-resolution image has {_px(first)} px (h, w) and "
                f"{_px(second)}. Copy the images and scalefactors_json.json again from one run of Space Ranger."
            )


def _px(shape: np.ndarray) -> str:
    return " x ".join(f"{side:.6g}" for side in shape)


def _scale(factors: dict[str, Any], kind: str, path: Path) -> float:
    key = f"tissue_{kind}_scalef"
    if key not in factors:
        raise MissingKeyError(
            f"{path}: the scale factors have no {key!r}; they hold {sorted(factors)}. Space Ranger writes it: copy "
            "scalefactors_json.json again."
        )
    scale = positive(factors[key], f"scalefactors_json.json[{key!r}]")
    if not _SCALES[0] <= scale <= _SCALES[1]:
        raise ScaleError(
            f"scalefactors_json.json[{key!r}] is {scale:g}; expected the size of {path.name} relative to the "
            f"full-resolution image, from {_SCALES[0]:g} to {_SCALES[1]:g}."
        )
    return scale


def _element(pixels: RGB, transformations: dict[str, Any]) -> Any:
    from spatialdata.models import Image2DModel

    return Image2DModel.parse(
        pixels.transpose(2, 0, 1), dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=transformations
    )


def _shapes(adata: AnnData, diameter: float, systems: dict[str, Any], *, squares: bool) -> Any:
    from spatialdata.models import ShapesModel

    centers = np.asarray(adata.obsm[Keys.SPATIAL], dtype=np.float64)
    index = adata.obs[_ID].to_numpy()
    if not squares:
        return ShapesModel.parse(centers, geometry=0, radius=diameter / 2, index=index, transformations=systems)
    import shapely
    from geopandas import GeoDataFrame

    low, high = centers - diameter / 2, centers + diameter / 2
    boxes = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
    return ShapesModel.parse(GeoDataFrame(geometry=boxes, index=index), transformations=systems)


def _note(
    adata: AnnData,
    region: str,
    factors: dict[str, Any],
    slide: SlideImage | None,
    um_per_px: float | None,
    label: str,
) -> None:
    """Store the scale factors, the pixel size and the path of the full-resolution image in the table."""
    in_file = None if slide is None or slide.um_per_px is None else Size(slide.um_per_px, "the image file")
    size = settle(
        [caller_size(um_per_px), factor_size(factors, "scalefactors_json.json"), in_file], f"section {label!r}"
    )
    known = {Keys.UM_PER_PX: size} if size is not None else {}
    metadata = {} if slide is None else {Keys.SOURCE_IMAGE: str(Path(slide.name).resolve())}
    put_libraries(adata, [Library(region, factors={**factors, **known}, metadata=metadata)])
