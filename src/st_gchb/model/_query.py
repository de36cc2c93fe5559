"""The first steps of a query, by the rules that were stored when the model was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

from st_gchb._constants import Keys
from st_gchb._counts import Remedy
from st_gchb._errors import DamageError, EncoderError, ExpressionError, InputError, MissingKeyError, QueryError
from st_gchb._logging import logger
from st_gchb._options import DEFAULT_ON_DAMAGE, OnDamage
from st_gchb.io import hand_on_libraries, libraries_of
from st_gchb.model._features import FeatureSpace, LinearProjection, NeighborhoodAggregator
from st_gchb.model._validation import check_features, check_names, check_unmasked
from st_gchb.pp import FeatureSpec, GraphSpec, embed_patches_like, resolve, spatial_graph
from st_gchb.pp.expression import ExpressionRule, log_normalize, read_expression
from st_gchb.pp.graph import check_reach
from st_gchb.pp.patches import (
    BLOCK_ROWS,
    MEMORY_MB,
    FeatureRows,
    check_made,
    feature_keys,
    has_features,
    with_maps,
)
from st_gchb.pp.spots import check_lone_slice, check_object, check_positions, sections_of, spot_centers
from st_gchb.retrieval import ReferenceBank


def is_whole(adata: AnnData, key: str) -> np.ndarray:
    """Which spots are not among those that :func:`~st_gchb.pp.embed_patches` left out, ``(n_spots,)``."""
    stored = adata.uns.get(key)
    # What is no mapping is refused where the features' rule is read.
    told = stored.get("excluded", ()) if isinstance(stored, Mapping) else ()
    names = np.atleast_1d(told).astype(str)
    return np.asarray(~adata.obs_names.isin(names))


def leave_out(light: AnnData, source: AnnData, key: str, on_damage: str) -> tuple[AnnData, AnnData, np.ndarray]:
    """Drop these spots from a query, so that the others' neighbors are spots that exist.

    Parameters
    ----------
    light, source
        The query's light copy, and the object that it is of; the same rows.
    key
        Key of the features.
    on_damage
        ``"raise"`` where every spot has to be there.

    Returns
    -------
    tuple
        Both without these spots, and the names of these, ``(n_left_out,)``.

    Raises
    ------
    DamageError
        Spots are left out, and none may be; or none is left.
    """
    keep = is_whole(light, key)
    names = light.obs_names[~keep].to_numpy(dtype=str)
    if keep.all():
        return light, source, names
    if on_damage == "raise" or not keep.any():
        raise DamageError(
            f"{len(names)} of {len(keep)} spots have no features, since their pixels cannot be decoded (first: "
            f"{names[:3].tolist()}). Drop them: query = query[~query.obs_names.isin(query.uns[{key!r}]['excluded'])]."
            "copy(); or fetch the image again."
        )
    return light[keep].copy(), source[keep], names


_NOT_OF_THE_KIND = 1e6
"""Standard deviations of the reference's features. Other stains and tissues lie thousands of them away at most."""


@dataclass(frozen=True)
class Preprocessor:
    """Everything that was fitted or fixed before training, and that a query goes through.

    Parameters
    ----------
    expression
        Normalization, panel and PCA.
    features
        How patch features are made; ``None`` where they came from outside.
    features_key
        Key in ``obsm``.
    n_features
        Their width.
    graph
        How spots become neighbors.
    context
        What is seen of a spot and its surroundings.
    linear
        Map of context features to the inputs of the ridge head.
    appearance
        Map of patch features to the coordinates in which a query is compared with the reference's range.
    slice_key
        Column of ``obs`` that told the training slices apart.
    """

    expression: ExpressionRule
    features: FeatureSpec | None
    features_key: str
    n_features: int
    graph: GraphSpec
    context: NeighborhoodAggregator
    linear: LinearProjection
    appearance: FeatureSpace
    slice_key: str | None


@dataclass(frozen=True)
class Query:
    """A query that has gone through the first steps.

    Parameters
    ----------
    adata
        Light copy: ``obs``, positions, images; no expression.
    source
        The object with the measured expression, where there is any.
    features
        Patch features, ``(n_query, n_features)``, with their maps where the model has trained the encoder's last stage.
    adjacency
        Spot graph, ``(n_query, n_query)``.
    slices
        Slice of each spot, ``(n_query,)``.
    link
        For SpatialData the columns by which rows are matched to shapes, ``region_key`` and ``instance_key``.
    excluded
        Names of the spots that are not in it, since their pixels cannot be decoded.
    """

    adata: AnnData
    source: AnnData
    features: np.ndarray | FeatureRows
    adjacency: sparse.csr_matrix
    slices: np.ndarray
    link: dict[str, str]
    excluded: np.ndarray


