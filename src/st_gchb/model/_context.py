"""What is seen of spots and their surroundings: in memory where it fits, else made block by block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from st_gchb._logging import logger
from st_gchb.model._inputs import SPOTS_OF_DOUBT, AppearanceMap, ContextRule, FixedMap, neighbor_mean
from st_gchb.model._rows import FeatureRows
from st_gchb.pp._maps import PatchMaps
from st_gchb.train._blocks import edges_between, with_halo

PLAIN_BYTES = 2**30
"""Context features up to this size are held in memory: 43,690 spots with 2,048 features and two rings."""

_SAMPLE_BYTES = 2**29
"""Context features of the spots on which maps are fitted where not all are held: 21,845 such spots."""

_COLUMNS = 64
"""Components that are made at once."""


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
        """Spots on which maps are fitted, and their context: all of them."""
        return np.arange(len(self.values)), self.values

    def through(self, fixed: FixedMap) -> np.ndarray:
        """What a map makes of all spots, ``(n_spots, n_out)``."""
        return fixed(self.values)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Context of some spots, ``(n, n_context)``."""
        rows: np.ndarray = self.values[index]
        return rows


class BlockedContext(Context):
    """Context features that are too large to be held, and are made from the patch features when they are asked for.

    A map to components and the mean over neighbours are both linear, so the features are mapped first, and the rings'
    means are taken of the components: (n_rings + 1) x 2,048 numbers a spot become as many as there are components.

    Parameters
    ----------
    features
        Patch features.
    adjacency
        Spot graph, ``(n_spots, n_spots)``.
    slices
        Slice of each spot.
    rule
        What is seen of a spot.
    """

    def __init__(
        self, features: FeatureRows, adjacency: sparse.csr_matrix, slices: np.ndarray, rule: ContextRule
    ) -> None:
        self.features, self.adjacency, self.n_rings = features, adjacency, rule.n_rings
        names, self._codes = np.unique(slices, return_inverse=True)
        self._offsets = np.zeros((len(names), features.shape[1]), dtype=np.float32)
        if rule.center is not None:
            count = np.bincount(self._codes)[:, None]
            share = count / (count + SPOTS_OF_DOUBT)
            own = slice_sums(features, self._codes, len(names)) / count
            self._offsets = (share * own + (1 - share) * rule.center).astype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_spots, n_context)``."""
        return len(self.features), self.features.shape[1] * (self.n_rings + 1)

    def sample(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Spots drawn over all slices alike, ascending, and their context."""
        n_spots, width = self.shape
        n_drawn = max(2, min(n_spots, _SAMPLE_BYTES // (4 * width)))
        chosen = np.sort(np.random.default_rng(seed).permutation(n_spots)[:n_drawn])
        if n_drawn < n_spots:
            logger.info("Input maps are fitted on %d of %d spots, drawn with the model's seed.", n_drawn, n_spots)
        return chosen, np.concatenate([self.rows(part) for part in np.array_split(chosen, -(-n_drawn // 512))])

    def through(self, fixed: FixedMap) -> np.ndarray:
        """What a map makes of all spots, ``(n_spots, n_out)``."""
        result = np.empty((len(self.features), fixed.matrix.shape[-1]), dtype=np.float32)
        if fixed.matrix.ndim == 1:
            for where, _ in self.features.blocks():
                result[where] = fixed(self.rows(np.arange(where.start, where.stop)))
            return result
        for start in range(0, result.shape[1], _COLUMNS):
            columns = slice(start, min(start + _COLUMNS, result.shape[1]))
            result[:, columns] = self._components(fixed.matrix[:, columns])
        result -= fixed.offset @ fixed.matrix
        return result

    def _components(self, matrix: np.ndarray) -> np.ndarray:
        """Context features times some columns of a map."""
        weights = np.split(matrix, self.n_rings + 1)
        rings = [np.empty((len(self.features), matrix.shape[1]), dtype=np.float32) for _ in weights]
        for where, block in self.features.blocks():
            own = block - self._offsets[self._codes[where]]
            for ring, weight in zip(rings, weights, strict=True):
                ring[where] = own @ weight
        # From the outermost ring inwards, so that each mean is taken once.
        total = rings.pop()
        while rings:
            total = neighbor_mean(total, self.adjacency)
            total += rings.pop()
        return total

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Context of some spots, ``(n, n_context)``, from their features and those of the spots around them."""
        nodes = with_halo(self.adjacency, np.asarray(index), self.n_rings)
        source, target = edges_between(self.adjacency, nodes)
        shape = (len(nodes), len(nodes))
        graph = sparse.csr_matrix((np.ones(len(source), np.float32), (source, target)), shape=shape)
        rings = [self.features[nodes] - self._offsets[self._codes[nodes]]]
        for _ in range(self.n_rings):
            # Means at the rim lack neighbours, and reach none of the spots asked for.
            rings.append(neighbor_mean(rings[-1], graph))
        return np.hstack([ring[: len(index)] for ring in rings])


@dataclass(frozen=True)
class MappedRows:
    """Inputs of the image branch, made when a step asks for them.

    Where no components are taken, inputs are as wide as the context, and all of them cannot be held.
    """

    context: Context
    fixed: FixedMap

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_spots, n_inputs)``."""
        return self.context.shape

    def __getitem__(self, index: Tensor) -> Tensor:
        """Inputs of some spots, ``(n, n_inputs)``."""
        return torch.from_numpy(self.fixed(self.context.rows(index.numpy())))


@dataclass(frozen=True)
class MapRows:
    """What a step gives the trunk's last stage: the maps of its spots, read when it asks for them."""

    maps: PatchMaps

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_spots, n_views, c, h, w)``."""
        return self.maps.shape

    def __getitem__(self, index: Tensor) -> Tensor:
        """Maps of some spots, float16."""
        return torch.from_numpy(self.maps[index.numpy()])


def context_of(rule: ContextRule, features: FeatureRows, adjacency: sparse.csr_matrix, slices: np.ndarray) -> Context:
    """Context features by a rule, in memory where there are no more than :data:`PLAIN_BYTES` of them."""
    if is_plain(features, rule.n_rings):
        return Context(rule(features.whole(), adjacency, slices))
    return BlockedContext(features, adjacency, slices, rule)


def is_plain(features: FeatureRows, n_rings: int) -> bool:
    """Whether the context of these spots is held in memory."""
    n_spots, width = features.shape
    return 4 * n_spots * width * (n_rings + 1) <= PLAIN_BYTES


def slice_sums(features: FeatureRows, codes: np.ndarray, n_slices: int) -> np.ndarray:
    """Sum of the features of each slice's spots, ``(n_slices, n_features)``, float64."""
    sums = np.zeros((n_slices, features.shape[1]))
    for where, block in features.blocks():
        own = codes[where]
        for code in np.unique(own):
            sums[code] += block[own == code].sum(0, dtype=np.float64)
    return sums


def appearance_of(appearance: AppearanceMap, features: FeatureRows) -> np.ndarray:
    """Where patches lie in the reference's range, ``(n_spots, n_coordinates)``."""
    if is_plain(features, 0):
        return appearance(features.whole())
    return np.concatenate([appearance(block) for _, block in features.blocks()])
