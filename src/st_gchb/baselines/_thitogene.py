"""THItoGene (Jia et al. 2024): dynamic convolution, capsules, and attention over the spots of a slice and its graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from st_gchb._errors import InputError, SliceError
from st_gchb.baselines._baseline import compact_parts, region_batches
from st_gchb.baselines._hist2st import lattice_edges
from st_gchb.baselines._layers import ArrayPositions, PreNormBlock
from st_gchb.baselines._slice_baseline import FeatureEmbedding, SliceBaseline, SliceSettings
from st_gchb.baselines._spots import Spots

AttentionOver = Literal["neighbors", "receivers"]
"""Spots over which the weights of graph attention sum to 1."""

_CONVOLUTIONS = ((5, 1), (3, 1), (3, 1), (3, 2))
"""Side and stride of the convolutions before the capsules."""
_CONTEXT = 16
"""Width of the context from which the attentions of dynamic convolution are computed."""
_SLOPE = 0.01
"""Slope of LeakyReLU in graph attention."""
_TINY = 1e-12
"""Keeps the gradient of a length finite at 0."""


@dataclass(frozen=True)
class THItoGeneSettings(SliceSettings):
    """Settings of THItoGene; the defaults are those of ``small``.

    Parameters
    ----------
    epochs, choose_epochs, patience, batch_size, lr
        As for :class:`TrainingSettings`. Of a slice of more than ``batch_size`` spots, another region of as many is
        taken in each epoch, and it is predicted in compact parts of at most as many.
    patch_px, patch_um, pixel_scale, position_scale, start_at_mean, from_features
        As for :class:`SliceSettings`. Patch features stand for the primary capsules.
    stem_channels, stem_px, stem_stride
        Number of channels of dynamic convolution, side of its kernels, and its stride, px.
    n_kernels
        Number of candidate kernels that dynamic convolution mixes.
    channels
        Numbers of channels of the four convolutions after it.
    n_primary, primary_width
        Number of primary capsules, and width of each; their product is the last number of channels.
    n_capsules, capsule_width
        Number of routed capsules, and width of each.
    n_blocks, n_heads, head_width, hidden
        Number of transformer blocks, attention heads of each, width of these, and width of the perceptron.
    graph_heads, graph_width, graph_out
        Number of heads of the first graph layer, width of each, and width of the second graph layer, of one head.
    head_hidden
        Width of the layer before the genes.
    dropout
        Dropout in the transformer, and of inputs and attention of the graph layers.
    attention_over
        ``"neighbors"``: each spot's weights of its neighbors sum to 1, as graph attention is defined.
        ``"receivers"``: the weights that a spot has for those it is a neighbor of do, as in the released code.
    """

    epochs: int = 50
    batch_size: int = 1000
    lr: float = 1e-3
    patch_px: int = 56
    stem_channels: int = 8
    stem_px: int = 4
    stem_stride: int = 2
    n_kernels: int = 4
    channels: tuple[int, int, int, int] = (16, 32, 32, 64)
    n_primary: int = 8
    primary_width: int = 8
    n_capsules: int = 8
    capsule_width: int = 16
    n_blocks: int = 2
    n_heads: int = 4
    head_width: int = 32
    hidden: int = 320
    graph_heads: int = 4
    graph_width: int = 32
    graph_out: int = 64
    head_hidden: int = 128
    dropout: float = 0.2
    attention_over: AttentionOver = "neighbors"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_over not in get_args(AttentionOver):
            raise InputError(
                f"attention_over={self.attention_over!r}: expected {' or '.join(map(repr, get_args(AttentionOver)))}."
            )
        if self.n_primary * self.primary_width != self.channels[-1]:
            raise InputError(
                f"n_primary={self.n_primary} capsules of primary_width={self.primary_width} are cut out of "
                f"{self.n_primary * self.primary_width} channels; expected {self.channels[-1]}, the last of channels="
                f"{self.channels}. Change one of the three."
            )
        if self.map_px < 1:
            raise InputError(
                f"patch_px={self.patch_px} leaves nothing after the convolutions (stem_px={self.stem_px}, "
                f"stem_stride={self.stem_stride}). Take larger patches; 56 or 112 px are usual."
            )

    @property
    def width(self) -> int:
        """Width of the tokens: all routed capsules, and one for each axis of the position."""
        return (self.n_capsules + 2) * self.capsule_width

    @property
    def map_px(self) -> int:
        """Side of the feature map from which the primary capsules are made, px."""
        side = self.patch_px
        for kernel, stride in ((self.stem_px, self.stem_stride), *_CONVOLUTIONS):
            side = (side - kernel) // stride + 1
        return side


class DynamicConvolution(nn.Module):
    """Omni-dimensional dynamic convolution: kernels that each patch mixes for itself (Li et al. 2022, equation 2).

    The mean over the patch gives a context, and this four attentions: of input channels, output channels and places
    of the kernel (sigmoid), and of the candidate kernels (softmax).

    Parameters
    ----------
    n_in, n_out
        Numbers of channels.
    side, stride
        Side of the kernels, and stride, px.
    n_kernels
        Number of candidate kernels.
    """

    def __init__(self, n_in: int, n_out: int, side: int, stride: int, n_kernels: int) -> None:
        super().__init__()
        self.side, self.stride = side, stride
        self.kernels = nn.Parameter(torch.empty(n_kernels, n_out, n_in, side**2))
        nn.init.kaiming_normal_(self.kernels.view(-1, n_in, side, side), mode="fan_in", nonlinearity="relu")
        self.context = nn.Sequential(nn.Linear(n_in, _CONTEXT, bias=False), nn.BatchNorm1d(_CONTEXT), nn.ReLU())
        self.of_input, self.of_output = nn.Linear(_CONTEXT, n_in), nn.Linear(_CONTEXT, n_out)
        self.of_place, self.of_kernel = nn.Linear(_CONTEXT, side**2), nn.Linear(_CONTEXT, n_kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve patches ``(n, n_in, px, px)`` to ``(n, n_out, h, h)``."""
        context = self.context(x.mean((2, 3)))
        mixed = torch.einsum("nk,koip->noip", self.of_kernel(context).softmax(-1), self.kernels)
        mixed = mixed * self.of_place(context).sigmoid()[:, None, None, :]
        mixed = mixed * self.of_input(context).sigmoid()[:, None, :, None]
        mixed = mixed * self.of_output(context).sigmoid()[:, :, None, None]
        windows = functional.unfold(x, self.side, stride=self.stride)
        height = (x.shape[2] - self.side) // self.stride + 1
        return (mixed.flatten(2) @ windows).unflatten(-1, (height, -1))


