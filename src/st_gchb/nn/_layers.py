"""Layers of a branch: fixed input map, graph encoder, projection head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv, SimpleConv

from st_gchb.nn._parts import Part

GraphKind = Literal["gcn", "gcn_sum", "sage", "none"]


class AffineInput(nn.Module):
    """Fixed map of raw features to principal components: ``(x - offset) @ matrix``.

    The numbers are fitted outside, on training slices, and travel with the state dict as buffers.

    Parameters
    ----------
    n_in
        Width of the features.
    n_out
        Number of components; ``None`` keeps the features and only scales each by its entry of ``matrix``.
    """

    offset: Tensor
    matrix: Tensor

    def __init__(self, n_in: int, n_out: int | None) -> None:
        super().__init__()
        self.n_out = n_in if n_out is None else n_out
        self.register_buffer("offset", torch.zeros(n_in))
        self.register_buffer("matrix", torch.zeros(n_in) if n_out is None else torch.zeros(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Components, ``(n, n_out)``."""
        centered = x - self.offset
        return centered * self.matrix if self.matrix.ndim == 1 else centered @ self.matrix


class GraphEncoder(nn.Module):
    """Encoder F of the paper: node representations Z = F(T, A).

    Parameters
    ----------
    n_in, n_hidden
        Width of the input and of Z.
    kind
        ``"sage"``: own features and the mean of the neighbors' through separate weights, which keeps the spot's own
        signal; ``"gcn"``: D^-1/2 (A + I) D^-1/2, which smooths; ``"gcn_sum"``: the published code's unnormalized sum
        over the spot and its neighbors; ``"none"``: no graph.
    n_tail
        Width of a trainable linear layer before the graph, 0 for none.
    """

    def __init__(self, n_in: int, n_hidden: int, kind: GraphKind, n_tail: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.tail = nn.Linear(n_in, n_tail) if n_tail else nn.Identity()
        n_in = n_tail or n_in
        self.conv: nn.Module
        if kind == "sage":
            self.conv = SAGEConv(n_in, n_hidden, aggr="mean")
        elif kind == "gcn":
            # The weights of the edges are made in forward, from degrees that a cut-out of a graph cannot count itself.
            self.conv = GCNConv(n_in, n_hidden, normalize=False)
        else:
            self.conv = nn.Linear(n_in, n_hidden)
        self.sum = SimpleConv(aggr="sum", combine_root="sum")
        self.activation = nn.PReLU()

    @property
    def n_hops(self) -> int:
        """Hops of the graph that a node's representation depends on, where the degrees of the whole graph are known."""
        return 0 if self.kind == "none" else 1

    def forward(self, x: Tensor, edge_index: Tensor, degree: Tensor | None = None) -> Tensor:
        """Node representations.

        Parameters
        ----------
        x
            Inputs, ``(n, n_in)``.
        edge_index
            Edges, ``(2, n_edges)``, both directions listed, no self-loops.
        degree
            Number of neighbors of each node in the whole graph, ``(n,)``. Where ``edge_index`` is all of the graph
            it can be counted; a node at the rim of a cut-out lacks neighbors that ``"gcn"`` divides by.

        Returns
        -------
        ``(n, n_hidden)``.
        """
        return self.spread(self.tail(x), edge_index, degree)

    def spread(self, x: Tensor, edge_index: Tensor, degree: Tensor | None = None) -> Tensor:
        """Node representations from what comes out of the tail, which is row by row and the costliest layer."""
        if self.kind == "none":
            return self.activation(self.conv(x))
        if self.kind == "gcn_sum":
            return self.activation(self.sum(self.conv(x), edge_index))
        if self.kind == "gcn":
            return self.activation(self.conv(x, *gcn_edges(edge_index, len(x), degree, x.dtype)))
        return self.activation(self.conv(x, edge_index))


def gcn_edges(edge_index: Tensor, n: int, degree: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Edges and weights of D^-1/2 (A + I) D^-1/2: the edges given, then one self-loop a node.

    Parameters
    ----------
    edge_index
        Edges without self-loops, ``(2, n_edges)``.
    n
        Number of nodes.
    degree
        As :meth:`GraphEncoder.forward` takes it.
    dtype
        Of the weights.
    """
    source, target = edge_index
    if degree is None:
        ones = torch.ones(len(target), dtype=dtype, device=target.device)
        degree = torch.zeros(n, dtype=dtype, device=target.device).index_add(0, target, ones)
    root = (degree.to(dtype) + 1.0).pow(-0.5)
    loops = torch.arange(n, device=target.device)
    weight = torch.cat([root[source] * root[target], root * root])
    return torch.cat([edge_index, torch.stack([loops, loops])], dim=1), weight


class ProjectionHead(nn.Module):
    """Linear, then a GELU residual block with dropout and layer norm, as in BLEEP and the paper's code.

    Parameters
    ----------
    n_in, n_out
        Width of Z and of the joint embedding.
    dropout
        Share of the residual's units that are dropped in training.
    """

    def __init__(self, n_in: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(n_in, n_out)
        self.block = nn.Sequential(nn.GELU(), nn.Linear(n_out, n_out), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(n_out)

    def forward(self, z: Tensor, part: Part | None = None) -> Tensor:
        """Joint embedding before L2 normalization, ``(n, n_out)``; of one device's own nodes where there is a part."""
        projected = self.project(z)
        if part is None:
            return self.norm(projected + self.block(projected))
        activation, linear, dropout = self.block
        residual = linear(activation(projected))
        # The mask of the whole step is drawn on every device, so that it is the one that a single device would draw.
        mask = dropout(residual.new_ones(part.n_nodes, residual.shape[1]))
        return self.norm(projected + residual * mask[part.own])


def members_of(groups: Tensor) -> tuple[Tensor, ...]:
    """Rows of each slice, in the order of the slices' numbers; to be called where the numbers can be read at no cost.

    Parameters
    ----------
    groups
        Slice of each node, ``(n,)``, integers, in the host's memory.
    """
    return tuple(torch.nonzero(groups == group).squeeze(1) for group in groups.unique())


def permute_rows(x: Tensor, members: Sequence[Tensor]) -> Tensor:
    """Corruption of deep graph infomax: rows shuffled, each within its own slice.

    Parameters
    ----------
    x
        Node features, ``(n, width)``.
    members
        Rows of each slice, as :func:`members_of` finds them. Found here, they would make the host wait for the device.
    """
    order = torch.empty(len(x), dtype=torch.long, device=x.device)
    for rows in members:
        order[rows] = rows[torch.randperm(len(rows), device=x.device)]
    return x[order]
