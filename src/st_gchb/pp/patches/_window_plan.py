"""Order of the windows on a level by which each chunk is decoded once and dropped after its last window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from st_gchb._errors import DamageError
from st_gchb.io import SlideImage
from st_gchb.io.images import Box, Edges, divided, within_box

Rows = npt.NDArray[np.int64]
RGB = npt.NDArray[np.uint8]

_CELL_PX = 512
"""Largest side of the cells in which decoded pixels are held, px, so that parts of a large chunk can be dropped."""
_CHANNELS = 3


@dataclass(frozen=True, eq=False)
class Grid:
    """Subdivision of a level into chunks, pieces and cells; each is given by edges along rows and columns, px.

    Parameters
    ----------
    chunks
        Units of decoding.
    pieces
        Units of reading, each one or several whole chunks.
    cells
        Parts of pieces, the units in which pixels are held and dropped.
    free
        Whether the pixels are in memory anyway, so that holding them takes no additional memory.
    """

    chunks: tuple[Edges, Edges]
    pieces: tuple[Edges, Edges]
    cells: tuple[Edges, Edges]
    free: bool

    @classmethod
    def of(cls, image: SlideImage, level: int) -> Grid:
        """Construct the grid of a level."""
        rows, columns = image.pieces(level)
        cells = divided(rows, _CELL_PX), divided(columns, _CELL_PX)
        source = image.levels[level]
        free = isinstance(source, np.ndarray) or getattr(source, "whole_bytes", 0) > 0
        return cls(image.chunks(level), (rows, columns), cells, free)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells along rows and columns."""
        return len(self.cells[0]) - 1, len(self.cells[1]) - 1

    def piece_of(self, axis: int, px: npt.NDArray) -> Rows:
        """Return the index, along an axis, of the piece in which each px lies."""
        return np.asarray(np.searchsorted(self.pieces[axis], px, side="right") - 1)


class _Uses:
    """Pairs of a window and a cell that it needs, as parallel arrays, with the piece of each cell."""

    def __init__(self, boxes: Rows, grid: Grid) -> None:
        first = [np.searchsorted(grid.cells[axis], boxes[:, 2 * axis], side="right") - 1 for axis in (0, 1)]
        last = [np.searchsorted(grid.cells[axis], boxes[:, 2 * axis + 1], side="left") for axis in (0, 1)]
        high, wide = last[0] - first[0], last[1] - first[1]
        total = high * wide
        self.window = np.repeat(np.arange(len(boxes)), total)
        step = np.arange(total.sum()) - np.repeat(np.cumsum(total) - total, total)
        rows = first[0][self.window] + step // wide[self.window]
        columns = first[1][self.window] + step % wide[self.window]
        self.cell = rows * grid.shape[1] + columns
        of_rows, of_columns = (grid.piece_of(axis, grid.cells[axis][:-1]) for axis in (0, 1))
        self.piece = of_rows[rows] * (len(grid.pieces[1]) - 1) + of_columns[columns]


def plan(boxes: Rows, grid: Grid, n_bytes: int) -> tuple[int, list[Rows], int]:
    """Order windows so that at most ``n_bytes`` of decoded pixels are held.

    Windows are processed by rows of pieces. If a row across the whole slide takes too much memory, the slide is divided
    into vertical bands that are processed one after the other; only chunks across the border of two bands are then
    decoded twice.

    Parameters
    ----------
    boxes
        Boxes of the windows, ``(n, 4)``: first row, end row, first column, end column; ends exclusive, px of the
        level.
    grid
        Subdivision of the level.
    n_bytes
        Bound of the decoded pixels in memory, bytes.

    Returns
    -------
    n_bands
        Number of bands into which the slide is divided.
    bands
        Positions of the windows of each band that has some, in the order in which to process them.
    peak
        Largest number of bytes held; above ``n_bytes`` if even the narrowest bands exceed it.
    """
    n_columns = len(grid.pieces[1]) - 1
    n_bands = 1
    while True:
        bands, peak = in_bands(boxes, grid, n_bands)
        if peak <= n_bytes or n_bands == n_columns:
            return n_bands, bands, peak
        n_bands = min(2 * n_bands, n_columns)


def in_bands(boxes: Rows, grid: Grid, n_bands: int) -> tuple[list[Rows], int]:
    """Divide windows into a number of vertical bands, and order those of each band.

    Windows are sorted by their place alone, so that some of them keep their order among others.

    Parameters
    ----------
    boxes, grid
        As in :func:`plan`.
    n_bands
        Number of bands.

    Returns
    -------
    bands, peak
        As in :func:`plan`.
    """
    last = [grid.piece_of(axis, boxes[:, 2 * axis + 1] - 1) for axis in (0, 1)]
    order = np.lexsort((boxes[:, 2], boxes[:, 0], last[1], last[0]))
    band = last[1][order] * n_bands // (len(grid.pieces[1]) - 1)
    bands = [order[band == i] for i in np.unique(band)]
    return bands, 0 if grid.free else max(_peak(boxes[rows], grid) for rows in bands)


