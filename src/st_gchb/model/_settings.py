"""Settings of a model, and its presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from st_gchb._arguments import (
    Count,
    CountFromZero,
    Epochs,
    EpochsFromZero,
    Pair,
    Positive,
    Rate,
    Rings,
    Share,
    Temperature,
    Weight,
    Width,
    WidthFromZero,
    check_value,
    checked,
)
from st_gchb._errors import InputError
from st_gchb._options import DEFAULT_WEIGHTING, Dependence, Finetune, GraphKind, Preset, Sampler, Weighting
from st_gchb.nn import LossSettings, NetworkSettings

if TYPE_CHECKING:
    from st_gchb.model._projections import LinearProjection
    from st_gchb.model._query import Preprocessor


@checked
@dataclass(frozen=True)
class ModelSettings:
    """Settings of :class:`~st_gchb.model.STGCHB`; each is a keyword of its constructor.

    Parameters
    ----------
    n_top_genes
        Size of the panel.
    n_expression_components, n_image_components
        Number of principal components that enter each branch; ``None`` omits PCA (ablation B of the paper for
        expression).
    image_whitening
        Exponent of whitening: 0 keeps the variances of the image components, 1 makes them all equal.
    context_rings
        Number of rings of neighbors whose mean patch features are appended to the spot's own.
    context_surroundings
        Number of steps over the spot graph by which the patch features of a spot's wide surroundings are averaged,
        which are appended, too; more than ``context_rings``, or 0 for none.
    center_slices
        Subtract the mean patch features of a slice from those of its spots, in the reference and in a query.
    n_image_adapter
        Width of a trainable linear layer on the patch features; 0 for none.
    finetune, finetune_lr_factor
        ``"last_stage"`` also trains the last stage of the image encoder, on the feature maps that
        ``pp.embed_patches(save_feature_maps=True)`` stores, at this fraction of the network's learning rate; ``"none"``
        freezes the whole encoder.
    image_graph, expression_graph
        Graph encoder of each branch: ``"sage"``, ``"gcn"``, ``"gcn_sum"`` or ``"none"``.
    n_hidden, n_embedding, dropout
        Width of the hidden representation Z, width of the joint embedding, and dropout in the projection heads.
    paper_equations
        Use equations 1, 6 and 7 as printed (sums instead of means, sum as graph summary, no L2 normalization).
    temperature, soft_targets
        Temperature of the contrastive alignment, and whether its targets are soft.
    dgi_image, dgi_expression
        Weight of deep graph infomax (equation 1) in each branch; 0 is ablation C or D.
    bottleneck, beta, dependence, sigma
        Weight of the bottleneck (equation 5; 0 is ablation A), weight of its term that keeps information, measure of
        dependence, ``"cka"`` or ``"nhsic"`` (equation 4), and bandwidth of the kernel (``None``: median heuristic).
    pretrain_epochs
        Number of epochs of deep graph infomax alone, before the joint loss.
    max_epochs, batch_size, sampler, lr, weight_decay
        Length, batches and optimizer of the joint training.
    validation_share, patience
        Share of each slice's spots held out for early stopping, and number of epochs without improvement before it.
    k, weighting, query_temperature
        Number of retrieved reference spots, their weighting, and its temperature.
    ridge_weight, ridge_full_at
        Largest share of the ridge head in a prediction, and correlation on held-out reference slices from which on a
        gene gets this share; below, the share decreases linearly to 0. With 0, all genes get the same share.
    ridge_components, ridge_penalty
        Number of principal components of the context features that the ridge head uses, and ridge penalty as a share
        of their variance.
    kernel_weight
        Share of the kernel head in a prediction; the rest is retrieval, blended with the ridge head. 0 fits none.
    kernel_components, kernel_rank
        Number of half-whitened principal components of the context features of each encoder and patch size that enter
        a kernel, and number of principal components of expression that the kernel head predicts.
    sharpening
        How far the prediction of a spot is moved away from the mean prediction of its neighbors, as a share of the
        difference. Predictions are smoother than tissue, since features of neighbors enter them.
    """

    n_top_genes: Count = 2000
    n_expression_components: Count | None = 64
    n_image_components: Count | None = 128
    image_whitening: Share = 0.5
    context_rings: Rings = 2
    context_surroundings: Rings = 0
    center_slices: bool = True
    n_image_adapter: WidthFromZero = 0
    finetune: Finetune = "none"
    finetune_lr_factor: Rate = 0.01
    image_graph: GraphKind = "none"
    expression_graph: GraphKind = "none"
    n_hidden: Width = 256
    n_embedding: Width = 128
    dropout: Share = 0.4
    paper_equations: bool = False
    temperature: Temperature = 0.2
    soft_targets: bool = True
    dgi_image: Weight = 0.0
    dgi_expression: Weight = 0.0
    bottleneck: Weight = 0.05
    beta: Weight = 5.0
    dependence: Dependence = "cka"
    sigma: Positive | None = None
    pretrain_epochs: EpochsFromZero = 0
    max_epochs: Epochs = 20
    batch_size: Pair = 128
    sampler: Sampler = "spots"
    lr: Rate = 1e-3
    weight_decay: Weight = 1e-3
    validation_share: Share = 0.1
    patience: CountFromZero = 8
    k: Count = 400
    weighting: Weighting = DEFAULT_WEIGHTING
    query_temperature: Temperature = 0.2
    ridge_weight: Share = 0.4
    ridge_full_at: Share = 0.3
    ridge_components: Count = 256
    ridge_penalty: Weight = 0.012
    kernel_weight: Share = 0.0
    kernel_components: Count = 64
    kernel_rank: Count = 20
    sharpening: Weight = 0.0

    @property
    def loss(self) -> LossSettings:
        """Subset of the settings that the loss needs."""
        return LossSettings(**self._shared_with(LossSettings))

    def network(
        self, *, n_features: int, n_genes: int, n_image_inputs: int | None, n_expression_inputs: int | None
    ) -> NetworkSettings:
        """Complete the sizes that the data determine by the subset of the settings that the network needs.

        Parameters
        ----------
        n_features, n_genes, n_image_inputs, n_expression_inputs
            As :class:`~st_gchb.nn.NetworkSettings` takes them.

        Returns
        -------
        NetworkSettings
            Settings of the network.
        """
        return NetworkSettings(
            n_features=n_features,
            n_genes=n_genes,
            n_image_inputs=n_image_inputs,
            n_expression_inputs=n_expression_inputs,
            **self._shared_with(NetworkSettings),
        )

    def _shared_with(self, other: type[LossSettings | NetworkSettings]) -> dict[str, Any]:
        """Collect the settings that another class of settings has under the same names."""
        names = {field.name for field in fields(other)}
        return {key: value for key, value in asdict(self).items() if key in names}


PRESETS: dict[str, ModelSettings] = {
    # Retrieval and, with more than half of the prediction, a kernel head. A ridge head adds little beside it.
    "default": ModelSettings(context_surroundings=12, ridge_weight=0.0, kernel_weight=0.6, sharpening=0.4),
    # Published settings: mini-batches of 16 spots of one slice, 50 epochs of DGI, 4 of the joint loss, 813 components.
    "paper": ModelSettings(
        n_expression_components=813,
        n_image_components=None,
        image_whitening=1.0,
        context_rings=0,
        center_slices=False,
        n_image_adapter=1000,
        image_graph="gcn",
        expression_graph="gcn",
        paper_equations=True,
        temperature=1.0,
        dgi_image=1.0,
        dgi_expression=1.0,
        bottleneck=1.0,
        beta=25.0,
        dependence="nhsic",
        sigma=10.0,
        pretrain_epochs=50,
        max_epochs=4,
        batch_size=16,
        sampler="slices",
        validation_share=0.0,
        k=50,
        weighting="mean",
        ridge_weight=0.0,
    ),
    # No graph, DGI, bottleneck or ridge head; BLEEP's unweighted mean of 50; inputs that performed best on her2st.
    "bleep": ModelSettings(
        n_image_components=64,
        image_whitening=1.0,
        context_rings=0,
        center_slices=False,
        bottleneck=0.0,
        k=50,
        weighting="mean",
        ridge_weight=0.0,
    ),
}


def settings_for(preset: str, overrides: dict[str, Any]) -> ModelSettings:
    """Return the settings of a preset with some of them overridden.

    Raises
    ------
    InputError
        A preset or setting is unknown, a value is out of range, or settings contradict each other.
    """
    check_value(preset, Preset, "preset")
    settings = replace(PRESETS[preset], **overrides)
    _check(settings)
    return settings


def _check(settings: ModelSettings) -> None:
    """Reject settings that cannot be combined."""
    if settings.pretrain_epochs and not (settings.dgi_image or settings.dgi_expression):
        raise InputError(
            f"pretrain_epochs={settings.pretrain_epochs} with dgi_image=0 and dgi_expression=0: these epochs train on "
            "deep graph infomax alone, which has no weight. Pass pretrain_epochs=0, or dgi_image=1.0 and "
            "dgi_expression=1.0."
        )
    if 0 < settings.context_surroundings <= settings.context_rings:
        raise InputError(
            f"context_surroundings={settings.context_surroundings} with context_rings={settings.context_rings}: the "
            "surroundings lie beyond the rings. Pass a larger number of steps, or context_surroundings=0 for none."
        )
    if settings.finetune != "none" and (settings.context_rings or settings.center_slices):
        raise InputError(
            f"finetune={settings.finetune!r} with context_rings={settings.context_rings} and center_slices="
            f"{settings.center_slices}: a step would need the maps of all spots around its own, and of whole slices. "
            "Pass context_rings=0 and center_slices=False, or take preset='paper' or 'bleep', where they are so."
        )


def network_settings(rules: Preprocessor, image_map: LinearProjection, settings: ModelSettings) -> NetworkSettings:
    """Compute the sizes of the network; components are as many as the data allow."""
    return settings.network(
        n_features=rules.n_features * len(rules.context.steps),
        n_genes=len(rules.expression.genes),
        n_image_inputs=None if image_map.matrix.ndim == 1 else image_map.matrix.shape[1],
        n_expression_inputs=None if rules.expression.matrix.ndim == 1 else rules.expression.matrix.shape[1],
    )


def check_k(settings: ModelSettings, preset: str, n_reference: int) -> None:
    """Reject a ``k`` that exceeds the size of the reference.

    A preset's own ``k`` is an upper limit if spots are weighted by similarity. With an unweighted mean over all spots,
    every query would get the same prediction.

    Raises
    ------
    InputError
        The reference has fewer than ``k`` spots, and ``k`` is not merely an upper limit.
    """
    chosen = settings.k != PRESETS[preset].k
    if settings.k > n_reference and (chosen or settings.weighting == "mean"):
        raise InputError(
            f"k={settings.k}, but the reference has {n_reference} spots. Pass a k below {n_reference}, or more slices."
        )
