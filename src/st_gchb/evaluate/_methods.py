"""The methods that an evaluation compares: the model's presets and ablations, and baselines on the same features.

A method takes a :class:`~st_gchb.evaluate.Task` and returns the predicted log-normalized expression of its held-out
spots, ``(n_test, n_genes)``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from st_gchb._constants import Keys
from st_gchb._errors import CheckpointError
from st_gchb._logging import logger, steps_quiet
from st_gchb.evaluate._kernel import kernel_ridge, reduced_rank_ridge
from st_gchb.evaluate._published import PUBLISHED
from st_gchb.evaluate._task import Method, Task
from st_gchb.model import STGCHB
from st_gchb.pp.expression import log_values_of
from st_gchb.pp.patches import feature_keys


def fit_predict(task: Task, preset: str = "default", **settings: Any) -> AnnData:
    """Train the model on a task and predict its held-out spots.

    Parameters
    ----------
    task
        Training and held-out spots.
    preset
        Preset of :class:`~st_gchb.model.STGCHB`.
    settings
        Further settings of the model.

    Returns
    -------
    AnnData
        As :meth:`STGCHB.predict <st_gchb.model.STGCHB.predict>`.
    """
    settings = {"preset": preset, "panel": task.panel, "seed": task.seed} | settings
    where = {"slice_key": task.slice_key, "features_key": task.features_key}
    with trained(task.train, where, settings, **_options(task)) as model:
        return model.predict(task.test, slice_key=task.slice_key)


@contextmanager
def trained(
    train: AnnData,
    where: dict[str, str],
    settings: dict[str, Any],
    *,
    checkpoint_dir: Path | None = None,
    **options: Any,
) -> Iterator[STGCHB]:
    """Train a model on a copy of ``train``, and free the copy afterwards.

    scvi-tools keeps every table that was set up for as long as the process lives: over hundreds of runs, gigabytes.
    With ``checkpoint_dir``, a training that was interrupted goes on from the checkpoint there.
    """
    table = AnnData(train.X, obs=train.obs.copy(), var=train.var[[]].copy())
    for key in (Keys.SPATIAL, *feature_keys(train, where["features_key"])):
        table.obsm[key] = train.obsm[key]
        if key in train.uns:
            table.uns[key] = train.uns[key]
    STGCHB.setup_anndata(table, **where)  # type: ignore[arg-type]
    model = STGCHB(table, **settings)
    try:
        _train(model, checkpoint_dir, **options)
        yield model
    finally:
        model.deregister_manager(table)


def _train(model: STGCHB, checkpoint_dir: Path | None, **options: Any) -> None:
    """Train a model, from its checkpoint if there is one that is whole and of this training."""
    options |= {"enable_progress_bar": False, "enable_checkpointing": checkpoint_dir is not None}
    if checkpoint_dir is not None and any(checkpoint_dir.glob("*.checkpoint")):
        logger.info("The training goes on from its checkpoint in %s.", checkpoint_dir)
        try:
            with steps_quiet():
                model.train(checkpoint_dir=checkpoint_dir, resume=True, **options)
            return
        except CheckpointError:
            logger.warning("The checkpoint in %s is damaged, or of another training; it begins anew.", checkpoint_dir)
            shutil.rmtree(checkpoint_dir)
    with steps_quiet():
        model.train(checkpoint_dir=checkpoint_dir, **options)


def _options(task: Task) -> dict[str, Any]:
    return {"accelerator": task.device, "calibrate": False, "checkpoint_dir": task.checkpoint_dir}


def _model(task: Task, preset: str, **settings: Any) -> np.ndarray:
    return np.asarray(fit_predict(task, preset, **settings).layers[Keys.LAYER])


def _model_of_log_counts(task: Task, preset: str, **settings: Any) -> np.ndarray:
    """Train the model on log1p of counts that are not normalized by the total of their spot, and predict these."""
    logs = task.train.copy()
    logs.X = log_values_of(logs.X, normalize_total=False)
    settings = {"preset": preset, "panel": task.panel, "seed": task.seed} | settings
    where: dict[str, Any] = {"slice_key": task.slice_key, "features_key": task.features_key, "log_normalized": True}
    with trained(logs, where, settings, **_options(task)) as model:
        return np.asarray(model.predict(task.test, slice_key=task.slice_key).layers[Keys.LAYER])


def on_log_counts(method: Method) -> Method:
    """Return a method for tasks without ``normalize_total``: the model is trained on log1p of counts as they are."""
    if isinstance(method, partial) and method.func is _model:
        return partial(_model_of_log_counts, *method.args, **method.keywords)
    return method


def training_mean(task: Task) -> np.ndarray:
    """Per-gene mean of the training spots, for every held-out spot: correlation is 0 by definition."""
    return np.repeat(task.targets().mean(0, keepdims=True), task.test.n_obs, axis=0)


def ridge(task: Task, *, neighbors: bool) -> np.ndarray:
    """Ridge on 256 principal components of the standardized features, with HEST-Bench's number of components.

    The penalty is 1.2 % of the components' total variance: a strong one, with which this baseline does better than
    with HEST-Bench's 100 / (n_components * n_genes).
    """
    train, test = task.features(neighbors=neighbors)
    scaler = StandardScaler().fit(train)
    pca = PCA(min(256, len(train) - 1, train.shape[1]), random_state=task.seed).fit(scaler.transform(train))
    x, query = pca.transform(scaler.transform(train)), pca.transform(scaler.transform(test))
    penalty = 0.012 * float((x**2).sum())
    return Ridge(alpha=penalty).fit(x, task.targets()).predict(query)


def nearest_neighbors(task: Task, *, k: int = 50) -> np.ndarray:
    """Mean expression of the k training spots whose patches are nearest in the standardized feature space."""
    train, test = task.features(neighbors=False)
    scaler = StandardScaler().fit(train)
    search = NearestNeighbors(n_neighbors=min(k, len(train)), metric="cosine", algorithm="brute")
    ids = search.fit(scaler.transform(train)).kneighbors(scaler.transform(test), return_distance=False)
    return task.targets()[ids].mean(1)


METHODS: dict[str, Method] = {
    "default": partial(_model, preset="default"),
    "kernel-head": partial(_model, preset="default", kernel_weight=1.0, sharpening=0.0, max_epochs=1),
    "paper": partial(_model, preset="paper"),
    "bleep": partial(_model, preset="bleep"),
    "paper-A": partial(_model, preset="paper", bottleneck=0.0),
    "paper-B": partial(_model, preset="paper", n_expression_components=None),
    "paper-C": partial(_model, preset="paper", dgi_image=0.0),
    "paper-D": partial(_model, preset="paper", dgi_expression=0.0),
    "ridge": partial(ridge, neighbors=False),
    "ridge-neighbors": partial(ridge, neighbors=True),
    "reduced-rank-ridge": reduced_rank_ridge,
    "kernel-ridge": partial(kernel_ridge, encoders="image"),
    "kernel-ridge-texture": partial(kernel_ridge, encoders="texture"),
    "kernel-ridge-both": partial(kernel_ridge, encoders="both"),
    "knn": nearest_neighbors,
    "mean": training_mean,
    **PUBLISHED,
}
"""Methods by the name that tables show.

``kernel-head`` is the default's kernel head alone, without retrieval; ``paper-A`` to ``paper-D`` are the ablations of
the paper's table 2. Methods of other publications, such as ``thitogene``, are trained at a size for two cores;
``thitogene-published`` has the publication's sizes and epochs.
"""
