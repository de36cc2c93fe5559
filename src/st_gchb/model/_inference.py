"""Prediction for a prepared query: embedding, retrieval, blending with the ridge head, annotation and delivery."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from st_gchb import __version__
from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._logging import logger
from st_gchb._options import Search, Weighting
from st_gchb.io import check_store, hand_on_libraries, is_spatialdata, is_stored, link_of, write_elements
from st_gchb.model import _features as _context
from st_gchb.model._confidence import Calibration, calibration_folds, error_predictors
from st_gchb.model._features import (
    BlockedContext,
    Context,
    LinearProjection,
    MappedRows,
    NeighborhoodAggregator,
    appearance_of,
    context_of,
    is_plain,
)
from st_gchb.model._query import Preprocessor, Query, measured_panel
from st_gchb.model._settings import ModelSettings
from st_gchb.nn import Branch, STGCHBNetwork
from st_gchb.pp import FeatureSet, write_table
from st_gchb.pp.encoders import halved
from st_gchb.pp.patches import FeatureRows
from st_gchb.pp.spots import check_table_name
from st_gchb.retrieval import (
    Neighbors,
    ReferenceBank,
    ReferenceTable,
    RidgeHead,
    find_neighbors,
    index_for,
    weighted_mean,
)
from st_gchb.train import edges_between, with_halo

if TYPE_CHECKING:
    from spatialdata import SpatialData

_BLOCK_SPOTS = 4096
"""Number of spots that are embedded at once if not all of them are."""

_STAGE_SPOTS = 64
"""Number of spots whose feature maps are read and passed through the encoder's last stage at once."""

Where = tuple[sparse.csr_matrix, np.ndarray]
"""Spot graph, and slice of each spot."""


def device_of(network: STGCHBNetwork) -> torch.device:
    """Return the device that holds the weights of a network."""
    return next(network.parameters()).device


def embed(network: STGCHBNetwork, values: Any, adjacency: sparse.csr_matrix, modality: str) -> np.ndarray:
    """Compute the L2-normalized joint embedding of the spots of a whole graph, ``(n_spots, n_embedding)``.

    Parameters
    ----------
    network
        The network.
    values
        Raw inputs of the branch, ``(n_spots, n_raw)``: panel expression, dense or sparse, or context features.
    adjacency
        Spot graph, ``(n_spots, n_spots)``.
    modality
        ``"expression"`` or ``"image"``.
    """
    network.eval()
    n_spots, width = values.shape
    if not isinstance(values, BlockedContext) and 4 * n_spots * width <= _context.PLAIN_BYTES:
        try:
            return _whole(network, values, adjacency, modality)
        except torch.cuda.OutOfMemoryError:
            logger.warning("The device's memory is too small to embed %d spots at once: block by block.", n_spots)
    return _in_blocks(network, values, adjacency, modality)


