"""Spots or tiles of one slice, with values and sizes, as files for image viewers hold them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial import cKDTree

from st_gchb._advice import Fix, advise
from st_gchb._compat import named_layers
from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingKeyError, ScaleError, SliceError
from st_gchb._matrices import is_chunked, matrix_of
from st_gchb.io._annotation import bin_um
from st_gchb.io._library import Library, column_of
from st_gchb.io._sections import check_object, is_spatialdata, placed_sections

_BLOCK = 2**18
"""Values that are read at once, which bounds memory."""
_OWN_COLUMNS = (Keys.CONFIDENCE, Keys.OUTLIER, Keys.TISSUE_SHARE)
"""Columns of ``obs`` that this package writes."""


@dataclass(frozen=True, eq=False)
class ViewerSpots:
    """Spots of one slice.

    Parameters
    ----------
    adata
        Object that holds them.
    slice
        Name of the slice.
    rows
        Row numbers of the spots in ``adata``, ``(n,)``, increasing.
    centers
        Positions ``(n, 2)`` as x, y in full-resolution px.
    library
        Entry of the slice in ``uns["spatial"]``.
    """

    adata: AnnData
    slice: str
    rows: npt.NDArray[np.int64]
    centers: npt.NDArray[np.float64]
    library: Library

    @property
    def are_bins(self) -> bool:
        """True for the square bins of Visium HD."""
        return any(bin_um(name) is not None for name in (self.slice, self.library.name))

    @property
    def are_tiles(self) -> bool:
        """True for bins, LazySlide's tiles, and for positions that were laid on tissue, rather than spots."""
        return self.are_bins or self._of_lazyslide or Keys.TISSUE_SHARE in self.adata.obs

    @property
    def _of_lazyslide(self) -> bool:
        return Keys.LAZYSLIDE in self.library.metadata

    @property
    def are_square(self) -> bool:
        """True for tiles in rows and columns: hexagonal grids count columns in half steps."""
        obs = self.adata.obs
        if self.are_bins or self._of_lazyslide:
            return True
        if not self.are_tiles or not {"array_row", "array_col"} <= set(obs):
            return False
        places = obs[["array_row", "array_col"]].iloc[self.rows].sum(axis=1)
        return len(self.rows) < 2 or places.mod(2).nunique() > 1

    @property
    def spacing(self) -> float:
        """Median distance between neighbors, px.

        Raises
        ------
        InputError
            There are fewer than two spots, or most lie at the same place as another.
        """
        if len(self.rows) < 2:
            raise InputError(f"slice {self.slice!r} has one position; a map needs at least two.")
        found = float(np.median(cKDTree(self.centers).query(self.centers, k=2)[0][:, 1]))
        if found == 0:
            raise InputError("most positions lie at the same place as another; a map needs them apart.")
        return found

    def diameter(self, given: float | None) -> float:
        """Return the diameter of the spots, or the side of the tiles, px.

        Raises
        ------
        ScaleError
            It is not known.
        """
        known = given if given is not None else self.library.factor(Keys.SPOT_DIAMETER)
        if known is None:
            raise ScaleError(
                f"the size of the spots is not known: {self.library.where}['scalefactors'] has no "
                f"{Keys.SPOT_DIAMETER!r}. "
                + advise(Fix("diameter_px", why="with their diameter in full-resolution px"), otherwise="Set it.")
            )
        return known


def viewer_spots(data: Any, table: str, slice: str | None, slice_key: str | None) -> ViewerSpots:
    """Select the spots of one slice.

    Parameters
    ----------
    data
        AnnData, or SpatialData with a table whose positions are in ``obsm["spatial"]``.
    table
        Name of the table of a SpatialData.
    slice, slice_key
        Slice to take if there are several, and column of ``obs`` with the slice of each spot.

    Raises
    ------
    MissingKeyError
        There is no such table.
    SliceError
        There are several slices and none was chosen, or no such slice.
    InputError, CoordinateError
        ``data`` is of another type, or its positions cannot be read.
    """
    if is_spatialdata(data):
        if table not in data.tables:
            raise MissingKeyError(
                f"the SpatialData has no table {table!r}; table= takes one of {sorted(data.tables)}. "
                "model.predict(sdata) adds 'st_gchb'."
            )
        data = data.tables[table]
        if Keys.SPATIAL not in data.obsm:
            raise MissingKeyError(
                f"table {table!r} has no positions in obsm['spatial']; expected x, y in full-resolution px of the "
                "slide. Pass st_gchb.pp.resolve(sdata).adata, which has them."
            )
    check_object(data, spatialdata=True)
    sections = placed_sections(data, slice_key)
    names = list(sections.rows)
    if slice is None and len(names) > 1:
        raise SliceError(
            f"the object has {len(names)} slices, and a file is of one image. "
            + advise(Fix("slice", why=f"with one of {names[:12]}"))
        )
    chosen = names[0] if slice is None else slice
    # A single slice may have another name in uns["spatial"] than in obs.
    called = next((name for name in names if chosen in (name, sections.libraries[name].name)), None)
    if called is None:
        raise SliceError(f"the object has no slice {chosen!r}; slice= takes one of {names[:12]}.")
    rows = np.sort(sections.rows[called])
    return ViewerSpots(data, called, rows, sections.centers[rows], sections.libraries[called])


