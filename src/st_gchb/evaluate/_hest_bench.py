"""HEST-Bench: its own protocol on features of an encoder, and methods of the package on the same folds and genes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import nn

from st_gchb._arguments import Count, Micrometers, Seed, checked
from st_gchb._artifacts import encode, write_json, write_whole
from st_gchb._constants import HEST_PATCH_UM, Keys
from st_gchb._errors import ScaleError
from st_gchb._logging import logger
from st_gchb._options import DEFAULT_ENCODERS, Views
from st_gchb.evaluate._evaluate import Evaluation, evaluate
from st_gchb.evaluate._feature_parts import available_kinds
from st_gchb.evaluate._hest_folder import BenchData, find_tasks, read_task
from st_gchb.evaluate._hest_leaderboard import published_scores
from st_gchb.evaluate._protocol import choose_methods, seeds_of
from st_gchb.evaluate._report import machine_and_versions
from st_gchb.evaluate._task import Method, Task
from st_gchb.io import HestPatches
from st_gchb.pp import Encoder, embed_patches
from st_gchb.pp.encoders import choose_device
from st_gchb.pp.patches import encoders_of, feature_parts

_COMPONENTS, _SEED = 256, 1
_SIZE_TOLERANCE = 1.05
_KERNELS = {"image": "kernel-ridge", "texture": "kernel-ridge-texture", "both": "kernel-ridge-both"}


def hest_ridge(task: Task, *, part: str) -> np.ndarray:
    """Predict by HEST-Bench's own regression, with its settings.

    Features are standardized and projected to 256 principal components, both fitted on the training spots. Ridge has no
    intercept and the penalty 100 / (number of components * number of genes); its targets are not centered.

    Parameters
    ----------
    task
        Training and held-out spots.
    part
        Name of the part of the features, one encoder at one patch size, as in ``FeatureSet.names``.

    Returns
    -------
    numpy.ndarray
        ``(n_test, n_genes)``.
    """
    features = feature_parts(task.train, task.features_key)
    columns = slice(None) if features is None else next(one.columns for one in features.parts if one.name == part)
    x, query = (np.asarray(table.obsm[task.features_key])[:, columns] for table in (task.train, task.test))
    n_components = min(_COMPONENTS, *x.shape)
    if n_components < _COMPONENTS:
        logger.warning(
            "%s: %d training spots with %d features have %d principal components; HEST-Bench takes %d.",
            part,
            *x.shape,
            n_components,
            _COMPONENTS,
        )
    scaler = StandardScaler().fit(x)
    # The seeds are HEST-Bench's own, whatever that of the task.
    pca = PCA(n_components, random_state=_SEED).fit(scaler.transform(x))
    # HEST-Bench hands single-precision components to the regression.
    x, query = (pca.transform(scaler.transform(values)).astype(np.float32) for values in (x, query))
    targets = task.targets()
    alpha = 100 / (x.shape[1] * targets.shape[1])
    ridge = Ridge(alpha, solver="lsqr", fit_intercept=False, max_iter=1000, random_state=_SEED)
    return np.asarray(ridge.fit(x, targets).predict(query))


@dataclass(frozen=True)
class HestBench:
    """Results of HEST-Bench.

    Parameters
    ----------
    scores
        One row per task, fold, method and seed: ``pearson``, the correlation over all held-out spots of the fold, mean
        over the task's genes; ``n_train`` and ``n_test``, the numbers of spots.
    genes
        One row per task, fold, method, seed and gene: ``pearson``.
    settings
        Folder, tasks, methods, seeds and features.
    runs
        Number of runs that were computed, ``"made"``, and that were read from ``runs_dir``, ``"taken"``.
    """

    scores: pd.DataFrame
    genes: pd.DataFrame
    settings: dict[str, Any]
    runs: dict[str, int]

    def by_task(self) -> pd.DataFrame:
        """Average over seeds, then compute mean and standard deviation over the folds of a task, as HEST-Bench does.

        Returns
        -------
        pandas.DataFrame
            One row per method and task, with the columns ``pearson_mean``, ``pearson_std`` and ``n_folds``.
        """
        by_fold = self.scores.groupby(["method", "task", "fold"], sort=False)["pearson"].mean()
        groups = by_fold.groupby(["method", "task"], sort=False)
        columns = {"pearson_mean": groups.mean(), "pearson_std": groups.std(ddof=0), "n_folds": groups.size()}
        return pd.DataFrame(columns)

    def table(self) -> pd.DataFrame:
        """Tabulate the mean correlation by method and task, and the mean over tasks in the column ``mean``."""
        table = self.by_task()["pearson_mean"].unstack("task")
        table = table.loc[self.settings["methods"], self.settings["tasks"]]
        table.columns.name = None
        return table.assign(mean=table.mean(axis=1))

    def published(self) -> pd.DataFrame:
        """Return the results that HEST-Bench publishes for the tasks, one row per encoder; empty if there are none."""
        return published_scores(self.settings["tasks"])

    def markdown(self) -> str:
        """Format the results as a Markdown table, with the published ones by encoder below them."""
        own, published = self.table(), self.published()
        by_task = self.by_task()
        # One fold has no spread.
        spread = by_task["pearson_std"].where(by_task["n_folds"] > 1)
        lines = ["| method | " + " | ".join(own.columns) + " |", "| --- |" + " ---: |" * len(own.columns)]
        for method, row in own.iterrows():
            stds = {task: spread[method, task] for task in own.columns[:-1]}
            cells = [_cell(value, stds.get(str(task))) for task, value in row.items()]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        for encoder, row in published.iterrows():
            lines.append(f"| *published: {encoder}* | " + " | ".join(_cell(value) for value in row) + " |")
        return "\n".join(lines)


def _cell(value: float, std: float | None = None) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.4f}" if std is None or pd.isna(std) else f"{value:.4f} ± {std:.4f}"


@checked
def hest_bench(
    folder: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    encoder: str | nn.Module | Encoder | Sequence[str | nn.Module | Encoder] = DEFAULT_ENCODERS,
    weights: str | Path | None | Sequence[str | Path | None] = "default",
    patch_um: Micrometers | Sequence[Micrometers] = HEST_PATCH_UM,
    n_views: Views = 1,
    methods: Sequence[str] | None = None,
    seeds: Sequence[Seed] | None = None,
    device: str = "auto",
    batch_size: Count = 64,
    runs_dir: str | Path | None = None,
    overwrite: bool = False,
    cache: bool = True,
) -> HestBench:
    """Run HEST-Bench: its own regression on the features of each encoder, and the package's methods, on its folds.

    The benchmark's patches are encoded, and its split files, genes and targets (log1p of counts, which are not
    normalized) are used as they are. A score is the correlation of a gene over all held-out spots of a fold together,
    mean over genes; a task's score is the mean over its folds, the last column the mean over tasks.

    Parameters
    ----------
    folder
        The data set ``MahmoodLab/hest-bench``, with a folder for each task, or the folder of one task.
    tasks
        Names of tasks, such as ``["IDC", "PAAD"]``; by default all in the folder.
    encoder, weights
        Encoders as in :func:`st_gchb.pp.embed_patches`. HEST-Bench's own regression is made on each alone, the
        package's methods on all of them side by side.
    patch_um
        Side of a patch, µm. Smaller sizes than the benchmark's 112 µm are cut from the middle of its patches, for the
        package's methods.
    n_views
        Views over which features are averaged; HEST-Bench takes 1.
    methods
        Further methods from :data:`METHODS`; by default ``default``, ``ridge-neighbors``, and kernel ridge on the
        features there are.
    seeds
        Seeds of the package's methods; by default one, ``st_gchb.settings.seed``.
    device
        ``"auto"``, ``"cpu"``, ``"gpu"``.
    batch_size
        Patches per batch.
    runs_dir
        Folder in which finished runs are stored, as in :func:`evaluate`, with a subfolder for each task.
    overwrite
        Delete the runs in ``runs_dir`` first.
    cache
        Whether features are cached.

    Returns
    -------
    HestBench
        Scores by task, fold and method.

    Raises
    ------
    MissingFileError
        A split, list of genes, or file of a sample is missing.
    InputError, MissingKeyError
        Files are damaged or contradict each other, a task or method is unknown; or as in :func:`evaluate`.
    ScaleError
        The benchmark's patches are not 112 µm wide, or ``patch_um`` is larger.

    Examples
    --------
    >>> import st_gchb
    >>> result = st_gchb.evaluate.hest_bench("bench_data", tasks=["IDC"])  # doctest: +SKIP
    >>> result.table()  # doctest: +SKIP
    """
    found = find_tasks(Path(folder), tasks)
    if methods is not None:
        choose_methods(methods)
    sizes = [patch_um] if isinstance(patch_um, int | float) else list(patch_um)
    if not sizes or max(sizes) > HEST_PATCH_UM:
        raise ScaleError(f"patch_um={patch_um}; expected no more than the {HEST_PATCH_UM:g} µm of the patches.")
    options: dict[str, Any] = {"patch_um": patch_um, "n_views": n_views, "batch_size": batch_size, "cache": cache}
    options["device"] = choose_device({"gpu": "cuda"}.get(device, device))
    encoders = encoders_of(encoder, weights, None)
    results: dict[str, Evaluation] = {}
    for task in found:
        data = read_task(task)
        _embed(data, encoders, options)
        chosen = methods_of(data.adata, methods)
        logger.info("HEST-Bench, task %s: %d spots, %d folds.", task.name, data.adata.n_obs, len(data.folds))
        results[task.name] = evaluate(
            data.adata,
            methods=chosen,
            folds=data.folds,
            panel=task.genes,
            normalize_total=False,
            seeds=seeds_of(seeds, 1),
            device=device,
            runs_dir=None if runs_dir is None else Path(runs_dir) / task.name,
            overwrite=overwrite,
        )
        _tell_constant(task.name, results[task.name])
    return _collect(str(folder), results)


def _embed(data: BenchData, encoders: list[Encoder], options: Mapping[str, Any]) -> None:
    """Encode the patches of a task, and write the features to its spots as :func:`embed_patches` would."""
    strips, centers, names = {}, [], []
    for name, patches in data.patches.items():
        _check_side(patches)
        strips[name] = patches.strip(HEST_PATCH_UM)
        centers.append(patches.strip_centers()[data.rows[name]])
        names += [name] * len(data.rows[name])
    # On the strip of a sample, its patches are those of spots, one below the other.
    places = AnnData(obs=pd.DataFrame({Keys.SLICE: pd.Categorical(names)}, index=data.adata.obs_names))
    places.obsm[Keys.SPATIAL] = np.concatenate(centers)
    embed_patches(places, encoder=encoders, image=strips, slice_key=Keys.SLICE, **options)
    data.adata.obsm[Keys.FEATURES] = places.obsm[Keys.FEATURES]
    # The features belong to the spots now, whose pixels have the size of those of the slide.
    sizes = [patches.um_per_px or np.nan for patches in data.patches.values()]
    data.adata.uns[Keys.FEATURES] = {
        **places.uns[Keys.FEATURES],
        "slices": np.array(list(data.patches)),
        "um_per_px": np.array(sizes),
    }


def _check_side(patches: HestPatches) -> None:
    """Validate that the patches are as wide as the benchmark's."""
    side = patches.side_um
    if side is not None and not 1 / _SIZE_TOLERANCE <= side / HEST_PATCH_UM <= _SIZE_TOLERANCE:
        raise ScaleError(
            f"{patches.path}: a patch is {side:.4g} µm wide, by patch_size_src and pixel_size; expected "
            f"{HEST_PATCH_UM:g} µm. Fetch the file again from the data set MahmoodLab/hest-bench."
        )


