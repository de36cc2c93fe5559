"""Render H&E-like images of synthetic tissue, with the absorption of two dyes as in a stained section."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from st_gchb.datasets.synthetic._anatomy import GRID_UM, LAYERS, Anatomy, Field, by_layer, smooth_noise
from st_gchb.datasets.synthetic._cells import Cells, Vessels
from st_gchb.datasets.synthetic._stamps import draw_cells, draw_vessels

_TEXTURE = 1024


@dataclass(frozen=True)
class Stain:
    """Stain of one slide: optical density per unit of dye in R, G, B, and the color of bare glass in 8-bit RGB."""

    hematoxylin: Field
    eosin: Field
    blood: Field
    glass: Field

    @classmethod
    def random(cls, rng: np.random.Generator, variation: float) -> Stain:
        """Draw a stain; with ``variation`` 0 all slides have the same stain."""
        vectors = np.array([[0.70, 0.72, 0.28], [0.12, 0.80, 0.36], [0.06, 0.72, 0.62]])
        strength = 1 + variation * np.array([[0.10], [0.16], [0.1]]) * rng.uniform(-1, 1, (3, 1))
        hue = 1 + variation * 0.12 * rng.uniform(-1, 1, (3, 3))
        dyes = (vectors * strength * hue).astype(np.float32)
        glass = (np.array([243, 242, 245]) + variation * rng.uniform(-3, 3, 3)).astype(np.float32)
        return cls(dyes[0], dyes[1], dyes[2], glass)


def render(
    anatomy: Anatomy,
    cells: Cells,
    vessels: Vessels,
    um_per_px: float,
    rng: np.random.Generator,
    stain_variation: float = 1.0,
) -> NDArray[np.uint8]:
    """Render a section.

    Parameters
    ----------
    anatomy, cells, vessels
        Content of the section.
    um_per_px
        Pixel size, µm.
    rng
        Random number generator for textures and stain.
    stain_variation
        Variation of the stain between slides; 0 for none.

    Returns
    -------
    numpy.ndarray
        8-bit RGB image, ``(height, width, 3)``.
    """
    width, height = (round(side / um_per_px) for side in anatomy.size_um)
    shape = (height, width)
    tissue = _outline(anatomy, shape, um_per_px, rng)
    eosin, blue = _ground(anatomy, shape, um_per_px, rng)
    soma, halo, nuclei = draw_cells(cells, shape, um_per_px, rng)
    lumen, wall, blood = draw_vessels(vessels, shape, um_per_px, rng)
    eosin *= 1 - 0.72 * np.clip(halo, 0, 1) * (1 - np.clip(soma, 0, 1))
    eosin += 0.22 * soma
    blue += 0.34 * soma
    np.maximum(eosin, 0.85 * wall, out=eosin)
    solid = tissue * (1 - lumen)
    eosin *= solid
    blue *= solid
    blue += nuclei * tissue
    stain = Stain.random(rng, stain_variation)
    density = [
        blue * h + eosin * e + (blood * tissue) * b
        for h, e, b in zip(stain.hematoxylin, stain.eosin, stain.blood, strict=True)
    ]
    light = smooth_noise(rng, shape, max(shape) / 3) * 0.004
    image = np.empty((*shape, 3), np.uint8)
    grain = rng.standard_normal(shape, dtype=np.float32)
    for channel, absorbed in enumerate(density):
        # A section is slightly thicker than the depth of focus.
        seen = ndimage.gaussian_filter(np.exp(-absorbed), 0.55)
        image[..., channel] = np.clip(stain.glass[channel] * (seen + light) + 1.3 * grain, 0, 255)
    return image


def _upsample(field: Field, shape: tuple[int, int]) -> Field:
    image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.array(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _outline(anatomy: Anatomy, shape: tuple[int, int], um_per_px: float, rng: np.random.Generator) -> Field:
    """Render the tissue mask, with a border that is irregular on the scale of cells."""
    soft = _upsample(anatomy.tissue, shape) - 0.5
    fray = 0.16 * smooth_noise(rng, shape, max(1.5, 9 / um_per_px))
    fray += 0.10 * smooth_noise(rng, shape, max(1.5, 3.5 / um_per_px))
    # The noise is bounded, so that it shifts the border without leaving isolated specks on the glass.
    return np.clip((soft + np.clip(fray, -0.38, 0.38)) * 6 + 0.5, 0, 1)


def _ground(
    anatomy: Anatomy, shape: tuple[int, int], um_per_px: float, rng: np.random.Generator
) -> tuple[Field, Field]:
    """Render the background between the cells: eosin, and the faint hematoxylin of the neuropil."""
    depth = _upsample(anatomy.depth, shape)
    coarse_eosin = by_layer([layer.eosin for layer in LAYERS], anatomy.depth)
    # A thin, strongly stained membrane covers the surface.
    membrane = 0.5 * np.exp(-np.clip(anatomy.depth * anatomy.thickness_um, 0, None) / 14.0)
    # Edges of the tissue absorb more dye.
    inward = ndimage.distance_transform_edt(anatomy.tissue > 0.5) * GRID_UM
    eosin = _upsample((coarse_eosin + membrane) * (1 + 0.22 * np.exp(-inward / 22.0)), shape)
    white = _upsample(by_layer([0, 0, 0, 0, 0, 0.15, 1], anatomy.depth), shape)
    texture = _fiber_texture(rng)
    wave = 7.0 * smooth_noise(rng, shape, 45 / um_per_px)
    down = depth * np.float32(anatomy.thickness_um) + wave
    along = _upsample(anatomy.along, shape) + 0.8 * wave
    radial = _look_up(texture, along / 0.9, down / 7.0)
    tangential = _look_up(texture, down / 0.8, along / 14.0)
    fine = rng.standard_normal(shape, dtype=np.float32)
    middle = smooth_noise(rng, shape, max(1.0, 3.0 / um_per_px))
    broad = smooth_noise(rng, shape, 60 / um_per_px)
    eosin *= 1 + 0.07 * broad + 0.13 * middle + 0.07 * fine + (1 - white) * 0.10 * radial + white * 0.26 * tangential
    # Small vacuoles give the neuropil a spongy texture.
    holes = smooth_noise(rng, shape, max(1.0, 2.6 / um_per_px))
    eosin *= 1 - 0.55 * np.clip((holes - 1.9) * 2.5, 0, 1)
    blue = 0.075 + 0.02 * middle + 0.012 * broad
    return np.clip(eosin, 0.02, None), np.clip(blue, 0, None).astype(np.float32)


def _fiber_texture(rng: np.random.Generator) -> Field:
    noise = rng.standard_normal((_TEXTURE, _TEXTURE), dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, 1.2, mode="wrap")
    return smooth / smooth.std()


def _look_up(texture: Field, row: Field, col: Field) -> Field:
    return texture[row.astype(np.int32) % _TEXTURE, col.astype(np.int32) % _TEXTURE]
