"""Tiny made-up tissue for published methods: expression follows the color of the patch, and so do the features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from st_gchb.baselines import Spots
from st_gchb.io import open_image
from st_gchb.pp import Slice
from st_gchb.pp.patches import PatchPixels

PITCH_PX = 40
"""Distance of neighboring spots, 100 µm; the tissue ends 200 µm beyond the outer spots."""
UM_PER_PX = 2.5
MARGIN_PX = 80


def made_up_spots(
    n_slices: int = 2,
    n_rows: int = 5,
    n_cols: int = 4,
    *,
    n_genes: int = 6,
    n_features: int = 12,
    seed: int = 0,
    pixels: bool = True,
) -> Spots:
    """Make spots on a square array, each on a patch of its own color.

    ``targets`` are log1p of Poisson ``counts`` whose log rates are linear in the color; ``features`` are linear in the
    color too, with columns of different mean and spread. Genes and features of two calls with the same ``seed`` agree
    with the color in the same way, so that calls with other numbers of spots give held-out spots.
    """
    rules = np.random.default_rng(seed)
    to_genes, to_features = rules.normal(size=(3, n_genes)), rules.normal(size=(3, n_features))
    spread, offset = rules.uniform(0.1, 10, n_features), rules.normal(0, 5, n_features)
    rng = np.random.default_rng([seed, n_slices, n_rows, n_cols])
    n = n_rows * n_cols
    rows, cols = np.divmod(np.arange(n), n_cols)
    positions = np.column_stack([cols, rows]) * float(PITCH_PX) + MARGIN_PX
    color = rng.uniform(-1, 1, (n_slices * n, 3))
    slides = []
    for number in range(n_slices):
        own = np.arange(number * n, (number + 1) * n)
        painted = np.full((n_rows * PITCH_PX + 2 * MARGIN_PX, n_cols * PITCH_PX + 2 * MARGIN_PX, 3), 220.0)
        for (x, y), shade in zip(positions.astype(int), color[own], strict=True):
            half = PITCH_PX // 2
            painted[y - half : y + half, x - half : x + half] = 128 + 90 * shade
        noisy = np.clip(painted + rng.normal(0, 8, painted.shape), 0, 255).astype(np.uint8)
        slides.append(Slice(f"S{number + 1}", own, positions, open_image(noisy), um_per_px=UM_PER_PX))
    counts = rng.poisson(np.exp(1.5 + color @ to_genes)).astype(np.float32)
    one = sparse.kron(sparse.eye(n_rows), _path(n_cols)) + sparse.kron(_path(n_rows), sparse.eye(n_cols))
    noise = rng.normal(0, 0.05, (n_slices * n, n_features))
    return Spots(
        slices=np.repeat([f"S{number + 1}" for number in range(n_slices)], n),
        positions=np.tile(positions, (n_slices, 1)),
        graph=sparse.csr_matrix(sparse.kron(sparse.eye(n_slices), one)),
        features=((color @ to_features + noise) * spread + offset).astype(np.float32),
        read=(lambda **size: PatchPixels(slides, **size)) if pixels else None,
        targets=np.log1p(counts),
        counts=counts,
    )


def _path(n: int) -> sparse.spmatrix:
    return sparse.diags([np.ones(n - 1), np.ones(n - 1)], [-1, 1])


@pytest.fixture(scope="session")
def make_spots() -> Callable[..., Spots]:
    """Get the function that makes tiny tissue of any size: ``make_spots(n_slices=1, n_rows=5, n_cols=4)``."""
    return made_up_spots


@pytest.fixture(scope="session")
def spots(make_spots: Callable[..., Spots]) -> Spots:
    """Two slices of 5 x 4 spots with 6 genes, 12 features and pixels."""
    return make_spots()


@pytest.fixture(scope="session")
def few_spots(make_spots: Callable[..., Spots]) -> Spots:
    """Twenty spots of two slices, which any method must be able to learn by heart."""
    return make_spots(2, 5, 2)


@pytest.fixture(scope="session")
def correlation() -> Callable[[Any, Any], float]:
    """Get the mean over genes of the correlation of measured and predicted expression."""
    from st_gchb.metrics import pearson

    return lambda measured, predicted: float(pearson(measured, predicted).mean())
