"""What is seen of spots and their surroundings: in memory where it fits, else made block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import PCA
from torch import Tensor

from st_gchb._logging import logger
from st_gchb.pp.patches import FeatureRows, PatchMaps
from st_gchb.train import edges_between, with_halo

_ROWS = 4096
"""Spots that are mapped at once."""

_APPEARANCE = 32
"""Components of the patch features in which a query is compared with the reference's range."""

_PER_COMPONENT = 4
"""Training spots for each of these components at least: of as many components as spots, the last have no variance
and nothing is left outside of them, so that every query would lie infinitely far away, or none."""

_LEAST_REST = 0.02
"""Least distance from the components' space that is expected of a patch, as a share of its whole distance."""

_VARIES = 1e-3
"""What varies by less than this share of the features' median deviation says nothing: it would be divided by it."""

_ROUNDING = 1e-6
"""The same, as a share of the feature's own mean: numbers of 32 bits differ by a tenth of it by rounding."""

_REAL = 1e-8
"""Variance of a component, as a share of the largest, up to which it is rounding."""

SHRINKAGE_SPOTS = 20
"""Spots at which a slice's mean features weigh as much as the training slices' mean."""


@dataclass(frozen=True)
class LinearProjection:
    """An affine map, ``(x - offset) @ matrix``, or ``(x - offset) * matrix`` where ``matrix`` has one dimension."""

    offset: np.ndarray
    matrix: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Components, ``(n, n_out)``, float32."""

        def part(rows: slice) -> np.ndarray:
            centered = x[rows] - self.offset
            return np.asarray(centered * self.matrix if self.matrix.ndim == 1 else centered @ self.matrix)

        return _by_rows(part, len(x), self.matrix.shape[-1])


def fit_map(x: np.ndarray, n_components: int | None, *, whitening: float, seed: int) -> LinearProjection:
    """Standardize each feature, then principal components; fitted on training spots alone.

    Parameters
    ----------
    x
        Features of the training spots, ``(n_spots, n_features)``.
    n_components
        Number of components; ``None`` only standardizes.
    whitening
        0 keeps each component's variance, 1 makes them all equal, between is a power of it. Where it is not 0, the
        components' mean variance is 1.
    seed
        Seed of the solver.
    """
    offset = x.mean(0, dtype=np.float64)
    inverse = _inverse(offset, x.std(0, dtype=np.float64))
    if n_components is None:
        return LinearProjection(offset.astype(np.float32), inverse.astype(np.float32))
    width = min(n_components, x.shape[1], len(x) - 1)
    solver = "randomized" if width < min(x.shape) // 2 else "full"
    matrix, variance = _principal((x - offset) * inverse, width, solver, seed)
    if whitening:
        weight = np.zeros_like(variance)
        real = variance > _REAL * variance.max(initial=0.0)
        np.power(variance, -whitening / 2, out=weight, where=real)
        matrix = matrix * weight / np.sqrt((np.maximum(variance, 1e-12) ** (1 - whitening)).mean())
    return LinearProjection(offset.astype(np.float32), (inverse[:, None] * matrix).astype(np.float32))


def _inverse(offset: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """One over the deviation of each feature; 0 for what hardly varies, which is switched off."""
    known = scale > _ROUNDING * np.abs(offset)
    typical = float(np.median(scale[known])) if known.any() else 0.0
    result = np.zeros_like(scale)
    np.divide(1.0, scale, out=result, where=known & (scale > _VARIES * typical))
    return result


def _principal(x: np.ndarray, width: int, solver: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions ``(n_features, width)`` and their variances; zeros where nothing varies."""
    if not x.any():
        return np.zeros((x.shape[1], width)), np.zeros(width)
    pca = PCA(width, svd_solver=solver, random_state=seed).fit(x)
    return pca.components_.T, pca.explained_variance_


@dataclass(frozen=True)
class FeatureSpace:
    """Where a patch lies in the reference's range, and how far outside of it.

    Parameters
    ----------
    offset, inverse
        Mean and inverse standard deviation of the training spots' features, ``(n_features,)``.
    components
        Principal directions, ``(n_features, n_components)``.
    scale
        Inverse standard deviations of the components, over the root of their number, ``(n_components,)``.
    rest
        Inverse of the training spots' mean distance from the components' space, over the same root, ``(1,)``.
    """

    offset: np.ndarray
    inverse: np.ndarray
    components: np.ndarray
    scale: np.ndarray
    rest: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Whitened components, and last the distance from their space, ``(n, n_components + 1)``.

        A stain that the reference does not hold moves patches where its own patches never vary: components alone
        would not show it.
        """
        weight = np.sqrt(len(self.scale)) * self.rest

        def part(rows: slice) -> np.ndarray:
            standard = (x[rows] - self.offset) * self.inverse
            inside = standard @ self.components
            outside = np.linalg.norm(standard - inside @ self.components.T, axis=1, keepdims=True)
            return np.hstack([inside * self.scale, outside * weight])

        return _by_rows(part, len(x), len(self.scale) + 1)


def fit_appearance(x: np.ndarray, seed: int) -> FeatureSpace:
    """Fit an :class:`FeatureSpace` on the features of the training spots, ``(n_spots, n_features)``."""
    plain = fit_map(x, None, whitening=0.0, seed=seed)
    standard = plain(x)
    width = max(1, min(_APPEARANCE, len(x) // _PER_COMPONENT, x.shape[1]))
    components, variance = _principal(standard, width, "auto", seed)
    real = variance > _REAL * variance.max(initial=0.0)
    components, variance = components[:, real], variance[real]
    outside = np.linalg.norm(standard - (standard @ components) @ components.T, axis=1).mean()
    whole = np.linalg.norm(standard, axis=1).mean()
    rest = 1.0 / max(outside, _LEAST_REST * whole, np.finfo(np.float32).tiny)
    # Distances are means over the components: the folds that set the limit have fewer spots, and so fewer of them.
    mean = 1.0 / np.sqrt(max(len(variance), 1))
    arrays = (plain.offset, plain.matrix, components, mean / np.sqrt(variance), np.array([mean * rest]))
    # Laid out as they are when a saved model is loaded: sums in another order differ in the last digit.
    return FeatureSpace(*(np.ascontiguousarray(array, dtype=np.float32) for array in arrays))


@dataclass(frozen=True)
class NeighborhoodAggregator:
    """What is seen of a spot: its own features, and the mean features of the rings of neighbors around it.

    Parameters
    ----------
    n_rings
        Number of rings; 0 sees the spot alone.
    center
        Mean features of the training spots, ``(n_features,)``, where features are centered on their slice; ``None``
        where they are not. Slides differ in stain and scanner more than their spots do in tissue.
    """

    n_rings: int
    center: np.ndarray | None = None

    def __call__(self, features: np.ndarray, adjacency: sparse.csr_matrix, slices: np.ndarray) -> np.ndarray:
        """Context features, ``(n_spots, (n_rings + 1) * n_features)``.

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
        # Filled in place: of a large slide this is by far the largest array.
        result = np.empty((len(features), (self.n_rings + 1) * width), dtype=np.float32)
        result[:, :width] = features if self.center is None else centered(features, slices, self.center)
        for start in range(0, self.n_rings * width, width):
            inner = result[:, start : start + width]
            result[:, start + width : start + 2 * width] = neighbor_mean(inner, adjacency)
        return result