def squash(x: Tensor) -> Tensor:
    """Shrink vectors to a length below 1, as efficient capsules do: ``(1 - exp(-|v|)) v / |v|``."""
    length = (x.square().sum(-1, keepdim=True) + _TINY).sqrt()
    return (1 - torch.exp(-length)) * x / length


class PrimaryCapsules(nn.Module):
    """Primary capsules of a patch: dynamic convolution, four convolutions, and one over all that is left of the image.

    Parameters
    ----------
    settings
        Sizes.
    """

    def __init__(self, settings: THItoGeneSettings) -> None:
        super().__init__()
        self.scale, self.n_primary = settings.pixel_scale, settings.n_primary
        stem = settings.stem_channels
        self.stem = DynamicConvolution(3, stem, settings.stem_px, settings.stem_stride, settings.n_kernels)
        layers: list[nn.Module] = [nn.ReLU()]
        for (side, stride), n_in, n_out in zip(
            _CONVOLUTIONS, (stem, *settings.channels[:-1]), settings.channels, strict=True
        ):
            # Batch norm would cancel a bias.
            layers += [nn.Conv2d(n_in, n_out, side, stride, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        last = settings.channels[-1]
        self.depthwise = nn.Conv2d(last, last, settings.map_px, groups=last)

    def forward(self, patches: Tensor) -> Tensor:
        """Make the capsules of patches ``(n, px, px, 3)``, uint8: ``(n, n_primary, primary_width)``."""
        x = patches.permute(0, 3, 1, 2).float() / self.scale
        found = self.depthwise(self.convolutions(self.stem(x)))
        return squash(found.flatten(1).unflatten(-1, (self.n_primary, -1)))


class FeatureCapsules(FeatureEmbedding):
    """Primary capsules from the patch features of an image encoder, by one linear map.

    Parameters
    ----------
    features
        Features of the training spots, ``(n_spots, n_features)``.
    n_primary, width
        Number of capsules, and width of each.
    """

    def __init__(self, features: np.ndarray, n_primary: int, width: int) -> None:
        super().__init__(features, n_primary * width)
        self.n_primary = n_primary

    def forward(self, features: Tensor) -> Tensor:
        """Make the capsules of features ``(n, n_features)``: ``(n, n_primary, primary_width)``."""
        return squash(super().forward(features).unflatten(-1, (self.n_primary, -1)))


class Routing(nn.Module):
    """Self-attention routing of capsules, without iteration: efficient capsules (Mazzia et al. 2021).

    Each primary capsule j predicts each routed capsule k, ``u_kj = W_kj v_j``. It gives its vote to those whose
    predictions by all primary capsules agree with its own: a softmax over k of ``u_kj . sum_j' u_kj'``, plus a learned
    prior.

    Parameters
    ----------
    n_in, width_in
        Number and width of the primary capsules.
    n_out, width_out
        Number and width of the routed capsules.
    """

    def __init__(self, n_in: int, width_in: int, n_out: int, width_out: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.randn(n_out, n_in, width_in, width_out) / width_in**0.5)
        self.prior = nn.Parameter(torch.zeros(n_out, n_in))

    def forward(self, capsules: Tensor) -> Tensor:
        """Route capsules ``(n, n_in, width_in)`` to ``(n, n_out, width_out)``."""
        votes = torch.einsum("njd,kjde->nkje", capsules, self.maps)
        agreement = (votes * votes.sum(2, keepdim=True)).sum(-1) / votes.shape[-1] ** 0.5
        shares = agreement.softmax(1) + self.prior
        return squash(torch.einsum("nkj,nkje->nke", shares, votes))


class GraphAttention(nn.Module):
    """Graph attention with several heads, ELU after it (Veličković et al. 2018, equations 3 and 5).

    Parameters
    ----------
    width
        Width of the tokens.
    n_heads, head_width
        Number of heads, and width of each; their outputs are concatenated.
    dropout
        Dropout of inputs and weights.
    over
        Spots over which the weights sum to 1: a spot's neighbors, or those that it is a neighbor of.
    """

    def __init__(self, width: int, n_heads: int, head_width: int, dropout: float, over: AttentionOver) -> None:
        super().__init__()
        self.over: AttentionOver = over
        self.dropout = nn.Dropout(dropout)
        self.values = nn.Linear(width, n_heads * head_width, bias=False)
        self.of_neighbor, self.of_spot = (nn.Parameter(torch.empty(n_heads, head_width)) for _ in range(2))
        for weight in (self.values.weight, self.of_neighbor, self.of_spot):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Attend to neighbors: ``(n, width)`` to ``(n, n_heads * head_width)``.

        Parameters
        ----------
        x
            Tokens, ``(n, width)``.
        edges
            Neighbor and spot of each edge, ``(2, n_edges)``.
        """
        # Imported here: it takes seconds, which other methods need not wait for.
        from torch_geometric.utils import softmax

        neighbor, spot = edges
        values = self.values(self.dropout(x)).unflatten(-1, self.of_spot.shape)
        scores = (values * self.of_neighbor).sum(-1)[neighbor] + (values * self.of_spot).sum(-1)[spot]
        ends = spot if self.over == "neighbors" else neighbor
        weights = softmax(functional.leaky_relu(scores, _SLOPE), ends, num_nodes=len(x))
        sent = self.dropout(weights)[..., None] * values[neighbor]
        return functional.elu(torch.zeros_like(values).index_add(0, spot, sent)).flatten(1)


class THItoGeneNetwork(nn.Module):
    """The network, from the patches of a slice to the expression of its spots.

    Parameters
    ----------
    embedding
        Map of patches, or of patch features, to primary capsules.
    head
        Linear layer to the genes.
    settings
        Sizes.
    """

    def __init__(self, embedding: nn.Module, head: nn.Linear, settings: THItoGeneSettings) -> None:
        super().__init__()
        of, width, dropout = settings, settings.width, settings.dropout
        self.embedding = embedding
        self.routing = Routing(of.n_primary, of.primary_width, of.n_capsules, of.capsule_width)
        self.positions = ArrayPositions(of.capsule_width, of.position_scale)
        blocks = [PreNormBlock(width, of.n_heads, of.head_width, of.hidden, dropout) for _ in range(of.n_blocks)]
        self.blocks = nn.Sequential(*blocks)
        first = GraphAttention(width, of.graph_heads, of.graph_width, dropout, of.attention_over)
        second = GraphAttention(of.graph_heads * of.graph_width, 1, of.graph_out, dropout, of.attention_over)
        self.graph = nn.ModuleList([first, second])
        self.before = nn.Sequential(nn.Linear(of.graph_out, of.head_hidden), nn.ReLU(), nn.LayerNorm(of.head_hidden))
        self.head = head

    def forward(self, patches: Tensor, grid: Tensor, edges: Tensor) -> Tensor:
        """Predict the spots of one slice, ``(n_spots, n_genes)``.

        Parameters
        ----------
        patches
            What the embedding takes, ``(n_spots, ...)``.
        grid
            Positions on the array, ``(n_spots, 2)``, int64.
        edges
            Neighbor and spot of each edge of the spot graph, ``(2, n_edges)``.
        """
        places = torch.stack([self.positions.x(grid[:, 0]), self.positions.y(grid[:, 1])], dim=1)
        x = torch.cat([self.routing(self.embedding(patches)), places], dim=1).flatten(1)
        x = self.blocks(x)
        for layer in self.graph:
            x = layer(x, edges)
        return self.head(self.before(x))


class THItoGene(SliceBaseline):
    """THItoGene: capsules of dynamic convolutions, a transformer over the slice, graph attention; squared error.

    Jia, Liu, Chen, Zhao and Wang, "THItoGene: a deep learning method for predicting spatial transcriptomics from
    histological images", Briefings in Bioinformatics 25, bbad464 (2024). Parameters and errors are those of
    :class:`Baseline`.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from st_gchb.baselines import Spots, THItoGene
    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(12, 4)).astype(np.float32)
    >>> positions = np.column_stack([np.arange(12), np.zeros(12)]) * 100.0
    >>> graph = sparse.diags([np.ones(11), np.ones(11)], [-1, 1], format="csr")
    >>> tissue = Spots(np.repeat("a", 12), positions, graph, features, targets=features[:, :2])
    >>> method = THItoGene(from_features=True, epochs=2, device="cpu").fit(tissue)
    >>> method.predict(tissue).shape
    (12, 2)
    """

    name = "thitogene"
    presets = {
        "small": THItoGeneSettings(),
        "published": THItoGeneSettings(
            epochs=200,
            choose_epochs=False,
            batch_size=2000,
            lr=1e-5,
            patch_px=112,
            pixel_scale=1.0,
            position_scale=1.0,
            start_at_mean=False,
            stem_channels=16,
            stem_stride=4,
            channels=(32, 64, 64, 128),
            n_primary=16,
            n_capsules=20,
            capsule_width=64,
            n_blocks=4,
            n_heads=16,
            head_width=64,
            hidden=2048,
            graph_heads=8,
            graph_width=1024,
            graph_out=512,
            head_hidden=1024,
        ),
    }

    def check(self, spots: Spots) -> None:
        """Validate training spots: batch norm and graph attention need spots with neighbors in each slice.

        Raises
        ------
        InputError
            As for :class:`SliceBaseline`.
        SliceError
            A slice has no two neighboring spots.
        """
        super().check(spots)
        for rows in spots.by_slice:
            if not lattice_edges(spots, rows).size:
                raise SliceError(
                    f"{self.name}: no spot of slice {spots.slices[rows[0]]!r} ({len(rows)} spots) has a neighbor in "
                    "the spot graph; graph attention needs some. Leave the slice out, or choose another method."
                )

    def build(self, spots: Spots) -> THItoGeneNetwork:
        """Build the network."""
        settings = self.settings
        embedding: nn.Module
        if settings.from_features:
            embedding = FeatureCapsules(spots.check_features(), settings.n_primary, settings.primary_width)
        else:
            embedding = PrimaryCapsules(settings)
        return THItoGeneNetwork(embedding, self.head(spots, settings.head_hidden), settings)

    def batches(self, spots: Spots, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Iterate over whole slices, one a step; of large ones, over a region that keeps its neighborhoods."""
        return region_batches(spots, self.settings.batch_size, rng)

    def loss(self, network: nn.Module, spots: Spots, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Compute the squared error, mean over spots and genes; patches are not augmented, as published."""
        return functional.mse_loss(self._forward(network, spots, rows), self.targets(spots, rows))

    def infer(self, network: nn.Module, spots: Spots) -> np.ndarray:
        """Predict whole slices, or compact parts of them of at most ``batch_size`` spots."""
        parts = list(compact_parts(spots, self.settings.batch_size))
        predicted = torch.cat([self._forward(network, spots, rows).cpu() for rows in parts]).numpy()
        result = np.empty_like(predicted)
        result[np.concatenate(parts)] = predicted
        return result

    def _forward(self, network: nn.Module, spots: Spots, rows: np.ndarray) -> Tensor:
        edges = self.tensor(with_loops(lattice_edges(spots, rows), len(rows)))
        predicted: Tensor = network(*self.inputs(network, spots, rows), edges)
        return predicted


def with_loops(edges: np.ndarray, n: int) -> np.ndarray:
    """Give each of ``n`` spots without a neighbor itself as one, so that its own token reaches its prediction.

    Examples
    --------
    >>> import numpy as np
    >>> from st_gchb.baselines import with_loops
    >>> with_loops(np.array([[0, 2], [2, 0]]), 3).tolist()
    [[0, 2, 1], [2, 0, 1]]
    """
    alone = np.setdiff1d(np.arange(n), edges[1])
    return np.concatenate([edges, np.stack([alone, alone])], axis=1)
