"""mclSTExp (Min et al., 2024): spots as words of a sentence, contrasted with their patches; expression is retrieved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.transforms.v2 import functional as images

from st_gchb._errors import InputError
from st_gchb.baselines._baseline import Baseline, TrainingSettings, spot_batches
from st_gchb.baselines._layers import ArrayPositions, PreNormBlock
from st_gchb.baselines._spots import Patches, Spots
from st_gchb.baselines._trunks import Trunk

_INFERENCE_BATCH = 64
_SMALLEST_DISTANCE = 1e-6
"""Bound of the distance of embeddings, so that weights are finite for a spot that is its own nearest."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MclSTExpSettings(TrainingSettings):
    """Settings of :class:`MclSTExp`.

    Parameters
    ----------
    encoder
        Trunk that reads pixels and is trained along, such as ``"densenet121"``; None takes patch features.
    weights
        Weights of the trunk: ``"default"``, the path of a file, or None for random ones.
    train_norm
        Train the batch norm of the trunk.
    patch_px, patch_um
        Side of a patch in px of the trunk's input, and in µm on the tissue.
    width
        Width of the embeddings of patch and spot.
    depth, n_heads, head_width
        Number of transformer blocks over the spots of a sentence, and number and width of their heads.
    position_scale
        Standard deviation with which position tables start.
    temperature
        Temperature of the contrastive loss.
    normalized
        Scale embeddings to length 1 before they are contrasted.
    one_slice
        Fill a batch, which is a sentence, from one slice; otherwise from all.
    sentence
        Number of successive spots in a sentence when the reference is encoded; None takes whole slices.
    n_retrieved
        Number of reference spots that are retrieved for a patch.
    retrieved_share
        Largest share of the reference that is retrieved; None for no bound.
    distance_order
        Order of the norm by which retrieved spots are weighted: 1 or 2.
    weight_decay
        Weight decay, as L2 penalty.
    """

    encoder: str | None = None
    weights: str | None = "default"
    train_norm: bool = True
    patch_px: int = 224
    patch_um: float = 150.0
    width: int = 128
    depth: int = 1
    n_heads: int = 4
    head_width: int = 32
    position_scale: float = 0.02
    temperature: float = 0.1
    normalized: bool = True
    one_slice: bool = True
    sentence: int | None = None
    n_retrieved: int = 200
    retrieved_share: float | None = 0.1
    distance_order: int = 2
    weight_decay: float = 1e-3


