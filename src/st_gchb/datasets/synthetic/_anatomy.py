"""Simulate the layered anatomy of cortex: a tissue mask, and the cortical depth of each point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree

Field = NDArray[np.floating[Any]]

GRID_UM: Final = 10.0
"""Step of the coarse grid on which anatomy is computed, µm."""


class Layer(NamedTuple):
    """Appearance of one cortical layer."""

    name: str
    thickness: float
    """Fraction of the total depth."""
    glia: float
    """Small dark nuclei per mm²."""
    granule: float
    """Medium-sized nuclei of small neurons per mm²."""
    pyramid: float
    """Large pale nuclei of pyramidal neurons per mm²."""
    soma_um: float
    """Radius of a pyramidal cell body, µm."""
    eosin: float
    """Optical density of eosin between the cells."""


LAYERS: Final = (
    Layer("L1", 0.09, 260, 50, 0, 6.0, 0.36),
    Layer("L2", 0.08, 300, 3200, 120, 6.5, 0.42),
    Layer("L3", 0.20, 320, 350, 620, 8.0, 0.46),
    Layer("L4", 0.09, 350, 4200, 60, 6.5, 0.36),
    Layer("L5", 0.16, 350, 300, 420, 12.0, 0.50),
    Layer("L6", 0.15, 450, 1400, 150, 7.0, 0.56),
    Layer("WM", 0.23, 1900, 20, 0, 6.0, 0.86),
)
LAYER_NAMES: Final = tuple(layer.name for layer in LAYERS)
_EDGES: Final = np.cumsum([0.0, *(layer.thickness for layer in LAYERS)])


@dataclass(frozen=True)
class Anatomy:
    """Fields on a coarse grid of step ``GRID_UM``, sampled at cell centers, ``(grid_height, grid_width)`` each.

    Parameters
    ----------
    tissue
        1 inside the tissue, 0 on bare glass.
    depth
        0 at the surface, 1 at the deep end of the white matter.
    along
        Position along the layers, µm.
    thickness_um
        Length that corresponds to a depth of 1, µm.
    """

    tissue: Field
    depth: Field
    along: Field
    thickness_um: float

    @property
    def size_um(self) -> tuple[float, float]:
        """Width and height of the field, µm."""
        return self.tissue.shape[1] * GRID_UM, self.tissue.shape[0] * GRID_UM

    def slope(self) -> tuple[Field, Field]:
        """Compute the gradient of the depth along x and y, per grid cell."""
        down, right = np.gradient(self.depth)
        return np.asarray(right, np.float32), np.asarray(down, np.float32)

    def at(self, field: Field, x_um: NDArray[np.floating], y_um: NDArray[np.floating]) -> Field:
        """Sample a field at points by linear interpolation."""
        places = np.stack([np.asarray(y_um) / GRID_UM - 0.5, np.asarray(x_um) / GRID_UM - 0.5])
        return ndimage.map_coordinates(field, places, order=1, mode="nearest", output=np.float32)


def memberships(depth: NDArray[np.floating], softness: float = 0.012) -> Field:
    """Compute soft memberships of the layers at given depths.

    Parameters
    ----------
    depth
        Depths, 0 to 1, of any shape.
    softness
        Width of the transition between two layers, in units of depth.

    Returns
    -------
    numpy.ndarray
        ``(n_layers, *depth.shape)``, summing to 1 over the layers.
    """
    steps = [1.0 / (1.0 + np.exp(-(np.asarray(depth) - edge) / softness)) for edge in _EDGES[1:-1]]
    above = [np.ones_like(steps[0]), *steps]
    below = [*steps, np.zeros_like(steps[0])]
    return np.stack([a - b for a, b in zip(above, below, strict=True)]).astype(np.float32)


def by_layer(values: list[float], depth: NDArray[np.floating]) -> Field:
    """Convert values per layer to a field, interpolated at the borders between layers."""
    return np.tensordot(np.asarray(values, np.float32), memberships(depth), axes=1)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Field:
    """Draw a random field of mean 0, variance about 1 and correlation length ``scale`` cells, ``(height, width)``."""
    height, width = shape
    small = rng.standard_normal((int(np.ceil(height / scale)) + 3, int(np.ceil(width / scale)) + 3), dtype=np.float32)
    image = Image.fromarray(small)
    field = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=_inner(small, shape, scale)))
    return field * np.float32(1.5)  # interpolation reduces the standard deviation by a third


def _inner(small: Field, shape: tuple[int, ...], scale: float) -> tuple[float, float, float, float]:
    return (1.0, 1.0, min(1.0 + shape[1] / scale, small.shape[1]), min(1.0 + shape[0] / scale, small.shape[0]))


def random_anatomy(width_um: float, height_um: float, key: tuple[int, int]) -> Anatomy:
    """Draw a piece of folded cortex: the same gyrus in every slice, with its own bending, rotation and outline.

    Parameters
    ----------
    width_um, height_um
        Size of the field, µm.
    key
        Seed of the tissue, shared by all its slices, and index of the slice.

    Returns
    -------
    Anatomy
        Anatomy of the slice.
    """
    shared, rng = np.random.default_rng([key[0], 11]), np.random.default_rng([key[0], 12, key[1]])
    shape = (max(4, round(height_um / GRID_UM)), max(4, round(width_um / GRID_UM)))
    y, x = (np.indices(shape, dtype=np.float32) + 0.5) * GRID_UM
    side = float(min(width_um, height_um))
    angle = shared.uniform(-0.08, 0.08) + rng.uniform(-0.2, 0.2)
    dx, dy = x - width_um / 2, y - height_um / 2
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    # Layers are arcs around a point far below the surface, distorted by smooth noise on two scales.
    below = shared.uniform(0.95, 1.25) * side * rng.uniform(0.92, 1.08)
    off = shared.uniform(-0.2, 0.2) * side + rng.uniform(-0.08, 0.08) * side
    radius = np.hypot(u - off, v - below)
    bend = side / GRID_UM
    warp = 0.022 * side * smooth_noise(rng, shape, bend / 2.5) + 0.006 * side * smooth_noise(rng, shape, bend / 8)
    top = below + 0.42 * side
    thickness = 0.88 * side
    depth = (top - radius + warp) / thickness
    along = np.arctan2(u - off, below - v) * top
    inside = np.minimum(depth * thickness, 0.44 * width_um - np.abs(u))
    inside = np.minimum(inside, 0.43 * height_um - v)
    # The surface under the pia is smooth; cut edges are ragged.
    ragged = (14 * smooth_noise(rng, shape, 6) + 9 * smooth_noise(rng, shape, 2.5)) * np.where(depth < 0.06, 0.25, 1.0)
    tissue = np.clip((inside + ragged) / GRID_UM + 0.5, 0, 1)
    tissue = tissue * _tears(x, y, inside, rng)
    return Anatomy(tissue.astype(np.float32), depth.astype(np.float32), along.astype(np.float32), thickness)


def _tears(x: Field, y: Field, inside: Field, rng: np.random.Generator) -> Field:
    """Draw tears: a mask that is 0 in clefts and holes, and 1 elsewhere."""
    keep = np.ones(x.shape, np.float32)
    rows, cols = np.nonzero(inside > 150)
    for _ in range(int(rng.integers(1, 4)) if len(rows) else 0):
        pick = int(rng.integers(len(rows)))
        angle, length, width = rng.uniform(0, np.pi), rng.uniform(80, 260), rng.uniform(10, 26)
        dx, dy = x - x[rows[pick], cols[pick]], y - y[rows[pick], cols[pick]]
        u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        v = v + 25 * np.sin(u / 70 + rng.uniform(0, 6)) + 6 * smooth_noise(rng, x.shape, 3)
        gap = width * np.clip(1 - (u / length) ** 2, 0, None)
        keep *= np.clip((np.abs(v) - gap) / GRID_UM + 0.5, 0, 1)
    return keep


def anatomy_of(
    centers_um: NDArray[np.floating],
    layers: NDArray[np.str_],
    size_um: tuple[float, float],
    pitch_um: float,
    key: tuple[int, int],
) -> Anatomy:
    """Construct the anatomy around spots whose layers are known.

    Parameters
    ----------
    centers_um
        Centers of the spots under tissue as x, y, ``(n_spots, 2)``, µm.
    layers
        Name of each spot's layer, ``(n_spots,)``; spots without one of ``LAYER_NAMES`` take that of the nearest
        labeled spot.
    size_um
        Width and height of the field, µm.
    pitch_um
        Distance between neighboring spots, µm.
    key
        Seed of the tissue, and index of the slice.

    Returns
    -------
    Anatomy
        Anatomy of the slice.
    """
    rng = np.random.default_rng([key[0], 13, key[1]])
    shape = (round(size_um[1] / GRID_UM), round(size_um[0] / GRID_UM))
    y, x = (np.indices(shape, dtype=np.float32) + 0.5) * GRID_UM
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    distance = np.asarray(KDTree(centers_um).query(points)[0]).reshape(shape)
    # The noise is bounded, so that no holes appear between spots.
    ragged = pitch_um * np.clip(0.12 * smooth_noise(rng, shape, 6), -0.2, 0.2)
    tissue = np.clip((0.8 * pitch_um - distance + ragged) / GRID_UM + 0.5, 0, 1)
    known = np.isin(layers, LAYER_NAMES)
    codes = np.array([LAYER_NAMES.index(name) for name in layers[known]])
    nearest = np.asarray(KDTree(centers_um[known]).query(points)[1])
    depth = ndimage.gaussian_filter(_depth_in_layers(codes[nearest].reshape(shape)), 0.5 * pitch_um / GRID_UM)
    # Depth increases mainly in one direction; the perpendicular direction runs along the layers.
    down, right = (np.asarray(part) for part in np.gradient(depth))
    slope_x, slope_y = float(right[tissue > 0.5].mean()), float(down[tissue > 0.5].mean())
    length = float(np.hypot(slope_x, slope_y)) or 1.0
    along = (x * -slope_y + y * slope_x) / length
    thickness = GRID_UM / max(float(np.hypot(down, right)[tissue > 0.5].mean()), 1e-4)
    return Anatomy(tissue.astype(np.float32), depth.astype(np.float32), along.astype(np.float32), thickness)


def _depth_in_layers(codes: NDArray[np.int_]) -> Field:
    """Interpolate the depth between the shallow and the deep border of each layer, from a map of layer indices."""
    depth = np.zeros(codes.shape, np.float32)
    for code in np.unique(codes):
        here, shallower, deeper = codes == code, codes < code, codes > code
        from_top, to_bottom = ndimage.distance_transform_edt(~shallower), ndimage.distance_transform_edt(~deeper)
        # The first and the last layer have only one border; they extend to the edge of the field.
        if not shallower.any() and not deeper.any():
            part = np.full(codes.shape, 0.5)
        elif not shallower.any():
            part = 1 - to_bottom / to_bottom[here].max()
        elif not deeper.any():
            part = from_top / from_top[here].max()
        else:
            part = from_top / (from_top + to_bottom)
        depth[here] = (_EDGES[code] + part * (_EDGES[code + 1] - _EDGES[code]))[here]
    return depth
