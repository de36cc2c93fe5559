"""Run methods over folds and seeds, by the protocol that every table of the package follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._errors import ExpressionError, InputError, MissingKeyError, SliceError
from st_gchb._logging import logger, track
from st_gchb.evaluate._folds import Fold, hide_expression, leave_one_out
from st_gchb.evaluate._methods import METHODS, Method, Task
from st_gchb.metrics import morans_agreement, per_gene, summary
from st_gchb.model._setup import check_names, pixel_sizes
from st_gchb.pp import spatial_graph
from st_gchb.pp._expression import check_expression, choose_panel, log_normalise

DEFAULT_METHODS = ("default", "bleep", "ridge", "ridge-neighbors", "knn", "mean")


@dataclass
class Evaluation:
    """Results of an evaluation.

    Parameters
    ----------
    scores
        One row per fold, seed and method, with the measures of ``method.summary``.
    genes
        One row per fold, seed, method and gene.
    settings
        What was run.
    pictured
        Measured and predicted expression of one held-out slice by one method, for the figure.
    """

    scores: pd.DataFrame
    genes: pd.DataFrame
    settings: dict[str, Any]
    pictured: AnnData | None = field(default=None)

    def table(self) -> pd.DataFrame:
        """Mean over folds; then mean and standard deviation over seeds, one row per method.

        Columns are pairs of measure and ``"mean"`` or ``"sd"``.
        """
        measures = [name for name in self.scores if name not in ("fold", "seed", "method")]
        by_seed = self.scores.groupby(["method", "seed"], sort=False)[measures].mean()
        table = by_seed.groupby("method", sort=False).agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
        return table.loc[list(dict.fromkeys(self.scores["method"]))]


def evaluate(
    adata: AnnData,
    *,
    methods: Sequence[str] | Mapping[str, Method] = DEFAULT_METHODS,
    by: Literal["slice", "patient"] = "slice",
    n_top_genes: int = 1000,
    seeds: Sequence[int] = (0, 1, 2),
    markers: Sequence[str] | None = None,
    slice_key: str = Keys.SLICE,
    patient_key: str = Keys.PATIENT,
    features_key: str = Keys.FEATURES,
    device: str = "auto",
) -> Evaluation:
    """Leave one slice (or patient) out, predict it by every method, and compare with what was measured.

    Panel, scaling, PCA and every choice of a model see the training slices alone: the methods are handed the held-out
    slice without its expression.

    Parameters
    ----------
    adata
        Raw counts in ``X``, patch features in ``obsm`` (:func:`st_gchb.pp.embed_patches`).
    methods
        Names from :data:`METHODS`, or a mapping of names to methods of your own.
    by
        What is held out.
    n_top_genes
        Size of the panel, chosen anew on the training slices of each fold.
    seeds
        Every method is run once per seed.
    markers
        Genes for the measure MG.
    slice_key, patient_key, features_key
        Where slices, patients and features are.
    device
        Lightning's accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``.

    Raises
    ------
    InputError, MissingKeyError
        Or a subclass, before anything is run.

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.synthetic_tissue(2, n_rows=9, n_cols=9, n_genes=40)
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", cache=False)
    >>> result = st_gchb.evaluate.evaluate(adata, methods=["ridge", "mean"], n_top_genes=30, seeds=[0])
    >>> result.table().index.tolist()
    ['ridge', 'mean']
    """
    folds = leave_one_out(adata, by, slice_key=slice_key, patient_key=patient_key)
    return _evaluate(adata, folds, methods, by, n_top_genes, seeds, markers, slice_key, features_key, device)


def evaluate_fold(
    adata: AnnData,
    held_out: str,
    *,
    methods: Sequence[str] | Mapping[str, Method] = DEFAULT_METHODS,
    n_top_genes: int = 1000,
    seeds: Sequence[int] = (0,),
    markers: Sequence[str] | None = None,
    slice_key: str = Keys.SLICE,
    features_key: str = Keys.FEATURES,
    device: str = "auto",
) -> Evaluation:
    """Hold one slice out, with everything else as in :func:`evaluate`.

    Raises
    ------
    SliceError
        If there is no such slice.
    """
    folds = [fold for fold in leave_one_out(adata, "slice", slice_key=slice_key) if fold.name == held_out]
    if not folds:
        raise SliceError(f"obs[{slice_key!r}] has no slice {held_out!r}; found {sorted(set(adata.obs[slice_key]))}.")
    return _evaluate(adata, folds, methods, "slice", n_top_genes, seeds, markers, slice_key, features_key, device)


def _evaluate(
    adata: AnnData,
    folds: list[Fold],
    methods: Sequence[str] | Mapping[str, Method],
    by: str,
    n_top_genes: int,
    seeds: Sequence[int],
    markers: Sequence[str] | None,
    slice_key: str,
    features_key: str,
    device: str,
) -> Evaluation:
    chosen = _methods(methods)
    if features_key not in adata.obsm:
        raise MissingKeyError(
            f"obsm has no {features_key!r}; found {list(adata.obsm)}. Run st_gchb.pp.embed_patches first."
        )
    check_names(adata)
    check_expression(adata.X, log_normalized=False, name="X")
    seeds = [int(seed) for seed in seeds]
    if not chosen or not seeds:
        raise InputError(f"There is nothing to run: {len(chosen)} methods, {len(seeds)} seeds. Name at least one each.")
    if markers:
        # Each fold has a panel of its own: a marker that one lacks is told now, not after the folds before.
        for fold in folds:
            _present(markers, _prepare(adata, fold, n_top_genes, slice_key, features_key).panel)
    runs = [(fold, name, seed) for fold in folds for name in chosen for seed in seeds]
    scores, genes, pictured = [], [], None
    prepared: dict[str, _Prepared] = {}
    for fold, name, seed in track(runs, "Evaluating"):
        if fold.name not in prepared:
            prepared = {fold.name: _prepare(adata, fold, n_top_genes, slice_key, features_key)}
        ready = prepared[fold.name]
        task = Task(ready.train, ready.test, ready.panel, features_key, slice_key, seed, device)
        prediction = _checked(np.asarray(chosen[name](task)), ready.truth.shape, name)
        frame = per_gene(ready.truth, prediction, ready.panel)
        row: dict[str, Any] = {"fold": fold.name, "seed": seed, "method": name}
        row |= summary(
            frame, train_mean=ready.train_mean, train_var=ready.train_var, markers=_present(markers, ready.panel)
        )
        row["Moran"] = morans_agreement(ready.truth, prediction, ready.graph)["correlation"]
        logger.info(
            "%s, %s, seed %d: AG %.4f, HVG %.4f, HEG %.4f", fold.name, name, seed, row["AG"], row["HVG"], row["HEG"]
        )
        scores.append(row)
        genes.append(frame.rename_axis("gene").reset_index().assign(fold=fold.name, seed=seed, method=name))
        if fold is folds[-1] and name == next(iter(chosen)) and seed == seeds[0]:
            pictured = _picture(ready, prediction)
    settings = {
        "by": by,
        "folds": [fold.name for fold in folds],
        "methods": list(chosen),
        "n_top_genes": n_top_genes,
        "seeds": seeds,
        "features": {key: _plain(value) for key, value in adata.uns.get(features_key, {}).items()},
    }
    return Evaluation(pd.DataFrame(scores), pd.concat(genes, ignore_index=True), settings, pictured)


@dataclass(frozen=True)
class _Prepared:
    train: AnnData
    test: AnnData
    panel: list[str]
    truth: np.ndarray
    train_mean: np.ndarray
    train_var: np.ndarray
    graph: sparse.csr_matrix


def _prepare(adata: AnnData, fold: Fold, n_top_genes: int, slice_key: str, features_key: str) -> _Prepared:
    train, test = adata[fold.train].copy(), adata[fold.test]
    log_train = log_normalise(train.X, log_normalized=False)
    slices = train.obs[slice_key].astype(str).to_numpy()
    columns = choose_panel(log_train, train.var_names, slices, n_top_genes)
    if len(columns) < 2:
        raise ExpressionError(
            f"Fold {fold.name}: the training slices share {len(columns)} usable genes; at least 2 needed."
        )
    dense = log_train[:, columns].toarray()
    truth = log_normalise(test.X, log_normalized=False)[:, columns].toarray()
    hidden = hide_expression(test, features_key)
    graph = hidden.copy()
    spatial_graph(graph, slice_key=slice_key, um_per_px=pixel_sizes(hidden, features_key))
    return _Prepared(
        train,
        hidden,
        list(train.var_names[columns]),
        truth,
        dense.mean(0),
        dense.var(0),
        graph.obsp[Keys.CONNECTIVITIES],
    )


def _picture(ready: _Prepared, prediction: np.ndarray) -> AnnData:
    result = AnnData(ready.truth.copy(), obs=ready.test.obs.copy(), var=pd.DataFrame(index=ready.panel))
    result.layers[Keys.MEASURED], result.layers[Keys.LAYER] = ready.truth, prediction.astype(np.float32)
    result.obsm[Keys.SPATIAL] = ready.test.obsm[Keys.SPATIAL]
    if Keys.SPATIAL in ready.test.uns:
        result.uns[Keys.SPATIAL] = ready.test.uns[Keys.SPATIAL]
    return result


def _methods(methods: Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    if isinstance(methods, Mapping):
        return dict(methods)
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise InputError(f"Unknown methods {unknown}; known: {list(METHODS)}.")
    return {name: METHODS[name] for name in methods}


def _checked(prediction: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    if prediction.shape != shape or not np.isfinite(prediction).all():
        raise InputError(
            f"Method {name!r} answered with an array of shape {prediction.shape}; expected finite values, {shape}: "
            "one row per held-out spot, one column per gene of task.panel."
        )
    return prediction


def _present(markers: Sequence[str] | None, panel: list[str]) -> list[str] | None:
    if not markers:
        return None
    absent = [gene for gene in markers if gene not in panel]
    if absent:
        raise MissingKeyError(
            f"Markers {absent} are not in the panel of {len(panel)} genes. Leave them out, or widen it."
        )
    return list(markers)


def _plain(value: Any) -> Any:
    plain = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(plain, list):
        return [_plain(item) for item in plain]
    # JSON has no word for what is not a number.
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain
