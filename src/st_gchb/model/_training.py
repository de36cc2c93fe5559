"""Run the training, then make the reference bank and its calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scvi.train import TrainRunner

from st_gchb._logging import others_quiet
from st_gchb.model._calibration import Calibration
from st_gchb.model._fitting import build_bank, training_data
from st_gchb.model._predict import calibrate_bank, embed
from st_gchb.retrieval import ReferenceBank
from st_gchb.train import GraphDataModule, KeepBest, Pretraining, STGCHBTrainingPlan

if TYPE_CHECKING:
    from st_gchb.model._stgchb import STGCHB


def run_training(
    model: STGCHB,
    max_epochs: int,
    batch_size: int,
    *,
    early_stopping: bool,
    accelerator: str,
    devices: int | list[int] | str,
    plan_kwargs: dict[str, Any],
    trainer_kwargs: dict[str, Any],
) -> None:
    """Fit the network with scvi-tools' runner; arguments as :meth:`st_gchb.model.STGCHB.train` takes them."""
    s = model.settings
    data = GraphDataModule(
        training_data(model._fitted, model.adata),
        n_hops=model.module.network.n_hops,
        batch_size=batch_size,
        sampler=s.sampler,
        validation_share=s.validation_share,
        seed=model.seed,
        pretrain_epochs=s.pretrain_epochs,
    )
    plan_arguments = {"optimizer": "AdamW", "lr": s.lr, "weight_decay": s.weight_decay, "eps": 1e-8}
    plan = STGCHBTrainingPlan(model.module, **(plan_arguments | plan_kwargs))
    options = dict(trainer_kwargs)
    callbacks = [*options.pop("callbacks", []), Pretraining(s.pretrain_epochs)]
    if data.n_val:
        options.setdefault("check_val_every_n_epoch", 1)
    if early_stopping and data.n_val:
        callbacks.append(KeepBest())
        stop = {"early_stopping_patience": s.patience, "early_stopping_warmup_epochs": s.pretrain_epochs}
        options = {"early_stopping": True, "early_stopping_monitor": "validation_loss"} | stop | options
    epochs = s.pretrain_epochs + max_epochs
    with others_quiet(), torch.random.fork_rng():
        torch.manual_seed(model.seed)
        TrainRunner(model, plan, data, epochs, accelerator, devices, callbacks=callbacks, **options)()


def build_reference(model: STGCHB) -> tuple[ReferenceBank, Calibration]:
    """Embed the reference, and learn what its own held-out slices say of confidence."""
    fitted = model._fitted
    keys = embed(model.module, fitted.panel, fitted.adjacency, "expression")
    image_keys = embed(model.module, fitted.features, fitted.adjacency, "image")
    bank = build_bank(model.adata, model._where, fitted, keys, image_keys)
    return bank, calibrate_bank(model._predictor_of(bank))
