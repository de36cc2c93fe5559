"""Order of the windows on a level by which each chunk is decoded once, and dropped after its last window."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from st_gchb._errors import DamageError
from st_gchb.io import SlideImage
from st_gchb.io.images import Box, Edges, divided
from st_gchb.pp.patches._threads import Task, Workers

Rows = npt.NDArray[np.int64]
RGB = npt.NDArray[np.uint8]

_CELL_PX = 512
"""Largest side of the cells in which decoded pixels are held, px, so that parts of a large chunk can be dropped."""
_CHANNELS = 3
_BLOCK = 1024
"""Windows whose parts are computed at once."""


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
        self._rows, self._columns = rows, columns
        of_rows, of_columns = (grid.piece_of(axis, grid.cells[axis][:-1]) for axis in (0, 1))
        self.piece = of_rows[rows] * (len(grid.pieces[1]) - 1) + of_columns[columns]

    def overlaps(self, boxes: Rows, grid: Grid) -> Rows:
        """Return cell, first and end row, and first and end column of the overlap of each pair, ``(n, 5)``."""
        found = [self.cell]
        for axis, index in enumerate((self._rows, self._columns)):
            edges, own = grid.cells[axis], boxes[self.window, 2 * axis : 2 * axis + 2]
            found += [np.maximum(own[:, 0], edges[index]), np.minimum(own[:, 1], edges[index + 1])]
        return np.column_stack(found)


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


def with_whole_pieces(boxes: list[Rows], grid: Grid, peak: int, n_bytes: int) -> tuple[Grid, int]:
    """Hold pieces whole, where they fit into the memory: windows are then put together of fewer parts.

    Parameters
    ----------
    boxes
        Boxes of the windows of each band, in their order.
    grid, peak
        Subdivision of the level, and the largest number of bytes held with it.
    n_bytes
        Bound of the decoded pixels in memory, bytes.

    Returns
    -------
    grid, peak
        Subdivision whose cells are the pieces, and the bytes held with it; or those given.
    """
    whole = replace(grid, cells=grid.pieces)
    most = 0 if grid.free else max(_peak(one, whole) for one in boxes)
    return (whole, most) if most <= n_bytes else (grid, peak)


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

    Pieces are decoded by the threads of ``workers``, some of them ahead of the windows that need them as long as they
    fit into the memory. They are taken over in the order in which windows need them, and so are their errors.

    Parameters
    ----------
    image, level
        Image and the level from which windows are read.
    boxes
        Boxes of the windows, ``(n, 4)``, as in :func:`plan` and in its order.
    grid
        Subdivision of the level.
    workers
        Threads that decode.
    n_bytes
        Bound of the decoded pixels in memory, bytes; at least what :func:`plan` found for one piece after the other.

    Attributes
    ----------
    held_bytes, peak_bytes
        Current and largest size of the decoded pixels in memory, the latter including pieces being read.
    """

    def __init__(self, image: SlideImage, level: int, boxes: Rows, grid: Grid, workers: Workers, n_bytes: int) -> None:
        self._image, self._level, self._boxes, self._grid = image, level, boxes, grid
        self._workers, self._n_bytes = workers, n_bytes
        uses = _Uses(boxes, grid)
        self._left = np.bincount(uses.cell, minlength=grid.shape[0] * grid.shape[1])
        self._pieces = _boxes_of_pieces(boxes, uses, grid)
        self._n_ahead = 0 if grid.free or workers.number == 1 else workers.number if image.parallel(level) else 1
        self._reading: deque[tuple[int, Task[_Piece]]] = deque()
        self._n_started = self._reserved = 0
        self._cells: dict[int, tuple[RGB, int, int]] = {}
        self._lost: list[tuple[Box, DamageError]] = []
        self._block = -1
        self._parts: list[list[list[int]]] = []
        self.held_bytes = self.peak_bytes = 0

    def take(self, i: int, pixels: RGB) -> list[tuple[Box, DamageError]]:
        """Read the pixels of a window.

        Parameters
        ----------
        i
            Position of the window among ``boxes``.
        pixels
            Array for the pixels of the window's box, ``(h, w, 3)``.

        Returns
        -------
        list of tuple
            Chunks of the window that cannot be decoded, with their errors; pixels of them are black.

        Raises
        ------
        ImageError
            The image cannot be read at all.
        """
        parts = self._parts_of(i)
        y, x = parts[0][1], parts[0][3]
        for cell, top, bottom, left, right in parts:
            if cell not in self._cells:
                self._load()
            held, row, column = self._cells[cell]
            pixels[top - y : bottom - y, left - x : right - x] = held[
                top - row : bottom - row, left - column : right - column
            ]
            self._left[cell] -= 1
            if not self._left[cell]:
                del self._cells[cell]
                self.held_bytes -= held.nbytes
        self._read_ahead()
        if not self._lost:
            return []
        y0, y1, x0, x1 = self._boxes[i].tolist()
        return [(box, e) for box, e in self._lost if box[0] < y1 and y0 < box[1] and box[2] < x1 and x0 < box[3]]

    def _parts_of(self, i: int) -> list[list[int]]:
        """Return the parts of a window: their cells, and rows and columns from the first to the end, px of the level.

        They are computed for many windows at once, which is faster than one by one.
        """
        block, place = divmod(i, _BLOCK)
        if block != self._block:
            boxes = self._boxes[block * _BLOCK : (block + 1) * _BLOCK]
            uses = _Uses(boxes, self._grid)
            ends = np.cumsum(np.bincount(uses.window, minlength=len(boxes)))[:-1].tolist()
            parts = uses.overlaps(boxes, self._grid).tolist()
            self._parts = [parts[start:end] for start, end in zip([0, *ends], [*ends, len(parts)], strict=True)]
            self._block = block
        return self._parts[place]

    def _read_ahead(self) -> None:
        """Start to decode pieces that later windows need, in their order, as far as threads and memory allow."""
        while len(self._reading) < self._n_ahead and self._n_started < len(self._pieces):
            if self.held_bytes + self._reserved + self._cost(self._n_started) > self._n_bytes:
                return
            self._start()

    def _cost(self, number: int) -> int:
        """Compute the most bytes that reading a piece takes: its pixels, and the cells into which they are copied."""
        y0, y1, x0, x1 = self._pieces[number].tolist()
        return (y1 - y0) * (x1 - x0) * _CHANNELS * 2

    def _start(self) -> None:
        """Start to decode the next piece."""
        number = self._n_started
        self._reserved += self._cost(number)
        self._reading.append((number, self._workers.submit(self._read, number)))
        self._n_started += 1

    def _load(self) -> None:
        """Wait for the next piece, and hold those of its cells that windows need."""
        if not self._reading:
            self._start()
        number, reading = self._reading.popleft()
        piece = reading.result()
        self._reserved -= self._cost(number)
        self._lost += piece.lost
        self._cells |= piece.cells
        self.held_bytes += sum(part.nbytes for part, _, _ in piece.cells.values())
        self.peak_bytes = max(self.peak_bytes, self.held_bytes + self._reserved + piece.n_bytes)

    def _read(self, number: int) -> _Piece:
        """Decode a piece and cut it into cells, in any thread."""
        grid, width = self._grid, self._grid.shape[1]
        y0, y1, x0, x1 = self._pieces[number].tolist()
        pixels, lost = self._image.read_chunks(self._level, (y0, y1, x0, x1))
        cells = {}
        for cell in self._cells_of(y0, y1, x0, x1):
            # No window has taken anything of a piece that is not read yet.
            if not self._left[cell]:
                continue
            top, left = max(y0, int(grid.cells[0][cell // width])), max(x0, int(grid.cells[1][cell % width]))
            bottom, right = int(grid.cells[0][cell // width + 1]), int(grid.cells[1][cell % width + 1])
            part = pixels[top - y0 : bottom - y0, left - x0 : right - x0]
            # Copied, since a view would keep the whole piece in memory, unless its pixels are in memory anyway.
            part = part if grid.free or part.nbytes == pixels.nbytes else part.copy()
            cells[cell] = (part, top, left)
        return _Piece(cells, lost, pixels.nbytes)

    def _cells_of(self, y0: int, y1: int, x0: int, x1: int) -> list[int]:
        rows, columns = self._grid.cells
        first_row, first_column = (int(np.searchsorted(e, v, side="right")) - 1 for e, v in ((rows, y0), (columns, x0)))
        last_row, last_column = (int(np.searchsorted(e, v, side="left")) for e, v in ((rows, y1), (columns, x1)))
        width = self._grid.shape[1]
        return [i * width + j for i in range(first_row, last_row) for j in range(first_column, last_column)]


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece that was read.

    Parameters
    ----------
    cells
        By number, the pixels of the cells that windows need, with the place of their first pixel (y, x).
    lost
        Chunks that cannot be decoded, with their errors.
    n_bytes
        Size of the pixels of the whole piece.
    """

    cells: dict[int, tuple[RGB, int, int]]
    lost: list[tuple[Box, DamageError]]
    n_bytes: int


def _boxes_of_pieces(boxes: Rows, uses: _Uses, grid: Grid) -> Rows:
    """Compute what is read of each piece, ``(n, 4)``, in the order in which windows need them.

    It is the whole chunks within the bounding box of the piece's windows.
    """
    pieces, first, of_piece = np.unique(uses.piece, return_index=True, return_inverse=True)
    found = np.empty((len(pieces), 4), dtype=np.int64)
    for axis, index in enumerate(np.divmod(pieces, len(grid.pieces[1]) - 1)):
        start, end = np.full(len(pieces), 2**62), np.zeros(len(pieces), dtype=np.int64)
        np.minimum.at(start, of_piece, boxes[uses.window, 2 * axis])
        np.maximum.at(end, of_piece, boxes[uses.window, 2 * axis + 1])
        start, end = np.maximum(start, grid.pieces[axis][index]), np.minimum(end, grid.pieces[axis][index + 1])
        chunks = grid.chunks[axis]
        found[:, 2 * axis] = chunks[np.searchsorted(chunks, start, side="right") - 1]
        found[:, 2 * axis + 1] = chunks[np.searchsorted(chunks, end, side="left")]
    return found[np.argsort(first)]
