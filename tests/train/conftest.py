"""Small training slices: random features on square arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse

from st_gchb.train import TrainingData


def square_slices(sizes: tuple[tuple[int, int], ...], seed: int = 0) -> TrainingData:
    """Slices of (rows, columns) spots, 100 px apart, 8 neighbors; all slices lie at the same coordinates."""
    rng = np.random.default_rng(seed)
    coordinates, graphs = [], []
    for n_rows, n_columns in sizes:
        y, x = np.mgrid[:n_rows, :n_columns]
        xy = np.column_stack([x.ravel(), y.ravel()]) * 100.0
        apart = np.linalg.norm(xy[:, None] - xy[None], axis=2)
        graphs.append(sparse.csr_matrix(((apart > 0) & (apart < 160)).astype(np.float32)))
        coordinates.append(xy)
    n = sum(len(xy) for xy in coordinates)
    return TrainingData(
        image=torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32)),
        expression=torch.from_numpy(rng.normal(size=(n, 5)).astype(np.float32)),
        adjacency=sparse.block_diag(graphs, format="csr"),
        groups=np.repeat(np.arange(len(sizes)), [len(xy) for xy in coordinates]),
        coordinates=np.concatenate(coordinates),
    )


@pytest.fixture
def make_data() -> Callable[..., TrainingData]:
    return square_slices


@pytest.fixture
def data() -> TrainingData:
    """Two slices of 8 x 8 and 6 x 7 spots."""
    return square_slices(((8, 8), (6, 7)))
