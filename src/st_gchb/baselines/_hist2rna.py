"""hist2RNA: a perceptron on aggregated features of a frozen image encoder, here one set of features per spot.

Mondol, R. K., Millar, E. K. A., Graham, P. H. et al. hist2RNA: an efficient deep learning architecture to predict gene
expression from breast cancer histopathology images. Cancers 15, 2569 (2023). https://doi.org/10.3390/cancers15092569
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from st_gchb._errors import InputError
from st_gchb.baselines._baseline import Baseline, TrainingSettings, spot_batches
from st_gchb.baselines._spots import Spots

_INFERENCE_ROWS = 8192
"""Number of spots that are predicted at a time, which bounds memory."""


@dataclass(frozen=True)
class Hist2RNASettings(TrainingSettings):
    """Settings of hist2RNA.

    Parameters
    ----------
    epochs, choose_epochs, patience, batch_size, lr
        As for every method.
    widths
        Widths of the hidden layers.
    l2
        Weight of the squared parameters in the loss, as Adam adds it to the gradients.
    validation_share
        Choose the number of epochs as published, by the least squared error on this share of the training spots, drawn
        at random; None chooses it by the correlation on the last slice.
    """

    widths: tuple[int, ...] = (256, 512, 512)
    l2: float = 0.01
    validation_share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths or min(self.widths) < 1:
            raise InputError(f"widths={self.widths!r}: expected one or more whole numbers of 1 or more.")
        if not self.l2 >= 0:
            raise InputError(f"l2={self.l2!r}: expected 0 or more.")
        if self.validation_share is not None and not 0 < self.validation_share < 1:
            raise InputError(f"validation_share={self.validation_share!r}: expected a share between 0 and 1, or None.")


class Hist2RNANetwork(nn.Module):
    """Perceptron on features as the encoder gives them.

    The publication describes three one-dimensional convolutions, of kernel 5, 1 and 1 with a ReLU after each, over the
    features of a patient, an average over the length and a linear layer. The features of all patches have been averaged
    before, so that the sequence has length 1: of the kernel of 5, with two zeros of padding on either side, only the
    middle sees data, and the whole is this perceptron.

    Parameters
    ----------
    n_features
        Number of features.
    widths
        Widths of the hidden layers.
    n_genes
        Number of genes.
    """

    def __init__(self, n_features: int, widths: tuple[int, ...], n_genes: int) -> None:
        super().__init__()
        self.n_features = n_features
        hidden = [(nn.Linear(*sizes), nn.ReLU()) for sizes in pairwise((n_features, *widths))]
        self.layers = nn.Sequential(*[layer for pair in hidden for layer in pair], nn.Linear(widths[-1], n_genes))

    def forward(self, features: Tensor) -> Tensor:
        """Predict expression, ``(n, n_genes)``, from features ``(n, n_features)``."""
        return self.layers(features)


class Hist2RNA(Baseline):
    """hist2RNA (Mondol et al. 2023) at the level of spots: a perceptron on the features of a frozen image encoder.

    The publication predicts one profile per patient from the mean features of all patches of a slide. Here a spot
    stands for a patient, and its patch, or the mean of the views of its patch, for the slide.

    Parameters
    ----------
    preset
        ``"published"``: optimizer and epochs of the published code. ``"small"``: the same network with larger steps, a
        tenth of the L2 regularization, and at most 50 epochs, chosen on an inner slice.
    seed
        Seed of weights and batches.
    device
        ``"auto"`` or the name of a torch device.
    settings
        Fields of :class:`Hist2RNASettings` that differ from the preset's.

    Raises
    ------
    InputError
        Preset or setting is unknown; in ``fit``, the spots have no features or no expression; in ``predict``, they have
        another number of features than the training spots.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from st_gchb.baselines import Hist2RNA, Spots
    >>> rng = np.random.default_rng(0)
    >>> spots = Spots(
    ...     slices=np.repeat(["S1", "S2"], 20),
    ...     positions=rng.uniform(0, 1000, (40, 2)),
    ...     graph=sparse.csr_matrix((40, 40)),
    ...     features=rng.random((40, 8), dtype=np.float32),
    ...     targets=rng.random((40, 5), dtype=np.float32),
    ... )
    >>> Hist2RNA(epochs=2).fit(spots).predict(spots).shape
    (40, 5)
    """

    name = "hist2rna"
    presets: ClassVar = {
        # An L2 of 0.01 outweighs the squared error of log expression, which is far smaller than that of bulk RNA-seq:
        # predictions stay near the mean profile.
        "small": Hist2RNASettings(epochs=50, patience=15, l2=1e-3),
        "published": Hist2RNASettings(epochs=500, patience=20, batch_size=12, lr=1e-4, validation_share=0.1),
    }
    settings: Hist2RNASettings

    def build(self, spots: Spots) -> Hist2RNANetwork:
        """Build the perceptron, with the usual random start."""
        assert spots.targets is not None  # check() has seen to it
        return Hist2RNANetwork(spots.check_features().shape[1], self.settings.widths, spots.targets.shape[1])

    def batches(self, spots: Spots, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Iterate over batches of spots of all slices, in random order."""
        return spot_batches(spots, self.settings.batch_size, rng)

    def loss(self, network: nn.Module, spots: Spots, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Compute the mean squared error."""
        assert spots.targets is not None
        predicted = network(self.tensor(spots.check_features()[rows]))
        return nn.functional.mse_loss(predicted, self.tensor(spots.targets[rows]))

    def infer(self, network: nn.Module, spots: Spots) -> np.ndarray:
        """Predict each spot from its features."""
        features = spots.check_features()
        parts = [features[start : start + _INFERENCE_ROWS] for start in range(0, len(features), _INFERENCE_ROWS)]
        return np.concatenate([network(self.tensor(part)).cpu().numpy() for part in parts])

    def predict(self, spots: Spots) -> np.ndarray:
        """Predict log-normalized expression, ``(n_spots, n_genes)`` float32.

        Raises
        ------
        NotTrainedError
            Before :meth:`fit`.
        InputError
            The spots have no features, or not as many as the training spots.
        """
        if isinstance(self.network, Hist2RNANetwork):
            found, expected = spots.check_features().shape[1], self.network.n_features
            if found != expected:
                raise InputError(
                    f"{self.name}: the spots have {found} features, and the training spots had {expected}. Embed both "
                    "with the same encoder and patch_um."
                )
        return super().predict(spots)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer: Adam with L2 regularization, as published."""
        return torch.optim.Adam(network.parameters(), lr=self.settings.lr, weight_decay=self.settings.l2)

    def inner(self, spots: Spots) -> list[np.ndarray]:
        """Choose the inner part; as published, a share of the training spots at random."""
        if self.settings.validation_share is None:
            return super().inner(spots)
        order = np.random.default_rng(self.seed).permutation(len(spots))
        return [np.sort(order[: max(2, round(self.settings.validation_share * len(spots)))])]

    def goodness(self, measured: np.ndarray, predicted: np.ndarray) -> float:
        """Rate a prediction; as published, by the squared error."""
        if self.settings.validation_share is None:
            return super().goodness(measured, predicted)
        return -float(np.square(predicted - measured).mean())

    def check(self, spots: Spots) -> None:
        """Validate that there are features, too."""
        super().check(spots)
        spots.check_features()
