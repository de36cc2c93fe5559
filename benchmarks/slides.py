"""Synthetic slides with the geometry of DLPFC: AnnData with features on disk, and image files."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

DLPFC_SPOTS = 3600
"""Approximate number of spots of a DLPFC slice: 60 rows and columns of a hexagonal array."""
PITCH_UM = 100.0
DLPFC_UM_PER_PX = 0.73
"""Approximate size of a pixel of the full-resolution images of DLPFC, µm."""

N_GENES, N_EXPRESSED = 400, 60
N_FEATURES = 2048

PERIOD, TILE = 2048, 256
GLASS = np.array([240, 236, 241], dtype=np.uint8)


def hexagonal(n_spots: int) -> np.ndarray:
    """Compute the centers of a hexagonal array with about as many rows as columns, µm, ``(n_spots, 2)``."""
    columns = math.ceil(math.sqrt(n_spots))
    row, column = np.divmod(np.arange(n_spots), columns)
    return np.column_stack([column * PITCH_UM + row % 2 * PITCH_UM / 2, row * PITCH_UM * math.sqrt(0.75)])


# ---- Tables ----


def table(n_spots: int, folder: Path, n_slices: int = 1, seed: int = 0) -> AnnData:
    """Generate slices with counts of 400 genes and 2,048 features per spot (float16) in a memory-mapped file."""
    rng = np.random.default_rng(seed)
    each = -(-n_spots // n_slices)
    xy = np.tile(hexagonal(each), (n_slices, 1))[:n_spots]
    path = folder / "features.bin"
    features = np.memmap(path, dtype=np.float16, mode="w+", shape=(n_spots, N_FEATURES))
    base = rng.standard_normal((16, N_FEATURES), dtype=np.float32)
    for start in range(0, n_spots, 4096):
        part = features[start : start + 4096]
        waves = np.sin(xy[start : start + 4096, :1] / np.arange(300, 4600, 270.0)).astype(np.float32)
        part[:] = waves @ base + rng.standard_normal(part.shape, dtype=np.float32)
    features.flush()
    adata = counts(n_spots, rng)
    adata.obs["slice"] = pd.Categorical((np.arange(n_spots) // each).astype(str))
    adata.obsm["spatial"] = xy
    adata.obsm["X_patch"] = np.memmap(path, dtype=np.float16, mode="r", shape=features.shape)
    return adata


def counts(n_spots: int, rng: np.random.Generator) -> AnnData:
    """Generate counts in which each spot expresses up to 60 of 400 genes."""
    indices = rng.integers(0, N_GENES, (n_spots, N_EXPRESSED), dtype=np.int32)
    values = rng.integers(1, 5, (n_spots, N_EXPRESSED)).astype(np.float32)
    x = sparse.csr_matrix((values.ravel(), indices.ravel(), np.arange(n_spots + 1) * N_EXPRESSED), (n_spots, N_GENES))
    x.sum_duplicates()
    return AnnData(x, obs=pd.DataFrame(index=[f"s{i}" for i in range(n_spots)]))


# ---- Images ----


@functools.cache
def texture() -> np.ndarray:
    """Generate a periodic H&E-like texture that tiles without seams, ``(PERIOD, PERIOD, 3)``."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    ground = sum(
        ndimage.gaussian_filter(rng.standard_normal((PERIOD, PERIOD)), s, mode="wrap") * s for s in (3, 12, 60)
    )
    ground = 0.35 * np.clip(1 + 0.45 * ground / ground.std(), 0.1, None)
    crowd = ndimage.gaussian_filter(rng.standard_normal((PERIOD, PERIOD)), 80, mode="wrap")
    seeds = rng.random((PERIOD, PERIOD)) < 0.0012 * np.exp(0.9 * crowd / crowd.std())
    nuclei = np.minimum(ndimage.gaussian_filter(seeds.astype(float), 4.5, mode="wrap") * 180, 1.2)
    density = nuclei[..., None] * np.array([0.65, 0.70, 0.29]) + ground[..., None] * np.array([0.07, 0.99, 0.11])
    return (GLASS * np.exp(-density)).astype(np.uint8)


