"""The last stage of an image encoder, trained on feature maps that the earlier stages computed once."""

from __future__ import annotations

from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_AT_ONCE = 64
"""Feature maps that pass through the stage together, which bounds its activations in memory at any size of a step."""


class TrainedStage(nn.Module):
    """Trainable map from feature maps to patch features, with frozen batch norm.

    Batch norm keeps the statistics of the images on which the encoder was pretrained. The few neighboring patches of
    a step would give poor estimates, and infomax, which compares spots within a slice, could exploit them. The stage
    is therefore always in evaluation mode, and the scale and shift of batch norm, which belong to the statistics, are
    not trained either.

    Parameters
    ----------
    stage
        Module from feature maps, ``(b, c, h, w)``, to features, ``(b, n_features)``.

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
        # On a CPU, convolutions are a third faster in this memory format, which the image encoders use too.
        self.stage = stage.to(memory_format=torch.channels_last).requires_grad_(True)
        for layer in stage.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.requires_grad_(False)
        self.stage.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the module; the stage inside stays in evaluation mode."""
        super().train(mode)
        self.stage.eval()
        return self

    def forward(self, maps: Tensor) -> Tensor:
        """Compute the features of spots, averaged over their views.

        Parameters
        ----------
        maps
            Feature maps, ``(n, n_views, c, h, w)``, of any floating-point type.

        Returns
        -------
        Tensor
            Features, ``(n, n_features)``, float32.
        """
        n_views = maps.shape[1]
        parts = maps.split(max(1, _AT_ONCE // n_views))
        if len(parts) < 2 or not torch.is_grad_enabled():
            return torch.cat([self._of_part(part) for part in parts])
        # Activations are recomputed in the backward pass, since those of a whole slice do not fit in memory. The stage
        # draws no random numbers, so the state of the generator need not be kept.
        again = partial(checkpoint, self._of_part, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(part) for part in parts])

    def _of_part(self, maps: Tensor) -> Tensor:
        values = maps.flatten(0, 1).float().contiguous(memory_format=torch.channels_last)
        features: Tensor = self.stage(values)
        return features.unflatten(0, maps.shape[:2]).mean(1)