class Projection(nn.Module):
    """Projection to an embedding: linear, GELU, linear, the first linear's output added, layer norm."""

    def __init__(self, n_features: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_features, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Project ``(n, n_features)`` to ``(n, width)``."""
        first = self.first(x)
        return self.norm(first + self.second(nn.functional.gelu(first)))


class MclSTExpNetwork(nn.Module):
    """Encoders of patches and of spots, and the reference spots that are retrieved.

    Parameters
    ----------
    settings
        Settings.
    features
        Mean and standard deviation of the patch features, each ``(n_features,)``; None with a trunk.
    expression
        Log-normalized expression of the reference, ``(n_reference, n_genes)``.
    grid
        Its places on the array, ``(n_reference, 2)``.
    sentences
        Number of the sentence of each reference spot, ``(n_reference,)``.
    """

    mean: Tensor
    std: Tensor
    expression: Tensor
    grid: Tensor
    sentences: Tensor

    def __init__(
        self,
        settings: MclSTExpSettings,
        features: tuple[Tensor, Tensor] | None,
        expression: Tensor,
        grid: Tensor,
        sentences: Tensor,
    ) -> None:
        super().__init__()
        self.trunk: Trunk | None = None
        if features is None:
            assert settings.encoder is not None
            # Pixels in 0 to 1, without ImageNet's constants.
            self.trunk = Trunk(settings.encoder, settings.weights, standardize=False, train_norm=settings.train_norm)
            n_features = self.trunk.width
        else:
            for name, value in zip(("mean", "std"), features, strict=True):
                self.register_buffer(name, value)
            n_features = len(features[0])
        n_genes = expression.shape[1]
        self.positions = ArrayPositions(n_genes, settings.position_scale)
        self.blocks = nn.ModuleList(
            PreNormBlock(n_genes, settings.n_heads, settings.head_width, n_genes) for _ in range(settings.depth)
        )
        self.image_projection = Projection(n_features, settings.width)
        self.spot_projection = Projection(n_genes, settings.width)
        for name, value in (("expression", expression), ("grid", grid), ("sentences", sentences)):
            self.register_buffer(name, value)

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Embed patches as ``(n, width)``: pixels ``(n, px, px, 3)``, or features ``(n, n_features)``."""
        if self.trunk is not None:
            return self.image_projection(self.trunk(patches).mean((2, 3)))
        return self.image_projection((patches - self.mean) / self.std)

    def embed_spots(self, expression: Tensor, grid: Tensor) -> Tensor:
        """Embed the spots of a sentence, which attend to each other: ``(n, n_genes)`` to ``(n, width)``."""
        words = expression + self.positions(grid)
        for block in self.blocks:
            words = block(words)
        return self.spot_projection(words)

    def embed_reference(self) -> Tensor:
        """Embed the reference, sentence by sentence, ``(n_reference, width)``."""
        parts = [torch.nonzero(self.sentences == number)[:, 0] for number in self.sentences.unique()]
        embedded = torch.cat([self.embed_spots(self.expression[part], self.grid[part]) for part in parts])
        return embedded[torch.cat(parts).argsort()]


class MclSTExp(Baseline):
    """mclSTExp (Min et al., Brief Bioinform 2024): contrastive learning of patches and of spots with positions.

    Spots of a batch are a sentence, whose words are expression and position; a transformer embeds them, and their
    patches are embedded next to them. A held-out patch gets the mean expression of the training spots that are nearest
    to it. ``"published"`` trains DenseNet-121 on pixels; ``"small"`` takes patch features.

    See :class:`Baseline` for parameters and errors.

    Examples
    --------
    >>> from st_gchb.baselines import MclSTExp
    >>> MclSTExp("small", epochs=20).settings.temperature
    0.1
    """

    name = "mclstexp"
    needs_pixels = True
    presets = {
        "small": MclSTExpSettings(epochs=50, batch_size=128, lr=1e-3),
        "published": MclSTExpSettings(
            epochs=90,
            choose_epochs=False,
            batch_size=128,
            lr=1e-4,
            encoder="densenet121",
            width=256,
            depth=2,
            n_heads=8,
            head_width=64,
            position_scale=1.0,
            temperature=1.0,
            normalized=False,
            one_slice=False,
            sentence=32,
            retrieved_share=None,
            distance_order=1,
        ),
    }

    @property
    def reads_pixels(self) -> bool:
        """Tell whether pixels are read, and not patch features."""
        return self.settings.encoder is not None

    def check(self, spots: Spots) -> None:
        """Validate settings, and that there are patches to contrast and spots to retrieve."""
        super().check(spots)
        settings: MclSTExpSettings = self.settings
        if min(len(spots), settings.batch_size) < 2:
            raise InputError(
                f"{self.name}: {len(spots)} training spots in batches of {settings.batch_size}; a spot is contrasted "
                "with the others of its batch, of which two or more are expected. Give more spots or batch_size=128."
            )
        if settings.distance_order not in (1, 2):
            raise InputError(f"{self.name}: distance_order={settings.distance_order!r}; expected 1 or 2.")
        self._n_retrieved(len(spots))
        if settings.encoder is None:
            spots.check_features()
        else:
            self._pixels(spots)

    def build(self, spots: Spots) -> nn.Module:
        """Build both encoders, with the training spots as reference."""
        assert spots.targets is not None
        features = None
        if self.settings.encoder is None:
            own = torch.from_numpy(spots.check_features())
            features = (own.mean(0), own.std(0, correction=0).clamp(min=1e-6))
        size: int | None = self.settings.sentence
        _, of_slice = np.unique(spots.slices, return_inverse=True)
        sentences = of_slice if size is None else np.arange(len(spots)) // size
        reference = (np.ascontiguousarray(values) for values in (spots.targets, spots.grid, sentences))
        return MclSTExpNetwork(self.settings, features, *(torch.from_numpy(values) for values in reference))

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """Make Adam with weight decay as an L2 penalty."""
        return torch.optim.Adam(network.parameters(), lr=self.settings.lr, weight_decay=self.settings.weight_decay)

    def batches(self, spots: Spots, rng: np.random.Generator) -> Iterator[Rows]:
        """Iterate over random spots, of all slices or of one slice at a time."""
        yield from spot_batches(spots, self.settings.batch_size, rng, one_slice=self.settings.one_slice)

    def loss(self, network: nn.Module, spots: Spots, rows: Rows, rng: np.random.Generator) -> Tensor:
        """Compute the mean cross-entropy of finding the spot of each patch, and the patch of each spot."""
        assert isinstance(network, MclSTExpNetwork)
        assert spots.targets is not None
        by_spot = network.embed_spots(self.tensor(spots.targets[rows]), self.tensor(spots.grid[rows]))
        by_patch = network.embed_patches(self._patches(spots, rows, rng))
        if self.settings.normalized:
            by_spot, by_patch = normalize(by_spot), normalize(by_patch)
        scores = by_spot @ by_patch.T / self.settings.temperature
        own = torch.arange(len(rows), device=scores.device)
        return (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2

    def infer(self, network: nn.Module, spots: Spots) -> np.ndarray:
        """Predict the mean expression of the reference spots with the largest cosine, weighted by 1 / distance²."""
        assert isinstance(network, MclSTExpNetwork)
        reference = network.embed_reference()
        directions, k = normalize(reference), self._n_retrieved(len(reference))
        result = np.empty((len(spots), network.expression.shape[1]), dtype=np.float32)
        for part in np.array_split(np.arange(len(spots)), -(-len(spots) // _INFERENCE_BATCH)):
            query = network.embed_patches(self._patches(spots, part))
            nearest = (normalize(query) @ directions.T).topk(k).indices
            apart = torch.linalg.vector_norm(
                reference[nearest] - query[:, None], ord=self.settings.distance_order, dim=-1
            )
            weights = apart.clamp(min=_SMALLEST_DISTANCE) ** -2
            weights = weights / weights.sum(1, keepdim=True)
            result[part] = torch.einsum("qk,qkg->qg", weights, network.expression[nearest]).cpu().numpy()
        return result

    def _n_retrieved(self, n_reference: int) -> int:
        """Compute the number of spots to retrieve from a reference.

        Raises
        ------
        InputError
            There are fewer, and no share of them bounds the number.
        """
        most, share = self.settings.n_retrieved, self.settings.retrieved_share
        if share is not None:
            return min(most, max(1, int(share * n_reference)))
        if most > n_reference:
            raise InputError(
                f"{self.name}: n_retrieved={most}, and there are {n_reference} training spots to retrieve. Give more "
                "slices, a smaller n_retrieved, or retrieved_share=0.1, which bounds it."
            )
        return most

    def _patches(self, spots: Spots, rows: Rows, rng: np.random.Generator | None = None) -> Tensor:
        """Get what patches are embedded from; with ``rng``, pixels are jittered, mirrored and turned."""
        if self.settings.encoder is None:
            return self.tensor(spots.check_features()[rows])
        patches = self.tensor(self._pixels(spots)[rows])
        return patches if rng is None else augmented(patches, rng)

    def _pixels(self, spots: Spots) -> Patches:
        return spots.pixels(self.settings.patch_px, self.settings.patch_um)


def augmented(patches: Tensor, rng: np.random.Generator) -> Tensor:
    """Change each patch at random, as published: color, reflection, turn by any angle with black corners.

    Brightness, contrast and saturation are multiplied by 0.5 to 1.5, in random order; left and right are exchanged with
    probability 1/2.

    Parameters
    ----------
    patches
        Patches, ``(n, px, px, 3)`` uint8.
    rng
        Generator.

    Returns
    -------
    torch.Tensor
        ``(n, px, px, 3)`` uint8.
    """
    changes = (images.adjust_brightness, images.adjust_contrast, images.adjust_saturation)
    result = []
    for patch in patches.permute(0, 3, 1, 2):
        for number in rng.permutation(len(changes)):
            patch = changes[number](patch, rng.uniform(0.5, 1.5))
        if rng.random() < 0.5:
            patch = images.horizontal_flip(patch)
        result.append(images.rotate(patch, rng.uniform(-180, 180)))
    return torch.stack(result).permute(0, 2, 3, 1)
