"""The frame of methods whose input is a whole slice: every spot's patch at once, with its position on the array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from st_gchb._errors import InputError
from st_gchb.baselines._baseline import Baseline, TrainingSettings
from st_gchb.baselines._layers import gene_head
from st_gchb.baselines._spots import Spots


@dataclass(frozen=True)
class SliceSettings(TrainingSettings):
    """Settings of methods that take a whole slice at once.

    Parameters
    ----------
    patch_px
        Side of the patches as the network sees them, px.
    patch_um
        Side of the patches on the tissue, µm. The publications take 112 px of the scan, 78 µm on her2st.
    pixel_scale
        Number by which pixels are divided: 255 brings them to 0 to 1, and 1 leaves 0 to 255, as published.
    position_scale
        Standard deviation with which the tables of positions start; 1 is the publications'.
    start_at_mean
        Start the last layer at the training mean of each gene, with zero weights.
    from_features
        Take a linear map of the patch features in place of the embedding of pixels.
    """

    patch_px: int = 28
    patch_um: float = 78.0
    pixel_scale: float = 255.0
    position_scale: float = 0.02
    start_at_mean: bool = True
    from_features: bool = False


class FeatureEmbedding(nn.Module):
    """Linear map of standardized patch features to tokens.

    Parameters
    ----------
    features
        Features of the training spots, ``(n_spots, n_features)``; their mean and deviation are kept.
    width
        Width of the tokens.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: np.ndarray, width: int) -> None:
        super().__init__()
        std = features.std(0)
        self.register_buffer("mean", torch.from_numpy(features.mean(0)))
        self.register_buffer("std", torch.from_numpy(np.where(std > 0, std, 1).astype(np.float32)))
        self.linear = nn.Linear(features.shape[1], width)

    def forward(self, features: Tensor) -> Tensor:
        """Embed features ``(n_spots, n_features)`` as ``(n_spots, width)``."""
        return self.linear((features - self.mean) / self.std)


class SliceBaseline(Baseline):
    """A published method whose input is a whole slice; its settings derive from :class:`SliceSettings`."""

    needs_pixels = True

    @property
    def reads_pixels(self) -> bool:
        """Tell whether pixels are read, and not patch features."""
        return not self.settings.from_features

    def check(self, spots: Spots) -> None:
        """Validate training spots; a patch that does not fit the slide is told here, before its pixels are read.

        Raises
        ------
        InputError
            There is no expression, no image, or, with ``from_features``, no patch features.
        ScaleError
            The size of a pixel is not known, or a patch is larger than a slide.
        """
        super().check(spots)
        if self.settings.from_features:
            spots.check_features()
        else:
            spots.pixels(self.settings.patch_px, self.settings.patch_um)

    def inputs(self, network: nn.Module, spots: Spots, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Get patches, or patch features, and array positions of some spots, on the device.

        Raises
        ------
        InputError
            There is no image, or there are no patch features, or not as many as in training.
        """
        grid = self.tensor(spots.grid[rows])
        if not self.settings.from_features:
            return self.tensor(spots.pixels(self.settings.patch_px, self.settings.patch_um)[rows]), grid
        features = spots.check_features()
        expected = len(network.get_buffer("embedding.mean"))
        if features.shape[1] != expected:
            raise InputError(
                f"{self.name}: the spots have {features.shape[1]} patch features, and {expected} were trained on. "
                "Embed their patches with the same encoders and sizes, see st_gchb.pp.embed_patches_like."
            )
        return self.tensor(features[rows]), grid

    def head(self, spots: Spots, width: int) -> nn.Linear:
        """Make the layer from tokens of some width to the genes of the training spots."""
        assert spots.targets is not None, "checked in fit"
        if self.settings.start_at_mean:
            return gene_head(width, torch.from_numpy(spots.targets.mean(0)))
        return nn.Linear(width, spots.targets.shape[1])

    def targets(self, spots: Spots, rows: np.ndarray) -> Tensor:
        """Get log-normalized expression of some training spots, ``(n_rows, n_genes)``, on the device."""
        assert spots.targets is not None, "checked in fit"
        return self.tensor(spots.targets[rows])
