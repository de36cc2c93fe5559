"""The first steps of a query, by the rules that were stored when the model was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._counts import Remedy
from st_gchb._errors import DamageError, EncoderError, ExpressionError, InputError, MissingKeyError, QueryError
from st_gchb._logging import logger
from st_gchb.io import PlacedSections, hand_on_libraries, libraries_of, sections_of, spot_centers
from st_gchb.model._features import NeighborhoodAggregator
from st_gchb.model._kernel_inputs import KernelMap
from st_gchb.model._projections import FeatureSpace, LinearProjection
from st_gchb.model._validation import check_features, check_names, check_unmasked
from st_gchb.pp import FeatureSet, GraphSpec, Resolved
from st_gchb.pp.expression import ExpressionRule, log_normalize, read_expression
from st_gchb.pp.graph import check_reach, connected, neighbor_distances
from st_gchb.pp.patches import (
    BLOCK_ROWS,
    FeatureOptions,
    FeatureRows,
    check_made,
    feature_keys,
    features_like,
    has_features,
    pixel_sizes,
    tell_tiles,
    was_on_image,
    with_maps,
)
from st_gchb.pp.spots import check_positions, open_slices
from st_gchb.retrieval import ReferenceBank


def is_whole(adata: AnnData, key: str) -> np.ndarray:
    """Which spots are not among those that :func:`~st_gchb.pp.embed_patches` left out, ``(n_spots,)``."""
    stored = adata.uns.get(key)
    # What is no mapping is refused where the features' rule is read.
    told = stored.get("excluded", ()) if isinstance(stored, Mapping) else ()
    names = np.atleast_1d(told).astype(str)
    return np.asarray(~adata.obs_names.isin(names))


def check_damage(keep: np.ndarray, names: pd.Index, key: str, on_damage: str) -> None:
    """Validate that the spots without features may be left out of a query.

    Parameters
    ----------
    keep
        Which spots have features, ``(n_spots,)``.
    names
        Names of the spots.
    key
        Key of the features.
    on_damage
        ``"raise"`` where every spot has to be there.

    Raises
    ------
    DamageError
        Spots are left out, and none may be; or none is left.
    """
    if keep.all() or (on_damage != "raise" and keep.any()):
        return
    first = names[~keep][:3].astype(str).tolist()
    raise DamageError(
        f"{(~keep).sum()} of {len(keep)} spots have no features, since their pixels cannot be decoded (first: "
        f"{first}). Drop them: query = query[~query.obs_names.isin(query.uns[{key!r}]['excluded'])]."
        "copy(); or fetch the image again."
    )


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
        Specifications of the patch features; ``None`` if they were made outside.
    features_key
        Key in ``obsm``.
    n_features
        Their width.
    graph
        How spots become neighbors.
    context
        What is seen of a spot and its surroundings.
    linear
        Map of context features to the inputs of the ridge head; to none if predictions have no share of it.
    kernel
        Map of context features to the inputs of the kernel head; None if there is no such head.
    appearance
        Map of patch features to the coordinates in which a query is compared with the reference's range.
    slice_key
        Column of ``obs`` that told the training slices apart.
    """

    expression: ExpressionRule
    features: FeatureSet | None
    features_key: str
    n_features: int
    graph: GraphSpec
    context: NeighborhoodAggregator
    linear: LinearProjection
    appearance: FeatureSpace
    slice_key: str | None
    kernel: KernelMap | None = None


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
    resolved: Resolved,
    rules: Preprocessor,
    *,
    slice_key: str | None = None,
    image_key: str | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    encoding: FeatureOptions,
) -> Query:
    """Make the features and the spot graph of a query by the stored rules. The query itself is not changed.

    Parameters
    ----------
    resolved
        Spots and images of the query.
    rules
        Rules of the reference.
    slice_key, image_key, um_per_px
        As :meth:`st_gchb.model.STGCHB.predict` takes them.
    encoding
        Options with which patches are encoded, if the query has no features.

    Returns
    -------
    Query
        The query as the network takes it.

    Raises
    ------
    QueryError
        The object holds no spot, or its features are not the model's.
    DamageError
        Pixels of some spots cannot be decoded, and ``encoding.on_damage`` is ``"raise"``; or of all.
    """
    source, key = resolved.adata, rules.features_key
    check_names(source)
    sections = resolved.sections(slice_key or resolved.slice_key or _own_slice_key(source, rules))
    sections.check_at_least(2, "a graph needs")
    light = AnnData(obs=source.obs.copy(), obsm={Keys.SPATIAL: sections.centers})
    # A slice cut out of a larger object still carries the others' images.
    hand_on_libraries(source, light, list(libraries_of(source)) if sections.key is None else set(sections.rows))
    trained = rules.features is not None and rules.features.feature_maps
    if has_features(source, key, maps=trained):
        _take_features(source, light, rules, sections, um_per_px)
    elif rules.features is None:
        raise QueryError(
            f"The query has no obsm[{key!r}] (found {list(source.obsm)}), and the model was trained on features that "
            "were made outside st-gchb: make them for the query the same way."
        )
    else:
        slices = open_slices(sections, resolved.images, image_key, um_per_px)
        tell_tiles(slices, sections, rules.features)
        # Patches take minutes: what makes a graph impossible is told before.
        check_reach(slices, rules.graph)
        features_like(slices, rules.features, encoding).write_to(light, key)
    keep = is_whole(light, key)
    excluded = light.obs_names[~keep].to_numpy(dtype=str)
    if len(excluded):
        # The others' neighbors are to be spots that exist.
        check_damage(keep, light.obs_names, key, encoding.on_damage)
        light, source, sections = light[keep].copy(), source[keep], sections.part(keep)
        sections.check_at_least(2, "a graph needs")
    sizes = pixel_sizes(light, sections, um_per_px, key)
    _, distances = neighbor_distances(sections, light.obs, rules.graph, sizes)
    features = with_maps(light, key) if trained else light.obsm[key]
    link = {"region_key": resolved.region_key, "instance_key": resolved.instance_key}
    known = {name: value for name, value in link.items() if value is not None}
    return Query(light, source, features, connected(distances), sections.names.astype(str), known, excluded)


