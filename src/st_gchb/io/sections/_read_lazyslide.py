"""Read tiles of a LazySlide store as query or reference, with features and expression that the store holds of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from st_gchb._advice import Fix, advise
from st_gchb._arguments import PixelSize, checked
from st_gchb._compat import named_layers
from st_gchb._constants import Keys
from st_gchb._errors import (
    EncoderError,
    ExpressionError,
    ImageError,
    InputError,
    MissingFileError,
    ScaleError,
    StaleError,
)
from st_gchb._logging import logger
from st_gchb._matrices import matrix_of
from st_gchb.io._library import Library, put_libraries
from st_gchb.io._pixel_size import Size, caller_size, settle
from st_gchb.io.images import SlideImage, open_image, thumbnail_of
from st_gchb.io.sections._genes import keep_genes, tell_values
from st_gchb.io.sections._lazyslide_store import (
    REGION_KEY,
    TILE_ID,
    LazySlideStore,
    Tiles,
    check_resolution,
    open_lazyslide,
)
from st_gchb.io.sections._legacy_folder import is_image

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_THUMBNAIL_PX = 1500
_TISSUE_ID = "tissue_id"


@checked
def read_lazyslide(
    store: str | Path | SpatialData,
    *,
    tiles: str | None = None,
    features: str | None = None,
    expression: str | None = None,
    image: str | Path | None = None,
    name: str | None = None,
    um_per_px: PixelSize | None = None,
) -> AnnData:
    """Read the tiles of a LazySlide store, as query or, with their expression, as reference.

    Parameters
    ----------
    store
        The ``.zarr`` store that LazySlide writes beside the slide, or the WSIData in memory.
    tiles
        Set of tiles, such as ``"tiles"``, if there are several.
    features
        Table of features to take, such as ``"uni2"`` or ``"uni2_tiles"``, instead of embedding patches at the tiles.
        They go with models that were trained on features that LazySlide made the same way.
    expression
        Table with the measured expression of the tiles, genes as ``var_names``. Tiles without a row in it are left out.
    image
        The slide; by default the file beside the store that has the slide's name, height and width.
    name
        Name of the slice; by default that of the store.
    um_per_px
        Size of a pixel of the slide, µm. Takes precedence over that of the store, with a warning if they disagree.

    Returns
    -------
    AnnData
        One row per tile, with ``slice``, ``tile_id`` and ``tissue_id`` in ``obs``, centers as x, y in full-resolution
        px in ``obsm["spatial"]``, ``(n_tiles, 2)``, and the slide in ``uns["spatial"]``; features in
        ``obsm["X_patch"]`` with how they were made in ``uns["X_patch"]``; expression in ``X``. :func:`write_lazyslide`
        puts predictions for it back into the store.

    Raises
    ------
    MissingFileError
        There is no such store, or its slide is not beside it.
    MissingKeyError
        There is no such set of tiles or table, or the specification of the tiles lacks a field.
    InputError, SliceError, CoordinateError
        The store has no tiles, or several sets, or is of a newer LazySlide; tiles, tables and slide do not go together,
        or cannot be read.
    ScaleError
        The size of a pixel is not known, or tiles were laid with another one.
    StaleError, EncoderError, ExpressionError
        Tiles have no features; features are not of square tiles, or not numbers; or the table holds no expression.

    Examples
    --------
    >>> import st_gchb
    >>> query = st_gchb.io.read_lazyslide("slide.zarr", tiles="tiles")  # doctest: +SKIP
    >>> st_gchb.io.write_lazyslide(model.predict(query), "slide.zarr")  # doctest: +SKIP
    """
    opened = open_lazyslide(store)
    found = opened.read_tiles(opened.choose_tiles(tiles))
    if um_per_px is None:
        check_resolution(opened, found)
    slide = _open_slide(opened, None if image is None else Path(image), needed=features is None)
    size = _pixel_size(opened, slide, um_per_px)
    label = name or _stem(opened).split(".")[0] or "slide"
    adata = _table_of(opened, found, expression)
    adata.obs.insert(0, Keys.SLICE, pd.Categorical([label] * adata.n_obs))
    if features is not None:
        _add_features(adata, opened, found, features)
    put_libraries(adata, [_library(label, found, slide, size)])
    return adata


def _stem(store: LazySlideStore) -> str:
    """Return the name of the slide's file without its last ending; names of stores may have the scene besides."""
    if store.slide is not None:
        return store.slide.stem
    return "" if store.folder is None else store.folder.name.removesuffix(".zarr").split(".scene-")[0]


# ---- The slide ----


