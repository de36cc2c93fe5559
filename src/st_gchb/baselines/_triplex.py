"""TRIPLEX (Chung et al., CVPR 2024): the spot, its surroundings and its slice as three views, fused by attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from st_gchb._errors import InputError
from st_gchb.baselines._baseline import Baseline, TrainingSettings, spot_batches
from st_gchb.baselines._layers import PreNormBlock, gene_head
from st_gchb.baselines._spots import Patches, Spots
from st_gchb.baselines._symmetries import randomly_transformed
from st_gchb.baselines._trunks import Trunk

TILES = 5
"""Number of tiles of the neighbor view along one side of the block."""
_INFERENCE_BATCH = 64

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TriplexBlocks:
    """Settings of the transformer blocks of a view, or of the fusion.

    Parameters
    ----------
    depth
        Number of blocks.
    n_heads
        Number of heads; the width is divided among them.
    ratio
        Width of the perceptron, in multiples of the width.
    dropout
        Dropout in attention and perceptron.
    """

    depth: int
    n_heads: int
    ratio: int
    dropout: float


@dataclass(frozen=True)
class TriplexSettings(TrainingSettings):
    """Settings of :class:`Triplex`.

    Parameters
    ----------
    encoder
        Trunk that reads pixels, such as ``"resnet18"``: trained along for the target, frozen for the other views. None
        takes patch features in all three views.
    weights
        Weights of the trunk: ``"default"``, the path of a file, or None for random ones.
    train_norm
        Train the batch norm of the trunk.
    tile_px, tile_um
        Side of the target patch and of a tile of its surroundings, in px of the trunk's input and in µm on the tissue.
    width
        Width of the tokens.
    fusion, neighbor_view, global_view
        Blocks of the fusion, and of the two views that are sequences.
    target_tokens
        Number of tokens that are computed from the patch features of a target; unused with ``encoder``.
    asked_spots
        Largest number of spots of a slice that the global view asks in a training step, drawn anew each time; None asks
        all.
    one_slice
        Fill a batch from one slice; otherwise each slice that is in a batch passes the global view whole.
    mean_bias
        Start the heads at the training mean.
    weight_decay
        Decoupled weight decay.
    lr_decay
        Factor of the learning rate every 50 epochs.
    """

    encoder: str | None = None
    weights: str | None = "default"
    train_norm: bool = True
    tile_px: int = 224
    tile_um: float = 112.0
    width: int = 128
    fusion: TriplexBlocks = TriplexBlocks(1, 4, 2, 0.1)
    neighbor_view: TriplexBlocks = TriplexBlocks(1, 4, 2, 0.1)
    global_view: TriplexBlocks = TriplexBlocks(2, 4, 2, 0.1)
    target_tokens: int = 4
    asked_spots: int | None = 1000
    one_slice: bool = True
    mean_bias: bool = True
    weight_decay: float = 0.01
    lr_decay: float = 1.0


class Surroundings(NamedTuple):
    """Spots in two rings of the spot graph around each spot, the spot itself first.

    Parameters
    ----------
    rows
        Rows of the spots around each spot, ``(n_spots, n_tokens)``; -1 where there are fewer.
    offsets
        Their places as seen from the spot, ``(n_spots, n_tokens, 2)``, in spot distances.
    """

    rows: Rows
    offsets: Rows


class NeighborBlock(PreNormBlock):
    """Block of the neighbor view: each head has a learned bias by the distance of two tokens in x and in y."""

    def __init__(self, width: int, settings: TriplexBlocks) -> None:
        super().__init__(*_sizes(width, settings))
        self.bias = nn.Parameter(torch.zeros(settings.n_heads, TILES, TILES))

    def forward_at(self, x: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
        """Transform tokens ``(n, n_tokens, width)`` at places ``(n, n_tokens, 2)``."""
        apart = (offsets[:, :, None] - offsets[:, None]).abs().clamp(max=TILES - 1)
        bias = self.bias[:, apart[..., 0], apart[..., 1]].transpose(0, 1)
        return self(x, mask=mask, bias=bias)


class PositionGenerator(nn.Module):
    """Positions of a slice's spots from the tokens themselves: a depthwise 3 x 3 convolution over the array.

    Empty places of the array are 0, spots that share a place are averaged; the tokens are added to what is found.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """Add positions to tokens ``(n_spots, width)`` at places ``(n_spots, 2)``."""
        n_cols, n_rows = (grid.amax(0) + 1).tolist()
        place = grid[:, 1] * n_cols + grid[:, 0]
        board = x.new_zeros(n_rows * n_cols, x.shape[1]).index_add(0, place, x)
        count = x.new_zeros(n_rows * n_cols).index_add(0, place, x.new_ones(len(x)))
        board = board / count.clamp(min=1)[:, None]
        found = self.convolution(board.T.unflatten(1, (n_rows, n_cols))[None])[0].flatten(1).T
        return x + found[place]


