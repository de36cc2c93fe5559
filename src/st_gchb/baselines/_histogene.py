"""HisToGene (Pang et al. 2021): a vision transformer whose tokens are the patches of all spots of a slice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from st_gchb.baselines._baseline import slice_batches, spread_parts
from st_gchb.baselines._layers import ArrayPositions, PreNormBlock
from st_gchb.baselines._slice_baseline import FeatureEmbedding, SliceBaseline, SliceSettings
from st_gchb.baselines._spots import Spots


@dataclass(frozen=True)
class HisToGeneSettings(SliceSettings):
    """Settings of HisToGene; the defaults are those of ``small``.

    Parameters
    ----------
    epochs, choose_epochs, batch_size, lr
        As for :class:`TrainingSettings`. A slice of more than ``batch_size`` spots is drawn down to as many in each
        epoch, and predicted in parts of at most as many, each spread over the whole slice.
    patch_px, patch_um, pixel_scale, position_scale, start_at_mean, from_features
        As for :class:`SliceSettings`.
    width
        Width of the tokens.
    n_blocks
        Number of transformer blocks.
    n_heads, head_width
        Number of attention heads, and width of each.
    hidden
        Width of the perceptron in each block.
    dropout
        Dropout of tokens, attention and perceptron.
    """

    epochs: int = 50
    choose_epochs: bool = False
    batch_size: int = 2000
    lr: float = 5e-4
    width: int = 128
    n_blocks: int = 2
    n_heads: int = 4
    head_width: int = 32
    hidden: int = 256
    dropout: float = 0.1


class PixelEmbedding(nn.Module):
    """Linear map of all pixels of a patch to a token.

    Parameters
    ----------
    patch_px
        Side of the patches, px.
    width
        Width of the tokens.
    scale
        Number by which pixels are divided.
    """

    def __init__(self, patch_px: int, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(3 * patch_px**2, width)

    def forward(self, patches: Tensor) -> Tensor:
        """Embed patches ``(n_spots, px, px, 3)``, uint8, as ``(n_spots, width)``."""
        return self.linear(patches.flatten(1).float() / self.scale)


class HisToGeneNetwork(nn.Module):
    """The vision transformer, from the patches of a slice to the expression of its spots.

    The order of layers is that of the publication's section "Vision transformer": patch embedding plus position
    embeddings of x and y, dropout, blocks of multi-head attention over all spots, layer norm and one linear layer for
    all genes. There is no class token.

    Parameters
    ----------
    embedding
        Map of patches, or of patch features, to tokens.
    head
        Linear layer to the genes.
    settings
        Sizes.
    """

    def __init__(self, embedding: nn.Module, head: nn.Linear, settings: HisToGeneSettings) -> None:
        super().__init__()
        self.embedding = embedding
        self.positions = ArrayPositions(settings.width, settings.position_scale)
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.Sequential(
            *(
                PreNormBlock(settings.width, settings.n_heads, settings.head_width, settings.hidden, settings.dropout)
                for _ in range(settings.n_blocks)
            )
        )
        self.norm = nn.LayerNorm(settings.width)
        self.head = head

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        """Predict the spots of one slice, ``(n_spots, n_genes)``.

        Parameters
        ----------
        patches
            What the embedding takes, ``(n_spots, ...)``.
        grid
            Positions on the array, ``(n_spots, 2)``, int64.
        """
        tokens = self.dropout(self.embedding(patches) + self.positions(grid))
        return self.head(self.norm(self.blocks(tokens)))


class HisToGene(SliceBaseline):
    """HisToGene: a transformer over all patches of a slice, with learned positions, trained by squared error.

    Pang, Su and Li, "Leveraging information in spatial transcriptomics to predict super-resolution gene expression from
    histology images in tumors", bioRxiv 2021.11.28.470212. Parameters and errors are those of :class:`Baseline`.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from st_gchb.baselines import HisToGene, Spots
    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(12, 4)).astype(np.float32)
    >>> positions = np.stack(np.divmod(np.arange(12), 4), axis=1) * 100.0
    >>> tissue = Spots(np.repeat("a", 12), positions, sparse.csr_matrix((12, 12)), features, targets=features[:, :2])
    >>> method = HisToGene(from_features=True, epochs=2, device="cpu").fit(tissue)
    >>> method.predict(tissue).shape
    (12, 2)
    """

    name = "histogene"
    presets = {
        "small": HisToGeneSettings(),
        "published": HisToGeneSettings(
            epochs=100,
            lr=1e-5,
            patch_px=112,
            pixel_scale=1.0,
            position_scale=1.0,
            start_at_mean=False,
            width=1024,
            n_blocks=8,
            n_heads=16,
            head_width=64,
            hidden=2048,
        ),
    }

    def build(self, spots: Spots) -> HisToGeneNetwork:
        """Build the network."""
        width = self.settings.width
        embedding: nn.Module
        if self.settings.from_features:
            embedding = FeatureEmbedding(spots.check_features(), width)
        else:
            embedding = PixelEmbedding(self.settings.patch_px, width, self.settings.pixel_scale)
        return HisToGeneNetwork(embedding, self.head(spots, width), self.settings)

    def batches(self, spots: Spots, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Iterate over whole slices, one a step."""
        return slice_batches(spots, self.settings.batch_size, rng)

    def loss(self, network: nn.Module, spots: Spots, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Compute the squared error, mean over spots and genes; patches are not augmented, as published."""
        return nn.functional.mse_loss(network(*self.inputs(network, spots, rows)), self.targets(spots, rows))

    def infer(self, network: nn.Module, spots: Spots) -> np.ndarray:
        """Predict whole slices, or parts of them that are spread over the slice and hold ``batch_size`` spots."""
        parts = list(spread_parts(spots, self.settings.batch_size))
        predicted = torch.cat([network(*self.inputs(network, spots, rows)).cpu() for rows in parts]).numpy()
        result = np.empty_like(predicted)
        result[np.concatenate(parts)] = predicted
        return result
