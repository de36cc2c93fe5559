"""Read folders of legacy Spatial Transcriptomics: a table of counts, a table of spots and an image for each section."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from st_gchb._advice import Fix, advise
from st_gchb._constants import Keys
from st_gchb._errors import InputError, MissingFileError, ScaleError
from st_gchb._logging import logger
from st_gchb.io._library import Library, put_libraries
from st_gchb.io._pixel_size import Size, caller_size, settle
from st_gchb.io._reading import reading
from st_gchb.io.images import open_image, thumbnail_of
from st_gchb.io.sections._legacy_st import SPOT_COLUMNS, are_spots, read_legacy_spots
from st_gchb.io.sections._text_table import find_layout, is_table, open_text, table_stem

if TYPE_CHECKING:
    from anndata import AnnData

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".btf", ".bmp")
_FEWEST_GENES, _LOOKED_AT = 5, 6
_THUMBNAIL_PX = 1500
_COUNTS, _SPOTS = "counts", "spots"
_CHOSEN = ("selected", "new_x")
"""Columns that identify a table of the ST spot detector; tables of labels do not have them."""


def is_legacy(path: Path) -> bool:
    """Check if a folder holds a table of spots or of counts."""
    return any(_kind(file) is not None for file in _files(path, is_table))


def holds_counts(path: Path) -> bool:
    """Check if a folder holds a table of counts."""
    return any(_kind(file) == _COUNTS for file in _files(path, is_table))


def legacy_names(path: Path) -> list[str]:
    """List the names of the sections of a folder, by its tables of counts."""
    return [_stem(file) for file in _files(path, is_table) if _kind(file) == _COUNTS]


def read_legacy(
    path: Path,
    name: str | None,
    image: Path | None,
    um_per_px: float | None,
    *,
    allow_missing: bool = False,
    counts: bool = True,
) -> AnnData:
    """Read one section of a folder.

    Parameters
    ----------
    path
        The folder.
    name, image, um_per_px, allow_missing
        See :func:`~st_gchb.io.read_section`.
    counts
        Whether to read the values of the table of counts, and to make a down-scaled image.

    Returns
    -------
    AnnData
        Counts in ``X``, positions in full-resolution px in ``obsm["spatial"]``, and the image in ``uns["spatial"]``.

    Raises
    ------
    MissingFileError
        A table or the image is missing.
    InputError
        There are several sections and ``name`` is not given; or a table is damaged.
    ScaleError
        The spot array cannot be identified, and no other source states the pixel size.
    """
    kinds = {file: _kind(file) for file in _files(path, is_table)}
    tables = [file for file, kind in kinds.items() if kind == _COUNTS]
    # With one section, file names are arbitrary; with several, each file name must contain the name of its section.
    several = len(tables) > 1
    table = _one_of(tables, path, name, "table of counts (spots x genes)", named=several)
    section = name or _stem(table)
    spots = _one_of(_spot_tables(kinds), path, section, "table of spots (x, y, pixel_x, pixel_y)", named=several)
    if image is None:
        image = _one_of(_files(path, is_image), path, section, "image", _image_advice(), named=several)
    slide = open_image(image)
    adata, array = read_legacy_spots(section, table, spots, allow_missing=allow_missing, values=counts)
    adata.obs[Keys.SLICE] = pd.Categorical(adata.obs[Keys.SLICE])
    in_file = None if slide.um_per_px is None else Size(slide.um_per_px, "the image file")
    size = settle([caller_size(um_per_px), in_file, array.size], section)
    if size is None:
        raise ScaleError(
            f"{spots}: which array the {len(array.fits)} spots lie on cannot be told ({array.told}; expected squares "
            "of 200 µm, or a staggered array of 141 µm), and the image file does not say the size of a pixel. "
            + advise(Fix("um_per_px", why="with the µm per px of the image"))
        )
    wrong = advise(Fix("um_per_px", why="if that is wrong"))
    logger.info("%s: %.4g µm per px, of %s. %s", section, size, array.told, wrong)
    images, factors = {}, {}
    if counts:
        images["hires"], factors["tissue_hires_scalef"] = thumbnail_of(slide, _THUMBNAIL_PX)
    factors |= {Keys.SPOT_DIAMETER: array.diameter_um / size, Keys.UM_PER_PX: size}
    put_libraries(adata, [Library(section, images, factors, {Keys.SOURCE_IMAGE: str(image.resolve())})])
    return adata


def is_image(path: Path) -> bool:
    """Check if a file has the extension of an image, in upper or lower case."""
    return path.name.lower().endswith(IMAGE_ENDINGS)


def _files(path: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    return sorted(file for file in path.iterdir() if not file.name.startswith(".") and file.is_file() and wanted(file))


def _kind(file: Path) -> str | None:
    """Identify a table by its first lines: ``"spots"``, ``"counts"``, or None."""
    try:
        with reading(file, "the table"), open_text(file) as lines:
            header, *rows = itertools.islice(lines, _LOOKED_AT)
    except InputError:
        # A damaged table of counts is kept, so that reading it raises the error that names the damage.
        return _COUNTS if file.name.lower().endswith(".gz") else None
    layout = find_layout(header, rows[0] if rows else header)
    columns = layout.split(header)
    names = {cell.lower().lstrip("#").strip().replace(" ", "_") for cell in columns}
    if names >= SPOT_COLUMNS:
        return _SPOTS
    by_row = are_spots([layout.split(row)[0] for row in rows])
    if by_row and {"x", "y"} <= names:
        return _SPOTS
    if by_row and len(columns) > _FEWEST_GENES:
        return _COUNTS
    return _COUNTS if len(columns) > _FEWEST_GENES and are_spots(columns[1:]) else None


def _spot_tables(kinds: dict[Path, str | None]) -> list[Path]:
    """Select the tables of spots, restricted to those of the ST spot detector if there are any."""
    tables = [file for file, kind in kinds.items() if kind == _SPOTS]
    own = []
    for file in tables:
        with open_text(file) as lines:
            header = next(lines, "").lower()
        if any(column in header for column in _CHOSEN):
            own.append(file)
    return own or tables


def _stem(file: Path) -> str:
    """Extract the name of the section from a file name.

    Examples
    --------
    >>> [_stem(Path(name)) for name in ("C2.tsv.gz", "MOB1_count_matrix-1.tsv", "P1.2_stdata.tsv.gz", "spots_A1.csv")]
    ['C2', 'MOB1', 'P1.2', 'A1']
    """
    name = table_stem(file) or file.name.rsplit(".", 1)[0]
    words = (
        r"stdata|counts?|count[_.-]matrix|matrix|expression|selection|spots?|spot[_.-]data|coordinates|labeled|HE|H&E"
    )
    short = re.sub(rf"(?:[_.-](?:{words})(?:[_.-]\d+)?)+$", "", name, flags=re.IGNORECASE)
    return re.sub(rf"^(?:{words})[_.-]", "", short, flags=re.IGNORECASE) or name


def _image_advice() -> str:
    return f" {advise(Fix('image', why='with its path'))}".rstrip()


def _one_of(
    files: list[Path], path: Path, name: str | None, what: str, advice: str = "", *, named: bool = False
) -> Path:
    """Select the only file of a kind, or the one whose name contains the section's name.

    Parameters
    ----------
    files
        Candidates.
    path
        Folder, for messages.
    name
        Name of the section.
    what
        Kind of file, for messages.
    advice
        Remedy appended to the messages.
    named
        Whether even a single file must contain the section's name.
    """
    found = files
    if name is not None and (named or len(files) > 1):
        found = [file for file in files if _stem(file) == name] or [
            file for file in files if re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", file.name)
        ]
    if len(found) == 1:
        return found[0]
    section = "" if name is None else f" of section {name!r}"
    if not found:
        there = f" Found {', '.join(file.name for file in files)}." if files else ""
        raise MissingFileError(
            f"{path}: found no {what}{section}; expected one beside the others, as legacy ST (her2st) is published: "
            f"C2.tsv.gz, C2_selection.tsv, C2.jpg.{there}{advice}"
        )
    names = ", ".join(file.name for file in found)
    one = advise(Fix("name", why="with one section"), otherwise="Put each section into a folder of its own.")
    raise InputError(f"{path}: found more than one {what}{section}: {names}. {one}{advice}")
