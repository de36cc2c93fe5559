"""From a prepared query to the answer: embed, retrieve, read out, annotate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from st_gchb import __version__
from st_gchb._constants import Keys
from st_gchb.model._calibration import Calibration, calibrate, calibration_folds, signs_of
from st_gchb.model._inputs import context_features
from st_gchb.model._module import STGCHBModule
from st_gchb.model._presets import ModelSettings
from st_gchb.model._query import Query, Rules, measured_panel
from st_gchb.retrieval import LinearReadout, Neighbors, ReferenceBank, Weighting, find_neighbors
from st_gchb.retrieval._bank import ReferenceTable

NEIGHBORS_KEY = "st_gchb_neighbors"
NEIGHBOR_WEIGHTS_KEY = "st_gchb_neighbor_weights"

_COLUMNS = 512
"""Genes that are made dense at once."""

_NEAREST = 10
"""Reference patches whose mean similarity says how far a query patch lies from the reference."""


@dataclass(frozen=True)
class Predictor:
    """The trained parts that a prediction needs."""

    module: STGCHBModule
    rules: Rules
    bank: ReferenceBank
    calibration: Calibration | None
    settings: ModelSettings


def embed(module: STGCHBModule, values: Any, adjacency: sparse.csr_matrix, modality: str) -> np.ndarray:
    """L2-normalised joint embedding of the spots of a whole graph, ``(n_spots, n_embedding)``."""
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)  # type: ignore[attr-defined]
    graph = adjacency.tocoo()
    edges = torch.from_numpy(np.stack([graph.row, graph.col]).astype(np.int64)).to(module.device)
    run = module.network.embed_expression if modality == "expression" else module.network.embed_image
    module.eval()
    with torch.inference_mode():
        return run(torch.from_numpy(dense.astype(np.float32)).to(module.device), edges).cpu().numpy()


def read_out(
    p: Predictor,
    neighbors: Neighbors,
    context: np.ndarray,
    table: ReferenceTable,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """Weighted mean of the retrieved spots, blended with the linear read-out, ``(n_query, n_columns)``.

    Parameters
    ----------
    p
        The trained parts.
    neighbors
        Retrieved spots.
    context
        Inputs of the linear read-out for the query, ``(n_query, n_inputs)``.
    table
        What to predict.
    allowed
        Mask of the reference spots that the linear read-out may use; by default all.
    """
    weights = neighbors.matrix(len(p.bank))
    values = table.values.tocsc()
    width = values.shape[1]
    blocks: list[Any] = [weights @ values[:, start : start + _COLUMNS].toarray() for start in range(0, width, _COLUMNS)]
    retrieved: np.ndarray = np.concatenate(blocks, axis=1).astype(np.float32)
    share = p.settings.linear_weight
    if share:
        linear = LinearReadout(p.bank.context, p.settings.linear_penalty).predict(context, table.values, allowed)
        retrieved = (1.0 - share) * retrieved + share * linear
    # A linear read-out can fall below what the quantity can be: where the reference is never negative, 0 is the floor.
    return np.maximum(retrieved, 0.0) if table.values.nnz == 0 or table.values.data.min() >= 0 else retrieved


def calibrate_bank(p: Predictor) -> Calibration:
    """Leave every slice of the reference out of bank and read-out once, and learn from the errors."""
    table, truth = p.bank.table(None), p.bank.table(None).values
    folds = calibration_folds(p.bank.slices, p.bank.origin[["x", "y"]].to_numpy())

    def held_out(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        allowed = np.ones(len(p.bank), dtype=bool)
        allowed[rows] = False
        # The reference's patches are the queries here: keys of other slices, as for a new slide.
        neighbors = _retrieve(p, p.bank.image_keys[rows], None, None, allowed)
        prediction = read_out(p, neighbors, p.bank.context[rows], table, allowed)
        similarity = _patch_similarity(p, p.bank.image_keys[rows], allowed)
        return prediction, signs_of(neighbors, prediction, truth, similarity)

    return calibrate(folds, held_out, truth)


def predict(
    p: Predictor,
    query: Query,
    layer: str | None,
    k: int | None,
    weighting: Weighting | None,
    return_neighbors: bool,
) -> AnnData:
    """Answer a prepared query; see :meth:`st_gchb.model.STGCHB.predict`."""
    table = p.bank.table(layer)
    embedding = embed(p.module, query.features, query.adjacency, "image")
    neighbors = _retrieve(p, embedding, k, weighting, None)
    context = p.rules.context(context_features(query.features, query.adjacency))
    prediction = read_out(p, neighbors, context, table)
    result = AnnData(prediction.copy(), obs=query.adata.obs.copy(), var=pd.DataFrame(index=table.columns.astype(str)))
    result.layers[Keys.LAYER] = prediction
    result.obsm[Keys.SPATIAL] = query.adata.obsm[Keys.SPATIAL]
    result.obsm[Keys.EMBEDDING] = embedding
    if Keys.SPATIAL in query.adata.uns:
        result.uns[Keys.SPATIAL] = query.adata.uns[Keys.SPATIAL]
    panel = prediction if layer is None else read_out(p, neighbors, context, p.bank.table(None))
    _annotate(p, query, result, neighbors, panel, embedding)
    _carry_measured(p, query, result)
    result.uns[Keys.UNS] = _provenance(p, layer, neighbors.ids.shape[1], weighting or p.settings.weighting)
    if return_neighbors:
        result.obsm[NEIGHBORS_KEY] = neighbors.ids
        result.obsm[NEIGHBOR_WEIGHTS_KEY] = neighbors.weights
        result.uns[Keys.UNS]["reference"] = p.bank.origin.copy()
    return result


def _retrieve(
    p: Predictor, embedding: np.ndarray, k: int | None, weighting: Weighting | None, allowed: np.ndarray | None
) -> Neighbors:
    available = len(p.bank) if allowed is None else int(allowed.sum())
    return find_neighbors(
        embedding,
        p.bank.keys,
        k=min(p.settings.k, available) if k is None else k,
        weighting=weighting or p.settings.weighting,
        temperature=p.settings.query_temperature,
        allowed=allowed,
        device=p.module.device,
    )


def _patch_similarity(p: Predictor, embedding: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Mean cosine similarity to the nearest reference patches, ``(n_query,)``."""
    available = len(p.bank) if allowed is None else int(allowed.sum())
    found = find_neighbors(
        embedding,
        p.bank.image_keys,
        k=min(_NEAREST, available),
        weighting="mean",
        allowed=allowed,
        device=p.module.device,
    )
    return found.similarity.mean(1)


