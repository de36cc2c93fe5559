"""Run the training with scvi-tools' runner on Lightning."""

from __future__ import annotations

from typing import Any

import torch
from scvi.train import TrainRunner

from st_gchb._logging import others_quiet
from st_gchb.model._presets import ModelSettings
from st_gchb.train import GraphDataModule, KeepBest, Pretraining, STGCHBTrainingPlan, StopEarly, TrainingData


def run_training(
    model: Any,
    training: TrainingData,
    s: ModelSettings,
    seed: int,
    max_epochs: int,
    batch_size: int,
    *,
    early_stopping: bool,
    accelerator: str,
    devices: int | list[int] | str,
    plan_kwargs: dict[str, Any],
    trainer_kwargs: dict[str, Any],
) -> None:
    """Fit the network with scvi-tools' runner.

    ``model`` is a :class:`~st_gchb.model.STGCHB` or a :class:`~st_gchb.model._crossfit.Trainee`; the other arguments
    are those of :meth:`st_gchb.model.STGCHB.train`.
    """
    data = GraphDataModule(
        training,
        n_hops=model.module.network.n_hops,
        batch_size=batch_size,
        sampler=s.sampler,
        validation_share=s.validation_share,
        seed=seed,
        pretrain_epochs=s.pretrain_epochs,
    )
    plan_arguments = {"optimizer": "AdamW", "lr": s.lr, "weight_decay": s.weight_decay, "eps": 1e-8}
    plan = STGCHBTrainingPlan(model.module, **(plan_arguments | plan_kwargs))
    options = dict(trainer_kwargs)
    callbacks = [*options.pop("callbacks", []), Pretraining(s.pretrain_epochs)]
    if data.n_val:
        options.setdefault("check_val_every_n_epoch", 1)
    if early_stopping and data.n_val:
        callbacks += [KeepBest(), StopEarly(options.pop("early_stopping_patience", s.patience))]
    epochs = s.pretrain_epochs + max_epochs
    # A model that was trained or loaded before is in evaluation mode, and Lightning leaves it there: no dropout.
    model.module.train()
    with others_quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        TrainRunner(model, plan, data, epochs, accelerator, devices, callbacks=callbacks, **options)()
