"""Open stores of LazySlide: sets of tiles with their specifications, and tables that annotate them.

A store is a SpatialData Zarr with fixed names, which wsidata writes beside the slide. What is asked of it is read, and
nothing else, since tables of features and outlines of cells may be far larger than the tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from st_gchb._compat import store_versions
from st_gchb._constants import Keys
from st_gchb._errors import CoordinateError, InputError, MissingFileError, MissingKeyError, ScaleError, SliceError
from st_gchb.io._annotation import annotated_rows, link_of
from st_gchb.io._pixel_size import TOLERANCE, one_number
from st_gchb.io._reading import reading
from st_gchb.io.sections._annotated import load_anndata, zarr_attributes, zarr_kind

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

TILE_ID, REGION_KEY = "tile_id", "library_id"
"""Columns by which LazySlide links the rows of a table to tiles."""
_SPEC_KEYS = frozenset(
    {
        "height",
        "width",
        "stride_height",
        "stride_width",
        "mpp",
        "ops_level",
        "ops_downsample",
        "base_level",
        "base_downsample",
        "tissue_name",
    }
)
"""Fields of a specification of tiles, as wsidata 0.12 writes them."""
_DENSE = "_dense"
"""Ending of sets within the tiles of another one: a tile for each token of a vision transformer."""
_AGAIN = "Write it again with wsi.write()."
_LAY = "Lay tiles in LazySlide, zs.pp.tile_tissues(wsi, 256, mpp=0.5), then wsi.write()."
_SIDES_PX = 2.0
"""Largest difference of a tile's side from what the specification says, px: LazySlide cuts it to whole px."""


@dataclass(frozen=True)
class TileSpec:
    """Specification of a set of tiles.

    Parameters
    ----------
    key
        Name of the set.
    width, height
        Sides of a tile, px at the requested resolution.
    mpp
        Requested resolution, µm per px; None if the slide has none.
    downsample
        px of the slide per px of a tile.
    """

    key: str
    width: int
    height: int
    mpp: float | None
    downsample: float

    @property
    def sides_px(self) -> npt.NDArray[np.float64]:
        """Width and height of a tile, px of the slide."""
        return np.array([self.width, self.height]) * self.downsample


def parse_tile_spec(stored: Any, key: str, where: str) -> TileSpec:
    """Read the specification of a set of tiles.

    Parameters
    ----------
    stored
        Entry of ``attrs["tile_spec"]``.
    key
        Name of the set.
    where
        The store, for messages.

    Returns
    -------
    TileSpec
        The specification.

    Raises
    ------
    InputError
        The entry is no dict, has fields of another version of LazySlide, or a field is no number that makes sense.
    MissingKeyError
        A field is absent.
    """
    place = f"{where}: attrs['tile_spec'][{key!r}]"
    if not isinstance(stored, Mapping):
        raise InputError(f"{place} is a {type(stored).__name__}; expected a dict with the size of the tiles. {_LAY}")
    unknown = sorted(set(map(str, stored)) - _SPEC_KEYS)
    if unknown:
        raise InputError(
            f"{place} has fields that this version of st-gchb does not know, {unknown[:6]}: the store is of another "
            "version of LazySlide than those up to 0.13. Update st-gchb, or lay the tiles with LazySlide 0.13."
        )
    missing = [name for name in ("width", "height") if stored.get(name) is None]
    if missing:
        raise MissingKeyError(f"{place} has no {missing}; expected the sides of a tile, px. {_LAY}")
    sides = {name: _positive(stored[name], name, place) for name in ("width", "height")}
    odd = {name: side for name, side in sides.items() if not side.is_integer()}
    if odd or one_number(stored.get("base_level", 0)) != 0:
        found = odd or {"base_level": stored["base_level"]}
        raise InputError(f"{place} has {found}; expected whole px, and tiles in px of the slide (base_level 0). {_LAY}")
    mpp = stored.get("mpp")
    return TileSpec(
        key,
        int(sides["width"]),
        int(sides["height"]),
        None if mpp is None else _positive(mpp, "mpp", place),
        _positive(stored.get("base_downsample", 1.0), "base_downsample", place),
    )


def _positive(value: Any, name: str, place: str) -> float:
    number = one_number(value)
    if number is None or not 0 < number < 1e9:
        raise InputError(f"{place} has {name} = {str(value)[:60]!r}; expected a positive number. {_LAY}")
    return number