def prepare_query(
    data: AnnData | SpatialData,
    rules: Preprocessor,
    *,
    slice_key: str | None = None,
    image: Any = None,
    image_key: str | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    weights: str | Path | None = None,
    table: str | None = None,
    shapes: str | None = None,
    memory_mb: float = MEMORY_MB,
    on_damage: OnDamage = DEFAULT_ON_DAMAGE,
) -> Query:
    """Find image and spots, make features and graph by the stored rules. The caller's object is not changed.

    Raises
    ------
    QueryError
        If the object holds no spot, or its features are not the model's.
    DamageError
        If pixels of some spots cannot be decoded, and ``on_damage`` is ``"raise"``; or of all.
    """
    check_object(data, spatialdata=True, error=QueryError)
    resolved = resolve(data, table=table, image=image, shapes=shapes, thumbnails=isinstance(data, SpatialData))
    source = resolved.adata
    check_names(source)
    centers = spot_centers(source)
    check_positions(centers, source.obs_names)
    key = slice_key or resolved.slice_key or (rules.slice_key if rules.slice_key in source.obs else None)
    # Patches take minutes: what makes a graph impossible is told before.
    sections = sections_of(source, key, resolved.images if isinstance(resolved.images, Mapping) else ())
    check_lone_slice(source, sections, centers)
    sections.check_at_least(2, "a graph needs")
    key = sections.key
    light = AnnData(obs=source.obs.copy(), obsm={Keys.SPATIAL: centers})
    # A slice cut out of a larger object still carries the others' images.
    hand_on_libraries(source, light, list(libraries_of(source)) if key is None else set(source.obs[key].astype(str)))
    trained = rules.features is not None and rules.features.feature_maps
    if has_features(source, rules.features_key, maps=trained):
        check_unmasked(source, rules.features_key)
        _check_query_features(source[is_whole(source, rules.features_key)], rules)
        remedy = f"Drop it (del query.obsm[{rules.features_key!r}]) and the model makes its own."
        check_made(source, rules.features_key, sections, remedy, um_per_px)
        for name in feature_keys(source, rules.features_key):
            light.obsm[name] = np.asarray(source.obsm[name], np.float32 if name == rules.features_key else None)
        if rules.features_key in source.uns:
            light.uns[rules.features_key] = source.uns[rules.features_key]
    elif rules.features is None:
        raise QueryError(
            f"The query has no obsm[{rules.features_key!r}] (found {list(source.obsm)}), and the model was trained "
            "on features that were made outside st-gchb: make them for the query the same way."
        )
    else:
        check_reach(resolved.slices(slice_key=key, image_key=image_key, um_per_px=um_per_px), rules.graph)
        embed_patches_like(
            light,
            rules.features,
            weights=weights,
            image=resolved.images,
            image_key=image_key,
            slice_key=key,
            um_per_px=um_per_px,
            key_added=rules.features_key,
            memory_mb=memory_mb,
            on_damage=on_damage,
        )
    light, source, excluded = leave_out(light, source, rules.features_key, on_damage)
    spatial_graph(light, rule=rules.graph, slice_key=key, um_per_px=um_per_px, features_key=rules.features_key)
    features = with_maps(light, rules.features_key) if trained else light.obsm[rules.features_key]
    link = {"region_key": resolved.region_key, "instance_key": resolved.instance_key}
    known = {name: value for name, value in link.items() if value is not None}
    graph = light.obsp[Keys.CONNECTIVITIES].tocsr()
    return Query(light, source, features, graph, sections_of(light, key).names.astype(str), known, excluded)


def measured_panel(query: Query, rule: ExpressionRule) -> tuple[np.ndarray, np.ndarray]:
    """Log-normalized measured expression of the panel, where the query has it.

    Returns
    -------
    values
        ``(n_query, n_genes)``, 0 where the gene is absent.
    present
        Which genes of the panel the query has, ``(n_genes,)``.
    """
    source = query.source
    present = np.asarray(rule.genes.isin(source.var_names))
    empty = np.zeros((source.n_obs, len(rule.genes)), np.float32)
    if not present.any() or source.X is None:
        return empty, np.zeros(len(rule.genes), dtype=bool)
    try:
        values = read_expression(source, None, log_normalized=rule.log_normalized, remedy=_remedy(source, rule))
    except ExpressionError as error:
        logger.warning("The query's measured expression is not carried over: %s", error)
        return empty, np.zeros(len(rule.genes), dtype=bool)
    for rows, block in _log_values(values, source.var_names.get_indexer(rule.genes[present]), rule):
        empty[rows, present] = block.toarray()
    return empty, present


def panel_expression(source: AnnData, rule: ExpressionRule) -> sparse.csr_matrix:
    """Log-normalized measured expression of the whole panel, ``(n_spots, n_genes)``.

    Raises
    ------
    MissingKeyError
        If a gene of the panel is absent.
    ExpressionError
        If ``X`` is not what the rule expects.
    """
    missing = rule.genes.difference(source.var_names)
    if len(missing):
        raise MissingKeyError(
            f"{len(missing)} genes of the panel are not in var_names (first: {list(missing[:3])}). "
            "Embedding expression needs the whole panel; modality='image' needs none."
        )
    values = read_expression(source, None, log_normalized=rule.log_normalized, remedy=_remedy(source, rule))
    blocks = _log_values(values, source.var_names.get_indexer(rule.genes), rule)
    return sparse.vstack([block for _, block in blocks], format="csr")


