"""The two branches and their joint loss. Runs where only torch, torch-geometric and pydantic are installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import DeepGraphInfomax

from st_gchb._arguments import Count, Positive, Share, Temperature, Weight, Width, WidthFromZero, checked
from st_gchb.nn._batch import GraphBatch
from st_gchb.nn._last_stage import TrainedStage
from st_gchb.nn._layers import AffineInput, GraphEncoder, GraphKind, ProjectionHead, permute_rows
from st_gchb.nn._losses import alignment_loss, bottleneck_loss, cka, dgi_loss, literal_alignment_loss, nhsic
from st_gchb.nn._parts import Part, gathered


@checked
@dataclass(frozen=True)
class NetworkSettings:
    """Sizes and kinds of the network's parts.

    ``n_image_inputs`` and ``n_expression_inputs`` are the numbers of components after the fixed input maps (``None``
    keeps the features as they are); ``n_tail`` is the width of a trainable linear layer in front of the image branch's
    graph encoder (0: none), the paper's "last layer" of the trunk.
    """

    n_features: Count
    n_genes: Count
    n_image_inputs: Count | None
    n_expression_inputs: Count | None
    n_tail: WidthFromZero = 0
    n_hidden: Width = 256
    n_embedding: Width = 128
    image_graph: GraphKind = "sage"
    expression_graph: GraphKind = "sage"
    dropout: Share = 0.4


@checked
@dataclass(frozen=True)
class LossSettings:
    """Weights and forms of the loss terms; a weight of 0 leaves the term out.

    ``paper_equations`` takes equations 1 to 7 as printed: sums over nodes in DGI with the read-out h = sum Z_i, nHSIC
    of equation 4, and the alignment of equations 6 and 7.
    """

    paper_equations: bool = False
    temperature: Temperature = 0.2
    soft_targets: bool = True
    dgi_image: Weight = 0.0
    dgi_expression: Weight = 0.0
    bottleneck: Weight = 0.0
    beta: Weight = 5.0
    dependence: Literal["cka", "nhsic"] = "cka"
    sigma: Positive | None = None


@dataclass
class BranchOutput:
    """Representations of one branch: fixed input, hidden Z, embedding before L2 normalization.

    ``shuffled`` is what infomax shuffles: the output of the tail, which works row by row, so that of shuffled rows it
    makes its own output, shuffled; where devices share the nodes, the inputs.
    """

    inputs: Tensor
    hidden: Tensor
    embedding: Tensor
    shuffled: Tensor


class Branch(nn.Module):
    """Fixed input map, graph encoder with its infomax discriminator, projection head.

    Parameters
    ----------
    n_raw, n_inputs
        Width of the raw features and of the fixed map's components.
    kind
        Kind of graph encoder, see :class:`GraphEncoder`.
    settings
        Sizes that both branches share.
    n_tail
        Width of the trainable layer before the graph encoder, 0 for none.
    """

    def __init__(
        self, n_raw: int, n_inputs: int | None, kind: GraphKind, settings: NetworkSettings, n_tail: int = 0
    ) -> None:
        super().__init__()
        self.fixed = AffineInput(n_raw, n_inputs)
        self.infomax = DeepGraphInfomax(
            hidden_channels=settings.n_hidden,
            encoder=GraphEncoder(self.fixed.n_out, settings.n_hidden, kind, n_tail),
            summary=mean_readout,
            corruption=permute_rows,
        )
        self.head = ProjectionHead(settings.n_hidden, settings.n_embedding, settings.dropout)

    def forward(
        self, inputs: Tensor, edge_index: Tensor, degree: Tensor | None = None, part: Part | None = None
    ) -> BranchOutput:
        """Representations of all nodes; ``inputs`` come out of the fixed map.

        With ``part``, the nodes are shared between devices, and nodes that are no device's own get zeros.
        """
        if part is None:
            tail = self.infomax.encoder.tail(inputs)
            hidden = self.infomax.encoder.spread(tail, edge_index, degree)
            return BranchOutput(inputs, hidden, self.head(hidden), tail)
        hidden = self._own_hidden(inputs, degree, part)
        return BranchOutput(inputs, gathered(hidden, part), gathered(self.head(hidden, part), part), inputs)

    def _own_hidden(self, inputs: Tensor, degree: Tensor | None, part: Part) -> Tensor:
        """Z of this device's own nodes."""
        own_degree = None if degree is None else degree[part.nodes]
        return self.infomax.encoder(inputs[part.nodes], part.edge_index, own_degree)[: part.n_own]

    def dgi(self, out: BranchOutput, batch: GraphBatch, *, paper_equations: bool) -> Tensor:
        """Equation 1, one summary per slice, over the nodes whose neighborhood is complete."""
        corrupted = permute_rows(out.shuffled, batch.members)
        if batch.part is None:
            negative = self.infomax.encoder.spread(corrupted, batch.edge_index, batch.degree)
        else:
            negative = gathered(self._own_hidden(corrupted, batch.degree, batch.part), batch.part)
        losses = []
        for nodes in batch.inner_members:
            summary = sum_readout(out.hidden[nodes]) if paper_equations else mean_readout(out.hidden[nodes])
            losses.append(
                dgi_loss(
                    self.infomax.discriminate(out.hidden[nodes], summary, sigmoid=False),
                    self.infomax.discriminate(negative[nodes], summary, sigmoid=False),
                    "sum" if paper_equations else "mean",
                )
            )
        return torch.stack(losses).mean()


