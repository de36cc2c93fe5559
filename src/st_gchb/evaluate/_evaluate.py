"""Evaluation of methods over folds and seeds, by the protocol that all tables of the package follow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from st_gchb._arguments import Pair, Seed, checked
from st_gchb._artifacts import encode
from st_gchb._constants import Keys
from st_gchb._errors import MissingKeyError
from st_gchb._logging import logger, track
from st_gchb._options import DEFAULT_HELD_OUT, DEFAULT_SPLIT, EVALUATION_GENES, HeldOut, Split
from st_gchb._signals import ended_by_signal
from st_gchb.evaluate._fold_data import Prepared, prepare
from st_gchb.evaluate._folds import Fold, check_folds, hold_one_out, split_folds
from st_gchb.evaluate._noise import noise_of, warn_of_old_runs
from st_gchb.evaluate._protocol import Plan, Protocol, default_methods, make_plan, seeds_of
from st_gchb.evaluate._run_cache import Run, RunFolder, RunKey, keys_of
from st_gchb.evaluate._task import Method
from st_gchb.io import hand_on_libraries
from st_gchb.pp.expression import log_values_of


@dataclass
class Evaluation:
    """Results of an evaluation.

    Parameters
    ----------
    scores
        One row per fold, seed and method, with the measures of :func:`st_gchb.metrics.summary`, those of
        :func:`st_gchb.metrics.share_of_ceiling` with the held-out spots' counts, and the agreement of the prediction's
        Moran's I with that of the held-out spots without counting noise (:func:`st_gchb.metrics.noise_free_agreement`)
        over the 50 genes of HVG: ``Moran_difference`` (mean absolute difference) and ``Moran_rank`` (rank correlation).
        ``n_Moran`` is the number of these genes that were compared; the others are uncertain.
    genes
        One row per fold, seed, method and gene: the columns of :func:`st_gchb.metrics.per_gene`, Moran's I of the
        prediction and that of the counts without noise (NaN for genes where it is uncertain), ``ceiling`` and
        ``uncertain`` of :func:`st_gchb.metrics.noise_ceiling`.
    settings
        Folds, methods, seeds and other settings of the evaluation.
    pictured
        Measured and predicted expression of one held-out slice by one method, for the figure.
    runs
        Number of runs that were computed, ``"made"``, and that were read from ``runs_dir``, ``"taken"``.
    predictions
        With ``keep_predictions``, predicted log-normalized expression of every run by fold, method and seed, each
        ``(n_test, n_genes)`` in the order of the fold's spots and of its genes in ``genes``.
    splits
        Rows of the folds.
    """

    scores: pd.DataFrame
    genes: pd.DataFrame
    settings: dict[str, Any]
    pictured: AnnData | None = field(default=None)
    runs: dict[str, int] = field(default_factory=dict)
    predictions: dict[tuple[str, str, int], np.ndarray] = field(default_factory=dict)
    splits: list[Fold] = field(default_factory=list, repr=False)

    def table(self) -> pd.DataFrame:
        """Average the measures over folds, then compute mean and standard deviation over seeds.

        Returns
        -------
        pandas.DataFrame
            One row per method; columns are pairs of measure and ``"mean"`` or ``"sd"``.
        """
        measures = [name for name in self.scores if name not in ("fold", "seed", "method")]
        by_seed = self.scores.groupby(["method", "seed"], sort=False)[measures].mean()
        table = by_seed.groupby("method", sort=False).agg(["mean", "std"]).rename(columns={"std": "sd"}, level=1)
        return table.loc[list(dict.fromkeys(self.scores["method"]))]

    def compared(
        self,
        adata: AnnData,
        fold: str,
        *,
        seed: int | None = None,
        slice_key: str = Keys.SLICE,
        patient_key: str = Keys.PATIENT,
    ) -> AnnData:
        """Collect measured and predicted expression of a fold by method, for :func:`st_gchb.pl.compare_methods`.

        Parameters
        ----------
        adata
            The object that was evaluated.
        fold
            Name of the held-out slice, patient or block.
        seed
            Seed of the predictions; by default the first.
        slice_key, patient_key
            Columns of ``obs`` as :func:`evaluate` was given them.

        Returns
        -------
        AnnData
            The held-out spots and the fold's genes: log-normalized expression in ``X`` and ``layers["measured"]``, and
            one layer per method.

        Raises
        ------
        MissingKeyError
            There is no such fold or seed, or predictions were not kept.
        """
        seeds, folds = self.settings["seeds"], self.settings["folds"]
        chosen = seeds[0] if seed is None else seed
        found = {method: p for (where, method, own), p in self.predictions.items() if (where, own) == (fold, chosen)}
        if not found:
            kept = "" if self.predictions else " No predictions were kept: evaluate with keep_predictions=True."
            raise MissingKeyError(
                f"fold {fold!r}, seed {chosen}: no predictions; found folds {folds}, seeds {seeds}.{kept}"
            )
        where = {"slice_key": slice_key, "patient_key": patient_key}
        splits = self.splits or split_folds(adata, self.settings["split"], self.settings["by"], **where)
        held_out = next(one for one in splits if one.name == fold)
        genes = self.genes.loc[self.genes["fold"] == fold, "gene"].drop_duplicates()
        spots = adata[held_out.test]
        log_values = log_values_of(spots.X, normalize_total=self.settings.get("normalize_total", True))
        values = log_values[:, adata.var_names.get_indexer(genes)].toarray()
        table = AnnData(values, obs=spots.obs.copy(), var=pd.DataFrame(index=genes.astype(str)))
        table.layers[Keys.MEASURED] = values
        for method, prediction in found.items():
            table.layers[method] = np.asarray(prediction, dtype=np.float32)
        table.obsm[Keys.SPATIAL] = spots.obsm[Keys.SPATIAL]
        hand_on_libraries(spots, table)
        return table


RunId = tuple[str, str, int]
"""Fold, method and seed of a run."""


@checked
def evaluate(
    adata: AnnData,
    *,
    methods: Sequence[str] | Mapping[str, Method] | None = None,
    split: Split = DEFAULT_SPLIT,
    by: HeldOut = DEFAULT_HELD_OUT,
    n_top_genes: Pair = EVALUATION_GENES,
    seeds: Sequence[Seed] | None = None,
    markers: Sequence[str] | None = None,
    slice_key: str = Keys.SLICE,
    patient_key: str = Keys.PATIENT,
    features_key: str = Keys.FEATURES,
    device: str = "auto",
    runs_dir: str | Path | None = None,
    overwrite: bool = False,
    keep_predictions: bool = False,
    folds: Sequence[Fold] | None = None,
    panel: Sequence[str] | None = None,
    normalize_total: bool = True,
) -> Evaluation:
    """Leave each slice, patient or block out, predict it by every method, and compare with the measured expression.

    Panel, scaling, PCA and all choices of a model are made on the training spots alone: methods receive the held-out
    ones without their expression. A gene that has no counts in the held-out spots counts as correlation 0.

    Parameters
    ----------
    adata
        Raw counts in ``X``, patch features in ``obsm`` (:func:`st_gchb.pp.embed_patches`).
    methods
        Names from :data:`METHODS`, or a mapping from names to custom methods. By default the default and BLEEP presets,
        ridge, reduced-rank ridge, nearest neighbors and the training mean, and kernel ridge on the features there are.
    split
        ``"section"`` holds whole slices out. ``"blocks"`` holds out each quadrant of each slice, and trains on its
        other quadrants, without spots nearer than two pitches: see :func:`leave_blocks_out`.
    by
        Unit that ``"section"`` holds out: one slice, or all slices of a patient.
    n_top_genes
        Size of the panel, which is chosen on the training slices of each fold.
    seeds
        Seeds; every method runs once per seed. By default three, counted up from ``st_gchb.settings.seed``.
    markers
        Marker genes, for the measure MG.
    slice_key, patient_key
        Columns of ``obs`` with slices and patients.
    features_key
        Key of ``obsm`` with patch features.
    device
        Lightning's accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``.
    runs_dir
        Folder in which every finished run (one fold, method and seed) is stored. A later call reuses the runs whose
        data, protocol, method with all of its settings, seed, device and package version are the same, and computes
        the others, so that an interrupted evaluation can be continued; a model in training goes on from its last
        epoch. A custom method is identified by its name, source and keywords, not by the functions that it calls;
        closures, lambdas and objects other than instances of dataclasses are not stored.
    overwrite
        Delete the runs in ``runs_dir`` first.
    keep_predictions
        Return the predicted expression of all runs, and store it with them in ``runs_dir``. By default only that of
        the run that is drawn.
    folds
        Folds of your own, such as those of a benchmark, in place of those of ``split`` and ``by``.
    panel
        Genes to predict in every fold, in place of those that are chosen on its training slices.
    normalize_total
        Predict log1p of counts per 10,000 of the spot. False: log1p of the counts as they are, as benchmarks have it
        whose targets are not normalized; the measures that compare with counting noise are then left out.

    Returns
    -------
    Evaluation
        Scores of all folds, methods and seeds.

    Raises
    ------
    InputError, MissingKeyError
        Or a subclass, before any method runs.

    Examples
    --------
    >>> import st_gchb
    >>> adata = st_gchb.datasets.synthetic_tissue(2, n_rows=7, n_cols=7, n_genes=40)
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", patch_um=150, n_views=1, cache=False)
    >>> result = st_gchb.evaluate.evaluate(adata, methods=["ridge", "mean"], n_top_genes=30, seeds=[0])
    >>> result.table().index.tolist()
    ['ridge', 'mean']
    """
    if folds is None:
        given = split_folds(adata, split, by, slice_key=slice_key, patient_key=patient_key)
    else:
        given = check_folds(adata, folds, slice_key=slice_key)
    n_genes = n_top_genes if panel is None else max(len(panel), 2)
    keys = slice_key, features_key, device, split
    protocol = Protocol(by, n_genes, seeds_of(seeds, 3), markers, *keys, normalize_total=normalize_total)
    chosen = default_methods(adata, features_key) if methods is None else methods
    plan = make_plan(adata, given, chosen, protocol, panel)
    result = _evaluate(plan, runs_dir, overwrite, keep_predictions=keep_predictions)
    if folds is not None:
        result.settings["split"] = "given"
    return result


@checked
def evaluate_fold(
    adata: AnnData,
    held_out: str,
    *,
    methods: Sequence[str] | Mapping[str, Method] | None = None,
    split: Split = DEFAULT_SPLIT,
    n_top_genes: Pair = EVALUATION_GENES,
    seeds: Sequence[Seed] | None = None,
    markers: Sequence[str] | None = None,
    slice_key: str = Keys.SLICE,
    features_key: str = Keys.FEATURES,
    device: str = "auto",
    runs_dir: str | Path | None = None,
    overwrite: bool = False,
    keep_predictions: bool = False,
) -> Evaluation:
    """Leave a single slice or block out; parameters are those of :func:`evaluate`, which can reuse its runs.

    Raises
    ------
    SliceError
        The slice or block does not exist.
    """
    folds = hold_one_out(adata, held_out, split=split, slice_key=slice_key)
    protocol = Protocol("slice", n_top_genes, seeds_of(seeds, 1), markers, slice_key, features_key, device, split)
    chosen = default_methods(adata, features_key) if methods is None else methods
    return _evaluate(make_plan(adata, folds, chosen, protocol), runs_dir, overwrite, keep_predictions=keep_predictions)


def _evaluate(
    plan: Plan, runs_dir: str | Path | None, overwrite: bool, *, keep_predictions: bool = False
) -> Evaluation:
    """Compute all runs that are not stored from an earlier call."""
    kept = "Pass runs_dir= to keep finished runs, from which the same call goes on."
    advice = kept if runs_dir is None else f"Finished runs are in {runs_dir}: the same call goes on with the others."
    with ended_by_signal("Evaluation", advice):
        return _evaluated(plan, runs_dir, overwrite, keep_predictions)


def _evaluated(plan: Plan, runs_dir: str | Path | None, overwrite: bool, keep_predictions: bool) -> Evaluation:
    ids = [(fold.name, name, seed) for fold in plan.folds for name in plan.methods for seed in plan.protocol.seeds]
    pictured = (plan.folds[-1].name, next(iter(plan.methods)), plan.protocol.seeds[0])
    kept = set(ids) if keep_predictions else {pictured}
    keys: dict[RunId, RunKey | None] = {}
    folder, runs = None, {}
    if runs_dir is not None:
        keys, folder = keys_of(plan), RunFolder(runs_dir)
        if overwrite:
            folder.clear()
        runs = _taken(folder, keys, kept)
    missing = [run_id for run_id in ids if run_id not in runs]
    folds = {fold.name: fold for fold in plan.folds}
    noise = {name: noise_of(plan, fold) for name, fold in folds.items()}
    # Runs are ordered by fold, so only one fold is in memory at a time.
    ready = lru_cache(maxsize=1)(lambda name: prepare(plan, folds[name], noise[name].graph))
    for run_id in track(missing, "Evaluating"):
        key = keys.get(run_id)
        checkpoints = None if folder is None or key is None else folder.checkpoint_dir(key)
        runs[run_id] = _run(plan, ready(run_id[0]), run_id, checkpoints, keep_prediction=run_id in kept)
        if folder is not None and key is not None:
            folder.write(key, runs[run_id])
    prediction = runs[pictured].prediction
    warn_of_old_runs(list(runs.values()))
    genes = {run_id: noise[run_id[0]].genes(runs[run_id]) for run_id in ids}
    return Evaluation(
        pd.DataFrame([_named(run_id) | noise[run_id[0]].row(runs[run_id]) for run_id in ids]),
        pd.concat([genes[run_id].reset_index().assign(**_named(run_id)) for run_id in ids], ignore_index=True),
        _settings(plan),
        None if prediction is None else ready(pictured[0]).to_draw(prediction),
        {"made": len(missing), "taken": len(ids) - len(missing)},
        {run_id: found for run_id in ids if keep_predictions and (found := runs[run_id].prediction) is not None},
        list(plan.folds),
    )


def _taken(folder: RunFolder, keys: Mapping[RunId, RunKey | None], kept: Collection[RunId]) -> dict[RunId, Run]:
    """Read the runs that are stored in the folder already."""
    nameless = sorted({name for (_, name, _), key in keys.items() if key is None})
    if nameless:
        logger.info(
            "Methods %s are made every time: no other process could tell their runs from those of other functions. "
            "Functions at the top of a file, partials of them, and dataclasses with __call__ are kept.",
            nameless,
        )
    found = {
        run_id: folder.read(key, with_prediction=run_id in kept) for run_id, key in keys.items() if key is not None
    }
    runs = {run_id: run for run_id, run in found.items() if run is not None}
    logger.info("%d of %d runs taken from %s.", len(runs), len(keys), folder.path)
    return runs


def _run(plan: Plan, ready: Prepared, run_id: RunId, checkpoints: Path | None, *, keep_prediction: bool) -> Run:
    fold, name, seed = run_id
    prediction = ready.checked(plan.methods[name](ready.task(plan.protocol, seed, checkpoints)), name)
    row, frame = ready.score(prediction, plan.protocol)
    logger.info("%s, %s, seed %d: AG %.4f, HVG %.4f, HEG %.4f", fold, name, seed, row["AG"], row["HVG"], row["HEG"])
    return Run(row, frame.rename_axis("gene"), prediction if keep_prediction else None)


def _named(run_id: RunId) -> dict[str, Any]:
    fold, method, seed = run_id
    return {"fold": fold, "seed": seed, "method": method}


def _settings(plan: Plan) -> dict[str, Any]:
    protocol = plan.protocol
    depth = {} if protocol.normalize_total else {"normalize_total": False}
    return depth | {
        "split": protocol.split,
        "by": protocol.by,
        "folds": [fold.name for fold in plan.folds],
        "methods": list(plan.methods),
        "n_top_genes": protocol.n_top_genes,
        "seeds": list(protocol.seeds),
        "features": encode(dict(plan.adata.uns.get(protocol.features_key, {})), strict=True),
    }