def methods_of(adata: AnnData, names: Sequence[str] | None) -> dict[str, Method]:
    """Collect the methods of the table: HEST-Bench's regression on each encoder, then the package's.

    Parameters
    ----------
    adata
        Spots with features.
    names
        Names of the package's methods; None for the defaults.
    """
    features = feature_parts(adata, Keys.FEATURES)
    parts = [] if features is None else [part for part in features.parts if part.patch_um == HEST_PATCH_UM]
    own = {f"hest-ridge ({part.name.removesuffix(f', {HEST_PATCH_UM:g} µm')})": part.name for part in parts}
    kernel = _KERNELS[available_kinds(adata, Keys.FEATURES)[-1]]
    chosen = choose_methods(("default", kernel, "ridge-neighbors") if names is None else names)
    return {name: partial(hest_ridge, part=part) for name, part in own.items()} | chosen


def _tell_constant(task: str, result: Evaluation) -> None:
    """Warn of genes that have no correlation; the training mean has none for any."""
    constant = result.genes[result.genes["constant"] & (result.genes["method"] != "mean")]
    if len(constant):
        logger.warning(
            "Task %s: %d correlations are 0 because measurement or prediction has one value in all held-out spots, "
            "first of %r, %s, by %s; in HEST-Bench itself the mean is then NaN.",
            task,
            len(constant),
            *(str(constant.iloc[0][column]) for column in ("gene", "fold", "method")),
        )


