"""Settings, branches and joint loss of the network.

Only torch, torch-geometric and pydantic are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from st_gchb._arguments import Count, Positive, Share, Temperature, Weight, Width, WidthFromZero, checked
from st_gchb._options import Dependence, GraphKind
from st_gchb.nn._batch import GraphBatch
from st_gchb.nn._last_stage import TrainedStage
from st_gchb.nn._layers import AffineInput, GraphEncoder, Infomax, ProjectionHead, permute_rows
from st_gchb.nn._losses import alignment_loss, bottleneck_loss, cka, dgi_loss, literal_alignment_loss, nhsic
from st_gchb.nn._parts import Part, gathered


@checked
@dataclass(frozen=True)
class NetworkSettings:
    """Sizes and kinds of the layers of the network.

    Parameters
    ----------
    n_features, n_genes
        Number of patch features and of genes.
    n_image_inputs, n_expression_inputs
        Number of components after the fixed input projections; ``None`` keeps the features as they are.
    n_image_adapter
        Width of the image adapter, a trainable linear layer before the graph encoder of the image branch, which stands
        for the trainable last layer of the paper's ResNet50; 0 for none.
    n_hidden, n_embedding
        Width of the hidden representation Z and of the joint embedding.
    image_graph, expression_graph
        Kind of each branch's graph encoder, see :class:`GraphEncoder`.
    dropout
        Dropout of the projection heads.
    """

    n_features: Count
    n_genes: Count
    n_image_inputs: Count | None
    n_expression_inputs: Count | None
    n_image_adapter: WidthFromZero
    n_hidden: Width
    n_embedding: Width
    image_graph: GraphKind
    expression_graph: GraphKind
    dropout: Share


@checked
@dataclass(frozen=True)
class LossSettings:
    """Weights and forms of the loss terms; a weight of 0 leaves the term out.

    Parameters
    ----------
    paper_equations
        Take equations 1, 6 and 7 as printed: deep graph infomax sums over nodes and reads the slice out as
        h = sum Z_i, and the alignment is :func:`literal_alignment_loss`.
    temperature
        Temperature of the alignment.
    soft_targets
        Align to soft targets rather than to each spot's own pair alone; without ``paper_equations``.
    dgi_image, dgi_expression
        Weight of deep graph infomax in each branch, equation 1.
    bottleneck
        Weight of the HSIC bottleneck, equation 5.
    beta
        Weight of the second term of equation 5.
    dependence
        Measure of dependence in equation 5: ``"nhsic"`` is equation 4, ``"cka"`` normalizes to CKA(A, A) = 1.
    sigma
        Bandwidth of the Gaussian kernel; ``None`` takes the median heuristic.
    """

    paper_equations: bool
    temperature: Temperature
    soft_targets: bool
    dgi_image: Weight
    dgi_expression: Weight
    bottleneck: Weight
    beta: Weight
    dependence: Dependence
    sigma: Positive | None


@dataclass
class BranchOutput:
    """Representations of one branch.

    Parameters
    ----------
    inputs
        Output of the fixed input projection, ``(n, n_inputs)``.
    hidden
        Hidden representation Z, ``(n, n_hidden)``.
    embedding
        Embedding before L2 normalization, ``(n, n_embedding)``.
    shuffled
        Features whose rows infomax shuffles. This is the output of the adapter: it acts on each row alone, so shuffling
        its output is the same as shuffling its input. If several devices share the nodes, it is the inputs.
    """

    inputs: Tensor
    hidden: Tensor
    embedding: Tensor
    shuffled: Tensor


class Branch(nn.Module):
    """Branch of one modality: fixed input projection, graph encoder with infomax discriminator, projection head.

    Parameters
    ----------
    n_raw, n_inputs
        Number of raw features and of components after the fixed input projection.
    kind
        Kind of graph encoder, see :class:`GraphEncoder`.
    settings
        Sizes that both branches share.
    n_tail
        Width of the adapter before the graph encoder, 0 for none.
    """

    def __init__(
        self, n_raw: int, n_inputs: int | None, kind: GraphKind, settings: NetworkSettings, n_tail: int = 0
    ) -> None:
        super().__init__()
        self.fixed = AffineInput(n_raw, n_inputs)
        encoder = GraphEncoder(self.fixed.n_out, settings.n_hidden, kind, n_tail)
        self.infomax = Infomax(encoder, settings.n_hidden)
        self.head = ProjectionHead(settings.n_hidden, settings.n_embedding, settings.dropout)

    def forward(
        self, inputs: Tensor, edge_index: Tensor, degree: Tensor | None = None, part: Part | None = None
    ) -> BranchOutput:
        """Compute the representations of all nodes.

        Parameters
        ----------
        inputs
            Output of the fixed input projection, ``(n, n_inputs)``.
        edge_index
            Edges in both directions, ``(2, n_edges)``.
        degree
            Number of neighbors of each node in the whole graph, see :meth:`GraphEncoder.forward`.
        part
            Nodes that this device encodes, if several devices share the step. Nodes that no device owns get zeros.

        Returns
        -------
        BranchOutput
            Representations of all nodes of the step.
        """
        if part is None:
            adapted = self.infomax.encoder.tail(inputs)
            hidden = self.infomax.encoder.spread(adapted, edge_index, degree)
            return BranchOutput(inputs, hidden, self.head(hidden), adapted)
        hidden = self._own_hidden(inputs, degree, part)
        return BranchOutput(inputs, gathered(hidden, part), gathered(self.head(hidden, part), part), inputs)

    def _own_hidden(self, inputs: Tensor, degree: Tensor | None, part: Part) -> Tensor:
        """Compute Z of this device's own nodes."""
        own_degree = None if degree is None else degree[part.nodes]
        return self.infomax.encoder(inputs[part.nodes], part.edge_index, own_degree)[: part.n_own]

    def dgi(self, out: BranchOutput, batch: GraphBatch, *, paper_equations: bool) -> Tensor:
        """Compute equation 1 over the nodes whose neighborhood is complete, with one summary h per slice."""
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
                    self.infomax.discriminate(out.hidden[nodes], summary),
                    self.infomax.discriminate(negative[nodes], summary),
                    "sum" if paper_equations else "mean",
                )
            )
        return torch.stack(losses).mean()