def _peak(boxes: Rows, grid: Grid) -> int:
    """Compute the largest number of bytes held while windows are read in this order, including the piece just read."""
    uses = _Uses(boxes, grid)
    cells, of_use = np.unique(uses.cell, return_inverse=True)
    pieces, of_piece = np.unique(uses.piece, return_inverse=True)
    loaded = np.full(len(pieces), len(boxes))
    np.minimum.at(loaded, of_piece, uses.window)
    dropped, piece_of_cell = np.zeros(len(cells), dtype=np.int64), np.zeros(len(cells), dtype=np.int64)
    np.maximum.at(dropped, of_use, uses.window)
    piece_of_cell[of_use] = of_piece
    heights, widths = (np.diff(edges) for edges in grid.cells)
    area = (heights[cells // grid.shape[1]] * widths[cells % grid.shape[1]]).astype(np.float64)
    change = np.bincount(loaded[piece_of_cell], area, len(boxes) + 1) - np.bincount(dropped + 1, area, len(boxes) + 1)
    largest = int(np.diff(grid.pieces[0]).max() * np.diff(grid.pieces[1]).max())
    return int(np.cumsum(change).max() + largest) * _CHANNELS


class Windows:
    """The windows of one band, each to be read once and in order.

    Parameters
    ----------
    image, level
        Image and the level from which windows are read.
    boxes
        Boxes of the windows, ``(n, 4)``, as in :func:`plan` and in its order.
    grid
        Subdivision of the level.

    Attributes
    ----------
    held_bytes, peak_bytes
        Current and largest size of the decoded pixels in memory, the latter including the piece just read.
    """

    def __init__(self, image: SlideImage, level: int, boxes: Rows, grid: Grid) -> None:
        self._image, self._level, self._boxes, self._grid = image, level, boxes, grid
        uses = _Uses(boxes, grid)
        self._left = np.bincount(uses.cell, minlength=grid.shape[0] * grid.shape[1])
        # For each piece the bounding box of its windows: only chunks within it are read.
        self._needed: dict[int, Rows] = {}
        pieces, of_piece = np.unique(uses.piece, return_inverse=True)
        around = np.empty((len(pieces), 4), dtype=np.int64)
        for column, (extreme, start) in enumerate(((np.minimum, 2**62), (np.maximum, 0)) * 2):
            around[:, column] = start
            extreme.at(around[:, column], of_piece, boxes[uses.window, column])
        self._needed = dict(zip(pieces.tolist(), around, strict=True))
        self._cells: dict[int, tuple[RGB, int, int]] = {}
        self._lost: list[tuple[Box, DamageError]] = []
        self.held_bytes = self.peak_bytes = 0

    def take(self, i: int) -> tuple[RGB | None, list[tuple[Box, DamageError]]]:
        """Read the pixels of a window.

        Parameters
        ----------
        i
            Position of the window among ``boxes``.

        Returns
        -------
        pixels
            Pixels of the window's box, ``(h, w, 3)`` uint8; None if some of them cannot be decoded.
        lost
            Chunks of the window that cannot be decoded, with their errors.

        Raises
        ------
        ImageError
            The image cannot be read at all.
        """
        y0, y1, x0, x1 = self._boxes[i].tolist()
        pixels = np.empty((y1 - y0, x1 - x0, _CHANNELS), dtype=np.uint8)
        for cell in self._cells_of(y0, y1, x0, x1):
            if cell not in self._cells:
                self._load(cell)
            part, top, left = self._cells[cell]
            bottom, right = top + part.shape[0], left + part.shape[1]
            ys, xs = (max(y0, top), min(y1, bottom)), (max(x0, left), min(x1, right))
            pixels[ys[0] - y0 : ys[1] - y0, xs[0] - x0 : xs[1] - x0] = part[
                ys[0] - top : ys[1] - top, xs[0] - left : xs[1] - left
            ]
            self._left[cell] -= 1
            if not self._left[cell]:
                del self._cells[cell]
                self.held_bytes -= part.nbytes
        lost = [(box, e) for box, e in self._lost if box[0] < y1 and y0 < box[1] and box[2] < x1 and x0 < box[3]]
        return (None if lost else pixels), lost

    def _cells_of(self, y0: int, y1: int, x0: int, x1: int) -> list[int]:
        rows, columns = self._grid.cells
        first_row, first_column = (int(np.searchsorted(e, v, side="right")) - 1 for e, v in ((rows, y0), (columns, x0)))
        last_row, last_column = (int(np.searchsorted(e, v, side="left")) for e, v in ((rows, y1), (columns, x1)))
        width = self._grid.shape[1]
        return [i * width + j for i in range(first_row, last_row) for j in range(first_column, last_column)]

    def _load(self, cell: int) -> None:
        """Decode the piece of a cell, and hold those of its cells that windows still need."""
        grid, width = self._grid, self._grid.shape[1]
        corner = np.array([grid.cells[0][cell // width]]), np.array([grid.cells[1][cell % width]])
        row, column = (int(grid.piece_of(axis, corner[axis])[0]) for axis in (0, 1))
        around = self._needed[row * (len(grid.pieces[1]) - 1) + column]
        box: list[int] = []
        for axis, index in ((0, row), (1, column)):
            start = max(int(around[2 * axis]), int(grid.pieces[axis][index]))
            end = min(int(around[2 * axis + 1]), int(grid.pieces[axis][index + 1]))
            edges = within_box(grid.chunks[axis], start, end)
            box += [int(edges[0]), int(edges[-1])]
        y0, y1, x0, x1 = box
        pixels, lost = self._image.read_chunks(self._level, (y0, y1, x0, x1))
        self._lost += lost
        for other in self._cells_of(y0, y1, x0, x1):
            if not self._left[other]:
                continue
            top, left = max(y0, int(grid.cells[0][other // width])), max(x0, int(grid.cells[1][other % width]))
            bottom, right = int(grid.cells[0][other // width + 1]), int(grid.cells[1][other % width + 1])
            part = pixels[top - y0 : bottom - y0, left - x0 : right - x0]
            # Copied, since a view would keep the whole piece in memory, unless its pixels are in memory anyway.
            part = part if grid.free or part.nbytes == pixels.nbytes else part.copy()
            self._cells[other] = (part, top, left)
            self.held_bytes += part.nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes + pixels.nbytes)
