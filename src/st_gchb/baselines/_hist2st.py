"""Hist2ST (Zeng et al. 2022): Convmixer, transformer and graph network over a slice, with a loss of counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import functional as image_functions

from st_gchb._errors import GraphError, InputError
from st_gchb.baselines._baseline import compact_parts, region_batches
from st_gchb.baselines._layers import ArrayPositions, PreNormBlock
from st_gchb.baselines._slice_baseline import FeatureEmbedding, SliceBaseline, SliceSettings
from st_gchb.baselines._spots import Spots

_STEP_LIMIT = 1.2
"""Longest edge in distances of neighboring spots: above one step, below the diagonal of a square array."""


@dataclass(frozen=True)
class Hist2STSettings(SliceSettings):
    """Settings of Hist2ST; the defaults are those of ``small``.

    Parameters
    ----------
    epochs, choose_epochs, batch_size, lr
        As for :class:`TrainingSettings`. Of a slice of more than ``batch_size`` spots, another region of as many is
        taken in each epoch; in prediction, attention is within compact parts of at most as many, and the graph layers
        see the whole slice.
    patch_px, patch_um, pixel_scale, position_scale, start_at_mean, from_features
        As for :class:`SliceSettings`; with ``start_at_mean``, the distribution of counts starts at their moments, too.
        Patch features have no augmented copies: there is no distillation then.
    stem_px
        Side of the squares into which a patch is cut, px; it divides ``patch_px``.
    channels
        Number of channels of the Convmixer.
    out_channels
        Number of channels after it; times the squares of a patch, this is the width of the tokens.
    n_mixers
        Number of Convmixer blocks.
    n_blocks, n_heads, head_width
        Number of transformer blocks, attention heads in each, and width of these.
    n_graph_layers
        Number of graph layers.
    dropout
        Dropout of the stem, and in the transformer.
    zinb_weight, distillation_weight
        Weights of the loss of counts, and of that between the prediction and its augmented copies.
    n_copies
        Number of augmented copies.
    decay_epochs, decay
        Number of epochs after which the learning rate is multiplied by ``decay``.
    """

    epochs: int = 100
    choose_epochs: bool = False
    batch_size: int = 2000
    lr: float = 1e-3
    patch_px: int = 56
    stem_px: int = 7
    channels: int = 16
    out_channels: int = 2
    n_mixers: int = 1
    n_blocks: int = 2
    n_heads: int = 4
    head_width: int = 32
    n_graph_layers: int = 2
    dropout: float = 0.2
    zinb_weight: float = 0.25
    distillation_weight: float = 0.5
    n_copies: int = 2
    decay_epochs: int = 50
    decay: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_px < self.stem_px or self.patch_px % self.stem_px:
            raise InputError(
                f"patch_px={self.patch_px} is no multiple of stem_px={self.stem_px}, the side of the squares into "
                f"which a patch is cut. Take patch_px={self.stem_px * max(1, round(self.patch_px / self.stem_px))}."
            )

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return (self.patch_px // self.stem_px) ** 2 * self.out_channels


class _Mixer(nn.Module):
    """Convmixer block: two depthwise convolutions with a residual, and one over channels without.

    The last has GELU before batch norm, as released. A convolution right before batch norm has no bias, which batch
    norm would remove.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        depthwise = []
        for _ in range(2):
            convolution = nn.Conv2d(channels, channels, 5, padding="same", groups=channels, bias=False)
            depthwise += [convolution, nn.BatchNorm2d(channels), nn.GELU()]
        self.depthwise = nn.Sequential(*depthwise)
        self.pointwise = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU(), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(x + self.depthwise(x))


