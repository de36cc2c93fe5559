"""Training on several devices: the nodes that one device encodes, and the exchange of their representations."""

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
        Nodes of the step, ``(n_own + n_halo,)``: the device's own, then their halo, the neighbors that they need.
    edge_index
        Edges between them, as positions in ``nodes``, ``(2, n_edges)``.
    n_own
        Number of the device's own nodes. Together, the devices own all nodes that enter a loss.
    n_nodes
        Number of nodes of the whole step.
    n_devices
        Number of devices that share the step.
    """

    nodes: Tensor
    edge_index: Tensor
    n_own: int
    n_nodes: int
    n_devices: int

    @property
    def own(self) -> Tensor:
        """The device's own nodes, ``(n_own,)``."""
        return self.nodes[: self.n_own]


class _Gathered(torch.autograd.Function):
    """All-gather of the devices' own rows, with its gradient."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, part: Part) -> Tensor:
        whole = own.new_zeros(part.n_nodes, own.shape[1])
        whole[part.own] = own
        distributed.all_reduce(whole)
        ctx.part = part
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Every device computes the same loss from all rows, and gradients of parameters are averaged over devices. A
        # row is encoded on one device alone, so the factor undoes the division by the number of devices.
        return gradients[0][ctx.part.own] * ctx.part.n_devices, None


def gathered(own: Tensor, part: Part) -> Tensor:
    """Gather the representations of all nodes of a step from the devices that computed them.

    Parameters
    ----------
    own
        Representations of the device's own nodes, ``(n_own, width)``.
    part
        Nodes that this device encodes.

    Returns
    -------
    Tensor
        Representations of all nodes, ``(n_nodes, width)``; zeros for nodes that no device owns.
    """
    whole: Tensor = _Gathered.apply(own, part)
    return whole
