"""Read sections stored as SpatialData or as AnnData, also those of scanpy, squidpy, CELLxGENE, HEST, DeepSpot and R."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import logger
from st_gchb.io._annotation import link_of
from st_gchb.io._pixel_size import Size, caller_size, factor_size, one_number, settle
from st_gchb.io._reading import reading
from st_gchb.io.images import open_image
from st_gchb.io.sections._companions import image_beside, size_beside, size_said
from st_gchb.io.sections._genes import keep_genes, tell_values

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

HDF5_START = b"\x89HDF\r\n\x1a\n"
_ATTRIBUTE_FILES = ("zarr.json", ".zattrs")
_LAZYSLIDE = {Keys.TILE_SPEC, Keys.SLIDE_PROPERTIES}
_LAZYSLIDE_IMAGES = {"wsi", "wsi_thumbnail"}
"""Images that LazySlide may write into its store: copies of the slide."""
_SPATIALDATA = {"images", "labels", "points", "shapes", "tables", "table"}


def hdf5_kind(path: Path) -> str | None:
    """Identify the content of an HDF5 file: ``"anndata"``, ``"10x"``, or None.

    Raises
    ------
    InputError
        The file is damaged.
    """
    with reading(path, "the HDF5 file", "It is damaged or incomplete: fetch or write it again."):
        with h5py.File(path, "r") as file:
            if file.attrs.get("encoding-type") == "anndata" or {"obs", "var"} <= set(file):
                return "anndata"
            return "10x" if "matrix" in file else None


def zarr_kind(path: Path) -> str | None:
    """Identify the content of a Zarr store: ``"spatialdata"``, ``"lazyslide"``, ``"anndata"``, or None for others.

    A store of LazySlide is a SpatialData whose slide is a file beside it; with images of its own it is any other.

    Raises
    ------
    InputError
        The metadata of the store are damaged.
    """
    if not any((path / name).is_file() for name in (*_ATTRIBUTE_FILES, ".zgroup")):
        return None
    attributes = zarr_attributes(path)
    if attributes.get("encoding-type") == "anndata":
        return "anndata"
    is_spatialdata = "spatialdata_attrs" in attributes or any((path / part).is_dir() for part in _SPATIALDATA)
    if not is_spatialdata:
        return None
    images = {one.name for one in (path / "images").glob("*") if one.is_dir()}
    return "lazyslide" if _LAZYSLIDE & set(attributes) and images <= _LAZYSLIDE_IMAGES else "spatialdata"


def zarr_attributes(path: Path) -> dict[str, Any]:
    """Read the attributes of a Zarr group, of either format, without opening it.

    Raises
    ------
    InputError
        They are damaged.
    """
    attributes: dict[str, Any] = {}
    for name in _ATTRIBUTE_FILES:
        file = path / name
        if file.is_file():
            with reading(file, "the Zarr store", "It is damaged: write it again."):
                content = json.loads(file.read_bytes())
                attributes |= dict(content.get("attributes", {}) if name == "zarr.json" else content)
    return attributes


def is_spatialdata_store(path: Path) -> bool:
    """Check if a path is that of a SpatialData store."""
    return path.is_dir() and zarr_kind(path) == "spatialdata"


def read_spatialdata(
    path: Path, name: str | None, image: Path | None, um_per_px: float | None, *, counts: bool = True
) -> SpatialData:
    """Open a SpatialData store.

    Parameters
    ----------
    path
        The store.
    name, image
        Must be None, since the store has names and images of its own.
    um_per_px
        Pixel size to store in the tables, µm.
    counts
        Whether to read the matrices of the tables.

    Raises
    ------
    InputError
        The store is damaged; or ``name`` or ``image`` is given.
    """
    import spatialdata

    for argument, value in (("name", name), ("image", image)):
        if value is not None:
            raise InputError(
                f"{path}: {argument}={str(value)!r} is for folders and .h5ad files, and this is a SpatialData store, "
                "which has names and images of its own. Leave it out; an image is added with "
                "sdata.images[...] = Image2DModel.parse(...)."
            )
    with reading(path, "the SpatialData store", "Write it again with sdata.write."):
        if counts:
            sdata = spatialdata.read_zarr(path)
        else:
            sdata = spatialdata.read_zarr(path, selection=("images", "labels", "points", "shapes"))
            for key, table in _light_tables(path).items():
                sdata.tables[key] = table
    if um_per_px is not None:
        for table in sdata.tables.values():
            _note_size(table, um_per_px, str(path))
    return sdata


def _light_tables(path: Path) -> dict[str, AnnData]:
    """Read the tables of a SpatialData store without their matrices."""
    import zarr
    from anndata import AnnData

    store: Any = zarr.open_group(str(path), mode="r")
    names = [(part, key) for part in ("tables", "table") if part in store for key in store[part].group_keys()]
    tables = {key: AnnData(**read_parts(store[part][key], _LIGHT)) for part, key in names}
    for table in tables.values():
        said = table.uns.get("spatialdata_attrs")
        # SpatialData, too, stores a list as an array and takes none.
        if isinstance(said, dict) and isinstance(said.get("region"), np.ndarray):
            said["region"] = said["region"].tolist()
    return tables


def _note_size(table: AnnData, um_per_px: float, where: str) -> None:
    link = link_of(table)
    if link is None:
        return
    with reading(where, "what the table annotates", "Write the store again with sdata.write."):
        libraries = dict(as_record(table.uns.get(Keys.SPATIAL)))
    for region in link.regions:
        libraries[region] = with_size(as_record(libraries.get(region)), f"{where}, {region!r}", um_per_px)
    table.uns[Keys.SPATIAL] = libraries


def load_anndata(path: Path, *, counts: bool = True) -> AnnData:
    """Read an AnnData file or store without changes; without ``counts``, without ``X``, layers and ``raw``.

    Raises
    ------
    InputError
        The file is damaged.
    """
    import anndata

    with reading(path, "the AnnData", "Write it again with adata.write_h5ad."):
        light = None if counts else _without_matrices(path)
        if light is not None:
            return light
        return anndata.read_zarr(path) if path.is_dir() else anndata.read_h5ad(path)


_LIGHT = ("obs", "var", "uns", "obsm")
_WIDEST = 16
"""Columns up to which arrays of ``obsm`` are read with the matrices left out."""


def _without_matrices(path: Path) -> AnnData | None:
    """Read all of an AnnData but its matrices; None for files of early anndata, which cannot be read in parts."""
    from anndata import AnnData

    if path.is_dir():
        import zarr

        return AnnData(**read_parts(zarr.open_group(str(path), mode="r"), _LIGHT))
    with h5py.File(path, "r") as file:
        if not all(isinstance(file.get(part, file), h5py.Group) for part in _LIGHT):
            return None
        return AnnData(**read_parts(file, _LIGHT))


def read_parts(group: Any, parts: Iterable[str]) -> dict[str, Any]:
    """Read parts of an AnnData, such as ``obs``, from its HDF5 or Zarr group; of ``obsm``, no wide arrays."""
    from anndata.io import read_elem

    found = {part: read_elem(group[part]) for part in parts if part in group and part != "obsm"}
    if "obsm" in parts and "obsm" in group:
        held = group["obsm"]
        # Groups of zarr have no items().
        found["obsm"] = {key: read_elem(held[key]) for key in held if not _is_wide(held[key])}
    return found


def _is_wide(array: Any) -> bool:
    """Check if an array of ``obsm`` is wider than positions are, as embeddings and patch features are."""
    return any(width > _WIDEST for width in getattr(array, "shape", ())[1:])


def as_record(value: Any) -> dict[str, Any]:
    """Convert a dict-like record to a dict; empty for anything else.

    Besides mappings, files contain data frames of one row (a dict or list in R), series and structured arrays.

    Examples
    --------
    >>> import pandas as pd
    >>> from st_gchb.io.sections._annotated import as_record
    >>> as_record(pd.DataFrame({"library": ["S1"]})), as_record(None)
    ({'library': 'S1'}, {})
    """
    if isinstance(value, Mapping):
        return {str(key): held for key, held in value.items()}
    if isinstance(value, pd.DataFrame) and len(value) == 1:
        return {str(key): value[key].iloc[0] for key in value}
    if isinstance(value, pd.Series):
        return {str(key): held for key, held in value.items()}
    names = getattr(getattr(value, "dtype", None), "names", None)
    if names and np.size(value) == 1:
        row = np.asarray(value).ravel()[0]
        return {str(name): row[name] for name in names}
    return {}


def with_size(library: Mapping[str, Any], where: str, um_per_px: float | None, *others: Size | None) -> dict[str, Any]:
    """Store the pixel size in the scale factors of a library.

    Parameters
    ----------
    library
        Entry of ``uns["spatial"]``; it is not changed.
    where
        Name of the library in messages.
    um_per_px
        Pixel size according to the caller, µm, which takes precedence over the scale factors.
    others
        Pixel sizes according to further sources, by decreasing priority, after the scale factors.

    Returns
    -------
    dict
        Copy of the library with the pixel size, if any source states it.
    """
    factors = as_record(library.get(Keys.SCALEFACTORS))
    size = settle([caller_size(um_per_px), factor_size(factors, f"scalefactors of {where}"), *others], where)
    if size is not None:
        factors[Keys.UM_PER_PX] = size
    return {Keys.IMAGES: {}, Keys.METADATA: {}, **library, Keys.SCALEFACTORS: factors}


_PLACES = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("pixel_x", "pixel_y"),
    ("imagecol", "imagerow"),
    ("y_pixel", "x_pixel"),
)
"""Columns of ``obs`` with x, y in full-resolution px: of Space Ranger, the ST spot detector, Seurat and DeepSpot (whose
``x_pixel`` is the row)."""
_IMAGE_KEY = re.compile(r"(?:tissue_)?(fullres|hires|lowres)(?:_image)?(?:\.\w+)?")
_HEST_IMAGE, _HEST_LIBRARY = "downscaled_fullres", "ST"
_SYMBOLS = "feature_name"


def read_annotated(
    path: Path,
    name: str | None,
    image: Path | None,
    um_per_px: float | None,
    *,
    genome: str | None = None,
    counts: bool = True,
) -> AnnData:
    """Read an AnnData file or store, and convert it to the layout that this package expects.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a Zarr store.
    name, image, um_per_px, genome
        See :func:`~st_gchb.io.read_section`.
    counts
        Whether to read ``X``.

    Returns
    -------
    AnnData
        Genes of spots under tissue, with positions in ``obsm["spatial"]`` and one entry per slice in
        ``uns["spatial"]`` as far as the file has them.

    Raises
    ------
    InputError
        The file is damaged; or it holds several slices, and a single name, image or pixel size is given.
    """
    adata = load_anndata(path, counts=counts)
    libraries = normalize_libraries(adata, path)
    _find_places(adata, path)
    adata = _under_tissue(adata, libraries, path)
    adata = keep_genes(adata, str(path), genome)
    if counts:
        tell_values(adata, str(path))
    _tell_symbols(adata, path)
    several = len(libraries) > 1 or (Keys.SLICE in adata.obs and adata.obs[Keys.SLICE].nunique() > 1)
    if several:
        if name is not None or image is not None or um_per_px is not None:
            raise InputError(
                f"{path}: holds several slices ({sorted(libraries) or 'by obs[' + repr(Keys.SLICE) + ']'}), and name=, "
                "image=, um_per_px= speak of one. Pass dicts by slice to pp.embed_patches, or cut the slices apart "
                "first."
            )
        return adata
    old, library = next(iter(libraries.items()), (path.stem, {}))
    image_path = image or image_beside(path, adata, library)
    said = size_said(as_record(library.get(Keys.METADATA)), f"uns['spatial'][{old!r}]['metadata']")
    stored = said or size_beside(path)
    if not (libraries or name is not None or image_path is not None or um_per_px is not None or stored is not None):
        return adata
    slide = None if image_path is None else open_image(image_path)
    in_file = None if slide is None or slide.um_per_px is None else Size(slide.um_per_px, "the image file")
    if um_per_px is not None or image_path is not None or stored is not None:
        library = with_size(library, str(path), um_per_px, stored, in_file)
    if image_path is not None:
        library[Keys.METADATA] = {**as_record(library.get(Keys.METADATA)), Keys.SOURCE_IMAGE: str(image_path.resolve())}
    # HEST names every sample "ST"; without new names, two concatenated samples would become one slice.
    is_hest = old == _HEST_LIBRARY and _HEST_IMAGE in as_record(library.get(Keys.IMAGES))
    label = name or (path.stem if is_hest else old)
    others = {key: held for key, held in as_record(adata.uns.get(Keys.SPATIAL)).items() if key not in libraries}
    adata.uns[Keys.SPATIAL] = {**others, label: library}
    if name is not None or is_hest:
        adata.obs[Keys.SLICE] = pd.Categorical([label] * adata.n_obs)
    return adata


def normalize_libraries(adata: AnnData, path: Path) -> dict[str, dict[str, Any]]:
    """Normalize the entries of ``uns["spatial"]`` that describe slices, in place, and return them.

    Other entries, such as CELLxGENE's ``is_single``, are kept. Entries written from R are data frames and become dicts.
    """
    stored = adata.uns.get(Keys.SPATIAL)
    if stored is None and {Keys.IMAGES, Keys.SCALEFACTORS} <= set(adata.uns):
        # Early versions of scanpy stored these directly in uns.
        stored = {path.stem: {part: adata.uns.pop(part) for part in (Keys.IMAGES, Keys.SCALEFACTORS)}}
    entries = as_record(stored)
    if {Keys.IMAGES, Keys.SCALEFACTORS} & set(entries):
        logger.info("%s: uns['spatial'] holds one slice without a name; it is called %r.", path, path.stem)
        entries = {path.stem: entries}
    libraries = {key: _library(as_record(entry)) for key, entry in entries.items() if as_record(entry)}
    if libraries:
        adata.uns[Keys.SPATIAL] = {**entries, **libraries}
    return libraries


def _library(entry: dict[str, Any]) -> dict[str, Any]:
    for part in (Keys.IMAGES, Keys.SCALEFACTORS, Keys.METADATA):
        record = as_record(entry.get(part))
        if record:
            entry[part] = record
    images = as_record(entry.get(Keys.IMAGES))
    for key in list(images):
        usual = _IMAGE_KEY.fullmatch(key)
        if usual is not None and usual.group(1) not in images:
            images[usual.group(1)] = images.pop(key)
    if images:
        entry[Keys.IMAGES] = images
    factors = as_record(entry.get(Keys.SCALEFACTORS))
    for key, value in factors.items():
        number = one_number(value)
        # R and some Zarr writers store a scalar as a list. Other values are kept, and rejected when they are used.
        if number is not None:
            factors[key] = number
    if factors:
        entry[Keys.SCALEFACTORS] = factors
    return entry


def _find_places(adata: AnnData, path: Path) -> None:
    """Copy positions from another key of ``obsm`` or from ``obs`` into ``obsm["spatial"]`` if it is missing."""
    if Keys.SPATIAL in adata.obsm:
        return
    other = next((key for key in adata.obsm if str(key).lower() in ("x_spatial", Keys.SPATIAL)), None)
    if other is not None:
        adata.obsm[Keys.SPATIAL] = np.asarray(adata.obsm[other])
        logger.info("%s: positions are those of obsm[%r].", path, other)
        return
    for x, y in _PLACES:
        if x in adata.obs and y in adata.obs:
            numbers = [pd.to_numeric(adata.obs[column], errors="coerce").to_numpy(np.float64) for column in (x, y)]
            adata.obsm[Keys.SPATIAL] = np.column_stack(numbers)
            logger.info("%s: positions are those of obs[%r] and obs[%r].", path, x, y)
            return


def _under_tissue(adata: AnnData, libraries: dict[str, dict[str, Any]], path: Path) -> AnnData:
    """Drop spots that are not under tissue, which objects from CELLxGENE include."""
    if "in_tissue" not in adata.obs or any(
        _HEST_IMAGE in as_record(one.get(Keys.IMAGES)) for one in libraries.values()
    ):
        # In HEST objects this column does not describe the tissue.
        return adata
    flags = pd.to_numeric(
        adata.obs["in_tissue"].astype(str).str.lower().replace({"true": "1", "false": "0"}), errors="coerce"
    )
    inside, outside = (flags == 1).to_numpy(), (flags == 0).to_numpy()
    if not (inside.any() and outside.any()):
        return adata
    logger.warning(
        "%s: %d of %d spots are not under tissue (in_tissue is 0) and are left out, such as %s.",
        path,
        outside.sum(),
        adata.n_obs,
        ", ".join(repr(str(one)) for one in adata.obs_names[outside][:3]),
    )
    return adata[~outside].copy()


def _tell_symbols(adata: AnnData, path: Path) -> None:
    if _SYMBOLS in adata.var and adata.n_vars and str(adata.var_names[0]).startswith("ENS"):
        logger.info(
            "%s: genes are named by Ensembl; symbols: adata.var_names = adata.var[%r].astype(str); "
            "adata.var_names_make_unique().",
            path,
            _SYMBOLS,
        )
