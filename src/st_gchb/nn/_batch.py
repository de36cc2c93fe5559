"""The tensors of one training step."""

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
    """Tensors of one training step: spots, their neighbors, and the spots that enter each loss.

    A batch is assembled in host memory. Numbers on which the control flow of a step depends, such as the nodes of
    each slice, are computed there too: reading them from a GPU would make the host wait in every step.

    Parameters
    ----------
    image, expression
        Inputs of the two branches after the fixed input projections, ``(n_nodes, n_inputs)``. If the last stage of
        the image encoder is trained, ``image`` holds the feature maps that enter it, ``(n_nodes, n_views, c, h, w)``.
    edge_index
        Edges between nodes, in both directions, ``(2, n_edges)``; no edge joins two slices.
    groups
        Slice number of each node, ``(n_nodes,)``.
    rows
        Nodes whose embeddings are aligned in this step, ``(n_rows,)``.
    inner
        Nodes whose neighborhood is complete, ``(n_inner,)``: those that enter the deep graph infomax loss.
    degree
        Number of neighbors of each node in the whole graph, ``(n_nodes,)``; ``None`` if the nodes are the whole graph.
    part
        The nodes that this device encodes, if several devices share the step; ``None`` on a single device.
    members, inner_members
        Nodes and inner nodes of each slice, one tensor per slice; derived from ``groups`` by default.
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
        """Copy the batch to another device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> GraphBatch:
        """Copy the batch to page-locked memory, from which a GPU can fetch it asynchronously."""
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
