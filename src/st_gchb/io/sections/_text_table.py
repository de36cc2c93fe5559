"""Read text tables with any common separator, compression and encoding."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from st_gchb._errors import InputError

TABLE_ENDINGS = (".tsv", ".csv", ".txt")
_GZIP_START = b"\x1f\x8b"
_UTF16_STARTS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATORS = "\t;,"
_LONGEST_LINE = 2**26


def is_table(path: Path) -> bool:
    """Check if a file has the extension of a table, in upper or lower case, compressed or not."""
    return table_stem(path) is not None


def table_stem(path: Path) -> str | None:
    """Strip the extensions from the file name of a table; None for other files.

    Examples
    --------
    >>> from pathlib import Path
    >>> from st_gchb.io.sections._text_table import table_stem
    >>> table_stem(Path("P1.2_stdata.TSV.GZ")), table_stem(Path("he.jpg"))
    ('P1.2_stdata', None)
    """
    name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
    ending = next((ending for ending in TABLE_ENDINGS if name.lower().endswith(ending)), None)
    return name[: -len(ending)] if ending is not None else None


@dataclass(frozen=True)
class Layout:
    """Format of the columns of a table.

    Parameters
    ----------
    separator
        Separator of columns; None for any white space.
    decimal_comma
        Whether numbers are written with a decimal comma.
    """

    separator: str | None
    decimal_comma: bool = False

    def split(self, line: str) -> list[str]:
        """Split a line into cells, without surrounding quotes and blanks."""
        if self.separator is None:
            return [cell.strip('"') for cell in line.split()]
        if '"' in line:
            return [cell.strip() for cell in next(csv.reader([line], delimiter=self.separator), [])]
        return [cell.strip() for cell in line.split(self.separator)]

    def name(self, line: str) -> str:
        """Return the first cell of a line."""
        start = line.partition(self.separator or "\t")[0]
        return start.strip() if self.separator is not None and '"' not in start else self.split(line)[0]

    def counts(self, line: str) -> tuple[str, npt.NDArray[np.float64]]:
        r"""Split a line into its first cell and the numbers after it, with NaN for cells that hold none.

        Examples
        --------
        >>> from st_gchb.io.sections._text_table import Layout
        >>> Layout("\t").counts("10x21\t0\t340\t7"), Layout("\t").counts("10x21\t0\t\t2.5")
        (('10x21', array([  0., 340.,   7.])), ('10x21', array([0. , nan, 2.5])))
        """
        name, separator, rest = line.partition(self.separator or "\t")
        found = _whole_numbers(rest, separator) if separator == self.separator and '"' not in name else None
        if found is not None:
            return name.strip(), found
        cells = self.split(line)
        return cells[0], self.numbers(cells[1:])

    def numbers(self, cells: list[str]) -> npt.NDArray[np.float64]:
        """Convert cells to numbers, with NaN for cells that hold none."""
        if self.decimal_comma:
            cells = [cell.replace(",", ".") for cell in cells]
        try:
            return np.array(cells, dtype=np.float64)
        except ValueError:
            return np.array([_number(cell) for cell in cells])


def _whole_numbers(text: str, separator: str) -> npt.NDArray[np.float64] | None:
    """Read whole numbers of up to nine digits, one separator apart; None for a text that holds anything else.

    Rows of thousands of counts are read ten times as fast as cell by cell.
    """
    if not text.isascii():
        return None
    signs = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    digits = signs - ord("0")  # what is no digit becomes 10 or more
    ends = np.append(np.flatnonzero(signs == ord(separator)), len(signs))
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts
    if np.count_nonzero(digits > 9) != len(ends) - 1 or lengths.min() < 1 or lengths.max() > 9:
        return None
    values = digits[starts].astype(np.int64)
    for place in range(1, lengths.max()):
        longer = np.flatnonzero(lengths > place)
        values[longer] = values[longer] * 10 + digits[starts[longer] + place]
    return values.astype(np.float64)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def find_layout(header: str, row: str) -> Layout:
    r"""Infer the format of the columns from the first two lines.

    Examples
    --------
    >>> from st_gchb.io.sections._text_table import find_layout
    >>> find_layout("x;y;pixel_x", "1;2;45,5")
    Layout(separator=';', decimal_comma=True)
    >>> find_layout("x\ty", "1\t2").separator, find_layout("x y", "1 2").separator
    ('\t', None)
    """
    best, most = Layout(None), 0
    for separator in _SEPARATORS:
        layout = Layout(separator)
        n_header, n_row = len(layout.split(header)), len(layout.split(row))
        # R omits the header cell above the row names.
        if min(n_header, n_row) - 1 > most and n_row - n_header in (0, 1):
            best, most = layout, min(n_header, n_row) - 1
    if best.separator is None and len(header.split()) < 2:
        # The second line is truncated, so the separator is inferred from the header alone.
        best = Layout(max(_SEPARATORS, key=header.count) if any(sign in header for sign in _SEPARATORS) else None)
    return Layout(best.separator, best.separator != "," and "," in row and "," not in header)


@contextmanager
def open_text(path: Path) -> Iterator[Iterator[str]]:
    """Open a text file, plain or gzip-compressed, in UTF-8 or UTF-16.

    Yields
    ------
    Iterator of str
        Lines that are not blank, without line ends.

    Raises
    ------
    InputError
        A line is too long for a table.
    """
    with open(path, "rb") as raw:
        start = raw.read(2)
    with gzip.open(path, "rb") if start == _GZIP_START else open(path, "rb") as binary:
        # utf-8-sig drops a byte order mark, and reads plain UTF-8 as well.
        encoding = "utf-16" if binary.peek(2)[:2] in _UTF16_STARTS else "utf-8-sig"
        with io.TextIOWrapper(binary, encoding=encoding, newline=None) as text:
            yield _lines(text, path)


def _lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    while line := text.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise InputError(f"{path}: found a line of more than {_LONGEST_LINE:,} characters; expected a table.")
        if line.strip():
            yield line.rstrip("\r\n")


def read_rows(path: Path) -> tuple[Layout, list[list[str]]]:
    """Read all rows of a small table, including its header; blank lines are skipped.

    Returns
    -------
    tuple
        Format of the columns, and the cells of every row.

    Raises
    ------
    InputError
        The table is empty.
    """
    with open_text(path) as lines:
        kept = list(lines)
    if not kept:
        raise InputError(f"{path}: the table is empty.")
    layout = find_layout(kept[0], kept[1] if len(kept) > 1 else kept[0])
    return layout, [layout.split(line) for line in kept]
