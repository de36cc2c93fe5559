"""Writing of a page: a folder with the slide's tiles, the genes' values and the viewer, whole or not at all."""

from __future__ import annotations

import html
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from st_gchb import __version__
from st_gchb._advice import Fix, advise
from st_gchb._arguments import Diameter, Few, Megabytes, PixelSize, checked
from st_gchb._artifacts import is_there, write_folder_whole
from st_gchb._constants import Keys
from st_gchb._errors import InputError, StoreError
from st_gchb._logging import logger
from st_gchb.io import ViewerSpots, viewer_spots
from st_gchb.pl.page._contents import (
    as_script,
    choose_genes,
    color_tables,
    gene_record,
    provenance,
    spot_record,
    verdict,
    write_values,
)
from st_gchb.pl.page._tiles import OVERLAP_PX, TILE_PX, n_halvings, write_tiles
from st_gchb.pp import Resolved, Slice, resolve
from st_gchb.pp.patches import MEMORY_MB
from st_gchb.pp.spots import open_slices

if TYPE_CHECKING:
    from spatialdata import SpatialData

_ASSETS = Path(__file__).parent / "assets"
_PAGE = "index.html"
_DATA = "data/report.js"
_UNIT = "log(1 + counts per 10⁴)"


@checked
def report(
    data: AnnData | SpatialData,
    out: str | Path,
    genes: str | Sequence[str] | None = None,
    *,
    n_genes: Few | None = None,
    image: Any = None,
    image_key: str | None = None,
    um_per_px: PixelSize | Mapping[str, PixelSize] | None = None,
    finest_um_per_px: PixelSize = 0.5,
    layer: str | None = Keys.LAYER,
    table: str | None = None,
    slice: str | None = None,
    slice_key: str | None = None,
    diameter_px: Diameter | None = None,
    title: str | None = None,
    memory_mb: Megabytes = MEMORY_MB,
    overwrite: bool = False,
) -> Path:
    """Write a page on which a prediction is looked at: the slide with deep zoom, and genes drawn over it.

    The result is a folder. Its ``index.html`` opens in a browser from the disk, without a server and without network:
    a gene is chosen by typing, spots are filtered by confidence, and the spot under the pointer tells its value. The
    folder is written as a whole or not at all.

    Parameters
    ----------
    data
        Result of :meth:`~st_gchb.model.STGCHB.predict`, or another AnnData with ``obsm["spatial"]`` in full-resolution
        px; or a SpatialData with such a table.
    out
        Folder to write.
    genes
        Genes, or numeric columns of ``obs``, to show, 5,000 at most; all genes by default. The first one is shown when
        the page opens; without ``genes``, it is the most predictable one.
    n_genes
        Number of the most predictable genes to show, by ``var["st_gchb_expected_pcc"]``, instead of ``genes``.
    image
        Full-resolution image: path, array or :class:`~st_gchb.io.SlideImage`; for SpatialData the name of an image
        element. By default the file at ``uns["spatial"][slice]["metadata"]["source_image_path"]``, otherwise the finest
        image in ``uns``.
    image_key
        Key in ``uns["spatial"][slice]["images"]``, such as ``"hires"``, of the image to use instead.
    um_per_px
        Size of a pixel of the full-resolution image, µm, if it is not stored. If it is unknown, the page has no scale
        bar.
    finest_um_per_px
        Size of a pixel of the page's slide, µm, at most: a finer slide is halved as long as its pixels are no larger.
        0.5 µm, the default, is what scanners call 20x. A slide of 40x in full takes four times the room.
    layer
        Layer with the expression; None for ``X``.
    table
        Table to show, for a SpatialData; by default ``"st_gchb"``.
    slice, slice_key
        Slice to show if there are several, and column of ``obs`` with the slice of each spot.
    diameter_px
        Diameter of the spots, or side of the tiles, in full-resolution px; by default that of ``uns["spatial"]``, or
        half of the distance between neighbors.
    title
        Heading of the page; by default the name of the slice.
    memory_mb
        Bound of the decoded pixels that the slide may hold, MB. Beside them, memory grows with the width of the slide.
    overwrite
        Replace the folder if it holds a page.

    Returns
    -------
    pathlib.Path
        The page to open, ``index.html`` in the folder.

    Raises
    ------
    InputError
        The folder exists, there are no or too many genes, or names occur twice.
    MissingKeyError
        There is no such table, layer, gene or column; the nearest names are told.
    ImageError, MissingFileError
        There is no image, or it is not where it was.
    SliceError, CoordinateError, ScaleError
        No slice was chosen among several, positions are missing or do not fit the image, or sizes are not valid.
    StoreError
        The folder cannot be written; an earlier one is left as it was.

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.synthetic_tissue(1, n_rows=6, n_cols=6, n_genes=20)
    >>> page = st_gchb.pl.report(adata, "/tmp/st_gchb_doc_report", layer=None, overwrite=True)
    >>> page.name
    'index.html'
    """
    folder = Path(out)
    _check_folder(folder, overwrite)
    if table is None and Keys.TABLE in getattr(data, "tables", {}):
        table = Keys.TABLE
    resolved = resolve(data, table=table, image=image)
    spots = viewer_spots(resolved.adata, Keys.TABLE, slice, slice_key or resolved.slice_key)
    chosen = choose_genes(resolved.adata, genes, n_genes)
    slide = _slide_of(resolved, spots, slice_key, image_key, um_per_px)
    with _whole(folder) as part:
        names = _write_data(part, spots, chosen, layer)
        halvings = n_halvings(slide.um_per_px, finest_um_per_px)
        shape = write_tiles(slide.image, part, halvings, memory_mb)
        record = _record(spots, slide, shape, names, layer, diameter_px, title)
        (part / _DATA).write_text(as_script(record | {"first": 0 if genes is not None else None}), encoding="ascii")
        _write_viewer(part, record["title"])
    return folder / _PAGE


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that would be lost: any but an empty one, and with ``overwrite`` any but an earlier page."""
    if not is_there(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: there is a file of that name. Name a folder.")
    if not any(folder.iterdir()):
        return
    if not is_there(folder / _DATA):
        raise InputError(
            f"{folder}: the folder exists and holds other files than a page, which is not replaced. Name another one."
        )
    if not overwrite:
        replace = advise(Fix("overwrite", "True", "to replace it"))
        raise InputError(f"{folder}: the folder holds a page already. {replace} Or name another folder.")


def _slide_of(
    resolved: Resolved, spots: ViewerSpots, slice_key: str | None, image_key: str | None, um_per_px: Any
) -> Slice:
    """Open the image of the slice; errors as :func:`~st_gchb.pp.slices_of`."""
    sections = resolved.sections(slice_key)
    keep = np.zeros(resolved.adata.n_obs, dtype=bool)
    keep[spots.rows] = True
    return open_slices(sections.part(keep), resolved.images, image_key, um_per_px)[0]


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """Write the folder as a whole or not at all.

    Raises
    ------
    StoreError
        The folder cannot be written, such as on a full disk; an earlier one is left as it was.
    """
    try:
        with write_folder_whole(folder) as part:
            yield part
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            f"{folder} could not be written ({error.strerror or error}); nothing of it is left. Name another place."
        ) from error


def _write_data(part: Path, spots: ViewerSpots, genes: list[str] | None, layer: str | None) -> list[str]:
    """Write the values of the genes; returns their names."""
    (part / "data" / "genes").mkdir(parents=True)
    return write_values(spots, genes, layer, part / "data" / "genes")


def _record(
    spots: ViewerSpots,
    slide: Slice,
    shape: tuple[int, int],
    names: list[str],
    layer: str | None,
    diameter_px: float | None,
    title: str | None,
) -> dict[str, Any]:
    """Describe all that the page shows but the values of genes."""
    height, width = slide.image.shape_px
    # px of the page's slide for each px of the image, and for each full-resolution px.
    shrunk = shape[1] / width, shape[0] / height
    scale = slide.scale * shrunk[0], slide.scale * shrunk[1]
    return {
        "title": title or spots.slice,
        "slice": spots.slice,
        "slide": {
            "width": shape[1],
            "height": shape[0],
            "tile": TILE_PX,
            "overlap": OVERLAP_PX,
            "um_per_px": None if slide.um_per_px is None else slide.um_per_px / shrunk[0],
        },
        "spots": spot_record(spots, scale, _diameter(spots, diameter_px)),
        "genes": gene_record(spots, names),
        "unit": _UNIT if layer == Keys.LAYER else "X" if layer is None else layer,
        "predicted": layer == Keys.LAYER,
        "provenance": provenance(spots.adata),
        "verdict": verdict(spots.adata, spots.slice),
        "colors": color_tables(),
    }


def _diameter(spots: ViewerSpots, given: float | None) -> float:
    """Return the diameter of the spots as given or stored, or half of the distance between neighbors, px."""
    if given is not None or spots.library.factor(Keys.SPOT_DIAMETER) is not None:
        return spots.diameter(given)
    half = spots.spacing / 2
    logger.info(
        "slice %r: the size of the spots is not known; %.4g px, half of their distance, is drawn.", spots.slice, half
    )
    return half


def _write_viewer(part: Path, title: str) -> None:
    """Copy the viewer, and write the page with its title."""
    (part / "page").mkdir()
    for file in sorted(_ASSETS.iterdir()):
        if file.name != _PAGE:
            shutil.copyfile(file, part / "page" / file.name)
    page = (_ASSETS / _PAGE).read_text(encoding="utf-8")
    page = page.replace("{{title}}", html.escape(title)).replace("{{version}}", html.escape(__version__))
    (part / _PAGE).write_text(page, encoding="utf-8")