def _annotate(
    p: Predictor, query: Query, result: AnnData, neighbors: Neighbors, panel: np.ndarray, embedding: np.ndarray
) -> None:
    if p.calibration is None:
        return
    similarity = _patch_similarity(p, embedding)
    signs = signs_of(neighbors, panel, p.bank.table(None).values, similarity)
    result.obs[Keys.CONFIDENCE] = p.calibration.confidence(signs)
    result.obs[Keys.OUTLIER] = p.calibration.outlier(signs)
    expected = pd.Series(p.calibration.expected_pcc, index=p.rules.expression.genes)
    result.var[Keys.EXPECTED_PCC] = expected.reindex(result.var_names).to_numpy()


def _carry_measured(p: Predictor, query: Query, result: AnnData) -> None:
    """Put measured expression into ``X`` where the query has it, on the scale of the prediction."""
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


def _provenance(p: Predictor, layer: str | None, k: int, weighting: str) -> dict[str, Any]:
    features = p.rules.features
    return {
        "version": __version__,
        "encoder": "external" if features is None else features.encoder,
        "weights": "external" if features is None else features.weights,
        "weights_sha256": "" if features is None else features.weights_sha256,
        "layer": layer or "panel",
        "k": k,
        "weighting": weighting,
        "linear_weight": p.settings.linear_weight,
        "reference_slices": np.array(sorted(set(p.bank.slices))),
    }