@dataclass(frozen=True, eq=False)
class Tiles:
    """A set of tiles.

    Parameters
    ----------
    spec
        Its specification.
    ids
        Id of each tile, ``(n_tiles,)``, by which tables refer to it.
    centers
        Centers as x, y, ``(n_tiles, 2)`` in px of the slide.
    side_px
        Shorter side of a tile, px of the slide, to which LazySlide cut it.
    tissue
        Id of the piece of tissue that each tile lies on, ``(n_tiles,)``; None if it is not stored.
    """

    spec: TileSpec
    ids: pd.Index
    centers: npt.NDArray[np.float64]
    side_px: float
    tissue: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class LazySlideStore:
    """A store of LazySlide, on disk or in memory.

    Parameters
    ----------
    where
        Path, or another name for messages.
    attributes
        Attributes of the store.
    shapes, tables
        Names of its shapes and of its tables.
    read_shapes, read_table
        Functions that read one of them.
    folder
        The folder on disk; None if there is none.
    slide
        The file of the slide, where an object in memory knows it.
    """

    where: str
    attributes: Mapping[str, Any]
    shapes: tuple[str, ...]
    tables: tuple[str, ...]
    read_shapes: Callable[[str], GeoDataFrame] = field(repr=False)
    read_table: Callable[[str], AnnData] = field(repr=False)
    folder: Path | None = None
    slide: Path | None = None

    @property
    def properties(self) -> Mapping[str, Any]:
        """Properties of the slide; empty if none are stored."""
        stored = self.attributes.get(Keys.SLIDE_PROPERTIES)
        return stored if isinstance(stored, Mapping) else {}

    @property
    def shape_px(self) -> tuple[int, int] | None:
        """Height and width of the slide, px; None if they are not stored."""
        stored = self.properties.get("shape")
        sides = [one_number(side) for side in stored] if isinstance(stored, list | tuple | np.ndarray) else []
        known = [int(side) for side in sides if side is not None and 0 < side < 1e9]
        return (known[0], known[1]) if len(known) == len(sides) == 2 else None

    @property
    def um_per_px(self) -> float | None:
        """Size of a px of the slide, µm, as LazySlide uses it; None if it is not known.

        Raises
        ------
        ScaleError
            The stored value is not a positive number.
        """
        stored = self.properties.get("mpp")
        if stored is None:
            return None
        number = one_number(stored)
        if number is None or not 0 < number < np.inf:
            raise ScaleError(
                f"{self.where}: attrs['slide_properties']['mpp'] is {str(stored)[:60]!r}; expected a positive number "
                "of µm. Set it: wsi.set_mpp(...), wsi.write()."
            )
        return number

    def choose_tiles(self, key: str | None) -> str:
        """Choose a set of tiles.

        Parameters
        ----------
        key
            Name of the set; None for the only one.

        Raises
        ------
        InputError
            There are several sets and none is named, or none at all, or the set has no specification.
        MissingKeyError
            There is no such set.
        """
        stored = self.attributes.get(Keys.TILE_SPEC, {})
        if not isinstance(stored, Mapping):
            raise InputError(
                f"{self.where}: attrs['tile_spec'] is a {type(stored).__name__}; expected a dict by set. {_LAY}"
            )
        # Sets within the tiles of others are taken if they are named.
        known = [str(name) for name in stored if name in self.shapes]
        whole = [name for name in known if name.removesuffix(_DENSE) == name or name.removesuffix(_DENSE) not in known]
        if key is None and len(whole) > 1:
            raise InputError(
                f"{self.where}: the store has {len(whole)} sets of tiles. Pass tiles= with one of {known}."
            )
        wanted = key if key is not None else whole[0] if whole else "tiles"
        if wanted in known:
            return wanted
        if wanted in self.shapes:
            raise InputError(
                f"{self.where}: shapes/{wanted} has no entry in attrs['tile_spec'] (found {sorted(stored)}), so the "
                "size of its tiles is not known. Write the attributes too, wsi.write_attrs(), or lay the tiles again."
            )
        if key is None:
            raise InputError(f"{self.where}: the store has no tiles; its shapes are {list(self.shapes)}. {_LAY}")
        lost = " attrs['tile_spec'] has it, and shapes do not: wsi.write() writes both." if wanted in stored else ""
        raise MissingKeyError(f"{self.where}: there are no tiles {wanted!r}; tiles= takes one of {known}.{lost}")

    def read_tiles(self, key: str) -> Tiles:
        """Read a set of tiles that :meth:`choose_tiles` returned.

        Raises
        ------
        InputError
            The set cannot be read, or its tiles are not those of its specification.
        CoordinateError
            A tile has no place, or ids occur twice.
        SliceError
            There are no tiles in it.
        """
        spec = parse_tile_spec(self.attributes[Keys.TILE_SPEC][key], key, self.where)
        frame = self.read_shapes(key)
        place = f"{self.where}: shapes/{key}"
        if not len(frame):
            raise SliceError(f"{place} holds no tiles. {_LAY}")
        bounds = frame.geometry.bounds.to_numpy(dtype=np.float64)
        odd = ~np.isfinite(bounds).all(axis=1)
        if odd.any():
            raise CoordinateError(f"{place}: {int(odd.sum())} of {len(frame)} tiles have no outline. {_LAY}")
        sides = bounds[:, 2:] - bounds[:, :2]
        if (np.abs(sides - spec.sides_px) > _SIDES_PX).any():
            found = "{:.6g} x {:.6g}".format(*np.median(sides, axis=0))
            raise InputError(
                f"{place}: the tiles are {found} px of the slide, and attrs['tile_spec'] says "
                "{:.6g} x {:.6g} px. Are they of another set? ".format(*spec.sides_px)
                + _LAY
            )
        ids = pd.Index((frame[TILE_ID] if TILE_ID in frame else frame.index).to_numpy())
        if not ids.is_unique or ids.hasnans:
            raise CoordinateError(f"{place}: column {TILE_ID!r} has gaps or the same id twice. {_LAY}")
        tissue = frame["tissue_id"].to_numpy() if "tissue_id" in frame else None
        side_px = float(np.median(sides, axis=0).min())
        return Tiles(spec, ids, (bounds[:, :2] + bounds[:, 2:]) / 2, side_px, tissue)

    def open_table(self, name: str, tiles: Tiles, argument: str) -> tuple[str, AnnData, npt.NDArray[np.int64]]:
        """Read a table that annotates a set of tiles.

        Parameters
        ----------
        name
            Name of the table, or its first part: ``"uni2"`` for ``"uni2_tiles"``.
        tiles
            The set.
        argument
            Argument by which the caller was given the name, for messages.

        Returns
        -------
        name
            Whole name of the table.
        table
            The table.
        rows
            Row of the table for each tile, ``(n_tiles,)``; -1 where it has none.

        Raises
        ------
        MissingKeyError
            There is no such table.
        InputError
            It annotates other tiles, or cannot be read.
        """
        key = tiles.spec.key
        whole = next((one for one in (name, f"{name}_{key}") if one in self.tables), None)
        if whole is None:
            raise MissingKeyError(
                f"{self.where}: there is no table {name!r} or {f'{name}_{key}'!r}; {argument}= takes one of "
                f"{sorted(self.tables)}."
            )
        table = self.read_table(whole)
        place = f"{self.where}: tables/{whole}"
        with reading(place, "what the table annotates", _AGAIN):
            link = link_of(table)
        if link is None or key not in link.regions:
            found = "nothing" if link is None else ", ".join(map(repr, link.regions))
            raise InputError(f"{place} annotates {found}; expected the tiles {key!r}. Pass tiles= with its set.")
        rows = annotated_rows(table.obs, link.region_key, link.instance_key)
        of_set = np.flatnonzero(rows["region"] == key)
        found = pd.Index(rows["instance_id"].iloc[of_set]).get_indexer(tiles.ids)
        return whole, table, np.where(found < 0, -1, of_set[found] if len(of_set) else -1)


def open_lazyslide(store: str | Path | SpatialData) -> LazySlideStore:
    """Open a store of LazySlide.

    Parameters
    ----------
    store
        Path of the store, or the object in memory: a WSIData, or the SpatialData that was read from a store.

    Returns
    -------
    LazySlideStore
        The store; its tiles and tables are read when they are asked for.

    Raises
    ------
    MissingFileError
        There is no such store.
    InputError
        It is no store of LazySlide, cannot be read, or has a newer format.
    """
    if not isinstance(store, str | Path):
        return _in_memory(store)
    path = Path(store)
    if not path.exists():
        raise MissingFileError(f"{path}: there is no such store. Check the path (now in {Path.cwd()}).")
    beside = path.with_suffix(".zarr")
    if path.is_file():
        found = f" Is it {beside}?" if beside.is_dir() else " wsi.write() writes it."
        raise InputError(f"{path} is a file; expected the .zarr store that LazySlide writes beside the slide.{found}")
    if zarr_kind(path) not in ("lazyslide", "spatialdata"):
        raise InputError(
            f"{path}: found no SpatialData store in this folder; expected one that LazySlide wrote (zarr.json, "
            "shapes/, tables/). If a write was cut off, write it again with wsi.write()."
        )
    attributes = zarr_attributes(path)
    _check_version(attributes, path)
    return LazySlideStore(
        str(path),
        attributes,
        _names(path / "shapes"),
        _names(path / "tables"),
        lambda name: _read_shapes(path / "shapes" / name),
        lambda name: load_anndata(path / "tables" / name),
        folder=path,
    )


