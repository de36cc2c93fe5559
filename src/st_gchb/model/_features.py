"""Context features: neighborhood aggregation, and projections of it.

Context features are held in memory where they fit, and computed block by block otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from st_gchb._logging import logger
from st_gchb.model._projections import FeatureSpace, LinearProjection, by_rows
from st_gchb.pp.patches import FeatureRows, PatchMaps
from st_gchb.train import edges_between, with_halo

SHRINKAGE_SPOTS = 20
"""Spots at which a slice's mean features weigh as much as the training slices' mean."""


@dataclass(frozen=True)
class NeighborhoodAggregator:
    r"""Neighborhood-aggregated features: a spot's own, the mean of each ring of neighbors, and of its surroundings.

    With the features X and the mean over neighbors P, which is the adjacency with rows divided by their sums, they are

    .. math:: \bigl[ X, \; P X, \; P^2 X, \; \dots, \; P^{n} X, \; P^{s} X \bigr]

    for n rings and surroundings of s steps. The mean distance of the spots that P^s averages from the spot itself
    grows with the root of s: of 12 steps, it is about three spot distances.

    Parameters
    ----------
    n_rings
        Number of rings; 0 uses the spot alone.
    center
        Mean features of the training spots, ``(n_features,)``, if features are centered per slice, else ``None``.
        Stain and scanner differ more between slides than tissue does between spots.
    surroundings
        Number of steps of the surroundings, more than ``n_rings``; 0 leaves them out.
    """

    n_rings: int
    center: np.ndarray | None = None
    surroundings: int = 0

    @property
    def steps(self) -> tuple[int, ...]:
        """Number of means over neighbors behind each block of context features, ascending from 0."""
        rings = tuple(range(self.n_rings + 1))
        return (*rings, self.surroundings) if self.surroundings else rings

    def __call__(self, features: np.ndarray, adjacency: sparse.csr_matrix, slices: np.ndarray) -> np.ndarray:
        """Aggregate features to context features, ``(n_spots, n_blocks * n_features)``, a block for each of ``steps``.

        Parameters
        ----------
        features
            Patch features, ``(n_spots, n_features)``.
        adjacency
            Spot graph, ``(n_spots, n_spots)``.
        slices
            Slice of each spot, ``(n_spots,)``.
        """
        width = features.shape[1]
        # Filled in place: for a large slide, this is by far the largest array.
        result = np.empty((len(features), len(self.steps) * width), dtype=np.float32)
        result[:, :width] = features if self.center is None else centered(features, slices, self.center)
        for block, (inner, outer) in enumerate(pairwise(self.steps)):
            start = block * width
            mean = repeated_mean(result[:, start : start + width], adjacency, outer - inner)
            result[:, start + width : start + 2 * width] = mean
        return result


def centered(features: np.ndarray, slices: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Subtract from features the mean of their slice, ``(n_spots, n_features)``.

    Since few spots give a poor estimate of their slice's mean, it is shrunk toward ``center``, halfway for a slice of
    20 spots.
    """
    result = np.array(features, dtype=np.float32)
    for name in np.unique(slices):
        rows = np.flatnonzero(slices == name)
        share = len(rows) / (len(rows) + SHRINKAGE_SPOTS)
        result[rows] -= (share * features[rows].mean(0, dtype=np.float64) + (1 - share) * center).astype(np.float32)
    return result


def neighbor_mean(features: np.ndarray, adjacency: sparse.csr_matrix) -> np.ndarray:
    """Average the neighbors' features, ``(n_spots, n_features)``; a spot without neighbors keeps its own."""
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    graph, dense = adjacency.tocsr(), np.ascontiguousarray(features)

    def part(rows: slice) -> np.ndarray:
        mean = graph[rows] @ dense
        mean /= np.maximum(degree[rows], 1.0)[:, None]
        alone = degree[rows] <= 0
        if alone.any():
            mean[alone] = dense[rows][alone]
        return mean

    return by_rows(part, len(features), features.shape[1])


def repeated_mean(features: np.ndarray, adjacency: sparse.csr_matrix, times: int) -> np.ndarray:
    """Take the mean over neighbors some times in a row, ``(n_spots, n_features)``."""
    for _ in range(times):
        features = neighbor_mean(features, adjacency)
    return features


PLAIN_BYTES = 2**30
"""Size up to which context features are held in memory: 43,690 spots with 2,048 features and two rings."""

_SAMPLE_BYTES = 2**29
"""Size of the context features on which projections are fitted if not all are held: those of 21,845 such spots."""

_RANDOM_STEPS, _ISLAND_STEPS = 3, 4
"""Largest number of steps with which spots are drawn one by one, and steps from the center of an island to its rim."""

_COLUMNS = 64
"""Number of components that are computed at once."""

_COMPONENT_BYTES = 2**28
"""Size of the components of all blocks that are held for one pass over the patch features."""


