"""Inputs of the kernel head: principal components of each part of the features, in context and of the patch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from st_gchb.model._features import Context
from st_gchb.model._projections import LinearProjection, StandardFeatures, fit_map

_HALF = 0.5
"""Exponent of whitening at which distances between spots are neither those of the first components alone, nor mostly
noise of the last ones."""


@dataclass(frozen=True)
class KernelMap:
    """Map of context features to the inputs of the kernel head.

    Rings and surroundings make a prediction smooth: spots with the same neighborhood get the same answer, whatever
    their own patches show. So a part's kernel is the mean of two, of which the second sees the patch alone.

    Parameters
    ----------
    context
        Projection of context features to the components of each part, ``(n_blocks * n_features, n_parts * n_inputs)``.
    patch
        Projection of the features of the spot's own patch to as many, ``(n_features, n_parts * n_inputs)``; None if
        the context is the patch alone, and in models of earlier versions.
    """

    context: LinearProjection
    patch: LinearProjection | None = None

    @property
    def n_kernels(self) -> int:
        """Number of kernels of each part."""
        return 1 if self.patch is None else 2

    def __call__(self, features: Context) -> np.ndarray:
        """Compute the inputs of all spots, ``(n_spots, n_kernels * n_parts * n_inputs)``."""
        inputs = features.through(self.context)
        return inputs if self.patch is None else np.hstack([inputs, features.patches_through(self.patch)])


def fit_kernel_map(
    x: np.ndarray | StandardFeatures, n_blocks: int, n_components: int, *, seed: int, parts: list[slice]
) -> KernelMap:
    """Fit the projections to the half-whitened principal components of each part of the features.

    Parameters
    ----------
    x
        Context features of the training spots, ``(n_spots, n_blocks * n_features)``.
    n_blocks
        Number of blocks of the context: the patch, rings, and surroundings.
    n_components
        Number of components of each part; fewer if a part has fewer features.
    seed
        Seed of the solver.
    parts
        Columns of each encoder and patch size among the features.
    """
    features = StandardFeatures.of(x)
    x = features.x
    blocks = np.arange(x.shape[1]).reshape(n_blocks, -1)
    columns = [blocks[:, part].ravel() for part in parts]
    width = min(n_components, *map(len, columns), len(x) - 1)
    # Standardized features of a single part are those of the whole.
    context = _side_by_side([features] if len(parts) == 1 else _of_columns(x, columns), columns, width, seed)
    if n_blocks == 1:
        return KernelMap(context)
    patch = x[:, blocks[0]]
    own = [blocks[0, part] for part in parts]
    matrix = _side_by_side(_of_columns(patch, own), own, width, seed).matrix
    return KernelMap(context, LinearProjection(context.offset[: blocks.shape[1]], matrix))


def _of_columns(x: np.ndarray, columns: list[np.ndarray]) -> Iterator[StandardFeatures]:
    """Standardize some columns each."""
    return (StandardFeatures(x[:, own]) for own in columns)


def _side_by_side(
    parts: Iterable[StandardFeatures], columns: list[np.ndarray], width: int, seed: int
) -> LinearProjection:
    """Fit a projection to the components of each part's columns, side by side; zeros where there are fewer of them."""
    n_features = sum(map(len, columns))
    matrix = np.zeros((n_features, len(columns) * width), dtype=np.float32)
    offset = np.zeros(n_features, dtype=np.float32)
    for number, (part, own) in enumerate(zip(parts, columns, strict=True)):
        one = fit_map(part, width, whitening=_HALF, seed=seed, dtype=np.float32)
        start = number * width
        matrix[own, start : start + one.matrix.shape[1]] = one.matrix
        offset[own] = one.offset
    return LinearProjection(offset, matrix)
