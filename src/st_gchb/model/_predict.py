"""From a prepared query to the answer: embed, retrieve, read out, annotate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from st_gchb import __version__
from st_gchb._constants import Keys
from st_gchb._logging import logger
from st_gchb.model._calibration import Calibration, calibration_folds, signs_of
from st_gchb.model._context import appearance_of, context_of
from st_gchb.model._embedding import embed, seen_context
from st_gchb.model._module import STGCHBModule
from st_gchb.model._presets import ModelSettings
from st_gchb.model._query import Query, Rules, measured_panel
from st_gchb.model._rows import FeatureRows
from st_gchb.retrieval import (
    LinearReadout,
    Neighbors,
    ReferenceBank,
    Search,
    Weighting,
    find_neighbors,
    index_for,
    weighted_mean,
)
from st_gchb.retrieval._bank import ReferenceTable

NEIGHBORS_KEY = "st_gchb_neighbors"
NEIGHBOR_WEIGHTS_KEY = "st_gchb_neighbor_weights"

_NEAREST = 10
"""Reference patches whose mean distance says how far a query patch lies from the reference."""
_COMPARED = 200_000
"""Reference patches with which a query patch is compared: of more, as many are drawn, by a fixed seed."""


@dataclass(frozen=True)
class Predictor:
    """The trained parts that a prediction needs, and how the reference is searched."""

    module: STGCHBModule
    rules: Rules
    bank: ReferenceBank
    calibration: Calibration | None
    settings: ModelSettings
    search: Search = "auto"


@dataclass(frozen=True)
class Answer:
    """What retrieval and read-out say of a query's panel.

    Parameters
    ----------
    embedding
        Joint embedding of the patches, ``(n_query, n_embedding)``.
    neighbors
        Retrieved reference spots.
    linear
        Inputs of the linear read-out, ``(n_query, n_inputs)``.
    panel
        Predicted log-normalised expression of the panel, ``(n_query, n_genes)``.
    signs
        What can be seen of the prediction without the truth, ``(n_query, 4)``.
    """

    embedding: np.ndarray
    neighbors: Neighbors
    linear: np.ndarray
    panel: np.ndarray
    signs: np.ndarray


def answer(
    p: Predictor,
    features: np.ndarray | FeatureRows,
    adjacency: sparse.csr_matrix,
    slices: np.ndarray,
    k: int | None = None,
    weighting: Weighting | None = None,
) -> Answer:
    """Embed patches, retrieve reference spots and read out the panel (Algorithm 1 of the paper).

    Parameters
    ----------
    p
        The trained parts.
    features, adjacency, slices
        Patch features, spot graph and slices of the query.
    k, weighting
        By default the model's; a ``k`` of the model's own is at most the size of the reference.
    """
    features = FeatureRows(features)
    context = context_of(p.rules.context, features, adjacency, slices)
    seen = seen_context(p.module, p.rules.context, context, features, (adjacency, slices))
    embedding = embed(p.module, seen, adjacency, "image")
    k = min(p.settings.k, len(p.bank)) if k is None else k
    neighbors = find_neighbors(
        embedding,
        p.bank.keys,
        k=k,
        weighting=weighting or p.settings.weighting,
        temperature=p.settings.query_temperature,
        index=index_for(p.bank, k, p.search),
        device=p.module.device,
    )
    linear = context.through(p.rules.linear)
    table = p.bank.table(None)
    retrieved = weighted_mean(neighbors, table.values)
    panel = blended(p, retrieved, linear, table)
    distance = _distance(appearance_of(p.rules.appearance, features), p.bank.appearance)
    return Answer(embedding, neighbors, linear, panel, signs_of(neighbors, retrieved, panel, table, distance))


def blended(p: Predictor, retrieved: np.ndarray, inputs: np.ndarray, table: ReferenceTable) -> np.ndarray:
    """Weighted mean of the retrieved spots, blended with the linear read-out, ``(n_query, n_columns)``.

    Within the reference's range of each column: a linear read-out goes on beyond it for patches unlike any of the
    reference's, to values that no spot can have.
    """
    if p.settings.linear_weight:
        readout = LinearReadout(p.bank.linear, p.settings.linear_penalty)
        share = _linear_share(p, readout, table)
        # The same for every query: fitted once.
        table.readout = table.readout or readout.fit(table.values)
        retrieved = (1.0 - share) * retrieved + share * table.readout.predict(inputs)
    bounded: np.ndarray = np.clip(retrieved, *table.bounds)
    return bounded


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
    found = answer(p, query.features, query.adjacency, query.slices, k, weighting)
    prediction = found.panel
    if layer is not None:
        prediction = blended(p, weighted_mean(found.neighbors, table.values), found.linear, table)
    result = AnnData(prediction.copy(), obs=query.adata.obs.copy(), var=pd.DataFrame(index=table.columns.astype(str)))
    result.layers[Keys.LAYER] = prediction
    result.obsm[Keys.SPATIAL] = query.adata.obsm[Keys.SPATIAL]
    result.obsm[Keys.EMBEDDING] = found.embedding
    if Keys.SPATIAL in query.adata.uns:
        result.uns[Keys.SPATIAL] = query.adata.uns[Keys.SPATIAL]
    if p.calibration is not None:
        result.obs[Keys.CONFIDENCE] = p.calibration.confidence(found.signs, query.slices)
        result.obs[Keys.OUTLIER] = p.calibration.outlier(found.signs, query.slices)
        expected = pd.Series(p.calibration.expected_pcc, index=p.rules.expression.genes)
        result.var[Keys.EXPECTED_PCC] = expected.reindex(result.var_names).to_numpy()
    if layer is None:
        _carry_measured(p, query, result)
    n_neighbors = found.neighbors.ids.shape[1]
    result.uns[Keys.UNS] = _provenance(p, layer, n_neighbors, weighting or p.settings.weighting)
    if p.calibration is not None:
        result.uns[Keys.UNS][Keys.STAIN] = _stain(p.calibration, found.signs, query.slices)
    if return_neighbors:
        result.obsm[NEIGHBORS_KEY] = found.neighbors.ids
        result.obsm[NEIGHBOR_WEIGHTS_KEY] = found.neighbors.weights
        result.uns[Keys.UNS]["reference"] = p.bank.origin.copy()
    return result


def _linear_share(p: Predictor, readout: LinearReadout, table: ReferenceTable) -> np.ndarray | np.float32:
    """Share of the linear read-out in each column, ``(n_columns,)``, by what it is worth on held-out slices.

    Where ridge knows little of a gene, it mostly adds noise to what was retrieved.
    """
    whole = np.float32(p.settings.linear_weight)
    if not p.settings.linear_full_at:
        return whole
    folds = calibration_folds(p.bank.slices, p.bank.origin[["x", "y"]].to_numpy())
    if table.held_out is None:
        table.held_out = readout.held_out_correlation(table.values, folds)
    share: np.ndarray = whole * np.clip(table.held_out / p.settings.linear_full_at, 0.0, 1.0).astype(np.float32)
    return share


def _distance(query: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean distance to the nearest reference patches, ``(n_query,)``."""
    if len(reference) > _COMPARED:
        reference = reference[np.sort(np.random.default_rng(0).permutation(len(reference))[:_COMPARED])]
    search = NearestNeighbors(n_neighbors=min(_NEAREST, len(reference)), algorithm="brute").fit(reference)
    distances: np.ndarray = search.kneighbors(query)[0]
    return distances.mean(1)


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