def _open_slide(store: LazySlideStore, image: Path | None, *, needed: bool) -> SlideImage | None:
    """Open the slide of a store; None if there is none and features take its place.

    Raises
    ------
    MissingFileError
        There is none, and patches are to be embedded.
    InputError
        It is another slide, or several files may be it.
    """
    if image is not None:
        slide = open_image(image)
        _check_shape(store, slide)
        return slide
    scene = store.properties.get("scene") or 0
    if scene != 0:
        raise InputError(
            f"{store.where}: the tiles are of scene {scene} of the slide's file, and st-gchb opens its first one. "
            "Export the scene to a file of its own and pass it as image=."
        )
    if store.slide is not None and store.slide.is_file():
        slide = open_image(store.slide)
        _check_shape(store, slide)
        return slide
    found = _slides_beside(store)
    if len(found) > 1:
        raise InputError(
            f"{store.where}: {[Path(one.name).name for one in found]} may be its slide. Pass image= with one of them."
        )
    if found:
        return found[0]
    if needed:
        sides = "" if store.shape_px is None else " of {} x {} px".format(*store.shape_px)
        raise MissingFileError(
            f"{store.where}: its slide is not beside it: there is no image {_stem(store)}.*{sides} (height x width). "
            "Pass image= with its path."
        )
    logger.info("%s: read without its slide, which is not beside it (image= names it).", store.where)
    return None


def _slides_beside(store: LazySlideStore) -> list[SlideImage]:
    if store.folder is None:
        return []
    folder, stem = store.folder.absolute().parent, _stem(store)
    files = [one for one in sorted(folder.iterdir()) if one.is_file() and is_image(one) and one.stem == stem]
    images = []
    for file in files:
        try:
            images.append(open_image(file))
        except ImageError as error:
            logger.info("%s is not taken for the slide of %s: %s", file, store.where, error)
    fitting = [one for one in images if store.shape_px in (None, one.shape_px)]
    if images and not fitting:
        _check_shape(store, images[0])
    return fitting


def _check_shape(store: LazySlideStore, slide: SlideImage) -> None:
    if store.shape_px not in (None, slide.shape_px):
        found, expected = ("{} x {}".format(*shape) for shape in (slide.shape_px, store.shape_px or (0, 0)))
        raise InputError(
            f"{slide.name}: the image is {found} px (height x width); expected {expected} px, the slide of "
            f"{store.where} (attrs['slide_properties']). Pass image= with that slide."
        )


def _pixel_size(store: LazySlideStore, slide: SlideImage | None, um_per_px: float | None) -> float:
    stored, of_image = store.um_per_px, None if slide is None else slide.um_per_px
    size = settle(
        [
            caller_size(um_per_px),
            None if stored is None else Size(stored, "attrs['slide_properties']['mpp'] of the store"),
            None if of_image is None else Size(of_image, "the image file"),
        ],
        store.where,
    )
    if size is None:
        raise ScaleError(
            f"{store.where}: the size of a pixel is not known: attrs['slide_properties']['mpp'] is empty, and the "
            f"slide does not state it. {advise(Fix('um_per_px', why='with it, in µm'))} Or set it in LazySlide, "
            "wsi.set_mpp(...), before tiles are laid."
        )
    return size


def _library(label: str, tiles: Tiles, slide: SlideImage | None, um_per_px: float) -> Library:
    spec = tiles.spec
    record: dict[str, Any] = {"tiles": spec.key, "width": spec.width, "height": spec.height}
    metadata: dict[str, Any] = {Keys.LAZYSLIDE: record if spec.mpp is None else record | {"mpp": spec.mpp}}
    factors = {Keys.SPOT_DIAMETER: tiles.side_px, Keys.UM_PER_PX: um_per_px}
    images = {}
    if slide is not None:
        images["hires"], factors["tissue_hires_scalef"] = thumbnail_of(slide, _THUMBNAIL_PX)
        metadata[Keys.SOURCE_IMAGE] = str(Path(slide.name).resolve())
        slide.release()
    return Library(label, images, factors, metadata)


# ---- Tables ----