def mean_readout(z: Tensor) -> Tensor:
    """Compute the summary of the original deep graph infomax, sigmoid(mean Z_i), ``(n_hidden,)``."""
    return torch.sigmoid(z.mean(0))


def sum_readout(z: Tensor) -> Tensor:
    """Compute the summary of equation 1 in the paper, h = sum Z_i, ``(n_hidden,)``."""
    return z.sum(0)


class STGCHBNetwork(nn.Module):
    """Network of an image branch and an expression branch that share one joint embedding.

    Parameters
    ----------
    settings
        Sizes and kinds of the layers.
    stage
        Last stage of the image encoder, from feature maps ``(b, c, h, w)`` to features ``(b, n_features)``, to be
        trained before the image branch; ``None`` if the features are fixed.

    Examples
    --------
    >>> import torch
    >>> from st_gchb.nn import NetworkSettings, STGCHBNetwork
    >>> settings = NetworkSettings(
    ...     n_features=6,
    ...     n_genes=9,
    ...     n_image_inputs=4,
    ...     n_expression_inputs=3,
    ...     n_image_adapter=0,
    ...     n_hidden=16,
    ...     n_embedding=8,
    ...     image_graph="gcn",
    ...     expression_graph="gcn",
    ...     dropout=0.4,
    ... )
    >>> edges = torch.tensor([[0, 1], [1, 0]])
    >>> STGCHBNetwork(settings).embed_image(torch.rand(2, 6), edges).shape
    torch.Size([2, 8])
    """

    def __init__(self, settings: NetworkSettings, stage: nn.Module | None = None) -> None:
        super().__init__()
        self.settings = settings
        s = settings
        self.stage = None if stage is None else TrainedStage(stage)
        self.image = Branch(s.n_features, s.n_image_inputs, s.image_graph, s, s.n_image_adapter)
        self.expression = Branch(s.n_genes, s.n_expression_inputs, s.expression_graph, s)

    @property
    def n_hops(self) -> int:
        """Number of hops over which an embedding depends on the graph."""
        return max(branch.infomax.encoder.n_hops for branch in (self.image, self.expression))

    def embed_image(self, features: Tensor, edge_index: Tensor) -> Tensor:
        """Embed patches: L2-normalized, ``(n, n_embedding)``, from raw features, ``(n, n_features)``."""
        return F.normalize(self.image(self.image.fixed(features), edge_index).embedding, dim=1)

    def embed_expression(self, expression: Tensor, edge_index: Tensor) -> Tensor:
        """Embed expression: L2-normalized, ``(n, n_embedding)``, from log-normalized values, ``(n, n_genes)``."""
        return F.normalize(self.expression(self.expression.fixed(expression), edge_index).embedding, dim=1)

    def image_inputs(self, values: Tensor) -> Tensor:
        """Compute the inputs of the image branch, ``(n, n_inputs)``, from the ``image`` of a batch.

        A batch holds these inputs already, or the feature maps that enter the trained stage.
        """
        return values if self.stage is None else self.image.fixed(self.stage(values))

    def pretraining_loss(self, batch: GraphBatch, settings: LossSettings) -> dict[str, Tensor]:
        """Compute the deep graph infomax losses alone (equation 1), as in the paper's first stage of training.

        Parameters
        ----------
        batch
            Spots of one step.
        settings
            Weights and forms of the loss terms.

        Returns
        -------
        dict[str, Tensor]
            Weighted terms by name; the loss is their sum.
        """
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
        """Compute the terms of the joint loss: alignment, deep graph infomax and HSIC bottleneck.

        Parameters
        ----------
        batch
            Spots of one step; at least 2 rows.
        settings
            Weights and forms of the loss terms.

        Returns
        -------
        dict[str, Tensor]
            Weighted terms by name; the loss is their sum.
        """
        image = self.image(self.image_inputs(batch.image), batch.edge_index, batch.degree, batch.part)
        expression = self.expression(batch.expression, batch.edge_index, batch.degree, batch.part)
        # Taking all rows is a copy, and its gradient a scattered sum: the terms have no order of spots.
        aligned = slice(None) if len(batch.rows) == len(batch.groups) else batch.rows
        t_l, g_f = expression.embedding[aligned], image.embedding[aligned]
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
                    out.inputs[aligned],
                    out.hidden[aligned],
                    out.embedding[aligned],
                    beta=settings.beta,
                    dependence=nhsic if settings.dependence == "nhsic" else cka,
                    sigma=settings.sigma,
                )
        return terms
