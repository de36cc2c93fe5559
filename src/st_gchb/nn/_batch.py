"""One training step as tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from st_gchb.nn._layers import members_of
from st_gchb.nn._parts import Part


@dataclass
class GraphBatch:
    """One training step: spots, their neighbors, and which of them count.

    It is made in the host's memory. What a step needs to know as numbers, such as which nodes are of one slice, is
    found there: read from a device, it would make the host wait in every step.

    Parameters
    ----------
    image, expression
        Inputs of the branches after the fixed maps, ``(n_nodes, n_inputs)``. Where the network has a stage of the
        trunk, ``image`` holds what goes into that, ``(n_nodes, n_views, c, h, w)``.
    edge_index
        Edges between nodes, both directions, ``(2, n_edges)``; none joins two slices.
    groups
        Slice of each node, ``(n_nodes,)``.
    rows
        Nodes that are aligned in this step, ``(n_rows,)``.
    inner
        Nodes whose neighborhood is complete, ``(n_inner,)``: those that DGI sees.
    degree
        Neighbors of each node in the whole graph, ``(n_nodes,)``; ``None`` where the nodes are the whole graph.
    part
        The share of one of several devices; ``None`` where one device does it all.
    members, inner_members
        Rows of the nodes, and of the inner ones, of each slice; by default found from ``groups``.
    """

    image: Tensor
    expression: Tensor
    edge_index: Tensor
    groups: Tensor
    rows: Tensor
    inner: Tensor
    degree: Tensor | None = None
    part: Part | None = None
    members: tuple[Tensor, ...] = field(default=())
    inner_members: tuple[Tensor, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.members and len(self.groups):
            self.members = members_of(self.groups)
            self.inner_members = tuple(self.inner[rows] for rows in members_of(self.groups[self.inner]))

    def to(self, device: torch.device | str) -> GraphBatch:
        """The same batch on another device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> GraphBatch:
        """The same batch in memory from which a GPU can fetch it while the host goes on."""
        return self._each(lambda value: value.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> GraphBatch:
        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(change(one) for one in value)
            if isinstance(value, Part):
                nodes, edges = change(value.nodes), change(value.edge_index)
                return Part(nodes, edges, value.n_own, value.n_nodes, value.n_devices)
            return None if value is None else change(value)

        return GraphBatch(**{name: changed(value) for name, value in vars(self).items()})