def _stain(calibration: Calibration, signs: np.ndarray, slices: np.ndarray) -> pd.DataFrame:
    """Say of each slide whether it lies in the reference's range, and warn of those that do not."""
    slides = calibration.slides(signs, slices)
    for name, says in slides.loc[~slides["in_range"], "says"].items():
        logger.warning("slice %r: %s. All its spots are flagged in obs[%r].", name, says, Keys.OUTLIER)
    return slides


def _provenance(p: Predictor, layer: str | None, k: int, weighting: str) -> dict[str, Any]:
    features = p.rules.features
    return {
        "version": __version__,
        "encoder": "external" if features is None else features.encoder,
        "weights": "external" if features is None else features.weights,
        "weights_sha256": "" if features is None else features.weights_sha256,
        "precision": (features and features.precision) or "float32",
        "stain_norm": (features and features.stain_norm) or "none",
        "stain_augment": (features and features.stain_augment) or 0,
        "layer": layer or "panel",
        "k": k,
        "weighting": weighting,
        **_how_searched(p, k),
        "linear_weight": p.settings.linear_weight,
        "reference_slices": np.array(sorted(set(p.bank.slices))),
    }


def _how_searched(p: Predictor, k: int) -> dict[str, Any]:
    index = index_for(p.bank, k, p.search)
    return {"search": "exact"} if index is None else {"search": "index", "search_recall": index.recall}
