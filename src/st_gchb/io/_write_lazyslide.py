"""Write predictions into a LazySlide store, as a table that annotates its tiles and that its plots show."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from st_gchb._arguments import checked
from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, InputError, MissingKeyError
from st_gchb._logging import logger, others_quiet
from st_gchb.io._annotation import is_element_name
from st_gchb.io._library import Library
from st_gchb.io._viewer_spots import SpotValues, ViewerSpots, own_columns, viewer_spots
from st_gchb.io._write_elements import write_elements
from st_gchb.io.sections import REGION_KEY, TILE_ID, LazySlideStore, Tiles, open_lazyslide

if TYPE_CHECKING:
    from spatialdata import SpatialData

_SAME_PX = 1.0
"""Largest distance of a prediction's position from the center of its tile, px."""
_VAR = (Keys.EXPECTED_PCC, Keys.RETRIEVAL_PCC)


@checked
def write_lazyslide(
    pred: AnnData,
    store: str | Path | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    name: str = Keys.TABLE,
    tiles: str | None = None,
    layer: str | None = Keys.LAYER,
    slice: str | None = None,
    slice_key: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a prediction into a LazySlide store, as a table that ``zs.pl.tiles`` shows.

    The table is written as a whole or not at all; nothing else of the store changes.

    Parameters
    ----------
    pred
        Result of :meth:`~st_gchb.model.STGCHB.predict` for tiles that :func:`read_lazyslide` read.
    store
        Path of the store, or the WSIData in memory, which gets the table too. A store that is open elsewhere in memory
        does not have it, and ``wsi.write()`` would then remove it from the disk.
    genes
        Genes to write; all by default.
    name
        First part of the table's name: ``"st_gchb"`` gives ``tables/st_gchb_tiles``, LazySlide's
        ``feature_key="st_gchb"``.
    tiles
        Set of tiles, by default the one that ``pred`` was made for.
    layer
        Layer with the expression; None for ``X``.
    slice, slice_key
        Slice to write if ``pred`` has several, and column of ``obs`` with the slice of each row.
    overwrite
        Replace an existing table of that name.

    Raises
    ------
    MissingKeyError
        ``pred`` has no column ``tile_id``, or there is no such layer, gene or set of tiles.
    CoordinateError
        Rows of ``pred`` are not at the centers of their tiles.
    SliceError
        No slice was chosen among several.
    InputError, MissingFileError
        The store cannot be read, or has a table of that name.
    StoreError
        Writing failed; the store is as it was.

    Notes
    -----
    The table has a row for each tile, in their order, by which LazySlide's plots go: values of tiles without a
    prediction are NaN. ``X`` is the prediction, float32; ``obs`` has ``tile_id``, ``library_id``,
    ``st_gchb_confidence`` and ``st_gchb_outlier`` (0 or 1 with NaN if tiles have no prediction); ``var`` and
    ``uns["st_gchb"]`` are those of the prediction.

    Examples
    --------
    >>> import st_gchb
    >>> st_gchb.io.write_lazyslide(pred, "slide.zarr", ["ERBB2", "CD74"])  # doctest: +SKIP
    >>> zs.pl.tiles(zs.open_wsi("slide.svs"), feature_key="st_gchb", color="ERBB2")  # doctest: +SKIP
    """
    opened = open_lazyslide(store)
    spots = viewer_spots(pred, Keys.TABLE, slice, slice_key)
    key = opened.choose_tiles(tiles if tiles is not None else _set_of(spots.library))
    found = opened.read_tiles(key)
    table_name = f"{name}_{key}"
    _check_name(opened, table_name, overwrite=overwrite)
    rows = _rows_of(spots, found, opened.where)
    table = _table(spots, found, rows, SpotValues(spots, genes, layer))
    if opened.folder is not None:
        _write(opened, found, table_name, table, overwrite=overwrite, in_memory=not isinstance(store, str | Path))
    if not isinstance(store, str | Path):
        store.tables.pop(table_name, None)  # SpatialData warns where one takes the place of another
        store.tables[table_name] = table
        if opened.folder is None:
            logger.info("The WSIData has no store on disk yet: wsi.write() writes the table %r with it.", table_name)


def _set_of(library: Library) -> str | None:
    """Return the set of tiles that positions were read from; None if they do not say."""
    record = library.metadata.get(Keys.LAZYSLIDE)
    return str(record["tiles"]) if isinstance(record, Mapping) and "tiles" in record else None


def _check_name(store: LazySlideStore, name: str, *, overwrite: bool) -> None:
    if not is_element_name(name):
        raise InputError(
            f"name= gives a table {name!r}: expected letters, digits, '_', '-' and '.', as stores take them."
        )
    if name in store.shapes:
        raise InputError(f"{store.where}: there are shapes called {name!r}. Pass another name=.")
    on_disk = store.folder is not None and (store.folder / "tables" / name).exists()
    if (name in store.tables or on_disk) and not overwrite:
        raise InputError(f"{store.where}: there is a table {name!r} already. Pass another name=, or overwrite=True.")


def _rows_of(spots: ViewerSpots, tiles: Tiles, where: str) -> npt.NDArray[np.int64]:
    """Find the tile of each row of the prediction, ``(n_rows,)``, and validate that it is where the tile is."""
    obs, key = spots.adata.obs, tiles.spec.key
    if TILE_ID not in obs:
        raise MissingKeyError(
            f"pred.obs has no column {TILE_ID!r} (found {list(obs.columns)[:12]}), so its tiles are not known. Predict "
            f"the tiles of the store: query = st_gchb.io.read_lazyslide({where!r})."
        )
    ids = pd.Index(obs[TILE_ID].iloc[spots.rows])
    rows = np.asarray(tiles.ids.get_indexer(ids), dtype=np.int64)
    if not ids.is_unique or (rows < 0).any():
        twice = ids[ids.duplicated()]
        found = f"{twice[0]} twice" if len(twice) else f"{ids[rows < 0][0]}, which is no tile of {key!r}"
        raise InputError(
            f"pred.obs[{TILE_ID!r}] has {found}: the prediction is of other tiles than {where} has. Read them anew "
            "with io.read_lazyslide and predict again; slice= and tiles= choose among several."
        )
    apart = np.abs(spots.centers - tiles.centers[rows])
    if (apart > _SAME_PX).any():
        corners = np.allclose(apart, tiles.spec.sides_px / 2, atol=_SAME_PX)
        why = "they are corners, as wsi.fetch gives them" if corners else "the tiles were laid anew since"
        raise CoordinateError(
            f"pred.obsm['spatial'] is up to {apart.max():.6g} px from the centers of the tiles {key!r} of {where}: "
            f"{why}. Read the tiles with io.read_lazyslide and predict again."
        )
    return rows


def _table(spots: ViewerSpots, tiles: Tiles, rows: npt.NDArray[np.int64], values: SpotValues) -> AnnData:
    """Build the table, with a row for each tile in their order."""
    from spatialdata.models import TableModel

    adata, n = spots.adata, len(tiles)
    genes = [one for one in values.names if one in adata.var_names]
    if len(genes) < len(values.names):
        raise InputError(f"genes= names {[one for one in values.names if one not in genes]}; expected genes alone.")
    expression = np.full((n, len(genes)), np.nan, dtype=np.float32)
    for part, block in values.blocks():
        expression[rows[part]] = block
    columns = {TILE_ID: tiles.ids.to_numpy(), REGION_KEY: pd.Categorical([tiles.spec.key] * n)}
    obs = pd.DataFrame(columns, index=tiles.ids.astype(str))
    for column in own_columns(spots):
        obs[column] = _spread(adata.obs[column].to_numpy()[spots.rows], rows, n)
    var = adata.var.loc[genes, [column for column in _VAR if column in adata.var]].copy()
    table = AnnData(expression, obs=obs, var=var)
    table.obsm[Keys.SPATIAL] = tiles.centers
    if Keys.EMBEDDING in adata.obsm:
        embedding = np.asarray(adata.obsm[Keys.EMBEDDING])[spots.rows]
        table.obsm[Keys.EMBEDDING] = _spread(embedding, rows, n)
    # A table without it would not be known as a prediction.
    table.uns[Keys.UNS] = dict(adata.uns.get(Keys.UNS, {}))
    return TableModel.parse(table, region=tiles.spec.key, region_key=REGION_KEY, instance_key=TILE_ID)


def _spread(values: npt.NDArray[Any], rows: npt.NDArray[np.int64], n: int) -> npt.NDArray[Any]:
    """Place values of some tiles among all, NaN for the others; flags become 0 and 1 then, which plots can draw."""
    complete = len(rows) == n
    kind = values.dtype if complete or values.dtype.kind == "f" else np.dtype(np.float32)
    placed = np.empty((n, *values.shape[1:]), dtype=kind) if complete else np.full((n, *values.shape[1:]), np.nan, kind)
    placed[rows] = values
    return placed


def _write(store: LazySlideStore, tiles: Tiles, name: str, table: AnnData, *, overwrite: bool, in_memory: bool) -> None:
    """Write the table into the store on disk, whose tiles must be those that it annotates."""
    from spatialdata import SpatialData

    key = tiles.spec.key
    if in_memory:
        on_disk = open_lazyslide(str(store.folder))
        there = on_disk.read_tiles(key) if key in on_disk.shapes else None
        if there is None or not there.ids.equals(tiles.ids) or not np.allclose(there.centers, tiles.centers):
            raise InputError(
                f"{store.where}: the tiles {key!r} in memory are not those on disk. Write them first, wsi.write()."
            )
    with warnings.catch_warnings(), others_quiet():
        warnings.filterwarnings("ignore", message=r"The table is annotating", category=UserWarning)
        # The other elements are not read: they may be large, and stay as they are.
        holder = SpatialData(tables={name: table})
        holder.path = store.folder
        write_elements(holder, name, overwrite=overwrite)
