"""Training data as tensors, its validation split, and mini-batches of spots with the neighbors that they depend on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from scipy import sparse
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from st_gchb._logging import logger
from st_gchb._options import Sampler
from st_gchb.nn import GraphBatch, members_of
from st_gchb.train._subgraph import edges_between, share_of, spatial_blocks, with_halo

BLOCK_SIZE = 20_000
"""Number of spots above which a slice is cut into blocks: one step of the paper's preset fits on a 16 GB GPU."""


class Rows(Protocol):
    """A tensor, or an object that is indexed like one and computes or reads its rows on demand."""

    @property
    def shape(self) -> Any:
        """``(n_rows, width)``, or ``(n_rows, n_views, c, h, w)`` for feature maps."""

    def __getitem__(self, index: Tensor) -> Tensor:
        """Return the rows ``index``, in this order."""


@dataclass
class TrainingData:
    """Training slices as tensors, after the fixed input projections.

    Parameters
    ----------
    image, expression
        Inputs of the two branches, ``(n_spots, n_inputs)``. Those of the image branch may stay on disk; if the last
        stage of the image encoder is trained, they are the feature maps that enter it.
    adjacency
        Spot graph, symmetric, without self-loops, ``(n_spots, n_spots)``.
    groups
        Slice number of each spot, ``(n_spots,)``.
    coordinates
        Spot centers, px, ``(n_spots, 2)``.
    """

    image: Rows
    expression: Tensor
    adjacency: sparse.csr_matrix
    groups: np.ndarray
    coordinates: np.ndarray

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def degree(self) -> np.ndarray:
        """Number of neighbors of each spot in the whole graph, ``(n_spots,)``."""
        return np.diff(self.adjacency.indptr).astype(np.float32)

    @cached_property
    def order(self) -> np.ndarray:
        """Rank of each spot in an order that keeps neighbors close together, ``(n_spots,)``."""
        place = np.empty(len(self), dtype=np.int64)
        blocks = [rows[block] for rows in self.slices() for block in spatial_blocks(self.coordinates[rows], 64)]
        place[np.concatenate(blocks)] = np.arange(len(self))
        return place

    def slices(self) -> list[np.ndarray]:
        """List the rows of each slice, in the order of the slice numbers."""
        return [np.flatnonzero(self.groups == group) for group in np.unique(self.groups)]

    def batch(self, rows: np.ndarray, n_hops: int) -> GraphBatch:
        """Make the batch of one step: some spots, and the neighbors on which their embeddings depend.

        The neighbors make the embeddings of ``rows`` equal to those computed on the whole graph.

        Parameters
        ----------
        rows
            Spots of the step, ``(n_rows,)``.
        n_hops
            Number of hops over which an embedding depends on the graph.

        Returns
        -------
        GraphBatch
            Spots ``rows`` first, then their neighbors.
        """
        nodes = with_halo(self.adjacency, rows, n_hops)
        positions = torch.arange(len(rows))
        index = torch.from_numpy(nodes.astype(np.int64))
        groups = torch.from_numpy(self.groups[nodes].astype(np.int64))
        members = members_of(groups)
        return GraphBatch(
            image=self.image[index],
            expression=self.expression[index],
            edge_index=torch.from_numpy(edges_between(self.adjacency, nodes)),
            groups=groups,
            rows=positions,
            inner=positions,
            degree=torch.from_numpy(self.degree[nodes]),
            members=members,
            inner_members=members if len(nodes) == len(rows) else members_of(groups[: len(rows)]),
        )