def _own_slice_key(source: AnnData, rules: Preprocessor) -> str | None:
    """Return the reference's column of slices if the query has it too."""
    return rules.slice_key if rules.slice_key in source.obs else None


def _take_features(
    source: AnnData,
    light: AnnData,
    rules: Preprocessor,
    sections: PlacedSections,
    um_per_px: float | Mapping[str, float] | None,
) -> None:
    """Take over the features that a query brings, after validating that they are of the reference's kind."""
    key = rules.features_key
    if not was_on_image(source, key, sections.centers):
        check_positions(sections.centers, source.obs_names)
    check_unmasked(source, key)
    _check_query_features(source[is_whole(source, key)], rules)
    remedy = f"Drop it (del query.obsm[{key!r}]) and the model makes its own."
    check_made(source, key, sections, remedy, um_per_px)
    for name in feature_keys(source, key):
        light.obsm[name] = np.asarray(source.obsm[name], np.float32 if name == key else None)
    if key in source.uns:
        light.uns[key] = source.uns[key]


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
        differ = _differences(adata, rules)
        raise QueryError(
            f"The {name}'s obsm[{key!r}] has {width} features, the model was trained on {rules.n_features}"
            f"{f': {differ}' if differ else ''}. {remedy}"
        )
    _check_near(adata, rules, name, remedy)
    if rules.features is not None and key not in adata.uns:
        logger.warning("obsm[%r] does not say how it was made; it is taken to be the model's kind.", key)
    differ = _differences(adata, rules)
    if differ:
        raise EncoderError(f"The {name}'s obsm[{key!r}] was made another way than the reference's: {differ}. {remedy}")


def _differences(adata: AnnData, rules: Preprocessor) -> str:
    """Describe how features say that they were made another way than the reference's; empty if they do not."""
    if rules.features is None or rules.features_key not in adata.uns:
        return ""
    found = FeatureSet.from_uns(adata.uns[rules.features_key])
    same = ("encoder", "weights_sha256", "patch_um", "patch_px", "n_views", "stain_norm", "stain_target", "precision")
    here, there = ({one: _of_parts(whole, one) for one in same} for whole in (found, rules.features))
    return ", ".join(f"{one} {here[one]!r} instead of {there[one]!r}" for one in same if here[one] != there[one])


def _of_parts(features: FeatureSet, field: str) -> Any:
    """Return a field of the specification, or a list of it for each of several parts."""
    values = [getattr(spec, field) for spec in features.specs]
    return values[0] if len(values) == 1 else values


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
