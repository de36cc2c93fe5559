"""From a registered AnnData to rules, network, training data and reference bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from st_gchb._compat import named_layers
from st_gchb._constants import Keys
from st_gchb._counts import Remedy
from st_gchb._errors import EncoderError, ExpressionError, InputError, MissingKeyError
from st_gchb._logging import logger
from st_gchb._matrices import matrix_of
from st_gchb.io import sections_of, spot_centers
from st_gchb.model import _features as _context
from st_gchb.model._confidence import choice_folds
from st_gchb.model._features import (
    BlockedContext,
    Context,
    MappedRows,
    MapRows,
    NeighborhoodAggregator,
    appearance_of,
    context_of,
    is_plain,
    slice_sums,
)
from st_gchb.model._kernel_inputs import fit_kernel_map
from st_gchb.model._module import STGCHBModule
from st_gchb.model._projections import LinearProjection, StandardFeatures, fit_appearance, fit_map
from st_gchb.model._query import Preprocessor, origin_table
from st_gchb.model._settings import ModelSettings, network_settings
from st_gchb.model._validation import Registered
from st_gchb.nn import STGCHBNetwork
from st_gchb.pp import FeatureSet, GraphSpec
from st_gchb.pp.expression import fit_expression, log_normalize, read_expression
from st_gchb.pp.graph import graph_of, rule_of
from st_gchb.pp.patches import (
    BLOCK_ROWS,
    FeatureRows,
    check_width,
    made_key,
    stage_of_spec,
    with_maps,
)
from st_gchb.retrieval import KernelHead, ReferenceBank, expression_scores, fit_kernel_head
from st_gchb.train import BLOCK_SIZE, Rows, TrainingData

_STEP_BYTES = 2**30
"""Maps of 2,674 spots before ResNet50's last stage."""


@dataclass(frozen=True)
class Fitted:
    """Everything that is computed from the training slices before the network is trained.

    Parameters
    ----------
    rules
        What a query goes through.
    image_map
        Map of context features to the image branch's inputs.
    measured
        Expression as it was registered, counts or log-normalized, ``(n_spots, n_all_genes)``.
    log_values
        Log-normalized expression over all genes, ``(n_spots, n_all_genes)``.
    panel
        The same, of the panel, ``(n_spots, n_genes)``.
    features
        Patch features, ``(n_spots, n_features)``, in memory or on disk.
    context
        What is seen of each spot and its surroundings, ``(n_spots, n_context)``, held or made on demand.
    adjacency
        Spot graph.
    slices
        Slice of each spot.
    head
        Kernel head; None if predictions have no share of it.
    """

    rules: Preprocessor
    image_map: LinearProjection
    measured: Any
    log_values: sparse.csr_matrix
    panel: sparse.csr_matrix
    features: FeatureRows
    context: Context
    adjacency: sparse.csr_matrix
    slices: np.ndarray
    head: KernelHead | None = None


N_STEPS = 5
"""Steps of :func:`fit` that it names."""


def fit(
    adata: AnnData,
    where: Registered,
    settings: ModelSettings,
    panel: list[str] | None,
    seed: int,
    features: FeatureRows | None = None,
    log_values: sparse.csr_matrix | None = None,
    begin: Callable[[str], None] = lambda step: None,
) -> Fitted:
    """Fit normalization, panel, PCA and input maps on the training slices, which are all slices of ``adata``.

    ``features`` and ``log_values`` stand for those of ``adata``, where it has none. ``begin`` is called with the name
    of each step.

    Raises
    ------
    ExpressionError, MissingKeyError
        If the expression is no longer what was registered.
    EncoderError
        If features do not vary.
    """
    begin("genes")
    measured = log_values
    if log_values is None:
        measured = _registered(adata, where)
        log_values = log_normalize(measured, log_normalized=where.log_normalized)
    slices = sections_of(adata, where.slice_key).names.astype(str)
    expression = fit_expression(
        log_values,
        adata.var_names,
        slices,
        n_top_genes=settings.n_top_genes,
        n_components=settings.n_expression_components,
        log_normalized=where.log_normalized,
        seed=seed,
        panel=panel,
    )
    begin("surroundings of the spots")
    rule = _feature_rule(adata, where.features_key, settings)
    if features is None:
        trained = settings.finetune != "none"
        features = with_maps(adata, where.features_key) if trained else FeatureRows(adata.obsm[where.features_key])
    adjacency = without_loops((graph_of(adata, where.connectivities_key) > 0).astype(np.float32))
    look = NeighborhoodAggregator(settings.context_rings, surroundings=settings.context_surroundings)
    if settings.center_slices:
        look = replace(look, center=mean_features(features, look))
    context = context_of(look, features, adjacency, slices)
    parts = _parts(rule, features, where.features_key)
    # Maps are fitted on all spots where their context is held in memory, else on a part of them.
    chosen, seen = context.sample(seed)
    own = features.whole() if len(chosen) == len(features) else features[chosen]
    begin("image components")
    standard = StandardFeatures(seen)
    whitening = settings.image_whitening
    image_map = fit_map(standard, settings.n_image_components, whitening=whitening, seed=seed, parts=parts)
    if not image_map.matrix.any():
        raise EncoderError(
            f"obsm[{where.features_key!r}] is the same for all spots of a slice, so nothing can be learned from it. "
            "Check that the image shows tissue, and run st_gchb.pp.embed_patches again."
        )
    linear = LinearProjection(image_map.offset, np.empty((len(image_map.offset), 0), dtype=np.float32))
    if settings.ridge_weight:
        linear = fit_map(standard, settings.ridge_components, whitening=0.0, seed=seed, parts=parts)
    begin("inputs of the kernel head")
    every = parts or [slice(0, features.shape[1])]
    kernel = None
    if settings.kernel_weight:
        kernel = fit_kernel_map(standard, len(look.steps), settings.kernel_components, seed=seed, parts=every)
    rules = Preprocessor(
        expression=expression,
        features=rule,
        features_key=where.features_key,
        n_features=features.shape[1],
        graph=_graph_rule(adata, where),
        context=look,
        linear=linear,
        appearance=fit_appearance(own, seed, parts),
        slice_key=where.slice_key,
        kernel=kernel,
    )
    begin("kernel head")
    panel_values = log_values[:, adata.var_names.get_indexer(expression.genes)].tocsr()
    head = None
    if kernel is not None:
        scores = expression_scores(panel_values, slices, settings.kernel_rank)
        folds = choice_folds(slices, spot_centers(adata))
        head = fit_kernel_head(kernel(context), len(every), scores, folds, seed, n_kernels=kernel.n_kernels)
    return Fitted(rules, image_map, measured, log_values, panel_values, features, context, adjacency, slices, head)