def _remedy(source: AnnData, rule: ExpressionRule) -> Remedy:
    """Say what to do about a query's expression; for a model of log-normalized values, counts are no help."""
    return Remedy(None if rule.log_normalized else source, called="query")


def _log_values(values: Any, columns: np.ndarray, rule: ExpressionRule) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Log-normalized expression of some genes, some spots at a time: of all genes there is no second table."""
    for start in range(0, values.shape[0], BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, values.shape[0]))
        yield rows, log_normalize(values[rows], log_normalized=rule.log_normalized)[:, columns]


def origin_table(adata: AnnData, slice_key: str | None, patient_key: str | None) -> pd.DataFrame:
    """Tabulate the origin of each spot: name, slice, patient where known, x and y in px."""
    positions = spot_centers(adata)
    frame = pd.DataFrame({"name": adata.obs_names.astype(str), "x": positions[:, 0], "y": positions[:, 1]})
    frame["slice"] = sections_of(adata, slice_key).names.astype(str)
    if patient_key is not None:
        frame["patient"] = adata.obs[patient_key].astype(str).to_numpy()
    return frame


def check_training_data(adata: AnnData, rules: Preprocessor, bank: ReferenceBank, slice_key: str | None) -> None:
    """Refuse to go on training on other data than those that a saved model was trained on.

    Raises
    ------
    InputError, MissingKeyError
        If spots, slices, genes or features are others.
    """
    spots, genes = bank.origin["name"].tolist(), bank.tables["all_genes"].columns
    same = adata.obs_names.astype(str).tolist() == spots and adata.var_names.astype(str).equals(genes)
    if same and slice_key is not None:
        same = slice_key in adata.obs and adata.obs[slice_key].astype(str).tolist() == bank.slices.tolist()
    if not same:
        raise InputError(
            f"adata ({adata.n_obs} spots x {adata.n_vars} genes) holds other spots, slices or genes than the model was "
            f"trained on ({len(spots)} x {len(genes)}). Pass the training AnnData, or train a new model."
        )
    if rules.features_key not in adata.obsm:
        made = "outside st-gchb" if rules.features is None else f"with {rules.features.to_dict()}"
        raise MissingKeyError(
            f"adata has no obsm[{rules.features_key!r}] (found {list(adata.obsm)}); the model was trained on features "
            f"that were made {made}. Make them the same way first."
        )
    _check_query_features(adata, rules, "adata")


def _check_query_features(adata: AnnData, rules: Preprocessor, name: str = "query") -> None:
    key = rules.features_key
    own = f"Drop it (del query.obsm[{key!r}]) and the model makes its own."
    remedy = own if name == "query" else "Make it the same way again."
    check_features(adata, key)
    width = np.shape(adata.obsm[key])[1]
    if width != rules.n_features:
        raise QueryError(
            f"The {name}'s obsm[{key!r}] has {width} features, the model was trained on {rules.n_features}. {remedy}"
        )
    _check_near(adata, rules, name, remedy)
    if rules.features is None:
        return
    if key not in adata.uns:
        logger.warning("obsm[%r] does not say how it was made; it is taken to be the model's kind.", key)
        return
    found = FeatureSpec.from_uns(adata.uns[key])
    same = ("encoder", "weights_sha256", "patch_um", "patch_px", "n_views", "stain_norm", "stain_target", "precision")
    differ = [one for one in same if getattr(found, one) != getattr(rules.features, one)]
    if differ:
        pairs = ", ".join(
            f"{one} {getattr(found, one)!r} instead of {getattr(rules.features, one)!r}" for one in differ
        )
        raise EncoderError(f"The {name}'s obsm[{key!r}] was made another way than the reference's: {pairs}. {remedy}")


def _check_near(adata: AnnData, rules: Preprocessor, name: str, remedy: str) -> None:
    """Refuse features that cannot be of the reference's kind, be the tissue what it may."""
    key, look = rules.features_key, rules.appearance
    far, most = 0, 0.0
    for _, block in FeatureRows(adata.obsm[key]).blocks():
        deviations = np.abs((np.asarray(block, dtype=np.float64) - look.offset) * look.inverse).max(1)
        far += int((deviations > _NOT_OF_THE_KIND).sum())
        most = max(most, float(deviations.max(initial=0.0)))
    if far:
        raise QueryError(
            f"The {name}'s obsm[{key!r}] lies up to {most:.1e} standard deviations from the reference's features, in "
            f"{far} of {adata.n_obs} spots: it is of another kind or in another unit. {remedy}"
        )
