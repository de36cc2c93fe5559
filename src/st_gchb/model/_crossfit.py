"""Leave-one-slice-out training on the reference, for the calibration of confidence."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse

from st_gchb._constants import Keys
from st_gchb.model._confidence import PREDICTORS, Calibration, HeldOut, calibrate, calibration_folds
from st_gchb.model._fit import Fitted, build_bank, build_module, fit, training_data
from st_gchb.model._inference import embed, locate, seen_context
from st_gchb.model._module import STGCHBModule
from st_gchb.model._read_out import Located, TrainedParts, read_out
from st_gchb.model._settings import ModelSettings
from st_gchb.model._validation import Registered
from st_gchb.nn import STGCHBNetwork
from st_gchb.retrieval import ReferenceBank
from st_gchb.train import TrainingData

Train = Callable[[Any, TrainingData, str], None]
"""Function that trains the ``module`` of its first argument; the last argument is a name for the network."""


class Trainee:
    """Minimal model for scvi-tools' training runner, around a network that is trained for calibration.

    Parameters
    ----------
    module
        The network.
    """

    def __init__(self, module: STGCHBModule) -> None:
        self.module = module
        self.history_: dict[str, Any] | None = None
        self.is_trained_ = False

    def to_device(self, device: torch.device | str) -> None:
        """Move the network to a device."""
        self.module.to(device)


def embed_reference(network: STGCHBNetwork, fitted: Fitted, adata: AnnData, where: Registered) -> ReferenceBank:
    """Embed the reference with a trained network, and build its reference bank."""
    keys = embed(network, fitted.panel, fitted.adjacency, "expression")
    where_spots = (fitted.adjacency, fitted.slices)
    seen = seen_context(network, fitted.rules.context, fitted.context, fitted.features, where_spots)
    image_keys = embed(network, seen, fitted.adjacency, "image")
    return build_bank(adata, where, fitted, keys, image_keys)


def cross_fit(
    adata: AnnData, where: Registered, settings: ModelSettings, whole: Fitted, seed: int, train: Train
) -> Calibration:
    """Train without each slice of the reference in turn, and calibrate confidence on the errors for that slice.

    Input projections, network and bank of a fold are made from the other slices alone. The panel is the model's own,
    since calibration is needed for these genes.

    Parameters
    ----------
    adata, where
        Reference, and the arguments with which it was registered.
    settings, seed
        Settings and seed of the model.
    whole
        Parts that were fitted on the whole reference.
    train
        Function that trains one network.
    """
    panel = list(whole.rules.expression.genes)
    numbers = count(1)
    bare = _bare(adata)

    def held_out(rows: np.ndarray) -> HeldOut:
        others = np.setdiff1d(np.arange(adata.n_obs), rows)
        rest = bare[others].copy()
        held = {"features": whole.features.subset(others), "log_values": whole.log_values[others]}
        fitted = fit(rest, where, settings, panel, seed, **held)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            trainee = Trainee(build_module(fitted, settings))
        train(trainee, training_data(fitted, rest), f"fold_{next(numbers)}")
        bank = embed_reference(trainee.module.network, fitted, rest, where)
        p = TrainedParts(trainee.module.network, fitted.rules, bank, None, settings)
        adjacency = whole.adjacency[rows][:, rows]
        return _held_out(p, locate(p, whole.features.subset(rows), adjacency, whole.slices[rows]), adjacency)

    return calibrate(
        calibration_folds(whole.slices, np.asarray(adata.obsm["spatial"])), held_out, whole.panel, whole.slices
    )


def _held_out(p: TrainedParts, located: Located, adjacency: sparse.csr_matrix) -> HeldOut:
    """Predict the panel of spots whose slices had no part in the training."""
    table = p.bank.table(None)
    prediction, retrieved = np.empty((2, adjacency.shape[0], len(table.columns)), dtype=np.float32)
    predictors = np.empty((len(prediction), len(PREDICTORS)))
    for block in read_out(p, located, table, adjacency):
        rows = block.rows
        prediction[rows], retrieved[rows] = block.values, block.retrieved
        predictors[rows] = block.error_predictors(located, table)
    return HeldOut(prediction, retrieved, predictors)


def _bare(adata: AnnData) -> AnnData:
    """Copy the spots without expression, features and tables, which a fold takes from elsewhere or does not need."""
    parts = {"obs": adata.obs, "var": adata.var, "obsp": dict(adata.obsp)}
    return AnnData(obsm={Keys.SPATIAL: adata.obsm[Keys.SPATIAL]}, uns=dict(adata.uns), **parts)