def _check_version(attributes: Mapping[str, Any], path: Path) -> None:
    stored = attributes.get("spatialdata_attrs", {})
    version = stored.get("version", "0.1") if isinstance(stored, Mapping) else stored
    if version not in store_versions():
        raise InputError(
            f"{path}: the store has SpatialData's format {version!r}; this version of spatialdata reads "
            f"{store_versions()}. Update it: pip install --upgrade spatialdata."
        )


def _names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        return ()
    return tuple(sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")))


def _read_shapes(folder: Path) -> GeoDataFrame:
    import geopandas

    with reading(folder, "the tiles", _AGAIN):
        placed = zarr_attributes(folder).get("coordinateTransformations", [])
        kinds = {str(one["type"]) for one in placed}
        frame = geopandas.read_parquet(folder / "shapes.parquet")
    _check_placed(kinds - {"identity"}, str(folder))
    return frame


def _check_placed(kinds: set[str], where: str) -> None:
    """Validate that tiles are in px of the slide, as LazySlide lays them."""
    if kinds:
        raise CoordinateError(
            f"{where}: the tiles have a transformation ({', '.join(sorted(kinds))}); expected px of the slide without "
            "one, as LazySlide lays them. Lay them again."
        )


def _in_memory(sdata: SpatialData) -> LazySlideStore:
    # A WSIData knows the slide and the store, also before anything was written.
    reader = getattr(sdata, "reader", None)
    file, kept = getattr(reader, "file", None), getattr(sdata, "wsi_store", None) or sdata.path
    folder = None if kept is None else Path(kept)
    where = "the SpatialData" if folder is None else str(folder)

    def read_shapes(name: str) -> GeoDataFrame:
        from spatialdata.transformations import Identity, get_transformation

        frame = sdata.shapes[name]
        placed: dict[str, Any] = get_transformation(frame, get_all=True)
        _check_placed({type(one).__name__ for one in placed.values() if not isinstance(one, Identity)}, where)
        return frame

    return LazySlideStore(
        where,
        sdata.attrs,
        tuple(sdata.shapes),
        tuple(sdata.tables),
        read_shapes,
        lambda name: sdata.tables[name],
        folder=folder if folder is not None and folder.is_dir() else None,
        slide=None if file is None else Path(file),
    )


def check_resolution(store: LazySlideStore, tiles: Tiles) -> None:
    """Validate that tiles were laid with the size of a pixel that the store states now.

    Raises
    ------
    ScaleError
        Their specification says another one.
    """
    spec, now = tiles.spec, store.um_per_px
    # Without a size of the slide's px LazySlide stores the resolution that was asked for, and does not use it.
    if spec.mpp is None or now is None:
        return
    said = spec.mpp / spec.downsample
    if not 1 / TOLERANCE <= said / now <= TOLERANCE:
        raise ScaleError(
            f"{store.where}: attrs['tile_spec'][{spec.key!r}] has mpp {spec.mpp:g} and tiles of {spec.width} px, "
            f"{spec.sides_px[0]:.6g} px of the slide, so {said:.4g} µm per px; attrs['slide_properties'] has mpp "
            f"{now:.4g}. Lay the tiles again, zs.pp.tile_tissues; or pass um_per_px= with the right size."
        )