def split_spots(data: TrainingData, validation_share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Split the spots of each slice into training spots and one compact region of validation spots.

    A compact region shares few neighbors with the training spots, whereas spots drawn at random would share many.

    Parameters
    ----------
    data
        The training slices.
    validation_share
        Share of each slice's spots to validate on. Slices in which this is less than two spots have none.
    rng
        Generator that draws the center of each region.

    Returns
    -------
    tuple[numpy.ndarray, numpy.ndarray]
        Rows of the training spots and of the validation spots, ascending.
    """
    validation = []
    if validation_share > 0:
        for group in np.unique(data.groups):
            rows = np.flatnonzero(data.groups == group)
            n_validation = int(round(validation_share * len(rows)))
            if n_validation >= 2:
                center = data.coordinates[rng.choice(rows)]
                # Rounded, since many spots of an array are equally far away and rounding errors must not order them.
                distance = np.linalg.norm(data.coordinates[rows] - center, axis=1).round(3)
                validation.append(rows[np.argsort(distance, kind="stable")[:n_validation]])
    chosen = np.sort(np.concatenate(validation)) if validation else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(data)), chosen), chosen


Step = tuple[np.ndarray, np.ndarray | None]
"""Spots to align, and the slice or block whose spots all enter infomax (``None``: the spots to align alone)."""


class _Steps(IterableDataset):
    """Iterable over the batches of an epoch.

    The batches of an epoch depend on its number and the seed alone, so that training can resume at any epoch and a
    loader that starts an epoch twice yields the same batches. Without a trainer, each pass is the next epoch.
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
        for chosen, inner in self._of_epoch(epoch):
            batch = module.data.batch(chosen if inner is None else inner, module.n_hops)
            if inner is not None:
                batch.rows = torch.from_numpy(np.searchsorted(inner, np.sort(chosen)))
            yield module.shared(batch, chosen if inner is None else inner)

    def _of_epoch(self, epoch: int) -> list[Step]:
        """Draw the steps of an epoch.

        All epochs share one generator, so the earlier epochs are drawn first, unless they have been already.
        """
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
        # Only slices that are cut draw an order of blocks, so that without large slices the draws are the same as if
        # there were no blocks.
        for slice_number in rng.permutation(len(self.module.blocks)):
            blocks = self.module.blocks[slice_number]
            for number in rng.permutation(len(blocks)) if len(blocks) > 1 else range(1):
                own = np.intersect1d(self.rows, blocks[number], assume_unique=True)
                for part in _parts(own, self.module.batch_size, rng, self.shuffle):
                    yield part, blocks[number]


def _parts(rows: np.ndarray, size: int, rng: np.random.Generator, shuffle: bool) -> list[np.ndarray]:
    """Split spots into parts of about ``size`` spots, in random order if ``shuffle``.

    A remainder that would leave too few spots to contrast is spread over the other parts. A single spot gives no part.
    """
    order = rng.permutation(rows) if shuffle else rows
    n_parts = min(round(len(order) / size), len(order) // 2)
    return [part for part in np.array_split(order, max(1, n_parts)) if len(part) >= 2]


class GraphDataModule(LightningDataModule):
    """Lightning data module that yields the batches of the training and validation spots.

    Parameters
    ----------
    data
        The training slices.
    n_hops
        Number of hops over which an embedding depends on the graph.
    batch_size
        Number of spots that are contrasted with each other in a step.
    sampler
        ``"spots"``: spots drawn over all slices, with their neighbors; ``"slices"``: spots of one slice, with the
        graph of the whole slice, as in the paper.
    validation_share
        Share of each slice's spots that is held out for early stopping.
    seed
        Seed of the split and of the order of the spots.
    pretrain_epochs
        Number of first epochs in which a step is a whole slice and infomax is the only loss.
    block_size
        Number of spots above which a slice is cut into spatial blocks. Each block is then treated as a slice. It comes
        with its halo, so that its spots have the representations that they have in the whole slice; infomax compares
        them with the summary of their block.
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
        """Cut each slice into blocks of at most ``size`` spots; returns the rows of the blocks of each slice."""
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
        """Assign this device its share of a batch, if several devices train.

        Parameters
        ----------
        batch
            The batch of one step; its ``part`` is set in place.
        inner
            Rows of ``data`` that are the inner nodes of the batch.

        Returns
        -------
        GraphBatch
            The same batch.
        """
        n_devices = 1 if self.trainer is None else self.trainer.world_size
        if n_devices > 1 and self.trainer is not None:
            near = np.argsort(self.data.order[inner], kind="stable")
            edges, n_nodes = batch.edge_index.numpy(), len(batch.groups)
            batch.part = share_of(edges, n_nodes, near, self.n_hops, self.trainer.global_rank, n_devices)
        return batch

    def train_dataloader(self) -> DataLoader:
        """Return a loader over the training spots, in a new order each epoch."""
        return self._loader(self.train_idx, shuffle=True)

    def val_dataloader(self) -> DataLoader | list:
        """Return a loader over the validation spots, in a fixed order; an empty list without a validation split."""
        if self.n_val == 0:
            return []
        return self._loader(self.val_idx, shuffle=False)

    def _loader(self, rows: np.ndarray, *, shuffle: bool) -> DataLoader:
        return DataLoader(_Steps(self, rows, shuffle), batch_size=None, pin_memory=torch.cuda.is_available())