def _collect(folder: str, results: Mapping[str, Evaluation]) -> HestBench:
    """Combine the evaluations of the tasks."""
    scores, genes = [], []
    for task, result in results.items():
        sizes = {fold.name: (len(fold.train), len(fold.test)) for fold in result.splits}
        frame = result.scores[["fold", "method", "seed", "AG"]].rename(columns={"AG": "pearson"})
        n_train, n_test = zip(*(sizes[name] for name in frame["fold"]), strict=True)
        scores.append(frame.assign(task=task, n_train=n_train, n_test=n_test))
        genes.append(result.genes[["fold", "method", "seed", "gene", "pearson"]].assign(task=task))
    first = next(iter(results.values()))
    settings = {
        "folder": folder,
        "tasks": list(results),
        "methods": list(dict.fromkeys(name for result in results.values() for name in result.settings["methods"])),
        "seeds": first.settings["seeds"],
        "features": first.settings["features"],
    }
    order = ["task", "fold", "method", "seed", "pearson"]
    runs = {kind: sum(result.runs[kind] for result in results.values()) for kind in ("made", "taken")}
    whole = pd.concat(scores, ignore_index=True)[[*order, "n_train", "n_test"]]
    by_gene = pd.concat(genes, ignore_index=True)[[*order[:-1], "gene", "pearson"]]
    return HestBench(whole, by_gene, settings, runs)


