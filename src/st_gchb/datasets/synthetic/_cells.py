"""Place cells and blood vessels in synthetic tissue."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from st_gchb.datasets.synthetic._anatomy import GRID_UM, LAYERS, Anatomy, Field, by_layer, smooth_noise

GLIA: Final = 0
GRANULE: Final = 1
PYRAMID: Final = 2
ENDOTHELIUM: Final = 3


@dataclass(frozen=True)
class Cells:
    """Nuclei as ellipses; arrays are ``(n_nuclei,)``, lengths in µm, angles in radians."""

    kind: NDArray[np.int_]
    x: Field
    y: Field
    major: Field
    minor: Field
    angle: Field
    soma: Field
    """Radius of the visible cell body, 0 for none."""


@dataclass(frozen=True)
class Vessels:
    """Blood vessels as ellipses; arrays are ``(n_vessels,)``, lengths in µm, angles in radians."""

    x: Field
    y: Field
    major: Field
    minor: Field
    angle: Field
    filled: Field
    """Fraction of the lumen filled by red blood cells."""


def place_cells(anatomy: Anatomy, rng: np.random.Generator) -> tuple[Cells, Vessels]:
    """Draw vessels, and then cells between them with the densities of their layer."""
    vessels = _vessels(anatomy, rng)
    # Cell density varies within a layer; the genes of the program "density" depend on this variation.
    crowd = np.exp(0.33 * smooth_noise(rng, anatomy.tissue.shape, 14) - 0.05)
    densities = ([p.glia for p in LAYERS], [p.granule for p in LAYERS], [p.pyramid for p in LAYERS])
    groups = []
    for sort, per_mm2 in zip((PYRAMID, GRANULE, GLIA), reversed(densities), strict=True):
        field = by_layer(list(per_mm2), anatomy.depth) * anatomy.tissue * (crowd if sort != PYRAMID else 1.0)
        at_x, at_y = _scatter(anatomy, field, rng)
        groups.append((np.full(len(at_x), sort), at_x, at_y))
    kind, x, y = (np.concatenate(parts) for parts in zip(*groups, strict=True))
    keep = _apart(x, y, np.choose(kind, [3.2, 4.0, 8.0])) & ~_within(vessels, x, y, 4.0)
    kind, x, y = kind[keep], x[keep], y[keep]
    lining = _endothelium(vessels, rng)
    return _shape(kind, x, y, lining, anatomy, rng), vessels


def _scatter(anatomy: Anatomy, per_mm2: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw points from a Poisson process whose density is given on the grid."""
    counts = rng.poisson(np.clip(per_mm2, 0, None) * (GRID_UM / 1000) ** 2)
    rows, cols = np.nonzero(counts)
    times = counts[rows, cols]
    rows, cols = np.repeat(rows, times), np.repeat(cols, times)
    jitter = rng.random((2, len(rows)))
    x, y = ((cols + jitter[0]) * GRID_UM).astype(np.float32), ((rows + jitter[1]) * GRID_UM).astype(np.float32)
    inside = anatomy.at(anatomy.tissue, x, y) > 0.6
    return x[inside], y[inside]