class TriplexNetwork(nn.Module):
    """Three views of a spot, and their fusion (section 3 of the publication).

    Parameters
    ----------
    settings
        Settings.
    mean, std
        Mean and standard deviation of the patch features, ``(n_features,)``; None with a trunk.
    targets
        Mean of the targets, ``(n_genes,)``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: TriplexSettings, features: tuple[Tensor, Tensor] | None, targets: Tensor) -> None:
        super().__init__()
        width = settings.width
        self.trunk: Trunk | None = None
        self.frozen: Trunk | None = None
        if features is None:
            assert settings.encoder is not None
            self.trunk, frozen = (
                Trunk(settings.encoder, settings.weights, train_norm=settings.train_norm) for _ in range(2)
            )
            self.frozen = frozen.requires_grad_(False)
            n_features = self.trunk.width
            # The publication's trunk is as wide as its tokens.
            self.target_in, self.others_in = (
                nn.Identity() if n_features == width else nn.Linear(n_features, width) for _ in range(2)
            )
        else:
            for name, value in zip(("mean", "std"), features, strict=True):
                self.register_buffer(name, value)
            n_features = len(features[0])
            self.target_in = nn.Linear(n_features, settings.target_tokens * width)
            self.others_in = nn.Linear(n_features, width)
        self.width = width
        self.neighbor_blocks = nn.ModuleList(
            NeighborBlock(width, settings.neighbor_view) for _ in range(settings.neighbor_view.depth)
        )
        self.global_blocks = nn.ModuleList(
            PreNormBlock(*_sizes(width, settings.global_view)) for _ in range(settings.global_view.depth)
        )
        self.positions = PositionGenerator(width)
        self.fusion_blocks = nn.ModuleList(
            PreNormBlock(*_sizes(width, settings.fusion)) for _ in range(settings.fusion.depth)
        )
        self.neighbor_norm, self.global_norm, self.fusion_norm = (nn.LayerNorm(width) for _ in range(3))
        self.n_genes = len(targets)
        self.heads = nn.ModuleList(
            gene_head(width, targets) if settings.mean_bias else nn.Linear(width, self.n_genes) for _ in range(4)
        )

    def target_view(self, targets: Tensor) -> Tensor:
        """Compute the tokens of targets, ``(n, n_tokens, width)``, from pixels or standardized features."""
        if self.trunk is not None:
            return self.target_in(self.trunk(targets).flatten(2).transpose(1, 2))
        return self.target_in(targets).unflatten(1, (-1, self.width))

    def neighbor_view(self, tokens: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
        """Transform the tokens around each spot, ``(n, n_tokens, width)``; places where there are none are masked."""
        for block in self.neighbor_blocks:
            assert isinstance(block, NeighborBlock)
            tokens = block.forward_at(tokens, offsets, mask)
        return self.neighbor_norm(tokens)

    def global_view(self, tokens: Tensor, grid: Tensor, rows: Tensor, asked: Tensor | None = None) -> Tensor:
        """Compute the global tokens of some spots of a slice, ``(n, width)``.

        Parameters
        ----------
        tokens
            Tokens of all spots of the slice, ``(n_spots, width)``.
        grid
            Places on the array, ``(n_spots, 2)``.
        rows
            Spots whose tokens are wanted, ``(n,)``.
        asked
            Spots that attention asks; None for all.
        """
        for number, block in enumerate(self.global_blocks):
            context = tokens if asked is None else tokens[asked]
            last = number == len(self.global_blocks) - 1 and number > 0
            # After the last block no other spot is looked at: tokens of these spots suffice.
            tokens = block(tokens[rows] if last else tokens, context)
            if number == 0:
                tokens = self.positions(tokens, grid)
        return self.global_norm(tokens if len(self.global_blocks) > 1 else tokens[rows])

    def forward(self, target: Tensor, neighbors: Tensor, mask: Tensor, whole: Tensor) -> tuple[Tensor, ...]:
        """Fuse the views: the global token asks the target's tokens and, with the same weights, the neighbors'.

        Returns
        -------
        tuple of torch.Tensor
            Expression predicted by the fusion, and by target, neighbor and global view alone, each ``(n, n_genes)``.
        """
        by_target = by_neighbors = whole[:, None]
        for block in self.fusion_blocks:
            by_target = block(by_target, target)
            by_neighbors = block(by_neighbors, neighbors, mask=mask)
        fused = self.fusion_norm(by_target + by_neighbors)[:, 0]
        share = mask[..., None] / mask.sum(1)[:, None, None]
        views = (fused, target.mean(1), (neighbors * share).sum(1), whole)
        return tuple(head(view) for head, view in zip(self.heads, views, strict=True))

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the frozen trunk stays in evaluation mode."""
        super().train(mode)
        if self.frozen is not None:
            self.frozen.eval()
        return self


