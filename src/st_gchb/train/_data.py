"""Mini-batches: spots drawn over all training slices, each with the neighbours that its embedding depends on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from scipy import sparse
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from st_gchb.nn import GraphBatch

Sampler = Literal["spots", "slices"]


@dataclass
class TrainingData:
    """The training slices as tensors, after the fixed input maps.

    Parameters
    ----------
    image, expression
        Inputs of the two branches, ``(n_spots, n_inputs)``.
    adjacency
        Spot graph, symmetric, no self-loops, ``(n_spots, n_spots)``.
    groups
        Slice of each spot, ``(n_spots,)``, integers.
    coordinates
        Spot centres, px, ``(n_spots, 2)``.
    stained
        The image branch's inputs in other stains, ``(n_versions, n_spots, n_inputs)``, or None.
    """

    image: Tensor
    expression: Tensor
    adjacency: sparse.csr_matrix
    groups: np.ndarray
    coordinates: np.ndarray
    stained: Tensor | None = None

    def __len__(self) -> int:
        return len(self.groups)

    def batch(self, rows: np.ndarray, n_hops: int, rng: np.random.Generator | None = None) -> GraphBatch:
        """The spots of one step with their neighbours: the embeddings of ``rows`` are those of the whole graph.

        With ``rng``, each spot is seen in a stain that is drawn, its own among them.
        """
        nodes = np.asarray(rows)
        for _ in range(n_hops):
            nodes = np.concatenate([nodes, np.setdiff1d(self.adjacency[nodes].indices, nodes)])
        local = self.adjacency[nodes][:, nodes].tocoo()
        positions = torch.arange(len(rows))
        index = torch.from_numpy(nodes.astype(np.int64))
        return GraphBatch(
            image=self._seen(index, rng),
            expression=self.expression[index],
            edge_index=torch.from_numpy(np.stack([local.row, local.col]).astype(np.int64)),
            groups=torch.from_numpy(self.groups[nodes].astype(np.int64)),
            rows=positions,
            inner=positions,
        )

    def _seen(self, index: Tensor, rng: np.random.Generator | None) -> Tensor:
        if rng is None or self.stained is None:
            return self.image[index]
        version = torch.from_numpy(rng.integers(0, len(self.stained) + 1, len(index)))
        other = self.stained[(version - 1).clamp(min=0), index]
        return torch.where((version == 0)[:, None], self.image[index], other)


def split_spots(data: TrainingData, validation_share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Split each slice's spots into training spots and one compact patch of validation spots.

    A compact patch shares few neighbours with the training spots, which single random spots would.
    """
    validation = []
    if validation_share > 0:
        for group in np.unique(data.groups):
            rows = np.flatnonzero(data.groups == group)
            n_validation = int(round(validation_share * len(rows)))
            if n_validation >= 2:
                centre = data.coordinates[rng.choice(rows)]
                # Rounded: on an array many spots are equally far, and the last digit must not choose among them.
                distance = np.linalg.norm(data.coordinates[rows] - centre, axis=1).round(3)
                validation.append(rows[np.argsort(distance, kind="stable")[:n_validation]])
    chosen = np.sort(np.concatenate(validation)) if validation else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(data)), chosen), chosen


class _Steps(IterableDataset):
    """The steps of an epoch; each pass over it is the next epoch."""

    def __init__(self, module: GraphDataModule, rows: np.ndarray, shuffle: bool) -> None:
        self.module, self.rows, self.shuffle = module, rows, shuffle
        self.rng = np.random.default_rng(module.seed)
        # Stains have numbers of their own: the order of the spots is the same with and without them.
        self.stains = np.random.default_rng([module.seed, 1])
        self.epoch = 0

    def __iter__(self) -> Iterator[GraphBatch]:
        rng = self.rng if self.shuffle else np.random.default_rng(self.module.seed)
        plan = self._whole_slices() if self.shuffle and self.epoch < self.module.pretrain_epochs else self._plan(rng)
        self.epoch += 1
        for chosen, inner in plan:
            nodes = chosen if inner is None else inner
            batch = self.module.data.batch(nodes, self.module.n_hops, self.stains if self.shuffle else None)
            if inner is not None:
                batch.rows = torch.from_numpy(np.flatnonzero(np.isin(inner, chosen)).astype(np.int64))
            yield batch

    def _whole_slices(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        groups = self.module.data.groups
        yield from ((np.flatnonzero(groups == group), None) for group in np.unique(groups))

    def _plan(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        if self.module.sampler == "spots":
            yield from ((part, None) for part in _parts(self.rows, self.module.batch_size, rng, self.shuffle))
            return
        groups = self.module.data.groups
        for group in rng.permutation(np.unique(groups)):
            whole = np.flatnonzero(groups == group)
            own = self.rows[groups[self.rows] == group]
            for part in _parts(own, self.module.batch_size, rng, self.shuffle):
                yield part, whole


def _parts(rows: np.ndarray, size: int, rng: np.random.Generator, shuffle: bool) -> list[np.ndarray]:
    """Cut spots into parts of about ``size``: a rest too small to contrast is spread over the other parts."""
    order = rng.permutation(rows) if shuffle else rows
    n_parts = min(round(len(order) / size), len(order) // 2)
    return [part for part in np.array_split(order, max(1, n_parts)) if len(part) >= 2]


class GraphDataModule(LightningDataModule):
    """Steps for Lightning.

    Parameters
    ----------
    data
        The training slices.
    n_hops
        Hops that an embedding depends on.
    batch_size
        Spots that are contrasted with each other in a step.
    sampler
        ``"spots"``: spots drawn over all slices, with their neighbours; ``"slices"``: spots of one slice, with the
        whole slice's graph, as the paper does.
    validation_share
        Share of each slice's spots kept for early stopping.
    seed
        Seed of the split and of the order of the spots.
    pretrain_epochs
        First epochs, in which a step is a whole slice and infomax is the only loss.
    """

    def __init__(
        self,
        data: TrainingData,
        *,
        n_hops: int,
        batch_size: int,
        sampler: Sampler,
        validation_share: float,
        seed: int,
        pretrain_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.pretrain_epochs = pretrain_epochs
        self.data, self.n_hops, self.batch_size, self.sampler, self.seed = data, n_hops, batch_size, sampler, seed
        self.train_idx, self.val_idx = split_spots(data, validation_share, np.random.default_rng(seed))
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)

    def train_dataloader(self) -> DataLoader:
        """Steps over the training spots, in a new order each epoch."""
        return DataLoader(_Steps(self, self.train_idx, shuffle=True), batch_size=None)

    def val_dataloader(self) -> DataLoader | list:
        """Steps over the validation spots, always the same; none without a validation split."""
        if self.n_val == 0:
            return []
        return DataLoader(_Steps(self, self.val_idx, shuffle=False), batch_size=None)
