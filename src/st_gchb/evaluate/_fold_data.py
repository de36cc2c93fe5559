"""Data of one fold: inputs of the methods, and measured expression with which predictions are scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb._errors import InputError
from st_gchb._matrices import in_memory
from st_gchb.evaluate._folds import Fold, hide_expression
from st_gchb.evaluate._protocol import Plan, Protocol, present
from st_gchb.evaluate._task import Task
from st_gchb.io import hand_on_libraries
from st_gchb.metrics import morans_i, per_gene, summary
from st_gchb.pp import spatial_graph


@dataclass(frozen=True)
class Prepared:
    """Data of one fold.

    Parameters
    ----------
    train, test
        Training spots, and held-out spots without expression.
    panel
        Genes to predict.
    truth
        Log-normalized panel of the held-out spots, ``(n_test, n_genes)``.
    train_mean, train_var
        Mean and variance of the log-normalized panel on the training spots, ``(n_genes,)``.
    graph
        Spot graph of the held-out spots.
    """

    train: AnnData
    test: AnnData
    panel: list[str]
    truth: np.ndarray
    train_mean: np.ndarray
    train_var: np.ndarray
    graph: sparse.csr_matrix

    def task(self, protocol: Protocol, seed: int, checkpoint_dir: Path | None = None) -> Task:
        """Build the task that a method receives."""
        keys = protocol.features_key, protocol.slice_key
        data = self.train, self.test, self.panel
        return Task(*data, *keys, seed, protocol.device, protocol.normalize_total, checkpoint_dir)

    def checked(self, prediction: Any, method: str) -> np.ndarray:
        """Validate a method's prediction, and return it as an array ``(n_test, n_genes)``.

        Raises
        ------
        InputError
            The prediction is not finite, or its shape is not that of held-out spots and panel.
        """
        values = np.asarray(prediction)
        if values.shape != self.truth.shape or not np.isfinite(values).all():
            raise InputError(
                f"Method {method!r} answered with an array of shape {values.shape}; expected finite values, "
                f"{self.truth.shape}: one row per held-out spot, one column per gene of task.panel."
            )
        return values

    def score(self, prediction: np.ndarray, protocol: Protocol) -> tuple[dict[str, float], pd.DataFrame]:
        """Score a prediction, as measures over the panel and as a table with one row per gene.

        The table holds Moran's I of the prediction, ``morans_i``, beside the columns of :func:`per_gene`.
        """
        frame = per_gene(self.truth, prediction, self.panel)
        markers = present(protocol.markers, self.panel)
        row = summary(frame, train_mean=self.train_mean, train_var=self.train_var, markers=markers)
        return row, frame.assign(morans_i=morans_i(prediction, self.graph))

    def to_draw(self, prediction: np.ndarray) -> AnnData:
        """Combine measured and predicted expression in one object, for drawing."""
        result = AnnData(self.truth.copy(), obs=self.test.obs.copy(), var=pd.DataFrame(index=self.panel))
        result.layers[Keys.MEASURED], result.layers[Keys.LAYER] = self.truth, prediction.astype(np.float32)
        result.obsm[Keys.SPATIAL] = self.test.obsm[Keys.SPATIAL]
        hand_on_libraries(self.test, result)
        return result


def prepare(plan: Plan, fold: Fold, graph: sparse.csr_matrix) -> Prepared:
    """Select the data of a fold, whose held-out spots have this spot graph."""
    protocol, columns = plan.protocol, plan.columns[fold.name]
    dense = plan.log_values[fold.train][:, columns].toarray()
    truth = plan.log_values[fold.test][:, columns].toarray()
    hidden = hide_expression(plan.adata[fold.test], protocol.features_key)
    return Prepared(
        train=in_memory(plan.adata[fold.train]),
        test=hidden,
        panel=plan.panel(fold),
        truth=truth,
        train_mean=dense.mean(0),
        train_var=dense.var(0),
        graph=graph,
    )


def graph_of(hidden: AnnData, protocol: Protocol) -> sparse.csr_matrix:
    """Build the spot graph of held-out spots, and write it to them."""
    spatial_graph(hidden, slice_key=protocol.slice_key, features_key=protocol.features_key)
    return hidden.obsp[Keys.CONNECTIVITIES]
