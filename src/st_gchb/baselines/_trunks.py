"""Convolutional trunks of pretrained image models, which published methods train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, MobileNetV2, ResNet

from st_gchb._errors import EncoderError
from st_gchb.pp import get_encoder


class PatchLayers(nn.Module):
    """Convolutional layers on patches whose channels are standardized: patches to feature maps.

    Parameters
    ----------
    layers
        Layers without pooling and head, of images ``(n, 3, px, px)``.
    width
        Number of channels of the feature maps.
    mean, std
        Mean and standard deviation per channel by which pixels, in 0 to 1, are standardized.
    train_norm
        Train batch norm along. False keeps its stored statistics, as weights with folded batch norm need it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, layers: nn.Module, width: int, mean: Sequence[float], std: Sequence[float], *, train_norm: bool = True
    ) -> None:
        super().__init__()
        self.layers, self.width, self.train_norm = layers.requires_grad_(True), width, train_norm
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, patches: Tensor) -> Tensor:
        """Compute feature maps, ``(n, width, h, w)``, of patches ``(n, px, px, 3)``, uint8 or float in 0 to 255."""
        values = patches.permute(0, 3, 1, 2).float() / 255
        return self.layers((values - self.mean) / self.std)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; batch norm that is not trained stays in evaluation mode."""
        super().train(mode)
        if not self.train_norm:
            for layer in self.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return self


class Trunk(PatchLayers):
    """Convolutional layers of a torchvision model without pooling and head, all trainable: patches to feature maps.

    Parameters
    ----------
    encoder
        Name of a DenseNet, ResNet or MobileNetV2, such as ``"densenet121"``.
    weights
        ``"default"`` (ImageNet's, downloaded once), the path of a file, or None for random weights.
    standardize
        Standardize the channels with the model's own constants; otherwise pixels are scaled to 0 to 1 alone.
    train_norm
        Train batch norm along. False keeps its stored statistics, as weights with folded batch norm need it.

    Raises
    ------
    EncoderError
        The model is unknown or of another family, or the weights are another model's.
    WeightsUnavailableError
        The weights could not be downloaded, or are not at the path.

    Examples
    --------
    >>> import torch
    >>> from st_gchb.baselines._trunks import Trunk
    >>> trunk = Trunk("resnet18", None)
    >>> trunk(torch.zeros(2, 64, 64, 3, dtype=torch.uint8)).shape, trunk.width
    (torch.Size([2, 512, 2, 2]), 512)
    """

    def __init__(
        self, encoder: str, weights: str | None = "default", *, standardize: bool = True, train_norm: bool = True
    ) -> None:
        found = get_encoder(encoder, weights)
        mean, std = (found.mean, found.std) if standardize else ((0.0,) * 3, (1.0,) * 3)
        super().__init__(_convolutions(found.module, encoder), found.n_features, mean, std, train_norm=train_norm)


def _convolutions(model: nn.Module, name: str) -> nn.Module:
    """Take the layers before pooling; of DenseNet, the last ReLU is not among them."""
    if isinstance(model, DenseNet | MobileNetV2):
        return model.features
    if isinstance(model, ResNet):
        return nn.Sequential(*[layer for path, layer in model.named_children() if path not in ("avgpool", "fc")])
    raise EncoderError(
        f"encoder {name!r} is a {type(model).__name__}, of which no feature maps are taken here. Expected a DenseNet, "
        "a ResNet or MobileNetV2 of torchvision, such as 'densenet121' or 'resnet18'."
    )
