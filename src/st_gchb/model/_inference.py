"""Prediction for a prepared query: embedding, retrieval, blending with the ridge head, annotation and delivery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
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
from st_gchb._options import Weighting
from st_gchb.io import check_store, hand_on_libraries, is_spatialdata, is_stored, link_of, write_elements
from st_gchb.model import _features as _context
from st_gchb.model._confidence import PREDICTORS, Calibration
from st_gchb.model._features import (
    BlockedContext,
    Context,
    MappedRows,
    NeighborhoodAggregator,
    appearance_of,
    context_of,
    is_plain,
)
from st_gchb.model._projections import LinearProjection
from st_gchb.model._query import Query, measured_panel
from st_gchb.model._read_out import Located, TrainedParts, read_out
from st_gchb.model._result_tables import ResultTables, result_tables
from st_gchb.nn import Branch, STGCHBNetwork
from st_gchb.pp import FeatureSet, write_table
from st_gchb.pp.encoders import halved
from st_gchb.pp.patches import FeatureRows
from st_gchb.pp.spots import check_table_name
from st_gchb.retrieval import find_neighbors, index_for, nearest_distances
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


def check_delivery(query: object, key_added: str, out: str | Path | None, *, write: bool) -> None:
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
                "returned: pred.write_h5ad(...) stores it, and out= writes it as it is made."
            )
        if out is not None and Path(out).suffix != ".h5ad":
            raise InputError(f"out={str(out)!r}: expected the name of an .h5ad file.")
        return
    if out is not None:
        raise InputError(
            "out= is for an AnnData; the result of a SpatialData becomes its table, which write=True also writes into "
            "its store."
        )
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


def locate(
    p: TrainedParts,
    features: np.ndarray | FeatureRows,
    adjacency: sparse.csr_matrix,
    slices: np.ndarray,
    k: int | None = None,
    weighting: Weighting | None = None,
) -> Located:
    """Embed patches and retrieve reference spots (Algorithm 1 of the paper), with what the heads take of each spot.

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
    head, kernel = p.bank.kernel_head, p.rules.kernel
    components = None if head is None or kernel is None else head.components(kernel(context))
    distance = _distance(appearance_of(p.rules.appearance, features), p.bank.appearance)
    return Located(embedding, neighbors, distance, linear, components)


def _query_context(p: TrainedParts, features: FeatureRows, adjacency: sparse.csr_matrix, slices: np.ndarray) -> Context:
    """Build the context of a query: all that is asked of it are projections, unless the network takes it as it is."""
    rule, projected = p.rules.context, p.network.image.fixed.matrix.ndim > 1
    if rule.surroundings and projected:
        held = is_plain(features, NeighborhoodAggregator(0))
        return BlockedContext(FeatureRows(features.whole()) if held else features, adjacency, slices, rule)
    return context_of(rule, features, adjacency, slices)


def predict(
    p: TrainedParts,
    query: Query,
    layer: str | None,
    k: int | None,
    weighting: Weighting | None,
    return_neighbors: bool,
    out: Path | None = None,
) -> AnnData:
    """Predict a prepared query; see :meth:`st_gchb.model.STGCHB.predict`."""
    panel, table = p.bank.table(None), p.bank.table(layer)
    found = locate(p, query.features, query.adjacency, query.slices, k, weighting)
    n_query = len(found.embedding)
    measured = _measured(p, query) if layer is None else None
    predictors = np.empty((n_query, len(PREDICTORS)))
    with result_tables(out, (n_query, len(table.columns))) as tables:
        for block in read_out(p, found, panel, query.adjacency):
            predictors[block.rows] = block.error_predictors(found, panel)
            if layer is None:
                tables.put(Keys.LAYER, block.rows, block.values)
                _put_measured(tables, block.rows, block.values, measured)
        for block in read_out(p, found, table, query.adjacency) if layer is not None else ():
            tables.put(Keys.LAYER, block.rows, block.values)
            tables.put(None, block.rows, block.values)
        result = AnnData(obs=query.adata.obs.copy(), var=pd.DataFrame(index=table.columns.astype(str)))
        _annotate(result, p, query, found, predictors)
        if measured is not None:
            result.var["st_gchb_measured"] = measured.present
        n_neighbors = found.neighbors.ids.shape[1]
        result.uns[Keys.UNS] = _provenance(p, layer, n_neighbors, weighting or p.settings.weighting) | dict(p.origin)
        if len(query.excluded):
            result.uns[Keys.UNS]["excluded"] = query.excluded
        if p.calibration is not None:
            result.uns[Keys.UNS][Keys.STAIN] = _stain(p.calibration, predictors, query.slices)
        if return_neighbors:
            result.obsm[NEIGHBORS_KEY] = found.neighbors.ids
            result.obsm[NEIGHBOR_WEIGHTS_KEY] = found.neighbors.weights
            result.uns[Keys.UNS]["reference"] = p.bank.origin.copy()
        tables.complete(result)
    return result


def _annotate(result: AnnData, p: TrainedParts, query: Query, found: Located, predictors: np.ndarray) -> None:
    """Add positions, libraries and embedding of the spots, their confidence and what is expected of each gene."""
    result.obsm[Keys.SPATIAL] = query.adata.obsm[Keys.SPATIAL]
    result.obsm[Keys.EMBEDDING] = found.embedding
    hand_on_libraries(query.adata, result)
    if p.calibration is None:
        return
    result.obs[Keys.CONFIDENCE] = p.calibration.confidence(predictors, query.slices)
    result.obs[Keys.OUTLIER] = p.calibration.outlier(predictors, query.slices)
    expected = pd.Series(p.calibration.expected_pcc, index=p.rules.expression.genes)
    result.var[Keys.EXPECTED_PCC] = expected.reindex(result.var_names).to_numpy()
    if p.calibration.retrieval_pcc is not None:
        alone = pd.Series(p.calibration.retrieval_pcc, index=p.rules.expression.genes)
        result.var[Keys.RETRIEVAL_PCC] = alone.reindex(result.var_names).to_numpy()


@dataclass(frozen=True)
class _Measured:
    """Measured expression of the panel, on the scale of the prediction, of the genes that the query measures.

    Parameters
    ----------
    values
        Log-normalized expression, ``(n_query, n_genes)``.
    present
        Genes that the query measures, ``(n_genes,)``.
    """

    values: np.ndarray
    present: np.ndarray


def _measured(p: TrainedParts, query: Query) -> _Measured:
    return _Measured(*measured_panel(query, p.rules.expression))


def _put_measured(tables: ResultTables, rows: np.ndarray, predicted: np.ndarray, measured: _Measured | None) -> None:
    """Put the prediction into ``X``, with measured expression in its place for the genes that the query measures."""
    if measured is None or not measured.present.any():
        tables.put(None, rows, predicted)
        return
    values = np.where(measured.present, measured.values[rows], predicted)
    tables.put(None, rows, values)
    if measured.present.all():
        tables.put(Keys.MEASURED, rows, values)


def _distance(query: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compute the mean distance to the nearest reference patches, ``(n_query,)``."""
    if len(reference) > _COMPARED:
        reference = reference[np.sort(np.random.default_rng(0).permutation(len(reference))[:_COMPARED])]
    mean: np.ndarray = nearest_distances(query, reference, min(_NEAREST, len(reference))).mean(1, dtype=np.float64)
    return mean


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
