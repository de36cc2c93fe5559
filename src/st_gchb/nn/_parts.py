"""One device's share of a step: its nodes with their halo, and the way back to the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass
class Part:
    """Nodes of a step that one of several devices encodes.

    Parameters
    ----------
    nodes
        Rows of the step's nodes: the device's own first, then their halo, ``(n_own + n_halo,)``.
    edge_index
        Edges between them, by their place in ``nodes``, ``(2, n_edges)``.
    n_own
        How many are the device's own; those of all devices together are the nodes that count in the step.
    n_nodes
        Nodes of the whole step.
    n_devices
        Devices that share the step.
    """

    nodes: Tensor
    edge_index: Tensor
    n_own: int
    n_nodes: int
    n_devices: int

    @property
    def own(self) -> Tensor:
        """Rows of the device's own nodes, ``(n_own,)``."""
        return self.nodes[: self.n_own]


class _Gathered(torch.autograd.Function):
    """Own rows of all devices put together; every device gets the whole."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, part: Part) -> Tensor:
        whole = own.new_zeros(part.n_nodes, own.shape[1])
        whole[part.own] = own
        distributed.all_reduce(whole)
        ctx.part = part
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Every device computes the same loss from the whole, and gradients of parameters are averaged over devices:
        # the factor takes that division back for rows that only one device has encoded.
        return gradients[0][ctx.part.own] * ctx.part.n_devices, None


def gathered(own: Tensor, part: Part) -> Tensor:
    """Representations of all nodes of a step, ``(n_nodes, width)``, from those that each device has computed.

    Parameters
    ----------
    own
        Representations of the device's own nodes, ``(n_own, width)``. Nodes that are no device's own get zeros.
    part
        The device's share.
    """
    whole: Tensor = _Gathered.apply(own, part)
    return whole
