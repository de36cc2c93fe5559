"""Sample sheets: tables of samples with their images, patients and groups, read and validated row by row."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from st_gchb._errors import InputError, MissingFileError, MissingKeyError, ScaleError
from st_gchb.io._pixel_size import number_in

COLUMNS = ("sample", "path", "image", "patient", "um_per_px", "group")
_PATH = "path"
_ENDINGS = (".csv", ".tsv", ".txt")
_SEPARATORS = ",;\t"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_RANGE_UM = (1e-3, 1e4)
"""Sizes of a pixel that are taken, µm; the same range as for ``um_per_px=`` of all functions."""
_LONGEST = 200
"""Maximum length of a name in characters."""

CohortSource: TypeAlias = str | PathLike[str] | Sequence[str | PathLike[str]]


@dataclass(frozen=True)
class SampleRow:
    """One sample as the caller names it: a row of a sheet, or one of several paths.

    Parameters
    ----------
    where
        The row, for messages.
    path
        Absolute path of the sample.
    sample
        Name of the sample; None to take that of its files.
    image
        Absolute path of the full-resolution image, or name of an image element; None if the row gives none.
    patient, group
        Patient and group; None if the row gives none.
    um_per_px
        Size of a pixel of the full-resolution image, µm; None if the row gives none.
    sheet
        The sheet; None for one of several paths.
    """

    where: str
    path: Path
    sample: str | None = None
    image: str | None = None
    patient: str | None = None
    um_per_px: float | None = None
    group: str | None = None
    sheet: Path | None = None

    @property
    def label(self) -> str:
        """The row with the name of the sample, for messages."""
        return f"{self.where} (sample {self.sample!r})" if self.sample is not None else self.where


def is_sheet(path: str | PathLike[str]) -> bool:
    """Check by the name of a file if it is a sample sheet."""
    return Path(path).suffix.lower() in _ENDINGS


def read_samples(source: CohortSource) -> list[SampleRow]:
    """Read the samples of a call: a sample sheet, or paths.

    Parameters
    ----------
    source
        Path of a sheet, or paths of samples. A single path of something else than a sheet is a list of one.

    Returns
    -------
    list[SampleRow]
        The samples, in their order; of a sheet, paths exist and names differ.

    Raises
    ------
    MissingFileError, MissingKeyError, InputError, ScaleError
        The sheet does not exist, cannot be read, is empty or has no column ``path``, or a row of it is invalid.

    Examples
    --------
    >>> from st_gchb.io._sample_sheet import read_samples
    >>> [row.where for row in read_samples(["hest/st/TENX95.h5ad", "visium/outs"])]
    ['hest/st/TENX95.h5ad', 'visium/outs']
    """
    if isinstance(source, str | PathLike):
        if is_sheet(source):
            return read_sheet(Path(source))
        source = [source]
    paths = [os.fspath(one) for one in source]
    if not paths:
        raise InputError("there is no sample in the list given; expected at least one path, or a sample sheet.")
    sheets = [path for path in paths if is_sheet(path)]
    if sheets:
        raise InputError(
            f"{sheets[0]} is a sample sheet, and stands in a list of paths. Pass the sheet alone, or paths alone."
        )
    return [SampleRow(path, _absolute(path, Path.cwd(), path)) for path in paths]


def read_sheet(path: Path) -> list[SampleRow]:
    """Read and validate a sample sheet.

    Parameters
    ----------
    path
        Text table with a header, in UTF-8 or UTF-16, with commas, semicolons or tabs between its columns: ``path``
        and, if needed, ``sample``, ``image``, ``patient``, ``um_per_px``, ``group``. Relative paths start at the
        folder of the sheet. Empty rows are skipped; rows are counted as a spreadsheet shows them, the header as 1.

    Returns
    -------
    list[SampleRow]
        One per row, in their order.

    Raises
    ------
    MissingFileError
        The sheet, a path or an image is missing.
    MissingKeyError
        There is no column ``path``.
    InputError
        The sheet cannot be read or is empty, a column is unknown or there twice, a cell is surplus, or a name is
        invalid or there twice.
    ScaleError
        A size of a pixel is no positive number.
    """
    header, rows = _cells(path)
    if not rows:
        raise InputError(f"{path}: the sample sheet has no row below its header; expected one for each sample.")
    folder = path.absolute().parent
    found = [
        _row(f"{path.name}, row {number}", dict(zip(header, cells, strict=False)), folder / path.name)
        for number, cells in rows
    ]
    check_different((row.sample, row.label) for row in found if row.sample is not None)
    return found


def check_different(names: Iterable[tuple[str, str]]) -> None:
    """Validate that no two samples have the same name.

    Parameters
    ----------
    names
        Name of each sample, and its row for the message.

    Raises
    ------
    InputError
        Two samples have the same name.
    """
    seen: dict[str, str] = {}
    for name, where in names:
        if name in seen:
            raise InputError(
                f"{where}: the sample {name!r} is there twice, before in {seen[name]}. Give each a name of its own in "
                "the column 'sample' of a sample sheet."
            )
        seen[name] = where


def check_name(name: str, where: str) -> str:
    """Validate the name of a sample, which becomes that of its slice and of groups in files.

    Raises
    ------
    InputError
        The name holds a slash or a control character, is too long, or consists of dots.
    """
    bad = sorted({letter for letter in name if letter in "/\\" or unicodedata.category(letter)[0] == "C"})
    if bad or not name.strip(". ") or len(name) > _LONGEST:
        why = f"holds {bad}" if bad else f"has {len(name)} characters" if name.strip(". ") else "is no name"
        raise InputError(
            f"{where}: the sample name {name[:60]!r} {why}; expected up to {_LONGEST} characters without slashes. Give "
            "another one in the column 'sample'."
        )
    return name


def _cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read the names of the columns, and the cells of each row that is not empty with its number."""
    if not os.path.isfile(path):
        raise MissingFileError(f"{path}: there is no such sample sheet. Check the path (now in {Path.cwd()}).")
    text = _decoded(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    # The one by which a column is called path, and of several such the one that makes most columns.
    separator = max(_SEPARATORS, key=lambda sign: (_PATH in _names(first, sign), first.count(sign)))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        number = 1
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((number, [cell.strip() for cell in cells]))
            number += 1
    except csv.Error as error:
        raise InputError(
            f"{path}, row {number}: the row cannot be read ({error}). Is a quotation mark not closed? Save the sheet "
            "again as CSV."
        ) from error
    if not rows:
        raise InputError(f"{path}: the sample sheet is empty; expected a header with the column 'path', and rows.")
    (_, header), *rest = rows
    header = _checked_header([cell.casefold() for cell in header], path)
    for number, cells in rest:
        if any(cells[len(header) :]):
            raise InputError(
                f"{path}, row {number}: found {len(cells)} cells under {len(header)} columns; expected as many. Put "
                "cells with a separator in them into quotation marks."
            )
    if separator == ";":
        # Programs that write semicolons write decimal commas.
        place = header.index("um_per_px") if "um_per_px" in header else len(header)
        rest = [(n, [cell.replace(",", ".") if i == place else cell for i, cell in enumerate(row)]) for n, row in rest]
    return header, rest


def _names(line: str, separator: str) -> list[str]:
    return [cell.strip().strip('"').casefold() for cell in line.split(separator)]


def _decoded(path: Path) -> str:
    """Decode a sheet, UTF-8 with or without a mark, or UTF-16 with one."""
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith(_UTF16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}, row {number}: found the byte 0x{content[error.start]:02x}, which cannot be decoded as "
            f"{encoding.removesuffix('-sig').upper()}. Save the sheet as 'CSV UTF-8'."
        ) from error
    if "\0" in text:
        number = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path}, row {number}: found NUL characters; expected text. Save the sheet as 'CSV UTF-8'.")
    return text


