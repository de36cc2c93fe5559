"""Protocol of an evaluation, and all validation that is possible before the first run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from st_gchb._arguments import Pair, Seed, checked
from st_gchb._constants import Keys
from st_gchb._counts import Remedy
from st_gchb._errors import ExpressionError, InputError, MissingFileError, MissingKeyError, STGCHBError
from st_gchb._logging import logger
from st_gchb._options import DEFAULT_SPLIT, EncoderKind, HeldOut, Split
from st_gchb._settings import settings
from st_gchb.baselines import Baseline
from st_gchb.evaluate._describe import model_settings
from st_gchb.evaluate._feature_parts import available_kinds, columns_of
from st_gchb.evaluate._folds import Fold, hide_expression
from st_gchb.evaluate._kernel import kernel_ridge
from st_gchb.evaluate._methods import METHODS, nearest_neighbors, on_log_counts
from st_gchb.evaluate._published import baseline_of, spots_of
from st_gchb.evaluate._task import Method, Task
from st_gchb.io import spot_centers
from st_gchb.model import check_features, check_k, check_names
from st_gchb.pp import slices_of
from st_gchb.pp.encoders import choose_device
from st_gchb.pp.expression import check_panel, choose_panel, log_values_of, read_expression, tell_expression
from st_gchb.pp.spots import side_px

_LEAST = 50
"""Smallest panel unless a smaller one is requested: HVG and HEG are means over this many genes."""

_USABLE = (
    "A gene is usable if it is found in every training slice, and in at least 10 training spots in all "
    "(1 % of them, at least 2, where there are fewer than 1,000)."
)


def choose_panels(
    log_values: sparse.csr_matrix, slices: np.ndarray, folds: Sequence[Fold], n_top_genes: int
) -> dict[str, np.ndarray]:
    """Choose the panel of each fold on its training slices.

    Parameters
    ----------
    log_values
        Log-normalized expression of all spots, ``(n_spots, n_all_genes)``.
    slices
        Slice of each spot, ``(n_spots,)``.
    folds
        Splits of the spots.
    n_top_genes
        Size of the panel.

    Returns
    -------
    dict of str to numpy.ndarray
        Columns of the panel, by the fold's name.

    Raises
    ------
    ExpressionError
        The training slices of a fold share too few usable genes.
    """
    panels = {}
    for fold in folds:
        values, names = log_values[fold.train], slices[fold.train]
        try:
            # With n_top_genes equal to the number of genes, all usable genes are returned.
            usable = choose_panel(values, names, log_values.shape[1])
        except ExpressionError as error:
            raise ExpressionError(f"Fold {fold.name!r}: {error}") from error
        _check_usable(fold, usable, values, names, n_top_genes)
        columns = usable if len(usable) <= n_top_genes else choose_panel(values, names, n_top_genes)
        panels[fold.name] = columns
    return panels


def _check_usable(
    fold: Fold, usable: np.ndarray, values: sparse.csr_matrix, slices: np.ndarray, n_top_genes: int
) -> None:
    found = {name: (values[slices == name] > 0).getnnz(axis=0)[usable] > 0 for name in dict.fromkeys(slices)}
    shared = int(np.logical_and.reduce(list(found.values())).sum())
    least = min(n_top_genes, _LEAST)
    if shared < least:
        by_slice = ", ".join(f"{name} {int(seen.sum())}" for name, seen in found.items())
        advice = f", or pass n_top_genes={shared} if so few are meant" if shared > 1 else ""
        raise ExpressionError(
            f"Fold {fold.name!r}: its training slices share {shared} usable genes; expected at least {least}. "
            f"{_USABLE} Found by slice: {by_slice}. Leave out the slices that measure other genes or almost none"
            f"{advice}."
        )
    if len(usable) < n_top_genes:
        logger.warning(
            "Fold %s: n_top_genes=%d, but its training slices have %d usable genes: all of them are the panel.",
            fold.name,
            n_top_genes,
            len(usable),
        )


def present(markers: Sequence[str] | None, panel: Sequence[str]) -> list[str] | None:
    """Return the markers if all of them are in the panel; ``None`` if there are none.

    Raises
    ------
    MissingKeyError
        The message lists the markers that are not in the panel.
    """
    if not markers:
        return None
    absent = [gene for gene in markers if gene not in panel]
    if absent:
        raise MissingKeyError(
            f"Markers {absent} are not in the panel of {len(panel)} genes. Leave them out, or widen it."
        )
    return list(markers)


def seeds_of(given: Sequence[int] | None, n: int) -> list[int]:
    """Return the seeds of a call without duplicates; by default ``n`` of them, counted up from ``settings.seed``."""
    return list(dict.fromkeys(range(settings.seed, settings.seed + n) if given is None else map(int, given)))


@checked
@dataclass(frozen=True)
class Protocol:
    """Settings shared by all folds and methods.

    Parameters
    ----------
    by
        Unit that is held out, ``"slice"`` or ``"patient"``.
    n_top_genes
        Size of the panel.
    seeds
        Seeds; every method runs once per seed.
    markers
        Marker genes, for the measure MG.
    slice_key, features_key
        Column of ``obs`` with slices, and key of ``obsm`` with patch features.
    device
        Lightning's accelerator.
    split
        Whether whole slices or patients are held out, or blocks of each slice.
    normalize_total
        Whether expression is log1p of counts per 10,000; otherwise log1p of the counts as they are.
    """

    by: HeldOut
    n_top_genes: Pair
    seeds: Sequence[Seed]
    markers: Sequence[str] | None
    slice_key: str = Keys.SLICE
    features_key: str = Keys.FEATURES
    device: str = "auto"
    split: Split = DEFAULT_SPLIT
    normalize_total: bool = True


@dataclass(frozen=True)
class Plan:
    """Validated protocol for a table of spots.

    Parameters
    ----------
    adata
        Table of the caller; not modified.
    folds, methods, protocol
        Splits of the spots, methods by name, and shared settings.
    log_values
        Log-normalized expression of all spots, ``(n_spots, n_all_genes)``.
    columns
        Columns of each fold's panel, by the fold's name.
    """

    adata: AnnData
    folds: list[Fold]
    methods: dict[str, Method]
    protocol: Protocol
    log_values: sparse.csr_matrix
    columns: dict[str, np.ndarray]

    def panel(self, fold: Fold) -> list[str]:
        """Return the genes that the methods predict in a fold."""
        return list(self.adata.var_names[self.columns[fold.name]])


def make_plan(
    adata: AnnData,
    folds: list[Fold],
    methods: Sequence[str] | Mapping[str, Method],
    protocol: Protocol,
    panel: Sequence[str] | None = None,
) -> Plan:
    """Validate all inputs of an evaluation before a method runs, and choose the panels unless one is given.

    Raises
    ------
    InputError, MissingKeyError
        Or a subclass, for the first problem found.
    """
    chosen = choose_methods(methods)
    if not protocol.normalize_total:
        chosen = {name: on_log_counts(method) for name, method in chosen.items()}
    if not chosen or not protocol.seeds:
        raise InputError(
            f"There is nothing to run: {len(chosen)} methods, {len(protocol.seeds)} seeds. Name at least one each."
        )
    # torch has its own name for Lightning's "gpu".
    choose_device({"gpu": "cuda"}.get(protocol.device, protocol.device))
    _check_table(adata, protocol.features_key)
    _check_sizes(folds, chosen)
    _check_parts(adata, chosen, protocol.features_key)
    baselines = _check_published(adata, chosen, protocol)
    log_values = log_values_of(adata.X, normalize_total=protocol.normalize_total)
    if panel is None:
        slices = adata.obs[protocol.slice_key].astype(str).to_numpy()
        columns = choose_panels(log_values, slices, folds, protocol.n_top_genes)
    else:
        check_panel(list(panel), adata.var_names)
        columns = dict.fromkeys((fold.name for fold in folds), adata.var_names.get_indexer(list(panel)))
    plan = Plan(adata, folds, chosen, protocol, log_values, columns)
    for fold in folds:
        present(protocol.markers, plan.panel(fold))
        if baselines:
            _check_training_spots(plan, fold, baselines)
    return plan


DEFAULT_METHODS = ("default", "bleep", "ridge", "ridge-neighbors", "reduced-rank-ridge", "knn", "mean")
"""Methods that take any features."""


def default_methods(adata: AnnData, features_key: str) -> list[str]:
    """Return the methods that are compared by default: those for any features, and kernel ridge on those there are."""
    kinds = available_kinds(adata, features_key)
    kernels = [name for name, method in METHODS.items() if kind_of(method) in kinds]
    return [*DEFAULT_METHODS[:-2], *kernels, *DEFAULT_METHODS[-2:]]


def kind_of(method: Method) -> EncoderKind | None:
    """Return the kind of encoder whose features a kernel method takes; ``None`` for other methods."""
    if not isinstance(method, partial) or method.func is not kernel_ridge:
        return None
    kind: EncoderKind = method.keywords["encoders"]
    return kind


def choose_methods(methods: Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    """Look up methods by name, or validate a mapping of custom methods.

    Raises
    ------
    InputError
        A name is unknown, or a method cannot be called.
    """
    if isinstance(methods, Mapping):
        for name, method in methods.items():
            if not callable(method):
                raise InputError(
                    f"Method {name!r} is of type {type(method).__name__}; expected a function of a task, such as "
                    "those in st_gchb.evaluate.METHODS."
                )
        return dict(methods)
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        close = list(dict.fromkeys(near for name in unknown for near in get_close_matches(str(name), METHODS, n=2)))
        hint = f"did you mean {' or '.join(map(repr, close))}? All that are " if close else ""
        raise InputError(f"Unknown methods {unknown}; {hint}known: {list(METHODS)}.")
    return {name: METHODS[name] for name in methods}


def _check_table(adata: AnnData, features_key: str) -> None:
    if features_key not in adata.obsm:
        raise MissingKeyError(
            f"obsm has no {features_key!r}; found {list(adata.obsm)}. Run st_gchb.pp.embed_patches first."
        )
    check_features(adata, features_key)
    spot_centers(adata)
    check_names(adata)
    values = read_expression(adata, None, log_normalized=False, remedy=Remedy(adata))
    tell_expression(adata, None, values, log_normalized=False)


def _check_parts(adata: AnnData, methods: Mapping[str, Method], features_key: str) -> None:
    """Reject a kernel method for whose encoders there are no features.

    Raises
    ------
    MissingKeyError
        The message names the method and the features that there are.
    """
    for name, method in methods.items():
        kind = kind_of(method)
        if kind is not None:
            try:
                columns_of(adata, features_key, kind)
            except MissingKeyError as error:
                raise MissingKeyError(f"Method {name!r}: {error}") from error


def _check_published(adata: AnnData, methods: Mapping[str, Method], protocol: Protocol) -> dict[str, Baseline]:
    """Validate presets and settings of published methods, and that the images can be read that they learn from.

    Returns
    -------
    dict
        The published methods by name, not trained.

    Raises
    ------
    InputError, DeviceError
        A preset or setting is unknown, or needs a GPU.
    ImageError, MissingFileError, MissingKeyError
        A slice has no image; the message names the method.
    ScaleError
        The size of a pixel is not known, or a patch is larger than a slide.
    """
    made = {name: baseline_of(method, protocol.device) for name, method in methods.items()}
    baselines = {name: baseline for name, baseline in made.items() if baseline is not None}
    slices = None
    for name, baseline in baselines.items():
        if not baseline.reads_pixels:
            continue
        try:
            slices = slices or slices_of(adata, protocol.slice_key)
            for slide in slices:
                side_px(slide, getattr(baseline.settings, "patch_um", 1.0), None)
        except (InputError, MissingFileError, MissingKeyError) as error:
            raise type(error)(f"Method {name!r} learns from the pixels of patches. {error}") from error
    return baselines


def _check_training_spots(plan: Plan, fold: Fold, baselines: Mapping[str, Baseline]) -> None:
    """Reject a fold whose training spots a published method cannot take, such as slices that are too small for it.

    Raises
    ------
    STGCHBError
        As the method's ``check`` raises it; the message names fold and method.
    """
    protocol = plan.protocol
    train, test = plan.adata[fold.train].copy(), hide_expression(plan.adata[fold.test], protocol.features_key)
    keys = protocol.features_key, protocol.slice_key
    task = Task(train, test, plan.panel(fold), *keys, 0, protocol.device, protocol.normalize_total)
    spots, _ = spots_of(task)
    for name, baseline in baselines.items():
        try:
            baseline.check(spots)
        except STGCHBError as error:
            raise type(error)(f"Fold {fold.name!r}, method {name!r}: {error} Or leave this method out.") from error


def _check_sizes(folds: Sequence[Fold], methods: Mapping[str, Method]) -> None:
    """Reject a fold with fewer training spots than a method retrieves.

    Methods that train the model are checked with their resolved settings, and so are nearest neighbors; the number of
    spots that other methods retrieve is not known.

    Raises
    ------
    InputError
        A fold is too small; the message names fold, method, number of spots and k.
    """
    for fold in folds:
        for name, method in methods.items():
            try:
                _check_size(method, len(fold.train))
            except InputError as error:
                raise InputError(f"Fold {fold.name!r}, method {name!r}: {error} Or leave this method out.") from error


def _check_size(method: Method, n_train: int) -> None:
    resolved = model_settings(method)
    if resolved is not None:
        preset, chosen = resolved
        check_k(chosen, preset, n_train)
        return
    keywords: dict[str, Any] = method.keywords if isinstance(method, partial) else {}
    function = method.func if isinstance(method, partial) else method
    if function is nearest_neighbors:
        k = keywords.get("k", inspect.signature(nearest_neighbors).parameters["k"].default)
        if k > n_train:
            raise InputError(f"k={k}, but the training slices have {n_train} spots. Pass more slices, or a lower k.")