@checked
def write_hest_bench(result: HestBench, folder: str | Path) -> dict[str, Path]:
    """Write results of HEST-Bench to a folder; each file is written completely or not at all.

    Parameters
    ----------
    result
        Result of :func:`hest_bench`.
    folder
        Output folder; created if absent.

    Returns
    -------
    dict of str to pathlib.Path
        Paths by name: ``metrics`` (JSON), ``scores``, ``per_gene`` (CSV) and ``table`` (Markdown).
    """
    out = Path(folder)
    names = {"metrics": "metrics.json", "scores": "scores.csv", "per_gene": "per_gene.csv", "table": "table.md"}
    paths = {name: out / file for name, file in names.items()}
    by_task = json.loads(result.by_task().reset_index().to_json(orient="records"))
    published = json.loads(result.published().to_json(orient="index"))
    content = {"settings": encode(result.settings, strict=True), "runs": result.runs, "by_task": by_task}
    write_json(paths["metrics"], content | {"published": published, **machine_and_versions()}, indent=1)
    for name, frame in (("scores", result.scores), ("per_gene", result.genes)):
        with write_whole(paths[name]) as part:
            frame.to_csv(part, index=False)
    with write_whole(paths["table"]) as part:
        part.write_text(result.markdown() + "\n", encoding="utf-8")
    return paths