def _checked_header(header: list[str], path: Path) -> list[str]:
    while header and not header[-1]:
        header = header[:-1]
    expected = f"expected {', '.join(COLUMNS)}, of which 'path' alone is needed"
    for name in header:
        if name not in COLUMNS:
            close = difflib.get_close_matches(name, COLUMNS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else " Leave the column out."
            raise InputError(f"{path}: the sample sheet has an unknown column {name!r}; {expected}.{hint}")
        if header.count(name) > 1:
            raise InputError(f"{path}: the sample sheet has the column {name!r} twice; expected it once.")
    if _PATH not in header:
        raise MissingKeyError(f"{path}: the sample sheet has no column 'path' (found {header[:12]}); {expected}.")
    return header


def _row(where: str, cells: dict[str, str], sheet: Path) -> SampleRow:
    folder = sheet.parent
    given = {key: cells.get(key) or None for key in COLUMNS}
    sample = given["sample"]
    label = f"{where} (sample {sample!r})" if sample is not None else where
    if given["path"] is None:
        raise InputError(f"{label}: has no path; expected that of a file, store or folder.")
    if sample is not None:
        check_name(sample, where)
    path = _absolute(given["path"], folder, label)
    image = given["image"]
    # A name without a file behind it may be that of an element in the store, which is looked up there.
    if image is not None:
        there = _absolute(image, folder, label)
        if os.path.exists(there):
            image = str(there)
        elif path.suffix.lower() != ".zarr":
            raise MissingFileError(f"{label}: the image {there} is missing. Correct the column 'image', or empty it.")
    size = _size(given["um_per_px"], label)
    return SampleRow(where, path, sample, image, given["patient"], size, given["group"], sheet)


def _absolute(text: str, folder: Path, where: str) -> Path:
    if "://" in text:
        raise InputError(f"{where}: found the address {text}; expected a path on this machine. Download it first.")
    if "\0" in text:
        raise InputError(f"{where}: found a NUL character in a path; expected the name of a file or folder.")
    return Path(os.path.abspath(folder / os.path.expanduser(text)))


def _size(text: str | None, where: str) -> float | None:
    if text is None:
        return None
    number, (low, high) = number_in(text), _RANGE_UM
    if number is None or not low <= number <= high:
        raise ScaleError(f"{where}: um_per_px is {text!r}; expected a number from {low:g} to {high:g}, µm, or nothing.")
    return number


def check_paths(rows: Iterable[SampleRow]) -> None:
    """Validate that the path of each sample exists.

    Raises
    ------
    MissingFileError
        A path is missing.
    """
    for row in rows:
        if not os.path.exists(row.path):
            near = difflib.get_close_matches(row.path.name, _siblings(row.path), n=1)
            start = f"now in {Path.cwd()}" if row.sheet is None else f"relative ones start at {row.sheet.parent}"
            hint = f" Did you mean {near[0]!r}?" if near else f" Check the path ({start})."
            raise MissingFileError(f"{row.label}: {row.path} is missing.{hint}")


def _siblings(path: Path) -> list[str]:
    return os.listdir(path.parent)[:1000] if os.path.isdir(path.parent) else []