def centered(features: np.ndarray, slices: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Features less the mean of their slice, ``(n_spots, n_features)``.

    A few spots say little of their slide's mean: it is drawn toward ``center``, half-way for a slice of 20
    spots.
    """
    result = np.array(features, dtype=np.float32)
    for name in np.unique(slices):
        rows = np.flatnonzero(slices == name)
        share = len(rows) / (len(rows) + SHRINKAGE_SPOTS)
        result[rows] -= (share * features[rows].mean(0, dtype=np.float64) + (1 - share) * center).astype(np.float32)
    return result


def neighbor_mean(features: np.ndarray, adjacency: sparse.csr_matrix) -> np.ndarray:
    """Mean of the neighbors' features, ``(n_spots, n_features)``; a spot without neighbors keeps its own."""
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    graph, dense = adjacency.tocsr(), np.ascontiguousarray(features)

    def part(rows: slice) -> np.ndarray:
        mean = (graph[rows] @ dense) / np.maximum(degree[rows], 1.0)[:, None]
        return np.where(degree[rows, None] > 0, mean, dense[rows])

    return _by_rows(part, len(features), features.shape[1])


def _by_rows(part: Callable[[slice], np.ndarray], n_rows: int, width: int) -> np.ndarray:
    """Rows of a result, ``(n_rows, width)`` float32, made some at a time: steps between are as large as the slide."""
    result = np.empty((n_rows, width), dtype=np.float32)
    for start in range(0, n_rows, _ROWS):
        rows = slice(start, min(start + _ROWS, n_rows))
        result[rows] = part(rows)
    return result


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

    def through(self, fixed: LinearProjection) -> np.ndarray:
        """What a map makes of all spots, ``(n_spots, n_out)``."""
        return fixed(self.values)

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Context of some spots, ``(n, n_context)``."""
        rows: np.ndarray = self.values[index]
        return rows


class BlockedContext(Context):
    """Context features that are too large to be held, and are made from the patch features when they are asked for.

    A map to components and the mean over neighbors are both linear, so the features are mapped first, and the rings'
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
        self, features: FeatureRows, adjacency: sparse.csr_matrix, slices: np.ndarray, rule: NeighborhoodAggregator
    ) -> None:
        self.features, self.adjacency, self.n_rings = features, adjacency, rule.n_rings
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
        return len(self.features), self.features.shape[1] * (self.n_rings + 1)

    def sample(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Spots drawn over all slices alike, ascending, and their context."""
        n_spots, width = self.shape
        n_drawn = max(2, min(n_spots, _SAMPLE_BYTES // (4 * width)))
        chosen = np.sort(np.random.default_rng(seed).permutation(n_spots)[:n_drawn])
        if n_drawn < n_spots:
            logger.info("Input maps are fitted on %d of %d spots, drawn with the model's seed.", n_drawn, n_spots)
        return chosen, np.concatenate([self.rows(part) for part in np.array_split(chosen, -(-n_drawn // 512))])

    def through(self, fixed: LinearProjection) -> np.ndarray:
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
            # Means at the rim lack neighbors, and reach none of the spots asked for.
            rings.append(neighbor_mean(rings[-1], graph))
        return np.hstack([ring[: len(index)] for ring in rings])


@dataclass(frozen=True)
class MappedRows:
    """Inputs of the image branch, made when a step asks for them.

    Where no components are taken, inputs are as wide as the context, and all of them cannot be held.
    """

    context: Context
    fixed: LinearProjection

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


def context_of(
    rule: NeighborhoodAggregator, features: FeatureRows, adjacency: sparse.csr_matrix, slices: np.ndarray
) -> Context:
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


def appearance_of(appearance: FeatureSpace, features: FeatureRows) -> np.ndarray:
    """Where patches lie in the reference's range, ``(n_spots, n_coordinates)``."""
    if is_plain(features, 0):
        return appearance(features.whole())
    return np.concatenate([appearance(block) for _, block in features.blocks()])
