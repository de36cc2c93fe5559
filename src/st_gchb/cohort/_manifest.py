"""The slides of a call: a list of paths or a table, read and validated before any slide is processed."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from st_gchb._errors import InputError, MissingFileError, MissingKeyError
from st_gchb._logging import logger
from st_gchb.io import check_text

COLUMNS = ("path", "name", "image", "um_per_px", "spacing_um")
_NUMBERS = ("um_per_px", "spacing_um")
_FORBIDDEN = frozenset('/\\:*?"<>|')
"""Characters that some file system does not allow in a name."""
_LONGEST = 200
"""Maximum length of a name in bytes. File systems allow 255, and suffixes are appended."""


@dataclass(frozen=True)
class Slide:
    """One slide of a call.

    Parameters
    ----------
    name
        Name of the result, without suffix.
    path
        Absolute path of the slide.
    image
        Absolute path of its full-resolution image, or name of an image element.
    um_per_px, spacing_um
        As in :func:`~st_gchb.cohort._tasks.read_query`.
    """

    name: str
    path: str
    image: str | None = None
    um_per_px: float | None = None
    spacing_um: float | None = None


def slides_of(
    slides: Iterable[str | PathLike[str]] | pd.DataFrame | str | PathLike[str],
    *,
    um_per_px: float | None = None,
    spacing_um: float | None = None,
) -> list[Slide]:
    """Read and validate the slides of a call.

    Parameters
    ----------
    slides
        Paths; or a table (data frame, or path of a .csv or .tsv file) with the column ``path`` and, if needed,
        ``name``, ``image``, ``um_per_px``, ``spacing_um``. Paths in a file are relative to its folder.
    um_per_px, spacing_um
        Values for slides whose row does not give them, µm.

    Returns
    -------
    list[Slide]
        The slides, with absolute paths and names that differ.

    Raises
    ------
    MissingFileError, MissingKeyError, InputError
        The table does not exist, has no column ``path`` or no slide, or a row of it is invalid.

    Examples
    --------
    >>> [slide.name for slide in slides_of(["/data/A1.ome.tif", "/data/S7/outs"])]
    ['A1', 'S7']
    """
    defaults = {"um_per_px": um_per_px, "spacing_um": spacing_um}
    for key, value in defaults.items():
        if value is not None:
            defaults[key] = _number(value, key, "the call")
    table, folder = _table_of(slides)
    rows = [_slide(row, index, folder, defaults) for index, row in enumerate(table.to_dict("records"), start=1)]
    if not rows:
        raise InputError("there is no slide in the table or list given; expected at least one path.")
    _check_different(rows)
    return rows


def _table_of(slides: Any) -> tuple[pd.DataFrame, Path]:
    here = Path.cwd()
    if isinstance(slides, str | PathLike):
        path = Path(slides)
        if path.suffix.lower() not in (".csv", ".tsv"):
            raise InputError(f"slides={str(slides)!r} is one path; expected a list of paths, or a .csv or .tsv table.")
        if not os.path.isfile(path):
            raise MissingFileError(f"{path}: there is no such table of slides.")
        separator = "," if path.suffix.lower() == ".csv" else "\t"
        check_text(path, "the table of slides")
        try:
            slides = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        except (ValueError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as a table ({error}).") from error
        here = path.absolute().parent
    if not isinstance(slides, pd.DataFrame):
        paths = list(slides)
        wrong = next((one for one in paths if not isinstance(one, str | PathLike)), None)
        if wrong is not None:
            raise InputError(f"slides holds a {type(wrong).__name__}; expected paths, or a table with a column 'path'.")
        # Python's own strings: others of pandas refuse names of files that are no UTF-8.
        return pd.DataFrame({"path": [str(one) for one in paths]}, dtype=object), here
    if "path" not in slides:
        raise MissingKeyError(f"the table of slides has no column 'path' (found {list(slides.columns)[:12]}).")
    others = [str(column) for column in slides if column not in COLUMNS]
    if others:
        logger.info("Columns of the table that are not used: %s (used: %s).", ", ".join(others), ", ".join(COLUMNS))
    return slides, here


def _slide(row: dict[Any, Any], index: int, folder: Path, defaults: dict[str, float | None]) -> Slide:
    where = f"row {index} of the slides"
    text = {key: _text(row.get(key)) for key in COLUMNS}
    if not text["path"]:
        raise InputError(f"{where} has no path.")
    path = (folder / text["path"]).absolute()
    numbers = {key: _number(text[key], key, where) if text[key] else defaults[key] for key in _NUMBERS}
    image = text["image"] or None
    if image is not None and os.path.isfile(folder / image):
        image = str((folder / image).absolute())
    for key, value in (("path", str(path)), ("image", image or "")):
        if not is_utf8(value):
            raise InputError(
                f"{where}: the {key} {value!r} is no valid UTF-8, and reports and results hold it as text. Rename the "
                "file or its folder, or pass a link to it."
            )
    name = text["name"] or _name_of(path)
    _check_name(name, where)
    return Slide(name, str(path), image, **numbers)


def is_utf8(text: str) -> bool:
    """Return whether text can be written as UTF-8: names of files may hold other bytes, which Python escapes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) or value is pd.NA else str(value)


def _number(value: Any, key: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{where}: {key}={value!r}; expected a positive number, µm.")
    return number


def _name_of(path: Path) -> str:
    """Return the default name of a slide, that of its file or folder.

    Space Ranger names every folder ``outs``, so the name of its parent is taken.
    """
    if path.name == "outs":
        path = path.parent
    if path.is_dir() and path.suffix.lower() != ".zarr":
        return path.name
    return path.stem.removesuffix(".ome")


def _check_name(name: str, where: str) -> None:
    bad = sorted({letter for letter in name if letter in _FORBIDDEN or unicodedata.category(letter)[0] == "C"})
    outer = name.strip(" ") != name or name.startswith(".") or name.endswith(".")
    if not name or bad or outer or len(name.encode("utf-8", "replace")) > _LONGEST:
        found = f"holds {bad}" if bad else "cannot be the name of a file on every system"
        raise InputError(
            f"{where}: the name {name!r} {found}. Expected up to {_LONGEST} letters, digits, '-', '_', spaces and dots "
            "inside. Give another one in the column 'name'."
        )


def _check_different(slides: list[Slide]) -> None:
    seen: dict[str, Slide] = {}
    for slide in slides:
        # Some file systems ignore case, and some ignore how Unicode composes a letter.
        other = seen.setdefault(unicodedata.normalize("NFC", slide.name).casefold(), slide)
        if other is not slide:
            raise InputError(
                f"two slides would write the same result {slide.name!r}: {other.path} and {slide.path}. Give them "
                "names of their own in the column 'name' of a table."
            )