def _table_of(store: LazySlideStore, tiles: Tiles, expression: str | None) -> AnnData:
    """Build the object with one row per tile, with expression if a table of it is named."""
    from anndata import AnnData

    obs = pd.DataFrame({TILE_ID: tiles.ids.to_numpy()}, index=tiles.ids.astype(str))
    if tiles.tissue is not None:
        obs[_TISSUE_ID] = tiles.tissue
    if expression is None:
        adata = AnnData(obs=obs)
        adata.obsm[Keys.SPATIAL] = tiles.centers
        return adata
    name, table, rows = store.open_table(expression, tiles, "expression")
    place = f"{store.where}: tables/{name}"
    _check_expression(table, place)
    has_row = rows >= 0
    if not has_row.any():
        raise InputError(f"{place} has a row for none of the {len(tiles)} tiles of {tiles.spec.key!r}.")
    if not has_row.all():
        logger.info("%s: %d of %d tiles have no row and are left out.", place, (~has_row).sum(), len(tiles))
    part, obs = table[rows[has_row]], obs[has_row]
    own = [column for column in part.obs.columns if column not in (*obs.columns, REGION_KEY, Keys.SLICE)]
    obs[own] = part.obs[own].set_axis(obs.index)
    layers = {key: values.copy() for key, values in named_layers(part).items()}
    adata = AnnData(part.X.copy(), obs=obs, var=part.var.copy(), layers=layers)
    adata.obsm[Keys.SPATIAL] = tiles.centers[has_row]
    adata = keep_genes(adata, place, None)
    tell_values(adata, place)
    return adata


def _check_expression(table: AnnData, place: str) -> None:
    """Validate that a table holds measured expression: not features, nor a prediction of this package."""
    if Keys.UNS in table.uns:
        raise ExpressionError(
            f"{place} holds a prediction of st-gchb; expected measured expression. Name another table."
        )
    if table.X is None or not table.n_vars or list(table.var_names) == [str(i) for i in range(table.n_vars)]:
        found = (
            "no values" if table.X is None or not table.n_vars else f"{table.n_vars} columns without names, features"
        )
        raise ExpressionError(f"{place} holds {found}; expected expression, genes as var_names. Name another table.")


def _add_features(adata: AnnData, store: LazySlideStore, tiles: Tiles, features: str) -> None:
    """Add features that LazySlide made, with how: its model, and the size of the tiles in µm and px."""
    name, table, rows = store.open_table(features, tiles, "features")
    place = f"{store.where}: tables/{name}"
    spec = tiles.spec
    if Keys.UNS in table.uns:
        raise EncoderError(f"{place} holds a prediction of st-gchb; expected features. Name another table.")
    if spec.width != spec.height or spec.mpp is None or store.um_per_px is None:
        raise EncoderError(
            f"{place}: the features are of tiles of {spec.width} x {spec.height} px at mpp {spec.mpp}, on a slide of "
            f"mpp {store.um_per_px}; expected square tiles of a known size in µm. Lay such tiles, "
            f"zs.pp.tile_tissues(wsi, 256, mpp=0.5); or leave features= out."
        )
    wanted = rows[tiles.ids.get_indexer(adata.obs[TILE_ID])]
    if (wanted < 0).any():
        raise StaleError(
            f"{place}: {int((wanted < 0).sum())} of {len(wanted)} tiles have no row, first "
            f"{adata.obs[TILE_ID].iloc[int(np.argmin(wanted))]}: the tiles were laid anew since. Extract the "
            "features again, zs.tl.feature_extraction, then wsi.write()."
        )
    values = _dense(table, place)[wanted]
    model = name.removesuffix(f"_{spec.key}")
    adata.obsm[Keys.FEATURES] = np.ascontiguousarray(values, dtype=np.float32)
    adata.uns[Keys.FEATURES] = feature_record(model, spec.width, spec.width * spec.mpp, values.shape[1])


def _dense(table: AnnData, place: str) -> npt.NDArray[Any]:
    if table.X is None or not table.n_vars:
        raise EncoderError(f"{place} has no values; expected features, (n_tiles, n_features). Name another table.")
    values = matrix_of(table.X, place, EncoderError)
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def feature_record(model: str, side_px: int, side_um: float, n_features: int) -> Mapping[str, Any]:
    """Describe features of LazySlide in the fields of :class:`~st_gchb.pp.FeatureSpec`.

    LazySlide keeps no hash of the weights: the name of its model stands for them. Tiles of another number of px reach
    the model at another resolution, so that number is part of the name.

    Examples
    --------
    >>> from st_gchb.io.sections._read_lazyslide import feature_record
    >>> feature_record("uni2", 256, 128.0, 1536)["encoder"]
    'lazyslide:uni2, 256 px'
    """
    return {
        "encoder": f"lazyslide:{model}, {side_px} px",
        "weights": "lazyslide",
        "weights_sha256": "",
        # Beyond a tenth of a µm are digits of the scanner's size of a pixel.
        "patch_um": round(side_um, 1),
        "n_views": 1,
        "n_features": n_features,
    }
