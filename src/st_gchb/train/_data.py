"""Mini-batches: spots drawn over all training slices, each with the neighbors that its embedding depends on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from scipy import sparse
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from st_gchb._logging import logger
from st_gchb.nn import GraphBatch
from st_gchb.train._subgraph import edges_between, share_of, spatial_blocks, with_halo

Sampler = Literal["spots", "slices"]

BLOCK_SIZE = 20_000
"""Spots beyond which a slice is cut into blocks: what one step with the paper's preset holds on a 16 GB GPU."""


class Rows(Protocol):
    """A tensor, or what is indexed like one and makes rows when they are asked for."""

    @property
    def shape(self) -> Any:
        """``(n_rows, width)``, or of maps ``(n_rows, n_views, c, h, w)``."""

    def __getitem__(self, index: Tensor) -> Tensor:
        """Some rows, in the order asked for."""


@dataclass
class TrainingData:
    """The training slices as tensors, after the fixed input maps.

    Parameters
    ----------
    image, expression
        Inputs of the two branches, ``(n_spots, n_inputs)``; those of the image branch may lie on disk. Where the
        trunk's last stage is trained, ``image`` gives its maps.
    adjacency
        Spot graph, symmetric, no self-loops, ``(n_spots, n_spots)``.
    groups
        Slice of each spot, ``(n_spots,)``, integers.
    coordinates
        Spot centers, px, ``(n_spots, 2)``.
    stained
        The image branch's inputs in other stains, ``(n_versions, n_spots, n_inputs)``, or None.
    """

    image: Rows
    expression: Tensor
    adjacency: sparse.csr_matrix
    groups: np.ndarray
    coordinates: np.ndarray
    stained: Tensor | None = None

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def degree(self) -> np.ndarray:
        """Number of neighbors of each spot in the whole graph, ``(n_spots,)``."""
        return np.diff(self.adjacency.indptr).astype(np.float32)

    @cached_property
    def order(self) -> np.ndarray:
        """Place of each spot in an order in which neighbors lie close, ``(n_spots,)``."""
        place = np.empty(len(self), dtype=np.int64)
        blocks = [rows[block] for rows in self.slices() for block in spatial_blocks(self.coordinates[rows], 64)]
        place[np.concatenate(blocks)] = np.arange(len(self))
        return place

    def slices(self) -> list[np.ndarray]:
        """Rows of each slice, in the order of their numbers."""
        return [np.flatnonzero(self.groups == group) for group in np.unique(self.groups)]

    def batch(self, rows: np.ndarray, n_hops: int, rng: np.random.Generator | None = None) -> GraphBatch:
        """The spots of one step with their neighbors: the embeddings of ``rows`` are those of the whole graph.

        With ``rng``, each spot is seen in a stain that is drawn, its own among them.
        """
        nodes = with_halo(self.adjacency, rows, n_hops)
        positions = torch.arange(len(rows))
        index = torch.from_numpy(nodes.astype(np.int64))
        return GraphBatch(
            image=self._seen(index, rng),
            expression=self.expression[index],
            edge_index=torch.from_numpy(edges_between(self.adjacency, nodes)),
            groups=torch.from_numpy(self.groups[nodes].astype(np.int64)),
            rows=positions,
            inner=positions,
            degree=torch.from_numpy(self.degree[nodes]),
        )

    def _seen(self, index: Tensor, rng: np.random.Generator | None) -> Tensor:
        if rng is None or self.stained is None:
            return self.image[index]
        version = torch.from_numpy(rng.integers(0, len(self.stained) + 1, len(index)))
        other = self.stained[(version - 1).clamp(min=0), index]
        return torch.where((version == 0)[:, None], self.image[index], other)


