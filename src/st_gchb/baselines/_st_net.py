"""ST-Net: a DenseNet on each patch, trained end to end to predict all genes at once.

He, B., Bergenstråhle, L., Stenbeck, L. et al. Integrating spatial gene expression and breast tumour morphology via deep
learning. Nature Biomedical Engineering 4, 827-834 (2020). https://doi.org/10.1038/s41551-020-0578-x
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

from st_gchb._errors import InputError
from st_gchb.baselines._baseline import Baseline, TrainingSettings, spot_batches
from st_gchb.baselines._layers import gene_head
from st_gchb.baselines._spots import Patches, Spots
from st_gchb.baselines._symmetries import N_SYMMETRIES, Pixels, randomly_transformed, transformed
from st_gchb.baselines._trunks import PatchLayers, Trunk

FROM_SCRATCH = "densenet"
"""Trunk of a size of its own, without pretrained weights."""

_CALIBRATION_BATCHES = 12
"""Number of batches of training patches of which mean and standard deviation of the channels are estimated."""
_DENSENET_STRIDE = 32
"""Number of pixels of a patch, in each direction, that become one of the feature map."""
_INNER_PARTS = 4
"""Number of parts of the training slices that the publication holds out in turn to choose the number of epochs."""


@dataclass(frozen=True)
class STNetSettings(TrainingSettings):
    """Settings of ST-Net.

    Parameters
    ----------
    epochs, choose_epochs, patience, batch_size, lr
        As for every method. The loss is summed over the batch, so that the step of SGD grows with ``batch_size``.
    trunk
        ``"densenet"``, a DenseNet of the three sizes below that is trained from scratch, or the name of a DenseNet,
        ResNet or MobileNetV2 of torchvision.
    weights
        Weights of a trunk of torchvision: ``"default"`` (ImageNet's, downloaded once), the path of a file, or None for
        random ones.
    train_norm
        Train the batch norm of the trunk. False suits weights whose batch norm is folded into the convolutions.
    growth, blocks, channels
        Of ``"densenet"``: channels that each layer adds, number of layers of each block, and channels before the first.
    patch_px
        Side of the patches, px.
    patch_um
        Side of the patches on the tissue, µm.
    momentum
        Train by SGD with this momentum; None trains by Adam.
    nested
        Choose the number of epochs as published, by the least squared error on four parts of the training slices that
        are held out in turn, and not by the correlation on the last slice.
    """

    trunk: str = FROM_SCRATCH
    weights: str | None = None
    train_norm: bool = True
    growth: int = 16
    blocks: tuple[int, ...] = (2, 4, 6, 4)
    channels: int = 32
    patch_px: int = 112
    patch_um: float = 150.0
    momentum: float | None = None
    nested: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch_px < _DENSENET_STRIDE:
            raise InputError(
                f"patch_px={self.patch_px!r}: expected {_DENSENET_STRIDE} px or more, of which the trunk makes one."
            )
        if self.batch_size < 2:
            raise InputError(f"batch_size={self.batch_size!r}: expected 2 or more, among which batch norm compares.")
        if not self.patch_um > 0:
            raise InputError(f"patch_um={self.patch_um!r}: expected a length above 0, in µm.")


class STNetwork(nn.Module):
    """Trunk, mean over the patch, and a linear layer that starts at the mean profile.

    As published, the maps of the trunk pass a ReLU and are averaged over the patch, and the last layer starts with
    weights of 0 and the training mean of each gene as bias.

    Parameters
    ----------
    trunk
        Convolutional layers with the standardization of their input.
    mean
        Mean expression of the training spots, ``(n_genes,)``.
    """

    def __init__(self, trunk: PatchLayers, mean: Tensor) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = gene_head(trunk.width, mean)

    def forward(self, patches: Tensor) -> Tensor:
        """Predict expression, ``(n, n_genes)``, of patches ``(n, px, px, 3)`` uint8."""
        return self.head(self.trunk(patches).relu().mean((2, 3)))


class STNet(Baseline):
    """ST-Net (He et al. 2020): a DenseNet on each patch, trained end to end by squared error.

    Parameters
    ----------
    preset
        ``"published"``: DenseNet-121 with ImageNet's weights on 224 px, SGD. ``"small"``: a DenseNet of 0.3 million
        parameters from scratch on 112 px, Adam.
    seed
        Seed of weights, batches and augmentation.
    device
        ``"auto"`` or the name of a torch device.
    settings
        Fields of :class:`STNetSettings` that differ from the preset's.

    Raises
    ------
    InputError
        Preset or setting is unknown; in ``fit``, the spots have no image or no expression.
    EncoderError
        In ``fit``: the weights are another network's.
    WeightsUnavailableError
        In ``fit``: the weights could not be downloaded, or are not at the path.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from st_gchb.baselines import Spots, STNet
    >>> rng = np.random.default_rng(0)
    >>> spots = Spots(
    ...     slices=np.repeat(["S1", "S2"], 6),
    ...     positions=rng.uniform(0, 1000, (12, 2)),
    ...     graph=sparse.csr_matrix((12, 12)),
    ...     read=lambda out_px, patch_um: rng.integers(0, 256, (12, out_px, out_px, 3), dtype=np.uint8),
    ...     targets=rng.random((12, 5), dtype=np.float32),
    ... )
    >>> STNet(epochs=1, patch_px=32).fit(spots).predict(spots).shape
    (12, 5)
    """

    name = "st-net"
    presets: ClassVar = {
        "small": STNetSettings(epochs=30, patience=8),
        "published": STNetSettings(
            epochs=50,
            batch_size=32,
            lr=1e-6,
            trunk="densenet121",
            weights="default",
            patch_px=224,
            momentum=0.9,
            nested=True,
        ),
    }
    needs_pixels = True
    settings: STNetSettings

    def build(self, spots: Spots) -> STNetwork:
        """Build trunk and head; the trunk standardizes channels as they are in a sample of the training patches."""
        trunk = self._trunk()
        sample = torch.randperm(len(spots))[: _CALIBRATION_BATCHES * self.settings.batch_size].numpy()
        mean, std = channel_statistics(self._pixels(spots)[np.sort(sample)])
        trunk.mean.copy_(torch.from_numpy(mean)[:, None, None])
        trunk.std.copy_(torch.from_numpy(std)[:, None, None])
        assert spots.targets is not None  # check() has seen to it
        return STNetwork(trunk, torch.from_numpy(spots.targets.mean(0)))

    def _trunk(self) -> PatchLayers:
        settings = self.settings
        if settings.trunk != FROM_SCRATCH:
            return Trunk(settings.trunk, settings.weights, standardize=False, train_norm=settings.train_norm)
        model = DenseNet(settings.growth, settings.blocks, settings.channels)
        return PatchLayers(
            model.features, model.classifier.in_features, (0.0,) * 3, (1.0,) * 3, train_norm=settings.train_norm
        )

    def batches(self, spots: Spots, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Iterate over batches of spots of all slices, in random order."""
        return spot_batches(spots, self.settings.batch_size, rng)

    def loss(self, network: nn.Module, spots: Spots, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Compute the squared error, averaged over genes and summed over the batch, of randomly turned patches.

        The published steps flip a patch left to right, upside down, and turn it by 90 degrees, each with probability
        1/2: this is one of the eight symmetries, drawn uniformly.
        """
        assert spots.targets is not None
        patches = randomly_transformed(self._pixels(spots)[rows], rng)
        error = network(self.tensor(patches)) - self.tensor(spots.targets[rows])
        return error.square().mean(1).sum()

    def infer(self, network: nn.Module, spots: Spots) -> np.ndarray:
        """Average the predictions of the eight turned and mirrored views of each patch."""
        pixels = self._pixels(spots)
        parts = np.array_split(np.arange(len(spots)), -(-len(spots) // self.settings.batch_size))
        return np.concatenate([self._mean_over_views(network, pixels[rows]) for rows in parts])

    def _mean_over_views(self, network: nn.Module, patches: Pixels) -> np.ndarray:
        views = [network(self.tensor(transformed(patches, number))) for number in range(N_SYMMETRIES)]
        return torch.stack(views).mean(0).cpu().numpy()

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer: SGD with momentum as published, or Adam."""
        if self.settings.momentum is None:
            return super().optimizer(network)
        return torch.optim.SGD(network.parameters(), lr=self.settings.lr, momentum=self.settings.momentum)

    def inner(self, spots: Spots) -> list[np.ndarray]:
        """Choose the inner parts; as published, four parts of the training slices, each of whole slices."""
        slices = spots.by_slice
        if not self.settings.nested or len(slices) == 1:
            return super().inner(spots)
        groups = np.array_split(np.arange(len(slices)), min(_INNER_PARTS, len(slices)))
        return [np.sort(np.concatenate([slices[number] for number in group])) for group in groups]

    def goodness(self, measured: np.ndarray, predicted: np.ndarray) -> float:
        """Rate a prediction; as published, by the squared error."""
        if not self.settings.nested:
            return super().goodness(measured, predicted)
        return -float(np.square(predicted - measured).mean())

    def check(self, spots: Spots) -> None:
        """Validate that there are patches to learn from, too; nothing is read yet."""
        super().check(spots)
        self._pixels(spots)

    def _pixels(self, spots: Spots) -> Patches:
        return spots.pixels(self.settings.patch_px, self.settings.patch_um)


def channel_statistics(patches: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation of the channels of patches, in 0 to 1, each ``(3,)`` float32.

    The standard deviation is at least one of the 255 steps of a pixel, so that blank patches can be standardized.
    """
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(patches[..., channel].ravel(), minlength=256) for channel in range(3)])
    mean = counts @ levels / counts.sum(1)
    variance = counts @ levels**2 / counts.sum(1) - mean**2
    return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1 / 255**2)).astype(np.float32)
