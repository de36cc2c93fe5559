"""Layers of a branch: fixed input map, graph encoder, projection head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, SAGEConv, SimpleConv

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
        centred = x - self.offset
        return centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix


class GraphEncoder(nn.Module):
    """Encoder F of the paper: node representations Z = F(T, A).

    Parameters
    ----------
    n_in, n_hidden
        Width of the input and of Z.
    kind
        ``"sage"``: own features and the mean of the neighbours' through separate weights, which keeps the spot's own
        signal; ``"gcn"``: D^-1/2 (A + I) D^-1/2, which smooths; ``"gcn_sum"``: the published code's unnormalised sum
        over the spot and its neighbours; ``"none"``: no graph.
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
            self.conv = GCNConv(n_in, n_hidden)
        else:
            self.conv = nn.Linear(n_in, n_hidden)
        self.sum = SimpleConv(aggr="sum", combine_root="sum")
        self.activation = nn.PReLU()

    @property
    def n_hops(self) -> int:
        """Hops of the graph that a node's representation depends on."""
        # "gcn" divides by the degrees of a node's neighbours, which take one more hop to count.
        return {"none": 0, "gcn": 2}.get(self.kind, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Node representations, ``(n, n_hidden)``; ``edge_index`` is ``(2, n_edges)``, both directions listed."""
        x = self.tail(x)
        if self.kind == "none":
            return self.activation(self.conv(x))
        if self.kind == "gcn_sum":
            return self.activation(self.sum(self.conv(x), edge_index))
        return self.activation(self.conv(x, edge_index))


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

    def forward(self, z: Tensor) -> Tensor:
        """Joint embedding before L2 normalisation, ``(n, n_out)``."""
        projected = self.project(z)
        return self.norm(projected + self.block(projected))


def permute_rows(x: Tensor, groups: Tensor) -> Tensor:
    """Corruption of deep graph infomax: rows shuffled, each within its own slice.

    Parameters
    ----------
    x
        Node features, ``(n, width)``.
    groups
        Slice of each node, ``(n,)``, integers.
    """
    order = torch.empty(len(x), dtype=torch.long, device=x.device)
    for group in groups.unique():
        rows = torch.nonzero(groups == group).squeeze(1)
        order[rows] = rows[torch.randperm(len(rows), device=x.device)]
    return x[order]
