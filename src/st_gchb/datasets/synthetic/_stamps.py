"""Draw cells and vessels onto a canvas, in vectorized blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from st_gchb.datasets.synthetic._anatomy import Field
from st_gchb.datasets.synthetic._cells import GLIA, GRANULE, Cells, Vessels

Ids = NDArray[np.int_]
Profile = Callable[[Field, Field, Ids], Field]

_BLOCK = 2_000_000
"""Number of pixels that are processed at once."""


def stamp(canvas: Field, x: Field, y: Field, reach: Field, profile: Profile) -> None:
    """Add many small shapes to a canvas, in place.

    Parameters
    ----------
    canvas
        The canvas, ``(height, width)``.
    x, y
        Centers of the shapes, px, ``(n,)``.
    reach
        Radius beyond which a shape is zero, px, ``(n,)``.
    profile
        Function of the offsets dx and dy from the center in px, ``(m, n_pixels)`` each, and of the indices of the
        ``m`` shapes, that returns the values to add, ``(m, n_pixels)``.
    """
    flat, (height, width) = canvas.reshape(-1), canvas.shape
    order = np.argsort(reach, kind="stable")
    sizes = reach[order]
    start = 0
    while start < len(order):
        # Shapes are sorted by size, so that the equal windows of a block waste little memory.
        half = int(np.ceil(sizes[start] * 1.25)) + 1
        fitting = int(np.searchsorted(sizes, half, side="right"))
        stop = max(start + 1, min(fitting, start + _BLOCK // (2 * half + 1) ** 2))
        ids = order[start:stop]
        oy, ox = (part.ravel() for part in np.mgrid[-half : half + 1, -half : half + 1])
        cols = np.floor(x[ids]).astype(np.int64)[:, None] + ox
        rows = np.floor(y[ids]).astype(np.int64)[:, None] + oy
        dx = (cols + 0.5 - x[ids, None]).astype(np.float32)
        dy = (rows + 0.5 - y[ids, None]).astype(np.float32)
        values = profile(dx, dy, ids)
        inside = (cols >= 0) & (cols < width) & (rows >= 0) & (rows < height) & (values > 1e-3)
        np.add.at(flat, (rows * width + cols)[inside], values[inside])
        start = stop


def _turn(dx: Field, dy: Field, angle: Field) -> tuple[Field, Field]:
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return dx * cos + dy * sin, dy * cos - dx * sin


def _dent(angle: Field, phase: Field) -> Field:
    """Compute a factor near 1 that makes a round outline irregular."""
    return 1 + 0.09 * np.sin(2 * angle + phase[:, :1]) + 0.06 * np.sin(3 * angle + phase[:, 1:])


def _soft(rho: Field, radius_px: Field, edge_px: float = 1.0) -> Field:
    """Compute a soft mask: 1 inside relative radius 1, 0 outside, with an edge ``edge_px`` wide."""
    return np.clip((1 - rho) * radius_px[:, None] / np.float32(edge_px) + 0.5, 0, 1)


def draw_cells(
    cells: Cells, shape: tuple[int, int], um_per_px: float, rng: np.random.Generator
) -> tuple[Field, Field, Field]:
    """Draw cell bodies (0 to 1), pale halos around cells (0 to 1), and hematoxylin in nuclei (optical density).

    Returns
    -------
    tuple of numpy.ndarray
        Bodies, halos and nuclei, ``(height, width)`` each.
    """
    scale = np.float32(1 / um_per_px)
    x, y, a, b = cells.x * scale, cells.y * scale, cells.major * scale, cells.minor * scale
    soma, halo, nuclei = (np.zeros(shape, np.float32) for _ in range(3))
    depth_of_dye = np.exp(rng.normal(0, 0.16, len(x))).astype(np.float32)
    base = np.choose(cells.kind, [1.30, 1.02, 0.26, 1.15]).astype(np.float32) * depth_of_dye
    rim = np.choose(cells.kind, [0.05, 0.22, 0.40, 0.05]).astype(np.float32) * depth_of_dye
    nucleolus = np.choose(cells.kind, [0.0, 0.35, 0.95, 0.0]).astype(np.float32)

    phase = rng.uniform(0, 2 * np.pi, (len(x), 2)).astype(np.float32)
    length, taper = rng.uniform((1.2, 0.16), (2.1, 0.40), (len(x), 2)).astype(np.float32).T

    def nucleus(dx: Field, dy: Field, ids: Ids) -> Field:
        u, v = _turn(dx, dy, cells.angle[ids])
        u, v = u / a[ids, None], v / b[ids, None]
        rho = np.hypot(u, v) * _dent(np.arctan2(v, u), phase[ids])
        clumps = rng.standard_normal(rho.shape, dtype=np.float32)
        dye = base[ids, None] * (1 + 0.16 * clumps) + rim[ids, None] * np.exp(-(((rho - 0.88) / 0.16) ** 2))
        spot = rho * rho * (a * b)[ids, None] / np.float32((1.25 * scale) ** 2)
        return (dye + nucleolus[ids, None] * np.exp(-spot)) * _soft(rho, b[ids])

    stamp(nuclei, x, y, a + 1, nucleus)
    r = cells.soma * scale
    has_body = np.flatnonzero(cells.soma > 0)

    def drop(dx: Field, dy: Field, ids: Ids, grow: float) -> Field:
        """Compute the relative radius in a cell body that tapers toward the surface."""
        u, v = _turn(dx, dy, cells.angle[ids])
        radius = r[ids, None] * np.float32(grow)
        u, v = u / radius, v / radius
        waist = 0.82 - taper[ids, None] * np.clip(u, -1, 2)
        u, v = u / np.where(u > 0, length[ids, None], 0.95), v / np.clip(waist, 0.12, None)
        return np.hypot(u, v) * _dent(np.arctan2(v, u), phase[ids])

    def body(dx: Field, dy: Field, ids: Ids) -> Field:
        ids = has_body[ids]
        return _soft(drop(dx, dy, ids, 1.0), r[ids] * 0.8, 1.4)

    strength = (rng.beta(1.2, 1.6, len(x)) * np.choose(cells.kind, [0.75, 0.5, 1.0, 0.35])).astype(np.float32)

    def around_body(dx: Field, dy: Field, ids: Ids) -> Field:
        ids = has_body[ids]
        return strength[ids, None] * _soft(drop(dx, dy, ids, 1.32), r[ids] * 0.8, 2.0)

    small = np.flatnonzero((cells.kind == GLIA) | (cells.kind == GRANULE))

    def around_nucleus(dx: Field, dy: Field, ids: Ids) -> Field:
        ids = small[ids]
        u, v = _turn(dx, dy, cells.angle[ids])
        return strength[ids, None] * _soft(np.hypot(u / (1.5 * a[ids, None]), v / (1.6 * b[ids, None])), b[ids], 1.6)

    stamp(soma, x[has_body], y[has_body], 2.0 * r[has_body] + 1, body)
    stamp(halo, x[has_body], y[has_body], 2.6 * r[has_body] + 1, around_body)
    stamp(halo, x[small], y[small], 1.7 * a[small] + 1, around_nucleus)
    return np.minimum(soma, 1), np.minimum(halo, 1), np.minimum(nuclei, 2.2)


def draw_vessels(
    vessels: Vessels, shape: tuple[int, int], um_per_px: float, rng: np.random.Generator
) -> tuple[Field, Field, Field]:
    """Draw lumina (0 to 1), walls (0 to 1) and red blood cells (optical density).

    Returns
    -------
    tuple of numpy.ndarray
        Lumina, walls and red blood cells, ``(height, width)`` each.
    """
    scale = np.float32(1 / um_per_px)
    x, y, a, b = vessels.x * scale, vessels.y * scale, vessels.major * scale, vessels.minor * scale
    thick = (1.6 + 0.12 * vessels.minor) * scale
    lumen, wall, blood = (np.zeros(shape, np.float32) for _ in range(3))

    def hole(dx: Field, dy: Field, ids: Ids) -> Field:
        u, v = _turn(dx, dy, vessels.angle[ids])
        # Capillaries are partly closed and slightly curved.
        v = v - 0.1 * u * np.sin(u / (14 * scale))
        openness = np.clip(vessels.minor[ids, None] / 8, 0.3, 1)
        return openness * _soft(np.hypot(u / a[ids, None], v / b[ids, None]), b[ids], 1.2)

    def outer(dx: Field, dy: Field, ids: Ids) -> Field:
        u, v = _turn(dx, dy, vessels.angle[ids])
        v = v - 0.1 * u * np.sin(u / (14 * scale))
        a_out, b_out = (a + thick)[ids], (b + thick)[ids]
        return _soft(np.hypot(u / a_out[:, None], v / b_out[:, None]), b_out, 1.5)

    stamp(lumen, x, y, a + 1, hole)
    stamp(wall, x, y, a + thick + 2, outer)
    rx, ry = _red_cells(vessels, rng)
    size = (rng.uniform(2.6, 3.4, len(rx)) * scale).astype(np.float32)

    def disc(dx: Field, dy: Field, ids: Ids) -> Field:
        rho = np.hypot(dx, dy) / size[ids, None]
        # Red blood cells are thinner in the middle.
        return _soft(rho, size[ids], 1.0) * (0.62 - 0.16 * np.exp(-((rho / 0.5) ** 2)))

    stamp(blood, rx * scale, ry * scale, size + 1, disc)
    lumen = np.minimum(lumen, 1)
    return lumen, np.minimum(wall, 1) * (1 - lumen), np.minimum(blood, 0.9)


def _red_cells(vessels: Vessels, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw positions of red blood cells inside the filled lumina, µm."""
    times = rng.poisson(vessels.filled * vessels.major * vessels.minor / 12.0)
    which = np.repeat(np.arange(len(vessels.x)), times)
    t, r = rng.uniform(0, 2 * np.pi, len(which)), 0.88 * np.sqrt(rng.random(len(which)))
    u, v = r * np.cos(t) * vessels.major[which], r * np.sin(t) * vessels.minor[which]
    angle = vessels.angle[which]
    x = vessels.x[which] + u * np.cos(angle) - v * np.sin(angle)
    y = vessels.y[which] + u * np.sin(angle) + v * np.cos(angle)
    return x.astype(np.float32), y.astype(np.float32)