class Triplex(Baseline):
    """TRIPLEX (Chung et al., CVPR 2024): target, neighbor and global view of a spot, fused by cross-attention.

    ``"published"`` reads pixels: a trunk that is trained along sees the target patch, a frozen copy the 5 x 5 tiles
    around it and the patches of all spots of the slice. ``"small"`` takes patch features instead: tokens that are
    linear in the target's features, the features of the spots in two rings of the spot graph, and those of all spots.

    See :class:`Baseline` for parameters and errors.

    Examples
    --------
    >>> from st_gchb.baselines import Triplex
    >>> Triplex("small", epochs=5).settings.width
    128
    """

    name = "triplex"
    needs_pixels = True
    presets = {
        "small": TriplexSettings(epochs=10, batch_size=64, lr=5e-4),
        "published": TriplexSettings(
            epochs=200,
            batch_size=128,
            lr=1e-4,
            encoder="resnet18",
            width=512,
            fusion=TriplexBlocks(1, 4, 4, 0.2),
            neighbor_view=TriplexBlocks(3, 16, 1, 0.3),
            global_view=TriplexBlocks(3, 16, 4, 0.1),
            asked_spots=None,
            one_slice=False,
            mean_bias=False,
            weight_decay=0.0,
            lr_decay=0.9,
        ),
    }

    @property
    def reads_pixels(self) -> bool:
        """Tell whether pixels are read, and not patch features."""
        return self.settings.encoder is not None

    def check(self, spots: Spots) -> None:
        """Validate settings, and that the spots have what the views are computed from."""
        super().check(spots)
        for part in ("fusion", "neighbor_view", "global_view"):
            blocks: TriplexBlocks = getattr(self.settings, part)
            if self.settings.width % blocks.n_heads or blocks.depth < 1:
                raise InputError(
                    f"{self.name}: {part}={blocks} with width={self.settings.width}; expected one block at least, and "
                    "a number of heads that divides the width. Change one of them."
                )
        if self.settings.encoder is None:
            spots.check_features()
        else:
            self._pixels(spots, TILES)

    def build(self, spots: Spots) -> nn.Module:
        """Build the three views, their fusion and the four heads."""
        assert spots.targets is not None
        features = None
        if self.settings.encoder is None:
            own = torch.from_numpy(spots.check_features())
            features = (own.mean(0), own.std(0, correction=0).clamp(min=1e-6))
        return TriplexNetwork(self.settings, features, torch.from_numpy(spots.targets.mean(0)))

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Make AdamW; without weight decay, as in the publication, it is Adam."""
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.settings.lr, weight_decay=self.settings.weight_decay)

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Lower the learning rate every 50 epochs."""
        return torch.optim.lr_scheduler.StepLR(optimizer, 50, self.settings.lr_decay)

    def batches(self, spots: Spots, rng: np.random.Generator) -> Iterator[Rows]:
        """Iterate over random spots, of all slices or of one slice at a time."""
        yield from spot_batches(spots, self.settings.batch_size, rng, one_slice=self.settings.one_slice)

    def loss(self, network: nn.Module, spots: Spots, rows: Rows, rng: np.random.Generator) -> Tensor:
        """Compute squared errors of the fusion and of each view, which learns from measured and from fused expression.

        MSE(fusion, y) + sum over the views of 0.7 MSE(view, y) + 0.3 MSE(fusion, view), with gradients through both.
        """
        assert isinstance(network, TriplexNetwork)
        assert spots.targets is not None
        parts = [rows[spots.slices[rows] == name] for name in np.unique(spots.slices[rows])]
        answers = []
        for part in parts:
            own = np.flatnonzero(spots.slices == spots.slices[part[0]])
            whole = self._whole(network, spots, own, part, rng)
            answers.append(self._answers(network, spots, part, whole, rng))
        fused, *views = (torch.cat(each) for each in zip(*answers, strict=True))
        measured = self.tensor(spots.targets[np.concatenate(parts)])
        loss = mse_loss(fused, measured)
        for view in views:
            loss = loss + 0.7 * mse_loss(view, measured) + 0.3 * mse_loss(fused, view)
        return loss

    def infer(self, network: nn.Module, spots: Spots) -> np.ndarray:
        """Predict by the fusion, slice by slice."""
        assert isinstance(network, TriplexNetwork)
        result = np.empty((len(spots), network.n_genes), dtype=np.float32)
        for own in spots.by_slice:
            whole = self._whole(network, spots, own, own)
            parts = np.array_split(np.arange(len(own)), -(-len(own) // _INFERENCE_BATCH))
            for part in parts:
                result[own[part]] = self._answers(network, spots, own[part], whole[part])[0].cpu().numpy()
        return result

    def _whole(
        self, network: TriplexNetwork, spots: Spots, own: Rows, rows: Rows, rng: np.random.Generator | None = None
    ) -> Tensor:
        """Compute the global tokens of ``rows``, which are among the spots ``own`` of one slice."""
        most, asked = self.settings.asked_spots, None
        if rng is not None and most is not None and len(own) > most:
            asked = self.tensor(rng.permutation(len(own))[:most])
        tokens = network.others_in(self._features(network, spots, own))
        return network.global_view(tokens, self.tensor(spots.grid[own]), self.tensor(np.searchsorted(own, rows)), asked)

    def _answers(
        self, network: TriplexNetwork, spots: Spots, rows: Rows, whole: Tensor, rng: np.random.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Predict some spots by the fusion and by each view; with ``rng``, target patches are turned and mirrored."""
        if self.settings.encoder is None:
            around = _two_rings(spots)
            near, offsets = around.rows[rows], self.tensor(around.offsets[rows])
            mask = self.tensor(near >= 0)
            # Each spot once: most are around several others.
            used, place = np.unique(np.maximum(near, 0), return_inverse=True)
            tokens = network.others_in(self._features(network, spots, used))[self.tensor(place.reshape(near.shape))]
            target = network.target_view(self._features(network, spots, rows))
        else:
            tokens = network.others_in(self.tensor(self._of_tiles(network, spots, TILES)[rows]))
            offsets = self.tensor(np.tile(_block(), (len(rows), 1, 1)))
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=self.device)
            patches = self._pixels(spots, 1)[rows]
            target = network.target_view(self.tensor(patches if rng is None else randomly_transformed(patches, rng)))
        return network(target, network.neighbor_view(tokens, offsets, mask), mask, whole)

    def _features(self, network: TriplexNetwork, spots: Spots, rows: Rows) -> Tensor:
        """Get the features of spots that views other than the target's see, ``(n, n_features)``."""
        if self.settings.encoder is not None:
            return self.tensor(self._of_tiles(network, spots, 1)[rows, 0])
        return (self.tensor(spots.check_features()[rows]) - network.mean) / network.std

    def _of_tiles(self, network: TriplexNetwork, spots: Spots, n_tiles: int) -> npt.NDArray[np.float32]:
        """Compute the frozen trunk's features of the tiles around each spot once, ``(n_spots, n_tiles², width)``."""
        key = (self.name, self.settings, n_tiles)
        if key not in spots.kept:
            assert network.frozen is not None
            pixels, found = self._pixels(spots, n_tiles), []
            size = self.settings.tile_px
            with torch.inference_mode():
                for part in np.array_split(np.arange(len(spots)), -(-len(spots) * n_tiles**2 // _INFERENCE_BATCH)):
                    block = self.tensor(pixels[part])
                    tiles = block.unflatten(1, (n_tiles, size)).unflatten(3, (n_tiles, size)).transpose(2, 3)
                    maps = network.frozen(tiles.flatten(0, 2))
                    found.append(maps.mean((2, 3)).unflatten(0, (len(part), -1)).cpu().numpy())
            spots.kept[key] = np.concatenate(found)
        return spots.kept[key]

    def _pixels(self, spots: Spots, n_tiles: int) -> Patches:
        return spots.pixels(n_tiles * self.settings.tile_px, n_tiles * self.settings.tile_um)


def _sizes(width: int, blocks: TriplexBlocks) -> tuple[int, int, int, int, float]:
    return width, blocks.n_heads, width // blocks.n_heads, blocks.ratio * width, blocks.dropout


def _block() -> Rows:
    """Places of the tiles as seen from the middle one, row by row, ``(TILES², 2)``, as x, y."""
    y, x = np.divmod(np.arange(TILES**2), TILES)
    return np.column_stack([x, y]) - TILES // 2


def _two_rings(spots: Spots) -> Surroundings:
    """Find the spots that two steps on the spot graph reach, the nearest first and ``TILES²`` at most."""
    key = "two rings of the spot graph"
    if key not in spots.kept:
        step = spots.graph.astype(bool).astype(np.int32)
        reached = (step @ step + step).tolil()
        rows = np.full((len(spots), TILES**2), -1, dtype=np.int64)
        for spot, found in enumerate(reached.rows):
            near = np.array([other for other in found if other != spot], dtype=np.int64)
            apart = np.linalg.norm(spots.positions[near] - spots.positions[spot], axis=1)
            chosen = near[np.argsort(apart, kind="stable")][: TILES**2 - 1]
            rows[spot, : len(chosen) + 1] = [spot, *chosen]
        rows = rows[:, : int((rows >= 0).sum(1).max())]
        spots.kept[key] = Surroundings(rows, spots.grid[np.maximum(rows, 0)] - spots.grid[:, None])
    return spots.kept[key]