def mean_readout(z: Tensor, *_: Tensor) -> Tensor:
    """Summary of the original DGI, sigmoid(mean Z_i), ``(n_hidden,)``."""
    return torch.sigmoid(z.mean(0))


def sum_readout(z: Tensor, *_: Tensor) -> Tensor:
    """Summary of the paper, h = sum Z_i, ``(n_hidden,)``."""
    return z.sum(0)


class STGCHBNetwork(nn.Module):
    """The whole network: an image branch and an expression branch that meet in one embedding.

    Parameters
    ----------
    settings
        Sizes and kinds of its parts.
    stage
        Last stage of the trunk, from feature maps ``(b, c, h, w)`` to features ``(b, n_features)``, which is then
        trained too, in front of the image branch. None where the features are fixed.

    Examples
    --------
    >>> import torch
    >>> from st_gchb.nn import NetworkSettings, STGCHBNetwork
    >>> net = STGCHBNetwork(NetworkSettings(n_features=6, n_genes=9, n_image_inputs=4, n_expression_inputs=3))
    >>> edges = torch.tensor([[0, 1], [1, 0]])
    >>> net.embed_image(torch.rand(2, 6), edges).shape
    torch.Size([2, 128])
    """

    def __init__(self, settings: NetworkSettings, stage: nn.Module | None = None) -> None:
        super().__init__()
        self.settings = settings
        s = settings
        self.stage = None if stage is None else TrainedStage(stage)
        self.image = Branch(s.n_features, s.n_image_inputs, s.image_graph, s, s.n_tail)
        self.expression = Branch(s.n_genes, s.n_expression_inputs, s.expression_graph, s)

    @property
    def n_hops(self) -> int:
        """Hops of the graph that an embedding depends on."""
        return max(branch.infomax.encoder.n_hops for branch in (self.image, self.expression))

    def embed_image(self, features: Tensor, edge_index: Tensor) -> Tensor:
        """L2-normalized joint embedding of patches, ``(n, n_embedding)``, from raw features (after the stage)."""
        return F.normalize(self.image(self.image.fixed(features), edge_index).embedding, dim=1)

    def embed_expression(self, expression: Tensor, edge_index: Tensor) -> Tensor:
        """L2-normalized joint embedding of log-normalized panel expression, ``(n, n_embedding)``."""
        return F.normalize(self.expression(self.expression.fixed(expression), edge_index).embedding, dim=1)

    def image_inputs(self, values: Tensor) -> Tensor:
        """Inputs of the image branch, ``(n, n_inputs)``, from what a step holds: these, or maps for the stage."""
        return values if self.stage is None else self.image.fixed(self.stage(values))

    def pretraining_loss(self, batch: GraphBatch, settings: LossSettings) -> dict[str, Tensor]:
        """Deep graph infomax of both branches alone, as in the paper's first stage."""
        terms = {}
        if settings.dgi_image:
            image = self.image(self.image_inputs(batch.image), batch.edge_index, batch.degree, batch.part)
            terms["dgi_image"] = settings.dgi_image * self.image.dgi(
                image, batch, paper_equations=settings.paper_equations
            )
        if settings.dgi_expression:
            expression = self.expression(batch.expression, batch.edge_index, batch.degree, batch.part)
            terms["dgi_expression"] = settings.dgi_expression * self.expression.dgi(
                expression, batch, paper_equations=settings.paper_equations
            )
        return terms

    def loss(self, batch: GraphBatch, settings: LossSettings) -> dict[str, Tensor]:
        """Terms of the joint loss, each already weighted; the loss is their sum.

        Parameters
        ----------
        batch
            Spots of one step; at least 2 rows.
        settings
            Which terms, in which form.
        """
        image = self.image(self.image_inputs(batch.image), batch.edge_index, batch.degree, batch.part)
        expression = self.expression(batch.expression, batch.edge_index, batch.degree, batch.part)
        t_l, g_f = expression.embedding[batch.rows], image.embedding[batch.rows]
        if settings.paper_equations:
            terms = {"alignment": literal_alignment_loss(t_l, g_f, settings.temperature)}
        else:
            terms = {"alignment": alignment_loss(t_l, g_f, settings.temperature, soft_targets=settings.soft_targets)}
        for name, branch, out, weight in (
            ("image", self.image, image, settings.dgi_image),
            ("expression", self.expression, expression, settings.dgi_expression),
        ):
            if weight:
                terms[f"dgi_{name}"] = weight * branch.dgi(out, batch, paper_equations=settings.paper_equations)
            if settings.bottleneck:
                terms[f"bottleneck_{name}"] = settings.bottleneck * bottleneck_loss(
                    out.inputs[batch.rows],
                    out.hidden[batch.rows],
                    out.embedding[batch.rows],
                    beta=settings.beta,
                    dependence=nhsic if settings.dependence == "nhsic" else cka,
                    sigma=settings.sigma,
                )
        return terms