class SpotValues:
    """Values of spots by name: genes of a layer, and numeric columns of ``obs``.

    Parameters
    ----------
    spots
        The spots.
    names
        Genes, or numeric columns of ``obs``; None for all genes.
    layer
        Layer with the genes; None for ``X``.

    Raises
    ------
    MissingKeyError
        There is no such layer, gene or column; the message tells the nearest names.
    InputError
        A name is given or occurs twice, or a column is not numeric.
    """

    def __init__(self, spots: ViewerSpots, names: str | Sequence[str] | None, layer: str | None) -> None:
        adata = spots.adata
        wanted = list(adata.var_names) if names is None else [names] if isinstance(names, str) else list(names)
        genes = set(adata.var_names)
        for name in wanted:
            _check_name(adata, genes, name)
        twice = sorted({name for name in wanted if wanted.count(name) > 1}) if len(set(wanted)) < len(wanted) else []
        if twice:
            raise InputError(f"genes= names {twice[:6]} more than once; expected each once.")
        self._spots, self._layer = spots, layer
        self.names = wanted
        self._columns = {name: _numbers(adata, name) for name in wanted if name not in genes}
        # Sorted, as files that hold a matrix ask for.
        self._genes = np.array(sorted(adata.var_names.get_loc(n) for n in wanted if n in genes), dtype=np.int64)
        self._matrix = self._open() if len(self._genes) else None

    def _open(self) -> Any:
        adata, layer = self._spots.adata, self._layer
        layers = named_layers(adata)
        if layer is not None and layer not in layers:
            raise MissingKeyError(
                f"the object has no layer {layer!r}; layer= takes one of {sorted(layers)}, or None for X, where "
                "measured values are."
            )
        values = adata.X if layer is None else layers[layer]
        if values is None:
            raise MissingKeyError(f"X is empty; layer= takes one of {sorted(layers)}.")
        return values if is_chunked(values) else matrix_of(values, "X" if layer is None else f"layers[{layer!r}]")

    @property
    def is_single(self) -> bool:
        """True if values have the seven digits of float32, or of fewer bits."""
        kind = np.float32 if self._matrix is None else self._matrix.dtype
        return bool(np.dtype(kind).kind == "f" and np.dtype(kind).itemsize <= 4)

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.float64]]]:
        """Yield parts of the spots and their values, ``(n_part, n_names)``, block by block."""
        rows, order = self._spots.rows, {int(gene): i for i, gene in enumerate(self._genes)}
        genes = self._spots.adata.var_names
        source = [order[genes.get_loc(name)] if name not in self._columns else -1 for name in self.names]
        step = max(_BLOCK // max(len(self.names), 1), 1)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            block = np.empty((len(part), len(self.names)))
            read = self._read(part)
            for i, name in enumerate(self.names):
                block[:, i] = self._columns[name][part] if name in self._columns else read[:, source[i]]
            yield slice(start, start + len(part)), block

    def _read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read the genes of some spots, ``(n_rows, n_genes)``, in the order of the matrix."""
        if self._matrix is None or not len(rows):
            return np.empty((len(rows), 0))
        # What is on disk is read in one stretch, of which the rows are kept.
        first, last = int(rows[0]), int(rows[-1]) + 1
        stretch = self._matrix[first:last][rows - first]
        found = stretch[:, self._genes]
        found = found.toarray() if sparse.issparse(found) else found
        return np.asarray(found.compute() if hasattr(found, "compute") else found)


def own_columns(spots: ViewerSpots) -> list[str]:
    """List the columns of ``obs`` that this package writes, such as the confidence, as far as they are there."""
    return [name for name in _OWN_COLUMNS if name in spots.adata.obs]


def _check_name(adata: AnnData, genes: set[str], name: object) -> None:
    column = isinstance(name, str) and name in adata.obs
    if name in genes and column:
        raise InputError(f"{name!r} is a gene and a column of obs. Rename the column.")
    if name in genes:
        if not isinstance(adata.var_names.get_loc(name), int | np.integer):
            raise InputError(f"{name!r} is the name of several genes. Call adata.var_names_make_unique() first.")
        return
    if not column:
        # Cases differ between species, and between the habits of authors.
        known = {str(one).lower(): str(one) for one in (*adata.obs.columns, *genes)}
        close = [known[one] for one in difflib.get_close_matches(str(name).lower(), known, n=3)]
        nearest = f"the nearest names are {close}" if close else f"its genes are {list(adata.var_names[:3])} and so on"
        raise MissingKeyError(
            f"there is no gene and no obs column {name!r} among {adata.n_vars} genes and {adata.obs.shape[1]} columns; "
            f"{nearest}."
        )


def _numbers(adata: AnnData, name: str) -> npt.NDArray[np.float64]:
    column = column_of(adata, name, "genes=")
    if not pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        raise InputError(f"obs[{name!r}] is of type {column.dtype}; expected numbers.")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)