class ConvmixerEmbedding(nn.Module):
    """Convmixer: from a patch to a token, the publication's module for features within a patch."""

    def __init__(self, settings: Hist2STSettings) -> None:
        super().__init__()
        self.scale = settings.pixel_scale
        self.layers = nn.Sequential(
            nn.Conv2d(3, settings.channels, settings.stem_px, stride=settings.stem_px),
            nn.Dropout(settings.dropout),
            *(_Mixer(settings.channels) for _ in range(settings.n_mixers)),
            nn.Conv2d(settings.channels, settings.out_channels, 1),
            nn.Flatten(),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches ``(n_spots, px, px, 3)``, of 0 to 255, as ``(n_spots, width)``."""
        return self.layers(patches.permute(0, 3, 1, 2).float() / self.scale)


class CountHeads(nn.Module):
    """Parameters of the zero-inflated negative binomial of each spot and gene."""

    def __init__(self, width: int, n_genes: int) -> None:
        super().__init__()
        self.mean, self.dispersion, self.dropout = (nn.Linear(width, n_genes) for _ in range(3))

    @torch.no_grad()
    def start_at(self, counts: np.ndarray) -> None:
        """Start at the moments of each gene, with zero weights: Adam's small steps are long in reaching them.

        Parameters
        ----------
        counts
            Counts of the training spots over their size factors, ``(n_spots, n_genes)``.
        """
        mean = counts.mean(0, dtype=np.float64).clip(1e-3)
        dispersion = (mean**2 / (counts.var(0, dtype=np.float64) - mean).clip(1e-6)).clip(0.1, 20)
        expected = (dispersion / (dispersion + mean)) ** dispersion
        extra = ((counts == 0).mean(0) - expected).clip(0.01, 0.5)
        starts = (np.log(mean), np.log(np.expm1(dispersion)), np.log(extra / (1 - extra)))
        for layer, start in zip((self.mean, self.dispersion, self.dropout), starts, strict=True):
            nn.init.zeros_(layer.weight)
            layer.bias.copy_(torch.from_numpy(start))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute mean, dispersion and the logit of dropout, each ``(n_spots, n_genes)``."""
        mean = self.mean(hidden).exp().clamp(1e-5, 1e6)
        dispersion = nn.functional.softplus(self.dispersion(hidden)).clamp(1e-4, 1e4)
        return mean, dispersion, self.dropout(hidden)


class Hist2STNetwork(nn.Module):
    """Convmixer, transformer over the slice, graph layers with jumping knowledge, and heads.

    Parameters
    ----------
    embedding
        Map of patches, or of patch features, to tokens.
    head
        Linear layer to the genes.
    n_copies
        Number of augmented copies; their weights have a head of its own if there are any.
    settings
        Sizes.
    """

    def __init__(self, embedding: nn.Module, head: nn.Linear, n_copies: int, settings: Hist2STSettings) -> None:
        # Imported here: it takes seconds, which other methods need not wait for.
        from torch_geometric.nn import SAGEConv

        super().__init__()
        width = settings.width
        self.embedding = embedding
        self.positions = ArrayPositions(width, settings.position_scale)
        self.blocks = nn.Sequential(
            *(
                PreNormBlock(width, settings.n_heads, settings.head_width, width, settings.dropout)
                for _ in range(settings.n_blocks)
            )
        )
        # The mean over neighbors, without the spot itself: one matrix and no bias.
        self.graph_layers = nn.ModuleList(
            SAGEConv(width, width, root_weight=False, bias=False) for _ in range(settings.n_graph_layers)
        )
        self.lstm = nn.LSTM(width, width, num_layers=2)
        self.head = nn.Sequential(nn.LayerNorm(width), head)
        self.count_heads = CountHeads(width, head.out_features)
        self.copy_weight = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)) if n_copies else None

    def attend(self, patches: Tensor, grid: Tensor) -> Tensor:
        """Compute tokens of spots of one slice that see each other, ``(n_spots, width)``."""
        return self.blocks(self.embedding(patches) + self.positions(grid))

    def look_around(self, tokens: Tensor, edges: Tensor) -> Tensor:
        """Compute hidden representations from tokens and the graph, ``(n_spots, width)``.

        A spot without neighbors gets zeros from the graph layers; in the released code it is not a number.

        Parameters
        ----------
        tokens
            Tokens of a slice, ``(n_spots, width)``.
        edges
            Pairs of a neighbor and a spot, ``(2, n_edges)``.
        """
        outputs = []
        for layer in self.graph_layers:
            tokens = nn.functional.normalize(layer(tokens, edges).relu(), dim=-1)
            outputs.append(tokens)
        return self.lstm(torch.stack(outputs))[0].mean(0)

    def forward(self, patches: Tensor, grid: Tensor, edges: Tensor) -> Tensor:
        """Compute hidden representations of spots of one slice, ``(n_spots, width)``."""
        return self.look_around(self.attend(patches, grid), edges)


