"""Layers of a branch (fixed input projection, graph encoder, projection head) and the shuffling of infomax."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from st_gchb._options import GraphKind
from st_gchb.nn._parts import Part


class AffineInput(nn.Module):
    """Fixed projection of raw features to principal components, ``(x - offset) @ matrix``: the paper's T_alpha.

    The projection is fitted on the training slices, outside the network, and is stored in the state dict as buffers.

    Parameters
    ----------
    n_in
        Number of features.
    n_out
        Number of components; ``None`` keeps the features and scales each by its entry of ``matrix``.
    """

    offset: Tensor
    matrix: Tensor

    def __init__(self, n_in: int, n_out: int | None) -> None:
        super().__init__()
        self.n_out = n_in if n_out is None else n_out
        self.register_buffer("offset", torch.zeros(n_in))
        self.register_buffer("matrix", torch.zeros(n_in) if n_out is None else torch.zeros(n_in, n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the components, ``(n, n_out)``, of raw features, ``(n, n_in)``."""
        centered = x - self.offset
        return centered * self.matrix if self.matrix.ndim == 1 else centered @ self.matrix


class GraphEncoder(nn.Module):
    """Encoder F of the paper: node representations Z = F(T_alpha, A), the inputs of equation 1.

    Parameters
    ----------
    n_in, n_hidden
        Width of the input and of Z.
    kind
        ``"sage"``: separate weights for a spot's own features and for the mean of its neighbors' features, which
        keeps the spot's own signal; ``"gcn"``: propagation by D^-1/2 (A + I) D^-1/2, which smooths; ``"gcn_sum"``: the
        published code's unnormalized sum over the spot and its neighbors; ``"none"``: no graph.
    n_tail
        Width of the adapter, a trainable linear layer before the graph convolution; 0 for none.
    """

    def __init__(self, n_in: int, n_hidden: int, kind: GraphKind, n_tail: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.tail = nn.Linear(n_in, n_tail) if n_tail else nn.Identity()
        n_in = n_tail or n_in
        self.conv: nn.Module
        if kind == "sage":
            self.conv = _convolutions().SAGEConv(n_in, n_hidden, aggr="mean")
        elif kind == "gcn":
            # Edge weights are computed in forward, since a subgraph does not hold the degrees of the whole graph.
            self.conv = _convolutions().GCNConv(n_in, n_hidden, normalize=False)
        else:
            self.conv = nn.Linear(n_in, n_hidden)
        if kind == "gcn_sum":
            self.sum = _convolutions().SimpleConv(aggr="sum", combine_root="sum")
        self.activation = nn.PReLU()

    @property
    def n_hops(self) -> int:
        """Number of hops over which a node's representation depends on the graph, given the degrees of all of it."""
        return 0 if self.kind == "none" else 1

    def forward(self, x: Tensor, edge_index: Tensor, degree: Tensor | None = None) -> Tensor:
        """Compute node representations.

        Parameters
        ----------
        x
            Inputs, ``(n, n_in)``.
        edge_index
            Edges in both directions, without self-loops, ``(2, n_edges)``.
        degree
            Number of neighbors of each node in the whole graph, ``(n,)``. It is counted by default, which is right
            only if ``edge_index`` is the whole graph: a node at the border of a subgraph lacks some of the neighbors
            by whose number ``"gcn"`` divides.

        Returns
        -------
        Tensor
            Z, ``(n, n_hidden)``.
        """
        return self.spread(self.tail(x), edge_index, degree)

    def spread(self, x: Tensor, edge_index: Tensor, degree: Tensor | None = None) -> Tensor:
        """Compute node representations from the output of the adapter, ``tail``.

        The adapter acts on each row alone and is the most expensive layer, so that infomax shuffles its output instead
        of its input, and it runs once per step.
        """
        if self.kind == "none":
            return self.activation(self.conv(x))
        if self.kind == "gcn_sum":
            return self.activation(self.sum(self.conv(x), edge_index))
        if self.kind == "gcn":
            return self.activation(self.conv(x, *gcn_edges(edge_index, len(x), degree, x.dtype)))
        return self.activation(self.conv(x, edge_index))


def _convolutions() -> ModuleType:
    """Import torch-geometric's convolutions, which take two seconds, for the networks that pass messages."""
    return importlib.import_module("torch_geometric.nn")


def gcn_edges(edge_index: Tensor, n: int, degree: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute edges and weights of D^-1/2 (A + I) D^-1/2: the given edges, then one self-loop per node.

    Parameters
    ----------
    edge_index
        Edges without self-loops, ``(2, n_edges)``.
    n
        Number of nodes.
    degree
        Number of neighbors in the whole graph, see :meth:`GraphEncoder.forward`.
    dtype
        Data type of the weights.

    Returns
    -------
    tuple[Tensor, Tensor]
        Edges, ``(2, n_edges + n)``, and their weights, ``(n_edges + n,)``.
    """
    source, target = edge_index
    if degree is None:
        ones = torch.ones(len(target), dtype=dtype, device=target.device)
        degree = torch.zeros(n, dtype=dtype, device=target.device).index_add(0, target, ones)
    root = (degree.to(dtype) + 1.0).pow(-0.5)
    loops = torch.arange(n, device=target.device)
    weight = torch.cat([root[source] * root[target], root * root])
    return torch.cat([edge_index, torch.stack([loops, loops])], dim=1), weight


class Infomax(nn.Module):
    """Graph encoder and the bilinear discriminator of deep graph infomax (Velickovic et al. 2019).

    Parameters are those of torch-geometric's ``DeepGraphInfomax`` and are drawn in its order. Its corruption and
    summary are not taken: both are made slice by slice, by ``Branch.dgi``.

    Parameters
    ----------
    encoder
        Makes the node representations Z.
    n_hidden
        Width of Z.
    """

    def __init__(self, encoder: GraphEncoder, n_hidden: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.weight = nn.Parameter(torch.empty(n_hidden, n_hidden))
        for part in self.encoder.children():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
        bound = 1.0 / math.sqrt(n_hidden)
        nn.init.uniform_(self.weight, -bound, bound)

    def discriminate(self, z: Tensor, summary: Tensor) -> Tensor:
        """Score nodes ``(n, n_hidden)`` against a summary ``(n_hidden,)``; logits, ``(n,)``."""
        return z @ (self.weight @ summary)


class ProjectionHead(nn.Module):
    """Projection of Z to the joint embedding (T_l and G_f of equations 5 to 7).

    A linear layer, then a GELU residual block with dropout and layer norm, as in BLEEP and the paper's code.

    Parameters
    ----------
    n_in, n_out
        Width of Z and of the joint embedding.
    dropout
        Share of the units of the residual block that are dropped in training.
    """

    def __init__(self, n_in: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(n_in, n_out)
        self.block = nn.Sequential(nn.GELU(), nn.Linear(n_out, n_out), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(n_out)

    def forward(self, z: Tensor, part: Part | None = None) -> Tensor:
        """Compute the joint embedding before L2 normalization, ``(n, n_out)``.

        With ``part``, ``z`` holds this device's own nodes only.
        """
        projected = self.project(z)
        if part is None:
            return self.norm(projected + self.block(projected))
        activation, linear, dropout = self.block
        residual = linear(activation(projected))
        # Every device draws the dropout mask of the whole step, so that it equals the mask that one device would draw.
        mask = dropout(residual.new_ones(part.n_nodes, residual.shape[1]))
        return self.norm(projected + residual * mask[part.own])


def members_of(groups: Tensor) -> tuple[Tensor, ...]:
    """Find the rows of each slice, in the order of the slice numbers.

    Parameters
    ----------
    groups
        Slice number of each node, ``(n,)``. It should lie in host memory: reading it from a GPU makes the host wait.

    Returns
    -------
    tuple[Tensor, ...]
        Rows of each slice.
    """
    order = groups.argsort(stable=True)
    sizes = groups[order].unique_consecutive(return_counts=True)[1]
    return order.split(sizes.tolist())


def permute_rows(x: Tensor, members: Sequence[Tensor]) -> Tensor:
    """Shuffle rows within each slice: the corruption of deep graph infomax, which makes Z' of equation 1.

    Parameters
    ----------
    x
        Node features, ``(n, width)``.
    members
        Rows of each slice, from :func:`members_of`. They are passed in, since finding them here would make the host
        wait for the device.

    Returns
    -------
    Tensor
        The shuffled features, ``(n, width)``.
    """
    order = torch.empty(len(x), dtype=torch.long, device=x.device)
    for rows in members:
        order[rows] = rows[torch.randperm(len(rows), device=x.device)]
    return x[order]