def seen_context(
    network: STGCHBNetwork, rule: NeighborhoodAggregator, context: Context, features: FeatureRows, where: Where
) -> Context:
    """Compute the context that the image branch takes, from the fine-tuned last stage of the encoder if there is one.

    Parameters
    ----------
    network
        The network.
    rule, context
        Aggregation of neighborhoods, and the context of the stored features.
    features
        Patch features, with feature maps if the last stage was fine-tuned.
    where
        Spot graph and slices.

    Returns
    -------
    Context
        ``context`` itself if the encoder was frozen.
    """
    stage = network.stage
    if stage is None or features.maps is None:
        return context
    network.eval()
    parts = np.array_split(np.arange(len(features)), -(-len(features) // _STAGE_SPOTS))
    with torch.inference_mode():
        made = [stage(torch.from_numpy(features.maps[part]).to(device_of(network))).cpu().numpy() for part in parts]
    return context_of(rule, FeatureRows(np.concatenate(made)), *where)


def _whole(network: STGCHBNetwork, values: Any, adjacency: sparse.csr_matrix, modality: str) -> np.ndarray:
    values = values.values if isinstance(values, Context) else values
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    graph = adjacency.tocoo()
    edges = torch.from_numpy(np.stack([graph.row, graph.col]).astype(np.int64)).to(device_of(network))
    run = network.embed_expression if modality == "expression" else network.embed_image
    with torch.inference_mode():
        return run(torch.from_numpy(dense.astype(np.float32)).to(device_of(network)), edges).cpu().numpy()


def _in_blocks(network: STGCHBNetwork, values: Any, adjacency: sparse.csr_matrix, modality: str) -> np.ndarray:
    branch: Branch = network.expression if modality == "expression" else network.image
    inputs = _inputs(branch, values)
    degree = np.diff(adjacency.indptr).astype(np.float32)
    n_hops = branch.infomax.encoder.n_hops
    result = np.empty((adjacency.shape[0], network.settings.n_embedding), dtype=np.float32)
    start, size = 0, _BLOCK_SPOTS
    while start < len(result):
        rows = np.arange(start, min(start + size, len(result)))
        nodes = with_halo(adjacency, rows, n_hops)
        edges = torch.from_numpy(edges_between(adjacency, nodes))
        tensors = (inputs(nodes), edges, torch.from_numpy(degree[nodes]))
        try:
            with torch.inference_mode():
                found = branch(*(tensor.to(device_of(network)) for tensor in tensors)).embedding[: len(rows)]
                result[rows] = F.normalize(found, dim=1).cpu().numpy()
        except torch.cuda.OutOfMemoryError:
            if size < 2:
                raise
            size = halved(size, "embedding goes on with %d spots at once")
            continue
        start += len(rows)
    return result


def _inputs(branch: Branch, values: Any) -> Callable[[np.ndarray], Tensor]:
    """Return a function from spots to the branch's inputs, after its fixed projection."""
    fixed = LinearProjection(branch.fixed.offset.cpu().numpy(), branch.fixed.matrix.cpu().numpy())
    if isinstance(values, Context):
        if fixed.matrix.ndim == 1:
            made = MappedRows(values, fixed)
            return lambda nodes: made[torch.from_numpy(nodes)]
        components = values.through(fixed)
        return lambda nodes: torch.from_numpy(components[nodes])
    if sparse.issparse(values):
        return lambda nodes: torch.from_numpy(fixed(values[nodes].toarray()))
    return lambda nodes: torch.from_numpy(fixed(np.asarray(values[nodes])))


def check_delivery(query: object, key_added: str, *, write: bool) -> None:
    """Check, before anything is computed, that the result can be added to the query and written to its store.

    Raises
    ------
    InputError, MissingFileError, StoreError
        An argument does not apply to an AnnData, the name belongs to an element that is not an earlier result, or
        there is no store that can be written to.
    """
    if not is_spatialdata(query):
        if write or key_added != Keys.TABLE:
            raise InputError(
                f"write= and key_added= are for SpatialData; the query is a {type(query).__name__}. An AnnData is "
                "returned: pred.write_h5ad(...) stores it."
            )
        return
    check_table_name(query, key_added)
    if write:
        check_store(query, {key_added: "tables"})


def deliver(query: SpatialData, result: AnnData, link: dict[str, str], key_added: str, *, write: bool) -> None:
    """Add the result to the query and, with ``write``, to its store."""
    earlier = _regions(query.tables.get(key_added))
    write_table(query, result, name=key_added, **link)  # type: ignore[arg-type]
    now = _regions(query.tables[key_added])
    if earlier - now:
        logger.warning(
            "The table %r held the prediction of %s and is replaced. To keep both, pass another key_added=.",
            key_added,
            sorted(earlier - now),
        )
    if write:
        # In the store, a table without its shapes would annotate nothing.
        write_elements(query, [*(name for name in sorted(now) if not is_stored(query, name)), key_added])


def _regions(table: AnnData | None) -> set[str]:
    link = None if table is None else link_of(table)
    return set() if link is None else set(link.regions)


NEIGHBORS_KEY = "st_gchb_neighbors"
NEIGHBOR_WEIGHTS_KEY = "st_gchb_neighbor_weights"

_NEAREST = 10
"""Number of nearest reference patches whose mean distance is the distance of a query patch from the reference."""
_COMPARED = 200_000
"""Largest number of reference patches that are compared; from more, a sample is drawn with a fixed seed."""


@dataclass(frozen=True)
class TrainedParts:
    """Trained parts that a prediction needs, and the search method for the reference.

    Parameters
    ----------
    network, rules, bank, calibration, settings
        Network, rules of the reference, reference bank, calibration if there is one, and settings.
    search
        Method by which the reference is searched.
    origin
        Identity of the model: ``model_id``, ``preset`` and ``seed``; empty while it is trained.
    """

    network: STGCHBNetwork
    rules: Preprocessor
    bank: ReferenceBank
    calibration: Calibration | None
    settings: ModelSettings
    search: Search = "auto"
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """Prediction of a query's panel, with the intermediate results that other tables and confidence need.

    Parameters
    ----------
    embedding
        Joint embedding of the patches, ``(n_query, n_embedding)``.
    neighbors
        Retrieved reference spots.
    linear
        Inputs of the ridge head, ``(n_query, n_inputs)``; None if it has no share of the prediction.
    components
        Components of expression that the kernel head predicts, ``(n_query, n_components)``; None without such a head.
    retrieved
        Weighted mean of the retrieved spots' panel, ``(n_query, n_genes)``.
    panel
        Predicted log-normalized expression of the panel, ``(n_query, n_genes)``.
    predictors
        Predictors of the prediction's error, ``(n_query, 4)``.
    """

    embedding: np.ndarray
    neighbors: Neighbors
    linear: np.ndarray | None
    components: np.ndarray | None
    retrieved: np.ndarray
    panel: np.ndarray
    predictors: np.ndarray


def answer(
    p: TrainedParts,
    features: np.ndarray | FeatureRows,
    adjacency: sparse.csr_matrix,
    slices: np.ndarray,
    k: int | None = None,
    weighting: Weighting | None = None,
) -> Answer:
    """Embed patches, retrieve reference spots and predict the panel (Algorithm 1 of the paper).

    Parameters
    ----------
    p
        Trained parts.
    features, adjacency, slices
        Patch features, spot graph and slices of the query.
    k, weighting
        Number of retrieved spots, and their weighting; by default the model's, with ``k`` at most the size of the
        reference.
    """
    features = FeatureRows(features)
    context = _query_context(p, features, adjacency, slices)
    seen = seen_context(p.network, p.rules.context, context, features, (adjacency, slices))
    embedding = embed(p.network, seen, adjacency, "image")
    k = min(p.settings.k, len(p.bank)) if k is None else k
    neighbors = find_neighbors(
        embedding,
        p.bank.keys,
        k=k,
        weighting=weighting or p.settings.weighting,
        temperature=p.settings.query_temperature,
        index=index_for(p.bank, k, p.search),
        device=device_of(p.network),
    )
    linear = context.through(p.rules.linear) if p.settings.ridge_weight else None
    table = p.bank.table(None)
    retrieved = weighted_mean(neighbors, table.values)
    head, kernel = p.bank.kernel_head, p.rules.kernel
    components = None if head is None or kernel is None else head.components(kernel(context))
    panel = blended(p, retrieved, linear, components, table, adjacency)
    distance = _distance(appearance_of(p.rules.appearance, features), p.bank.appearance)
    predictors = error_predictors(neighbors, retrieved, panel, table, distance)
    return Answer(embedding, neighbors, linear, components, retrieved, panel, predictors)


def _query_context(p: TrainedParts, features: FeatureRows, adjacency: sparse.csr_matrix, slices: np.ndarray) -> Context:
    """Build the context of a query: all that is asked of it are projections, unless the network takes it as it is."""
    rule, projected = p.rules.context, p.network.image.fixed.matrix.ndim > 1
    if rule.surroundings and projected:
        held = is_plain(features, NeighborhoodAggregator(0))
        return BlockedContext(FeatureRows(features.whole()) if held else features, adjacency, slices, rule)
    return context_of(rule, features, adjacency, slices)


def blended(
    p: TrainedParts,
    retrieved: np.ndarray,
    inputs: np.ndarray | None,
    components: np.ndarray | None,
    table: ReferenceTable,
    adjacency: sparse.csr_matrix,
) -> np.ndarray:
    """Blend the weighted mean of the retrieved spots with the ridge head and the kernel head, ``(n_query, n_columns)``.

    The blend is sharpened by the setting of that name. Values are clipped to the reference's range of each column: for
    patches unlike any of the reference, the linear ridge head would extrapolate to impossible values.

    Parameters
    ----------
    p
        Trained parts.
    retrieved
        Weighted mean of the retrieved spots, ``(n_query, n_columns)``.
    inputs, components
        Inputs of the ridge head and components of expression predicted by the kernel head; None without the head.
    table
        Table of the reference that is predicted.
    adjacency
        Spot graph of the query.
    """
    if p.settings.ridge_weight and inputs is not None:
        head = RidgeHead(p.bank.linear, p.settings.ridge_penalty)
        share = _ridge_share(p, head, table)
        # Fitted once, since it is the same for every query.
        table.ridge_head = table.ridge_head or head.fit(table.values)
        retrieved = (1.0 - share) * retrieved + share * table.ridge_head.predict(inputs)
    kernel_head = p.bank.kernel_head
    if kernel_head is not None and components is not None:
        if table.kernel_loadings is None:
            table.kernel_loadings = kernel_head.loadings(table.values)
        weight = np.float32(p.settings.kernel_weight)
        expected = (table.mean + components @ table.kernel_loadings).astype(np.float32, copy=False)
        expected *= weight
        retrieved = (1.0 - weight) * retrieved
        retrieved += expected
    if p.settings.sharpening:
        retrieved = sharpened(retrieved, adjacency, p.settings.sharpening)
    bounded: np.ndarray = np.clip(retrieved, *table.bounds)
    return bounded


def sharpened(values: np.ndarray, adjacency: sparse.csr_matrix, share: float) -> np.ndarray:
    r"""Move the values of each spot away from the mean of its neighbors, ``(n_spots, n_columns)``.

    .. math:: v_i + s \, \Bigl( v_i - \frac{1}{|N(i)|} \sum_{j \in N(i)} v_j \Bigr)

    Parameters
    ----------
    values
        Values of the spots, ``(n_spots, n_columns)``.
    adjacency
        Spot graph; a spot without neighbors keeps its values.
    share
        Share s of the difference.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from st_gchb.model._inference import sharpened
    >>> line = sparse.csr_matrix(np.eye(3, k=1) + np.eye(3, k=-1))
    >>> sharpened(np.array([[0.0], [4.0], [0.0]]), line, 0.25).ravel().tolist()
    [-1.0, 5.0, -1.0]
    """
    graph = (adjacency != 0).astype(values.dtype)
    degree = np.asarray(graph.sum(axis=1), dtype=values.dtype).ravel()
    # One table beside the values, in place: of a large slide each copy takes hundreds of MB.
    moved: np.ndarray = graph @ values
    np.divide(moved, degree[:, None], out=moved, where=degree[:, None] > 0)
    moved[degree == 0] = values[degree == 0]
    np.subtract(values, moved, out=moved)
    moved *= values.dtype.type(share)
    moved += values
    return moved


def predict(
    p: TrainedParts,
    query: Query,
    layer: str | None,
    k: int | None,
    weighting: Weighting | None,
    return_neighbors: bool,
) -> AnnData:
    """Predict a prepared query; see :meth:`st_gchb.model.STGCHB.predict`."""
    table = p.bank.table(layer)
    found = answer(p, query.features, query.adjacency, query.slices, k, weighting)
    prediction = found.panel
    if layer is not None:
        retrieved = weighted_mean(found.neighbors, table.values)
        prediction = blended(p, retrieved, found.linear, found.components, table, query.adjacency)
    result = AnnData(prediction.copy(), obs=query.adata.obs.copy(), var=pd.DataFrame(index=table.columns.astype(str)))
    result.layers[Keys.LAYER] = prediction
    result.obsm[Keys.SPATIAL] = query.adata.obsm[Keys.SPATIAL]
    result.obsm[Keys.EMBEDDING] = found.embedding
    hand_on_libraries(query.adata, result)
    if p.calibration is not None:
        result.obs[Keys.CONFIDENCE] = p.calibration.confidence(found.predictors, query.slices)
        result.obs[Keys.OUTLIER] = p.calibration.outlier(found.predictors, query.slices)
        expected = pd.Series(p.calibration.expected_pcc, index=p.rules.expression.genes)
        result.var[Keys.EXPECTED_PCC] = expected.reindex(result.var_names).to_numpy()
        if p.calibration.retrieval_pcc is not None:
            alone = pd.Series(p.calibration.retrieval_pcc, index=p.rules.expression.genes)
            result.var[Keys.RETRIEVAL_PCC] = alone.reindex(result.var_names).to_numpy()
    if layer is None:
        _carry_measured(p, query, result)
    n_neighbors = found.neighbors.ids.shape[1]
    result.uns[Keys.UNS] = _provenance(p, layer, n_neighbors, weighting or p.settings.weighting) | dict(p.origin)
    if len(query.excluded):
        result.uns[Keys.UNS]["excluded"] = query.excluded
    if p.calibration is not None:
        result.uns[Keys.UNS][Keys.STAIN] = _stain(p.calibration, found.predictors, query.slices)
    if return_neighbors:
        result.obsm[NEIGHBORS_KEY] = found.neighbors.ids
        result.obsm[NEIGHBOR_WEIGHTS_KEY] = found.neighbors.weights
        result.uns[Keys.UNS]["reference"] = p.bank.origin.copy()
    return result


def _ridge_share(p: TrainedParts, head: RidgeHead, table: ReferenceTable) -> np.ndarray | np.float32:
    """Compute the share of the ridge head in each column, ``(n_columns,)``, from its correlation on held-out slices.

    For a gene that ridge regression predicts poorly, it would mostly add noise to the retrieved expression.
    """
    whole = np.float32(p.settings.ridge_weight)
    if not p.settings.ridge_full_at:
        return whole
    folds = calibration_folds(p.bank.slices, p.bank.origin[["x", "y"]].to_numpy())
    if table.held_out is None:
        table.held_out = head.held_out_correlation(table.values, folds)
    share: np.ndarray = whole * np.clip(table.held_out / p.settings.ridge_full_at, 0.0, 1.0).astype(np.float32)
    return share


def _distance(query: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compute the mean distance to the nearest reference patches, ``(n_query,)``."""
    if len(reference) > _COMPARED:
        reference = reference[np.sort(np.random.default_rng(0).permutation(len(reference))[:_COMPARED])]
    # Imported here, since it takes a second, which a slide's first patches need not wait for.
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(_NEAREST, len(reference)), algorithm="brute").fit(reference)
    distances: np.ndarray = search.kneighbors(query)[0]
    return distances.mean(1)


def _carry_measured(p: TrainedParts, query: Query, result: AnnData) -> None:
    """Put measured expression, on the scale of the prediction, into ``X`` for the genes that the query measures."""
    measured, present = measured_panel(query, p.rules.expression)
    names = p.rules.expression.genes[present]
    found = result.var_names.get_indexer(names)
    here = found >= 0
    result.var["st_gchb_measured"] = False
    if here.any():
        values = np.array(result.X)
        values[:, found[here]] = measured[:, present][:, here]
        result.X = values
        if len(found) == here.sum() == result.n_vars:
            result.layers[Keys.MEASURED] = values.copy()
        result.var.loc[names[here], "st_gchb_measured"] = True


def _stain(calibration: Calibration, predictors: np.ndarray, slices: np.ndarray) -> pd.DataFrame:
    """Compare each slide with the reference's range, and warn about slides outside of it."""
    slides = calibration.slides(predictors, slices)
    for name, verdict in slides.loc[~slides["in_range"], "verdict"].items():
        logger.warning("slice %r: %s. All its spots are flagged in obs[%r].", name, verdict, Keys.OUTLIER)
    return slides


def _provenance(p: TrainedParts, layer: str | None, k: int, weighting: str) -> dict[str, Any]:
    features = p.rules.features
    return {
        "version": __version__,
        "encoder": "external" if features is None else _of_encoders(features, "encoder"),
        "weights": "external" if features is None else _of_encoders(features, "weights"),
        "weights_sha256": "" if features is None else _of_encoders(features, "weights_sha256"),
        "precision": (features and features.first.precision) or "float32",
        "stain_norm": (features and features.first.stain_norm) or "none",
        "layer": layer or "panel",
        "k": k,
        "weighting": weighting,
        **_how_searched(p, k),
        "ridge_weight": p.settings.ridge_weight,
        **{name: getattr(p.settings, name) for name in ("kernel_weight", "sharpening") if getattr(p.settings, name)},
        "reference_slices": np.array(sorted(set(p.bank.slices))),
    }


def _of_encoders(features: FeatureSet, field: str) -> str | np.ndarray:
    """Return a field of the encoder's specification; of several encoders, an array of them."""
    values = [str(getattr(spec, field)) for spec in features.encoders]
    return values[0] if len(values) == 1 else np.array(values)


def _how_searched(p: TrainedParts, k: int) -> dict[str, Any]:
    index = index_for(p.bank, k, p.search)
    return {"search": "exact"} if index is None else {"search": "index", "search_recall": index.recall}