def _apart(x: Field, y: Field, room: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Select nuclei that do not overlap: of two overlapping nuclei, the first is kept."""
    keep = np.ones(len(x), dtype=bool)
    if len(x) > 1:
        pairs = KDTree(np.stack([x, y], axis=1)).query_pairs(2 * float(room.max()), output_type="ndarray")
        gap = np.hypot(x[pairs[:, 0]] - x[pairs[:, 1]], y[pairs[:, 0]] - y[pairs[:, 1]])
        close = gap < 0.8 * (room[pairs[:, 0]] + room[pairs[:, 1]])
        keep[pairs[close].max(axis=1)] = False
    return keep


def _vessels(anatomy: Anatomy, rng: np.random.Generator) -> Vessels:
    """Draw few wide vessels and many capillaries, oriented mainly along the depth."""
    wide = _scatter(anatomy, 2.2 * anatomy.tissue, rng)
    thin = _scatter(anatomy, 16.0 * anatomy.tissue, rng)
    x, y = np.concatenate([wide[0], thin[0]]), np.concatenate([wide[1], thin[1]])
    n, n_wide = len(x), len(wide[0])
    is_wide = np.arange(n) < n_wide
    minor = np.where(is_wide, rng.uniform(9, 26, n), rng.uniform(1.8, 3.6, n))
    ratio = np.where(is_wide, rng.uniform(1.0, 2.4, n), rng.uniform(1.0, 9.0, n))
    slope_x, slope_y = anatomy.slope()
    down = np.arctan2(anatomy.at(slope_y, x, y), anatomy.at(slope_x, x, y))
    angle = down + rng.normal(0, 0.35, n)
    filled = np.where(rng.random(n) < 0.45, rng.uniform(0.3, 0.95, n), 0.0)
    vessels = Vessels(*(np.asarray(part, np.float32) for part in (x, y, minor * ratio, minor, angle, filled)))
    # Drop capillaries inside the lumen of a wide vessel.
    free = is_wide | ~_within(_pick(vessels, is_wide), vessels.x, vessels.y, 12.0)
    return _pick(vessels, free)


def _pick(vessels: Vessels, keep: NDArray[np.bool_]) -> Vessels:
    return Vessels(*(getattr(vessels, field.name)[keep] for field in fields(vessels)))


def _within(vessels: Vessels, x: Field, y: Field, margin: float) -> NDArray[np.bool_]:
    """Check which points lie inside a vessel or within ``margin`` of it, µm."""
    hit = np.zeros(len(x), dtype=bool)
    if len(vessels.x) and len(x):
        tree = KDTree(np.stack([x, y], axis=1))
        near = tree.query_ball_point(np.stack([vessels.x, vessels.y], axis=1), vessels.major + margin)
        for i, ids in enumerate(near):
            dx, dy = x[ids] - vessels.x[i], y[ids] - vessels.y[i]
            u = dx * np.cos(vessels.angle[i]) + dy * np.sin(vessels.angle[i])
            v = dy * np.cos(vessels.angle[i]) - dx * np.sin(vessels.angle[i])
            inside = (u / (vessels.major[i] + margin)) ** 2 + (v / (vessels.minor[i] + margin)) ** 2 < 1
            hit[np.asarray(ids, dtype=int)[inside]] = True
    return hit


def _endothelium(vessels: Vessels, rng: np.random.Generator) -> tuple[Field, Field, Field]:
    """Draw flat nuclei on the walls of vessels: x, y in µm, and angle in radians."""
    turn = 2 * np.pi * np.sqrt((vessels.major**2 + vessels.minor**2) / 2)
    times = np.maximum(1, rng.poisson(turn / 32.0)) if len(turn) else np.zeros(0, int)
    which = np.repeat(np.arange(len(vessels.x)), times)
    t = rng.uniform(0, 2 * np.pi, len(which))
    a, b, angle = vessels.major[which] + 2.0, vessels.minor[which] + 2.0, vessels.angle[which]
    u, v = a * np.cos(t), b * np.sin(t)
    x = vessels.x[which] + u * np.cos(angle) - v * np.sin(angle)
    y = vessels.y[which] + u * np.sin(angle) + v * np.cos(angle)
    tangent = angle + np.arctan2(b * np.cos(t), -a * np.sin(t))
    return x.astype(np.float32), y.astype(np.float32), tangent.astype(np.float32)


def _shape(
    kind: NDArray[np.int_],
    x: Field,
    y: Field,
    lining: tuple[Field, Field, Field],
    anatomy: Anatomy,
    rng: np.random.Generator,
) -> Cells:
    """Draw size and orientation of nuclei, and the bodies of pyramidal cells."""
    n, n_lining = len(x), len(lining[0])
    slope_x, slope_y = anatomy.slope()
    up = np.arctan2(-anatomy.at(slope_y, x, y), -anatomy.at(slope_x, x, y))
    depth = anatomy.at(anatomy.depth, x, y)
    white = by_layer([0, 0, 0, 0, 0, 0, 1], depth)
    soma = by_layer([layer.soma_um for layer in LAYERS], depth) * np.exp(rng.normal(0, 0.16, n))
    radius = np.choose(kind, [rng.normal(3.1, 0.35, n), rng.normal(3.9, 0.4, n), 0.52 * soma])
    ratio = 1 + np.choose(kind, [rng.gamma(2, 0.12, n), rng.gamma(2, 0.07, n), rng.gamma(2, 0.08, n)])
    # Pyramidal cells point to the surface; glia of the white matter lie in rows between the fibers.
    spread = np.choose(kind, [np.where(white > 0.5, 0.3, 3.0), np.full(n, 3.0), np.full(n, 0.32)])
    lean = up + np.where((kind == GLIA) & (white > 0.5), np.pi / 2, 0.0) + rng.normal(0, 1, n) * spread
    radius = np.clip(radius, 2.0, None)
    parts = {
        "x": np.concatenate([x, lining[0]]),
        "y": np.concatenate([y, lining[1]]),
        "major": np.concatenate([radius * np.sqrt(ratio), rng.uniform(4.5, 7.0, n_lining)]),
        "minor": np.concatenate([radius / np.sqrt(ratio), rng.uniform(1.3, 2.0, n_lining)]),
        "angle": np.concatenate([lean, lining[2]]),
        "soma": np.concatenate([np.where(kind == PYRAMID, soma, 0.0), np.zeros(n_lining)]),
    }
    kinds = np.concatenate([kind, np.full(n_lining, ENDOTHELIUM)])
    return Cells(kind=kinds, **{name: part.astype(np.float32) for name, part in parts.items()})
