"""The last stage of a trunk, trained on the maps that the rest of the trunk has made once."""

from __future__ import annotations

from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_AT_ONCE = 64
"""Maps that pass through the stage together: the activations of these alone are held, however large a step is."""


class TrainedStage(nn.Module):
    """Feature maps to features, with batch norm as it was: its statistics are those of the images it was trained on.

    A step's few patches, which lie side by side, would make poor statistics; and infomax, which compares spots of one
    slice, could be solved by them. The stage is therefore always in evaluation mode, and the scale and shift of batch
    norm, which belong to the statistics, are not trained either.

    Parameters
    ----------
    stage
        Takes maps, ``(b, c, h, w)``, gives features, ``(b, n_features)``.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from st_gchb.nn import TrainedStage
    >>> stage = TrainedStage(nn.Sequential(nn.BatchNorm2d(2), nn.Flatten()))
    >>> stage.train()(torch.ones(5, 1, 2, 3, 3)).shape
    torch.Size([5, 18])
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        # Convolutions are a third faster in this order on a CPU, see the encoder.
        self.stage = stage.to(memory_format=torch.channels_last).requires_grad_(True)
        for layer in stage.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.requires_grad_(False)
        self.stage.eval()

    def train(self, mode: bool = True) -> Self:
        """Switch mode; the stage itself stays in evaluation mode."""
        super().train(mode)
        self.stage.eval()
        return self

    def forward(self, maps: Tensor) -> Tensor:
        """Features of spots, the mean over their views.

        Parameters
        ----------
        maps
            ``(n, n_views, c, h, w)``, of any floating type.

        Returns
        -------
        ``(n, n_features)``, float32.
        """
        n_views = maps.shape[1]
        parts = maps.split(max(1, _AT_ONCE // n_views))
        if len(parts) < 2 or not torch.is_grad_enabled():
            return torch.cat([self._of_part(part) for part in parts])
        # Activations are made again on the way back: those of a whole slice fit in no memory. Nothing is drawn there.
        again = partial(checkpoint, self._of_part, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(part) for part in parts])

    def _of_part(self, maps: Tensor) -> Tensor:
        values = maps.flatten(0, 1).float().contiguous(memory_format=torch.channels_last)
        features: Tensor = self.stage(values)
        return features.unflatten(0, maps.shape[:2]).mean(1)