class Context:
    """Context features of spots, ``(n_spots, n_context)``, held in memory.

    Parameters
    ----------
    values
        The features.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_spots, n_context)``."""
        return self.values.shape[0], self.values.shape[1]

    def sample(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the spots on which projections are fitted, here all of them, and their context."""
        return np.arange(len(self.values)), self.values

    def through(self, fixed: LinearProjection) -> np.ndarray:
        """Project the context of all spots, ``(n_spots, n_out)``."""
        return fixed(self.values)

    def patches_through(self, fixed: LinearProjection) -> np.ndarray:
        """Project the features of all spots' own patches, ``(n_spots, n_out)``: the first block of their context."""
        return fixed(self.values[:, : len(fixed.offset)])

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Return the context of some spots, ``(n, n_context)``."""
        rows: np.ndarray = self.values[index]
        return rows


class BlockedContext(Context):
    """Context features that are never held, but computed from the patch features on demand.

    Projection and mean over neighbors are both linear, so features are projected first, and the means of the rings are
    taken over components: a spot needs one number per component instead of (n_rings + 1) x 2,048. That takes less
    memory and, with wide surroundings, less time.

    Parameters
    ----------
    features
        Patch features.
    adjacency
        Spot graph, ``(n_spots, n_spots)``.
    slices
        Slice of each spot.
    rule
        Aggregation of neighborhoods.
    """

    def __init__(
        self, features: FeatureRows, adjacency: sparse.csr_matrix, slices: np.ndarray, rule: NeighborhoodAggregator
    ) -> None:
        self.features, self.adjacency, self.steps = features, adjacency, rule.steps
        names, self._codes = np.unique(slices, return_inverse=True)
        self._offsets = np.zeros((len(names), features.shape[1]), dtype=np.float32)
        if rule.center is not None:
            count = np.bincount(self._codes)[:, None]
            share = count / (count + SHRINKAGE_SPOTS)
            own = slice_sums(features, self._codes, len(names)) / count
            self._offsets = (share * own + (1 - share) * rule.center).astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_spots, n_context)``."""
        return len(self.features), self.features.shape[1] * len(self.steps)

    def sample(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw spots uniformly over all slices, and return their ascending rows and their context.

        With wide surroundings, islands of neighboring spots are drawn: for single spots, nearly all would be needed.
        """
        n_spots, width = self.shape
        n_drawn = max(2, min(n_spots, _SAMPLE_BYTES // (4 * width)))
        drawn = np.random.default_rng(seed).permutation(n_spots)
        wide = self.steps[-1] > _RANDOM_STEPS
        islands = self._islands(drawn, n_drawn) if wide else [np.sort(drawn[:n_drawn])]
        if n_drawn < n_spots:
            logger.info("Input maps are fitted on %d of %d spots, drawn with the model's seed.", n_drawn, n_spots)
        parts = [part for island in islands for part in np.array_split(island, -(-len(island) // 512))]
        chosen = np.concatenate(parts)
        ascending = np.argsort(chosen)
        return chosen[ascending], np.concatenate([self.rows(part) for part in parts])[ascending]

    def _islands(self, centers: np.ndarray, n_drawn: int) -> list[np.ndarray]:
        """Draw islands of neighboring spots, which share most of their surroundings, around random centers."""
        taken = np.zeros(len(self.features), dtype=bool)
        islands, n_taken = [], 0
        for center in centers:
            if n_taken >= n_drawn:
                break
            nodes = with_halo(self.adjacency, np.array([center]), _ISLAND_STEPS)
            nodes = nodes[~taken[nodes]][: n_drawn - n_taken]
            if len(nodes):
                taken[nodes] = True
                n_taken += len(nodes)
                islands.append(np.sort(nodes))
        return islands

    def through(self, fixed: LinearProjection) -> np.ndarray:
        """Project the context of all spots, ``(n_spots, n_out)``."""
        result = np.empty((len(self.features), fixed.matrix.shape[-1]), dtype=np.float32)
        if fixed.matrix.ndim == 1:
            for where, _ in self.features.blocks():
                result[where] = fixed(self.rows(np.arange(where.start, where.stop)))
            return result
        per_column = 4 * len(self.features) * len(self.steps)
        at_once = max(_COLUMNS, _COMPONENT_BYTES // per_column // _COLUMNS * _COLUMNS)
        for start in range(0, result.shape[1], at_once):
            columns = slice(start, min(start + at_once, result.shape[1]))
            result[:, columns] = self._components(fixed.matrix[:, columns])
        result -= fixed.offset @ fixed.matrix
        return result

    def patches_through(self, fixed: LinearProjection) -> np.ndarray:
        """Project the features of all spots' own patches, ``(n_spots, n_out)``."""
        result = np.empty((len(self.features), fixed.matrix.shape[1]), dtype=np.float32)
        parts = [*_parts_of(fixed.matrix[None])]
        for where, block in self.features.blocks():
            own = block - self._offsets[self._codes[where]]
            for columns, taken, (weight,) in parts:
                result[where, columns] = own[:, taken] @ weight
        result -= fixed.offset @ fixed.matrix
        return result

    def _components(self, matrix: np.ndarray) -> np.ndarray:
        """Multiply the context features by some columns of a projection, in one pass over the patch features."""
        weights = np.stack(np.split(matrix, len(self.steps)))
        rings = [np.empty((len(self.features), matrix.shape[1]), dtype=np.float32) for _ in weights]
        parts = [*_parts_of(weights)]
        for where, block in self.features.blocks():
            own = block - self._offsets[self._codes[where]]
            for columns, taken, part in parts:
                seen = own[:, taken]
                for ring, weight in zip(rings, part, strict=True):
                    ring[where, columns] = seen @ weight
        # From the outermost inward, so that each mean is computed once.
        total = rings.pop()
        for inner, outer in reversed([*pairwise(self.steps)]):
            total = repeated_mean(total, self.adjacency, outer - inner)
            total += rings.pop()
        return total

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Compute the context of some spots, ``(n, n_context)``, from the features of these and their neighborhood."""
        nodes = with_halo(self.adjacency, np.asarray(index), self.steps[-1])
        source, target = edges_between(self.adjacency, nodes)
        shape = (len(nodes), len(nodes))
        graph = sparse.csr_matrix((np.ones(len(source), np.float32), (source, target)), shape=shape)
        rings = [self.features[nodes] - self._offsets[self._codes[nodes]]]
        for inner, outer in pairwise(self.steps):
            # Means at the border lack neighbors, but do not enter those of the requested spots.
            rings.append(repeated_mean(rings[-1], graph, outer - inner))
        return np.hstack([ring[: len(index)] for ring in rings])


def _parts_of(weights: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Split weights ``(n_blocks, n_features, n_components)``: some components, the features they take, their weights.

    The components of one encoder and patch size take nothing from the features of the others.
    """
    for start in range(0, weights.shape[2], _COLUMNS):
        columns = slice(start, min(start + _COLUMNS, weights.shape[2]))
        nonzero = np.flatnonzero(weights[:, :, columns].any(axis=(0, 2)))
        taken = slice(nonzero[0], nonzero[-1] + 1) if len(nonzero) else slice(0)
        yield columns, taken, np.ascontiguousarray(weights[:, taken, columns])


@dataclass(frozen=True)
class MappedRows:
    """Inputs of the image branch, computed when a training step asks for them.

    Without a projection to components, inputs are as wide as the context, and may not fit into memory.
    """

    context: Context
    fixed: LinearProjection

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_spots, n_inputs)``."""
        return self.context.shape

    def __getitem__(self, index: Tensor) -> Tensor:
        """Compute the inputs of some spots, ``(n, n_inputs)``."""
        return torch.from_numpy(self.fixed(self.context.rows(index.numpy())))


@dataclass(frozen=True)
class MapRows:
    """Feature maps, which the encoder's last stage takes; read when a training step asks for them."""

    maps: PatchMaps

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_spots, n_views, c, h, w)``."""
        return self.maps.shape

    def __getitem__(self, index: Tensor) -> Tensor:
        """Read the feature maps of some spots, ``(n, n_views, c, h, w)``, float16."""
        return torch.from_numpy(self.maps[index.numpy()])


def context_of(
    rule: NeighborhoodAggregator, features: FeatureRows, adjacency: sparse.csr_matrix, slices: np.ndarray
) -> Context:
    """Build the context features of spots, held in memory up to a size of :data:`PLAIN_BYTES`."""
    if is_plain(features, rule):
        return Context(rule(features.whole(), adjacency, slices))
    return BlockedContext(features, adjacency, slices, rule)


def is_plain(features: FeatureRows, rule: NeighborhoodAggregator) -> bool:
    """Return whether the context of these spots is held in memory."""
    n_spots, width = features.shape
    return 4 * n_spots * width * len(rule.steps) <= PLAIN_BYTES


def slice_sums(features: FeatureRows, codes: np.ndarray, n_slices: int) -> np.ndarray:
    """Sum the features of each slice's spots, ``(n_slices, n_features)``, float64."""
    sums = np.zeros((n_slices, features.shape[1]))
    for where, block in features.blocks():
        own = codes[where]
        for code in np.unique(own):
            sums[code] += block[own == code].sum(0, dtype=np.float64)
    return sums


def appearance_of(appearance: FeatureSpace, features: FeatureRows) -> np.ndarray:
    """Compute the positions of patches in the reference's feature space, ``(n_spots, n_components + 1)``."""
    if is_plain(features, NeighborhoodAggregator(0)):
        return appearance(features.whole())
    return np.concatenate([appearance(block) for _, block in features.blocks()])