class Hist2ST(SliceBaseline):
    """Hist2ST: Convmixer within patches, transformer over the slice, graph layers over neighbors.

    Zeng et al., "Spatial transcriptomics prediction from histology jointly through Transformer and graph neural
    networks", Briefings in Bioinformatics 23(5), bbac297, 2022. Parameters and errors are those of :class:`Baseline`.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from st_gchb.baselines import Hist2ST, Spots
    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(12, 4)).astype(np.float32)
    >>> counts = rng.poisson(2.0, size=(12, 2)).astype(np.float32)
    >>> positions = np.stack([np.arange(12) * 100.0, np.zeros(12)], axis=1)
    >>> chain = sparse.csr_matrix(sparse.diags([np.ones(11), np.ones(11)], [-1, 1]))
    >>> tissue = Spots(np.repeat("a", 12), positions, chain, features, targets=np.log1p(counts), counts=counts)
    >>> method = Hist2ST(from_features=True, epochs=2, device="cpu").fit(tissue)
    >>> method.predict(tissue).shape
    (12, 2)
    """

    name = "hist2st"
    presets = {
        "small": Hist2STSettings(),
        "published": Hist2STSettings(
            epochs=350,
            lr=1e-5,
            patch_px=112,
            pixel_scale=1.0,
            position_scale=1.0,
            start_at_mean=False,
            channels=32,
            out_channels=4,
            n_mixers=2,
            n_blocks=8,
            n_heads=16,
            head_width=64,
            n_graph_layers=4,
            n_copies=5,
        ),
    }

    def check(self, spots: Spots) -> None:
        """Validate training spots: beyond what all methods need, counts, and a graph with edges.

        Raises
        ------
        InputError
            There is no expression or there are no counts, or these are negative; there is no image, or, with
            ``from_features``, no patch features.
        GraphError
            No spot of a slice has a neighbor.
        ScaleError
            The size of a pixel is not known, or a patch is larger than a slide.
        """
        super().check(spots)
        if spots.counts is None:
            raise InputError(f"{self.name}: the training spots have no counts, which its loss needs. Pass counts=.")
        if not (np.isfinite(spots.counts).all() and spots.counts.min(initial=0) >= 0):
            raise InputError(f"{self.name}: counts hold negative or infinite values. Pass raw counts.")
        for rows in spots.by_slice:
            if not lattice_edges(spots, rows).size:
                raise GraphError(
                    f"{self.name}: no spot of slice {spots.slices[rows[0]]!r} ({len(rows)} spots) has a neighbor in "
                    "the spot graph. Build it with st_gchb.pp.spatial_graph, or leave the slice out."
                )

    @property
    def n_copies(self) -> int:
        """Number of augmented copies, 0 where patch features stand for the pixels."""
        return 0 if self.settings.from_features else self.settings.n_copies

    def build(self, spots: Spots) -> Hist2STNetwork:
        """Build the network."""
        settings = self.settings
        embedding: nn.Module
        if settings.from_features:
            embedding = FeatureEmbedding(spots.check_features(), settings.width)
        else:
            embedding = ConvmixerEmbedding(settings)
        network = Hist2STNetwork(embedding, self.head(spots, settings.width), self.n_copies, settings)
        if settings.start_at_mean:
            assert spots.counts is not None, "checked in fit"
            sizes = np.empty(len(spots), dtype=np.float32)
            for rows in spots.by_slice:
                sizes[rows] = size_factors(spots, rows)
            network.count_heads.start_at(spots.counts / sizes[:, None])
        return network

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Lower the learning rate in steps."""
        return torch.optim.lr_scheduler.StepLR(optimizer, self.settings.decay_epochs, self.settings.decay)

    def batches(self, spots: Spots, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Iterate over whole slices, one a step; of large ones, over a region that keeps its neighborhoods."""
        return region_batches(spots, self.settings.batch_size, rng)

    def loss(self, network: nn.Module, spots: Spots, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Compute the publication's loss: squared error, counts, and distance from the augmented copies."""
        assert isinstance(network, Hist2STNetwork)
        assert spots.counts is not None, "checked in fit"
        patches, grid = self.inputs(network, spots, rows)
        edges = self.tensor(lattice_edges(spots, rows))
        hidden = network(patches, grid, edges)
        predicted = network.head(hidden)
        loss = nn.functional.mse_loss(predicted, self.targets(spots, rows))
        mean, dispersion, dropout = network.count_heads(hidden)
        sizes = self.tensor(size_factors(spots, rows))[:, None]
        counts = self.tensor(spots.counts[rows])
        loss = loss + self.settings.zinb_weight * zinb_loss(counts, mean * sizes, dispersion, dropout).mean()
        if network.copy_weight is not None:
            copies = [network(augmented_copy(patches, rng), grid, edges) for _ in range(self.n_copies)]
            shares = torch.stack([network.copy_weight(copy) for copy in copies]).softmax(0)
            teacher = (shares * torch.stack([network.head(copy) for copy in copies])).sum(0)
            # Gradients go through both sides, as released.
            loss = loss + self.settings.distillation_weight * nn.functional.mse_loss(predicted, teacher)
        return loss

    def infer(self, network: nn.Module, spots: Spots) -> np.ndarray:
        """Predict slice by slice: the transformer in compact parts of ``batch_size`` spots, the graph as a whole."""
        assert isinstance(network, Hist2STNetwork)
        result = np.empty((len(spots), network.count_heads.mean.out_features), dtype=np.float32)
        for own in spots.by_slice:
            one = spots[own]
            parts = list(compact_parts(one, self.settings.batch_size))
            tokens = torch.cat([network.attend(*self.inputs(network, one, rows)) for rows in parts])
            tokens = tokens[self.tensor(np.argsort(np.concatenate(parts)))]
            edges = self.tensor(lattice_edges(one, np.arange(len(one))))
            result[own] = network.head(network.look_around(tokens, edges)).cpu().numpy()
        return result


def lattice_edges(spots: Spots, rows: np.ndarray) -> np.ndarray:
    """Find the edges of the spot graph that are one step of the array: four on a square array, six on a hexagonal one.

    Parameters
    ----------
    spots
        Spots with their graph.
    rows
        Spots of one slice, ``(n_rows,)``.

    Returns
    -------
    numpy.ndarray
        Neighbor and spot of each edge, numbered within ``rows``, ``(2, n_edges)`` int64; a spot is not its neighbor.
    """
    graph = spots.graph[rows][:, rows].tocoo()
    neighbor, spot = graph.col[graph.col != graph.row], graph.row[graph.col != graph.row]
    positions = spots.positions[rows]
    length = np.linalg.norm(positions[neighbor] - positions[spot], axis=1)
    shortest = np.full(len(rows), np.inf)
    np.minimum.at(shortest, spot, length)
    found = shortest[np.isfinite(shortest)]
    near = length <= _STEP_LIMIT * (np.median(found) if len(found) else 0)
    return np.stack([neighbor[near], spot[near]]).astype(np.int64)


def size_factors(spots: Spots, rows: np.ndarray) -> np.ndarray:
    """Divide the total counts of the panel by their median over the slice, for some spots of one slice.

    Returns
    -------
    numpy.ndarray
        ``(n_rows,)`` float32. A total of 0 counts as 1: the mean of the distribution is never 0.
    """
    assert spots.counts is not None, "checked in fit"
    own = np.flatnonzero(spots.slices == spots.slices[rows[0]])
    median = np.median(spots.counts[own].sum(1))
    return (np.maximum(spots.counts[rows].sum(1), 1) / max(median, 1)).astype(np.float32)


def zinb_loss(counts: Tensor, mean: Tensor, dispersion: Tensor, dropout: Tensor) -> Tensor:
    """Compute the negative log-likelihood of the zero-inflated negative binomial.

    Parameters
    ----------
    counts
        Counts, ``(n_spots, n_genes)``.
    mean, dispersion
        Mean and inverse dispersion of the negative binomial, above 0.
    dropout
        Logit of the probability of a zero beside it.
    """
    zero = -dispersion * torch.log1p(mean / dispersion)
    some = (
        torch.lgamma(counts + dispersion)
        - torch.lgamma(dispersion)
        - torch.lgamma(counts + 1)
        + zero
        + counts * (mean.log() - (dispersion + mean).log())
    )
    kept, lost = nn.functional.logsigmoid(-dropout), nn.functional.logsigmoid(dropout)
    return -torch.where(counts == 0, torch.logaddexp(lost, kept + zero), kept + some)


def augmented_copy(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw one augmented copy of all patches of a slice: gray, turned and flipped, all in the same way.

    Gray with probability 0.1, turned by an angle within 90 degrees to either side with black corners, flipped from
    left to right with probability 0.2.

    Parameters
    ----------
    patches
        ``(n_spots, px, px, 3)``, uint8.
    rng
        Source of chance.

    Returns
    -------
    torch.Tensor
        Of the same shape and type.
    """
    images = patches.permute(0, 3, 1, 2)
    gray, angle, flip = rng.random() < 0.1, rng.uniform(-90, 90), rng.random() < 0.2
    if gray:
        images = image_functions.rgb_to_grayscale(images, num_output_channels=3)
    images = image_functions.rotate(images, angle)
    if flip:
        images = image_functions.hflip(images)
    return images.permute(0, 2, 3, 1)