def _registered(adata: AnnData, where: Registered) -> Any:
    """Expression at the moment it is used: setup only registers the table, which the caller may change afterwards."""
    again = "call STGCHB.setup_anndata(adata, {}) again"
    remedy = Remedy(adata, where.layer, again.format("layer={!r}"), again.format("log_normalized=True"))
    try:
        return read_expression(adata, where.layer, log_normalized=where.log_normalized, remedy=remedy)
    except (ExpressionError, MissingKeyError) as error:
        raise type(error)(
            f"The table was changed after STGCHB.setup_anndata. {error} What normalizes X keeps counts where they are "
            "put first: adata.layers['counts'] = adata.X.copy()."
        ) from error


def build_module(fitted: Fitted, settings: ModelSettings) -> STGCHBModule:
    """Build the network and fill in its fixed projections."""
    rule = fitted.rules.features
    stage = None if rule is None or not rule.feature_maps else stage_of_spec(rule.first)
    network = STGCHBNetwork(network_settings(fitted.rules, fitted.image_map, settings), stage)
    expression = fitted.rules.expression
    fixed = (
        (network.image.fixed, fitted.image_map),
        (network.expression.fixed, LinearProjection(expression.offset, expression.matrix)),
    )
    for layer, numbers in fixed:
        layer.offset.copy_(torch.from_numpy(numbers.offset))
        layer.matrix.copy_(torch.from_numpy(numbers.matrix))
    return STGCHBModule(network, settings.loss)


def training_data(fitted: Fitted, adata: AnnData) -> TrainingData:
    """Gather inputs of the branches, graph and slices for the data module."""
    expression = LinearProjection(fitted.rules.expression.offset, fitted.rules.expression.matrix)
    context, image_map = fitted.context, fitted.image_map
    on_demand = isinstance(context, BlockedContext) and image_map.matrix.ndim == 1
    image: Rows
    if fitted.features.maps is not None:
        image = MapRows(fitted.features.maps)
    else:
        image = MappedRows(context, image_map) if on_demand else torch.from_numpy(context.through(image_map))
    return TrainingData(
        image=image,
        expression=torch.from_numpy(_mapped(fitted.panel, expression)),
        adjacency=fitted.adjacency,
        groups=pd.factorize(fitted.slices)[0],
        coordinates=spot_centers(adata),
    )


