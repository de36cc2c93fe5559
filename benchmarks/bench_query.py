"""Search of the nearest reference spots, relative to the matrix product of queries and reference alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slides import DLPFC_SPOTS

from st_gchb.retrieval import find_neighbors
from st_gchb.retrieval._exact import _KEYS, _QUERIES

WIDTH, K = 128, 400
"""Embedding dimension and number of neighbors of the default model."""


def normalized(n: int, rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal((n, WIDTH), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.benchmark(group="query")
def bench_query(measure, scale, device):
    """Measure searching one slice in references of 1 to 64 slices; linear growth has the exponent 1."""
    rng = np.random.default_rng(0)
    keys, queries = normalized(scale * DLPFC_SPOTS, rng), normalized(DLPFC_SPOTS, rng)
    on_device = [torch.as_tensor(array, device=device) for array in (queries, keys)]

    def product() -> None:
        for part in on_device[0].split(_QUERIES):
            for block in on_device[1].split(_KEYS):
                torch.mm(part, block.T)

    def search() -> None:
        find_neighbors(queries, keys, k=K, device=device)

    find_neighbors(queries[:64], keys[:512], k=K, device=device)
    measure(search, spots=len(keys), rounds=3 if scale < 64 else 2, limits={"torch.mm": product}, queries=len(queries))
