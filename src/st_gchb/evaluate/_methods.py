"""The methods that an evaluation compares: the model's presets and ablations, and baselines on the same features.

A method takes a :class:`Task` and returns the predicted log-normalized expression of its held-out spots,
``(n_test, n_genes)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from st_gchb._arguments import Seed, checked
from st_gchb._constants import Keys
from st_gchb._logging import steps_quiet
from st_gchb.evaluate._folds import hide_expression
from st_gchb.model import STGCHB, NeighborhoodAggregator
from st_gchb.pp import spatial_graph
from st_gchb.pp.expression import log_normalize
from st_gchb.pp.patches import feature_keys


@checked
@dataclass(frozen=True)
class Task:
    """One fold as a method sees it: the training spots, and the held-out spots without expression.

    :func:`evaluate` makes one for each fold and seed. Both tables have ``obsm["spatial"]`` in full-resolution px, patch
    features in ``obsm[features_key]``, and the slices in ``obs[slice_key]``; images are in ``uns["spatial"]``.

    Parameters
    ----------
    train
        Spots of the training slices, with raw counts in ``X``, ``(n_train, n_all_genes)``. It is not to be changed:
        all methods of a fold get the same one.
    test
        Held-out spots, ``(n_test, 0)``: no genes.
    panel
        Genes to predict, chosen on the training slices.
    features_key
        Key in ``obsm`` of the patch features.
    slice_key
        Column of ``obs`` that tells the slices apart.
    seed
        Seed of the method.
    device
        Lightning's accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``.

    Raises
    ------
    ArgumentError
        An argument is of another type.

    Examples
    --------
    >>> import st_gchb
    >>> from st_gchb.evaluate import Task
    >>> adata = st_gchb.datasets.synthetic_tissue(2, n_rows=6, n_cols=6, n_genes=20)
    >>> st_gchb.pp.embed_patches(adata, encoder="texture", n_views=1, cache=False)
    >>> train, test = (adata[adata.obs["slice"] == name].copy() for name in ("S1", "S2"))
    >>> task = Task(train, test, list(adata.var_names[:5]), "X_patch", "slice", seed=0)
    >>> task.targets().shape
    (36, 5)
    """

    train: AnnData
    test: AnnData
    panel: list[str]
    features_key: str
    slice_key: str
    seed: Seed
    device: str = "auto"

    def targets(self) -> np.ndarray:
        """Log-normalize the training spots and select the panel.

        Returns
        -------
        numpy.ndarray
            ``(n_train, n_genes)`` float32, columns in the order of ``panel``.
        """
        log_values = log_normalize(self.train.X, log_normalized=False)
        return log_values[:, self.train.var_names.get_indexer(self.panel)].toarray()

    def features(self, *, neighbors: bool) -> tuple[np.ndarray, np.ndarray]:
        """Get the patch features of the training and of the held-out spots.

        Parameters
        ----------
        neighbors
            Whether the mean features of each spot's neighbors in the spot graph are appended to its own.

        Returns
        -------
        tuple
            ``(n_train, n_features)`` and ``(n_test, n_features)``, float32; twice as wide with ``neighbors``.
        """
        tables = (self.train, self.test)
        plain = [np.asarray(table.obsm[self.features_key], dtype=np.float32) for table in tables]
        if not neighbors:
            return plain[0], plain[1]
        graphs = [self._graph(table) for table in tables]
        slices = [table.obs[self.slice_key].astype(str).to_numpy() for table in tables]
        look = NeighborhoodAggregator(n_rings=1)
        return look(plain[0], graphs[0], slices[0]), look(plain[1], graphs[1], slices[1])

    def _graph(self, table: AnnData) -> Any:
        probe = hide_expression(table, self.features_key)
        spatial_graph(probe, slice_key=self.slice_key, features_key=self.features_key)
        return probe.obsp[Keys.CONNECTIVITIES].tocsr()


Method = Callable[[Task], np.ndarray]
"""A function of a :class:`Task` that returns predicted log-normalized expression of the held-out spots.

The result is ``(n_test, n_genes)``, finite, its rows in the order of ``task.test``, its columns in that of
``task.panel``. :func:`evaluate` takes methods by name, ``methods={"mine": function}``, and refuses other results with
an :class:`~st_gchb.errors.InputError`. Functions at the top of a file, partials of them and dataclasses with
``__call__`` are identified by their source, so that ``runs_dir`` keeps their runs.
"""


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
    with trained(task.train, where, settings, accelerator=task.device, calibrate=False) as model:
        return model.predict(task.test, slice_key=task.slice_key)


@contextmanager
def trained(train: AnnData, where: dict[str, str], settings: dict[str, Any], **options: Any) -> Iterator[STGCHB]:
    """Train a model on a copy of ``train``, and free the copy afterwards.

    scvi-tools keeps every table that was set up for as long as the process lives: over hundreds of runs, gigabytes.
    """
    table = AnnData(train.X, obs=train.obs.copy(), var=train.var[[]].copy())
    for key in (Keys.SPATIAL, *feature_keys(train, where["features_key"])):
        table.obsm[key] = train.obsm[key]
        if key in train.uns:
            table.uns[key] = train.uns[key]
    STGCHB.setup_anndata(table, **where)  # type: ignore[arg-type]
    model = STGCHB(table, **settings)
    try:
        with steps_quiet():
            model.train(enable_progress_bar=False, enable_checkpointing=False, **options)
        yield model
    finally:
        model.deregister_manager(table)


def _model(task: Task, preset: str, **settings: Any) -> np.ndarray:
    return np.asarray(fit_predict(task, preset, **settings).layers[Keys.LAYER])


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
    "paper": partial(_model, preset="paper"),
    "bleep": partial(_model, preset="bleep"),
    "paper-A": partial(_model, preset="paper", bottleneck=0.0),
    "paper-B": partial(_model, preset="paper", n_expression_components=None),
    "paper-C": partial(_model, preset="paper", dgi_image=0.0),
    "paper-D": partial(_model, preset="paper", dgi_expression=0.0),
    "ridge": partial(ridge, neighbors=False),
    "ridge-neighbors": partial(ridge, neighbors=True),
    "knn": nearest_neighbors,
    "mean": training_mean,
}
"""Methods by the name that tables show. ``paper-A`` to ``paper-D`` are the ablations of the paper's table 2."""