@functools.cache
def encoded_tiles(factor: int) -> list[list[bytes]]:
    """Encode the downsampled texture as JPEG tiles, which are then repeated over a slide."""
    import imagecodecs

    side = PERIOD // factor
    small = texture().reshape(side, factor, side, factor, 3).mean((1, 3)).astype(np.uint8)
    small = np.tile(small, (max(1, TILE // side), max(1, TILE // side), 1))
    return [
        [
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(small[y : y + TILE, x : x + TILE]),
                level=85,
                colorspace="RGB",
                outcolorspace="YCBCR",
                subsampling="420",
            )
            for x in range(0, small.shape[1], TILE)
        ]
        for y in range(0, small.shape[0], TILE)
    ]


def _level(width: int, height: int, factor: int) -> Iterator[bytes]:
    tiles = encoded_tiles(factor)
    for y in range(-(-height // TILE)):
        for x in range(-(-width // TILE)):
            yield tiles[y % len(tiles)][x % len(tiles[0])]


def on_image(n_spots: int, um_per_px: float) -> tuple[AnnData, tuple[int, int]]:
    """Place spots on an image with a margin of 150 µm; return them and the width and height of the image."""
    xy = (hexagonal(n_spots) + 150.0) / um_per_px
    width, height = (math.ceil(side + 150.0 / um_per_px) for side in xy.max(axis=0))
    adata = AnnData(obs=pd.DataFrame(index=[f"s{i}" for i in range(n_spots)]))
    adata.obsm["spatial"] = xy
    return adata, (width, height)


def tiff_slide(path: Path, n_spots: int, um_per_px: float, levels: int = 3) -> AnnData:
    """Write a slide as a pyramid of JPEG tiles, and return its spots."""
    import tifffile

    adata, (width, height) = on_image(n_spots, um_per_px)
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(levels):
            factor = 2**level
            per_cm = 1e4 / (um_per_px * factor)
            _write_level(
                writer,
                (width, height),
                factor,
                subifds=levels - 1 if level == 0 and levels > 1 else None,
                subfiletype=1 if level else 0,
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
            )
    return adata


def svs_slide(path: Path, n_spots: int, um_per_px: float, factors: Sequence[int] = (1, 4)) -> AnnData:
    """Write a slide as Aperio's scanners do (levels in pages, a thumbnail after the first), and return its spots."""
    import tifffile

    adata, (width, height) = on_image(n_spots, um_per_px)
    text = f"Aperio Image Library v12.0.15\r\n{width}x{height} ({TILE}x{TILE}) JPEG/RGB Q=85|MPP = {um_per_px}"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for factor in factors:
            _write_level(writer, (width, height), factor, description=text)
            if factor == 1:
                small = np.ascontiguousarray(texture()[::16, ::16])
                writer.write(small, photometric="rgb", compression="jpeg", description=text, metadata=None)
    return adata


def _write_level(writer: Any, size: tuple[int, int], factor: int, **tags: Any) -> None:
    width, height = (-(-side // factor) for side in size)
    writer.write(
        _level(width, height, factor),
        shape=(height, width, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="ycbcr",
        subsampling=(2, 2),
        compression="jpeg",
        metadata=None,
        **tags,
    )


def jpeg_slide(path: Path, n_spots: int, um_per_px: float) -> AnnData:
    """Write a slide as a single JPEG, and return its spots."""
    from PIL import Image

    adata, (width, height) = on_image(n_spots, um_per_px)
    across, down = -(-width // PERIOD), -(-height // PERIOD)
    pixels = np.tile(texture(), (down, across, 1))[:height, :width]
    Image.fromarray(pixels).save(path, quality=85)
    return adata