def default_block_size(fitted: Fitted) -> int:
    """Spots of the largest block: of maps, a step holds no more than :data:`_STEP_BYTES`."""
    maps = fitted.features.maps
    return BLOCK_SIZE if maps is None else max(2, min(BLOCK_SIZE, _STEP_BYTES // (2 * int(np.prod(maps.shape[1:])))))


def mean_features(features: FeatureRows, look: NeighborhoodAggregator) -> np.ndarray:
    """Mean features of the training spots, ``(n_features,)``."""
    if is_plain(features, look):
        mean: np.ndarray = features.whole().mean(0)
        return mean
    total = slice_sums(features, np.zeros(len(features), dtype=np.int64), 1)[0]
    return (total / len(features)).astype(np.float32)


def without_loops(adjacency: sparse.csr_matrix) -> sparse.csr_matrix:
    """Drop edges of a spot to itself, which graphs from elsewhere may have and a query's never has."""
    if adjacency.diagonal().any():
        adjacency.setdiag(0)
        adjacency.eliminate_zeros()
    return adjacency


def _mapped(panel: sparse.csr_matrix, fixed: LinearProjection) -> np.ndarray:
    """Expression through a map; made dense at once where that is small, else some spots at a time."""
    n_spots, n_genes = panel.shape
    if 4 * n_spots * n_genes <= _context.PLAIN_BYTES:
        return fixed(panel.toarray())
    starts = range(0, n_spots, BLOCK_ROWS)
    return np.concatenate([fixed(panel[start : start + BLOCK_ROWS].toarray()) for start in starts])


def build_bank(
    adata: AnnData, where: Registered, fitted: Fitted, keys: np.ndarray, image_keys: np.ndarray
) -> ReferenceBank:
    """Everything of the reference that predictions need: embeddings, context, origin, tables."""
    make = ReferenceBank.table_from
    tables = {
        "panel": make(fitted.panel, fitted.rules.expression.genes),
        "all_genes": make(fitted.log_values, adata.var_names),
    }
    own = (Keys.SPATIAL, where.features_key, made_key(where.features_key))
    others: dict[str, tuple[str, Any, Any]] = {
        name: (f"layers[{name!r}]", values, adata.var_names) for name, values in named_layers(adata).items()
    }
    for name, values in adata.obsm.items():
        if name not in own and name not in others and _is_numeric(values):
            columns = getattr(values, "columns", [f"{name}_{i}" for i in range(values.shape[1])])
            others[name] = (f"obsm[{name!r}]", values, columns)
    for name, (place, values, columns) in others.items():
        why = f"{name!r} is the name of the model's own table" if name in tables else _why_no_table(values, place)
        if why:
            logger.warning("%s cannot be predicted as a layer: %s.", place, why.rstrip("."))
        else:
            tables[name] = make(values, columns)
    return ReferenceBank(
        keys,
        image_keys,
        fitted.context.through(fitted.rules.linear),
        appearance_of(fitted.rules.appearance, fitted.features),
        origin_table(adata, where.slice_key, where.patient_key),
        tables,
        kernel_head=fitted.head,
    )


def _why_no_table(values: Any, place: str) -> str:
    """Say why values can be no table of the reference, whose numbers are means of it; empty where they can."""
    try:
        matrix = sparse.csr_matrix(matrix_of(values, place), dtype=np.float32)
    except InputError as error:
        return str(error)
    bad = int((~np.isfinite(matrix.data)).sum())
    return f"it holds {bad} values that are NaN, infinite or beyond numbers of 32 bits" if bad else ""


def _is_numeric(values: Any) -> bool:
    if isinstance(values, pd.DataFrame):
        return all(pd.api.types.is_numeric_dtype(kind) for kind in values.dtypes)
    return getattr(values, "ndim", 0) == 2 and np.issubdtype(values.dtype, np.number)


def _feature_rule(adata: AnnData, key: str, settings: ModelSettings) -> FeatureSet | None:
    """Read the specifications of the features; ``None`` where they do not come from ``pp.embed_patches``.

    Raises
    ------
    EncoderError
        The last stage of the encoder is to be trained, and there are several parts.
    """
    if key not in adata.uns:
        return None
    rule = FeatureSet.from_uns(adata.uns[key])
    # Maps of a query are made where they are needed, which takes room on disk.
    if settings.finetune == "none":
        return FeatureSet([replace(spec, feature_maps=False) for spec in rule.specs])
    if len(rule) > 1:
        first = next((spec for spec in rule.specs if spec.encoder != "texture"), rule.first)
        size = f"patch_px={first.patch_px:g}" if rule.in_px else f"patch_um={first.patch_um:g}"
        raise EncoderError(
            f"finetune={settings.finetune!r} trains one encoder at one patch size, and obsm[{key!r}] holds {len(rule)} "
            f"parts ({'; '.join(rule.names)}). Run st_gchb.pp.embed_patches again with one of them, such as "
            f"encoder={first.encoder!r}, {size}, save_feature_maps=True; or pass finetune='none'."
        )
    return rule


def _parts(rule: FeatureSet | None, features: FeatureRows, key: str) -> list[slice] | None:
    """Return the columns of each encoder and patch size; None if there is one of each, or it is not known."""
    if rule is None or len(rule) == 1:
        return None
    check_width(rule, features.shape[1], key)
    return rule.columns


def _graph_rule(adata: AnnData, where: Registered) -> GraphSpec:
    """Find the specification of the registered graph: squidpy's record of a graph from elsewhere, or the default."""
    return rule_of(adata, where.connectivities_key, where.slice_key, features_key=where.features_key)