def split_spots(data: TrainingData, validation_share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Split each slice's spots into training spots and one compact patch of validation spots.

    A compact patch shares few neighbors with the training spots, which single random spots would.
    """
    validation = []
    if validation_share > 0:
        for group in np.unique(data.groups):
            rows = np.flatnonzero(data.groups == group)
            n_validation = int(round(validation_share * len(rows)))
            if n_validation >= 2:
                center = data.coordinates[rng.choice(rows)]
                # Rounded: on an array many spots are equally far, and the last digit must not choose among them.
                distance = np.linalg.norm(data.coordinates[rows] - center, axis=1).round(3)
                validation.append(rows[np.argsort(distance, kind="stable")[:n_validation]])
    chosen = np.sort(np.concatenate(validation)) if validation else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(data)), chosen), chosen


Step = tuple[np.ndarray, np.ndarray | None]
"""Spots that are aligned, and the spots around them that count too (``None``: no others)."""


class _Steps(IterableDataset):
    """The steps of an epoch.

    Which steps an epoch has depends on its number alone, so that training can go on with any epoch, and a loader that
    begins an epoch twice sees the same. Without a trainer, each pass is the next epoch.
    """

    def __init__(self, module: GraphDataModule, rows: np.ndarray, shuffle: bool) -> None:
        self.module, self.rows, self.shuffle = module, rows, shuffle
        self.rng = np.random.default_rng(module.seed)
        self.epoch = 0
        self._drawn: tuple[int, list[Step]] = (-1, [])

    def __iter__(self) -> Iterator[GraphBatch]:
        module, trainer = self.module, self.module.trainer
        epoch = self.epoch if trainer is None or not self.shuffle else trainer.current_epoch
        self.epoch = epoch + 1
        # Stains have numbers of their own: the order of the spots is the same with and without them.
        stains = np.random.default_rng([module.seed, 1, epoch]) if self.shuffle else None
        for chosen, inner in self._of_epoch(epoch):
            batch = module.data.batch(chosen if inner is None else inner, module.n_hops, stains)
            if inner is not None:
                batch.rows = torch.from_numpy(np.searchsorted(inner, np.sort(chosen)))
            yield module.shared(batch, chosen if inner is None else inner)

    def _of_epoch(self, epoch: int) -> list[Step]:
        """Steps of an epoch: the orders of those before it are drawn too, since each draws from where one stopped."""
        if not self.shuffle:
            return list(self._plan(np.random.default_rng(self.module.seed)))
        drawn, steps = self._drawn
        if epoch < drawn:
            self.rng, drawn = np.random.default_rng(self.module.seed), -1
        for number in range(drawn + 1, epoch + 1):
            pretraining = number < self.module.pretrain_epochs
            steps = list(self._whole_blocks() if pretraining else self._plan(self.rng))
        self._drawn = (epoch, steps)
        return steps

    def _whole_blocks(self) -> Iterator[Step]:
        yield from ((block, None) for blocks in self.module.blocks for block in blocks)

    def _plan(self, rng: np.random.Generator) -> Iterator[Step]:
        if self.module.sampler == "spots":
            yield from ((part, None) for part in _parts(self.rows, self.module.batch_size, rng, self.shuffle))
            return
        # Slices are permuted by their numbers, as before there were blocks: the draw depends on how many there are.
        for slice_number in rng.permutation(len(self.module.blocks)):
            blocks = self.module.blocks[slice_number]
            for number in rng.permutation(len(blocks)) if len(blocks) > 1 else range(1):
                own = np.intersect1d(self.rows, blocks[number], assume_unique=True)
                for part in _parts(own, self.module.batch_size, rng, self.shuffle):
                    yield part, blocks[number]


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
        ``"spots"``: spots drawn over all slices, with their neighbors; ``"slices"``: spots of one slice, with the
        whole slice's graph, as the paper does.
    validation_share
        Share of each slice's spots kept for early stopping.
    seed
        Seed of the split and of the order of the spots.
    pretrain_epochs
        First epochs, in which a step is a whole slice and infomax is the only loss.
    block_size
        Spots beyond which a slice is cut into spatial blocks, each of which then stands where a slice stands above.
        A block comes with its halo, so its own spots are represented as in the whole slice; infomax compares them
        with the mean of their block.
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
        block_size: int = BLOCK_SIZE,
    ) -> None:
        super().__init__()
        self.pretrain_epochs = pretrain_epochs
        self.data, self.n_hops, self.batch_size, self.sampler, self.seed = data, n_hops, batch_size, sampler, seed
        self.train_idx, self.val_idx = split_spots(data, validation_share, np.random.default_rng(seed))
        self.n_train, self.n_val = len(self.train_idx), len(self.val_idx)
        self.blocks = self._cut(block_size) if sampler == "slices" or pretrain_epochs else []

    def _cut(self, size: int) -> list[list[np.ndarray]]:
        """Rows of the blocks of each slice."""
        slices = self.data.slices()
        blocks = [[rows[block] for block in spatial_blocks(self.data.coordinates[rows], size)] for rows in slices]
        large = [len(own) for own in blocks if len(own) > 1]
        if large:
            logger.info(
                "%d of %d slices have more than %d spots (block_size): they are cut into %d blocks, each with a halo "
                "of %d hops.",
                *(len(large), len(slices), size, sum(large), self.n_hops),
            )
        return blocks

    def shared(self, batch: GraphBatch, inner: np.ndarray) -> GraphBatch:
        """The step with this device's share of it, where several devices train; else the step as it is."""
        n_devices = 1 if self.trainer is None else self.trainer.world_size
        if n_devices > 1 and self.trainer is not None:
            near = np.argsort(self.data.order[inner], kind="stable")
            edges, n_nodes = batch.edge_index.numpy(), len(batch.groups)
            batch.part = share_of(edges, n_nodes, near, self.n_hops, self.trainer.global_rank, n_devices)
        return batch

    def train_dataloader(self) -> DataLoader:
        """Steps over the training spots, in a new order each epoch."""
        return self._loader(self.train_idx, shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """Steps over the validation spots, always the same; none without a validation split."""
        if self.n_val == 0:
            return []
        return self._loader(self.val_idx, shuffle=False)

    def _loader(self, rows: np.ndarray, *, shuffle: bool) -> DataLoader:
        return DataLoader(_Steps(self, rows, shuffle), batch_size=None, pin_memory=torch.cuda.is_available())
